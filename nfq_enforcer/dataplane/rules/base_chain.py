"""Position of our jumps in base chains: before every rule of others by which a packet could skip them.

A rule that can end the base chain with ACCEPT takes enforcement away from the packets that it matches, if it precedes
our jump: ``ACCEPT`` itself, ``RETURN`` (the policy of the chain follows), a jump to a chain of others, a queue of
others. Targets that drop the packet, or after which the base chain goes on (``LOG``, ``SECMARK``), may precede it.
"""

import shlex
from collections.abc import Sequence

_DROPPING = ("DROP", "REJECT")
_CONTINUING = (
    *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED"),
    *("LOG", "MARK", "NFLOG", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL"),
    "ULOG",
)
_HARMLESS = frozenset((*_DROPPING, *_CONTINUING))


def target(rule: str) -> str | None:
    """Return the target of a rule in the form of iptables-save, None for a rule that only counts packets."""
    words = shlex.split(rule)  # a comment, quoted, is one word
    places = [place for place, word in enumerate(words[:-1]) if word in ("-j", "-g")]
    return words[places[-1] + 1] if places else None


def can_accept(rule: str) -> bool:
    """Return whether the rule can end its base chain with ACCEPT; an unknown target can."""
    try:
        name = target(rule)
    except ValueError:  # quotes that do not end
        return True
    return name is not None and name not in _HARMLESS


def place_jump(base: str, chain: str, rules: Sequence[str], *, first: bool) -> list[str]:
    """Return the lines for ``iptables-restore --noflush`` that put the jump from a base chain into its place.

    ``rules`` are those that the base chain has; no line means that the jump is in its place. An absent jump becomes the
    first rule, or with ``first=False`` the last one before a rule that can accept. Deletion and insertion are in one
    transaction of iptables-restore, so no packet meets the chain without the jump.
    """
    jump = f"-j {chain}"
    end = next((place for place, rule in enumerate(rules) if rule != jump and can_accept(rule)), len(rules))
    if jump in rules[:end]:
        return []
    surplus = [f"-D {base} {jump}"] * rules.count(jump)
    if first:
        return [*surplus, f"-I {base} 1 {jump}"]
    return [*surplus, f"-A {base} {jump}" if end == len(rules) else f"-I {base} {end + 1} {jump}"]
