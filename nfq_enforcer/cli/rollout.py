"""How far a change of policy has got: on which live nodes it is in force, and which are not waited for."""

from collections.abc import Mapping
from typing import Any

from nfq_enforcer.errors import NfqError


def report(taken: Mapping[str, Any], waited: int) -> None:
    """Print what ``apply`` has come to after so many seconds; raise NfqError if a live node is not there yet."""
    what = "what was applied" if taken["revision"] is None else f"revision {taken['revision']}"
    if "nodes" not in taken:
        print(f"{what} is in force")
        return
    live = [node for node in taken["nodes"] if node["live"]]
    behind = [node["name"] for node in live if not node["enforced"]]
    print(f"{what} is in force on {len(live) - len(behind)} of {len(live)} live nodes")
    away = [node for node in taken["nodes"] if not node["live"]]
    if away:
        print(f"not waited for: {', '.join(map(_away, away))}")
    if behind:
        raise NfqError(f"{what} is not in force after {waited} seconds on {', '.join(behind)}; it may still come to be")


def _away(node: Mapping[str, Any]) -> str:
    seen = node.get("last_seen")
    return f"{node['name']} (last seen {seen})" if seen else str(node["name"])
