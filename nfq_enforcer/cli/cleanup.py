"""``nfq-enforcer cleanup``."""

from nfq_enforcer.cli import output


def cleanup() -> None:
    """Remove every rule, chain and set of nfq_enforcer, after an agent that ended without removing them.

    A running agent restores them.
    """
    from nfq_enforcer.dataplane.rules import iptables

    iptables.check()
    removed = iptables.remove()
    output.line(f"removed {', '.join(removed)}" if removed else "nothing of nfq_enforcer is there")
