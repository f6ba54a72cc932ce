"""Rollout of a policy change: the live nodes that enforce it, and the other nodes."""

from collections.abc import Mapping
from typing import Any

from nfq_enforcer.cli import output
from nfq_enforcer.errors import OutcomeUnknown


def report(applied: Mapping[str, Any], waited: int) -> None:
    """Print the rollout of ``apply`` or ``delete`` after ``waited`` seconds.

    Raise OutcomeUnknown if a live node lacks it.
    """
    change = "what was applied" if applied["revision"] is None else f"revision {applied['revision']}"
    if "nodes" not in applied:
        output.line(f"{change} is in force")
        return
    live = [node for node in applied["nodes"] if node["live"]]
    behind = [node["name"] for node in live if not node["enforced"]]
    output.line(f"{change} is in force on {len(live) - len(behind)} of {len(live)} live nodes")
    away = [node for node in applied["nodes"] if not node["live"]]
    if away:
        output.line(f"not waited for: {', '.join(map(_away, away))}")
    if behind:
        raise OutcomeUnknown(
            f"{change} is not in force after {waited} seconds on {', '.join(behind)}; it may still come to be: "
            "check with 'nfq-enforcer node list'"
        )


def _away(node: Mapping[str, Any]) -> str:
    seen = node.get("last_seen")
    return f"{node['name']} (last seen {seen})" if seen else str(node["name"])
