"""Impact of new documents: the recorded flows and open connections to which they give another verdict."""

from collections.abc import Mapping
from typing import NamedTuple

from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.recorded import RecordedFlow
from nfq_enforcer.policy.replay import Replay


class ImpactRow(NamedTuple):
    """ImpactRow: flows between the same ends, to the same port, whose verdict changes."""

    source: str
    target: str
    traffic: str
    seen: int  # recorded connections or requests
    open: int  # connections that are open now
    now: str
    then: str
    reason: str  # of the new verdict

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the row."""
        return {
            "from": self.source,
            "to": self.target,
            "traffic": self.traffic,
            "seen": self.seen,
            "open": self.open,
            "now": self.now,
            "then": self.then,
            "reason": self.reason,
        }


def replaced(current: Documents, new: Documents, *, only: bool = False) -> Documents:
    """Return the current documents with the new ones, in place of those of the same kind, namespace and name.

    ``only``: without the current policies.
    """
    keys = {one.key for one in (*new.endpoints, *new.namespaces, *new.policies)}
    return Documents(
        (*(one for one in current.endpoints if one.key not in keys), *new.endpoints),
        (*(one for one in current.namespaces if one.key not in keys), *new.namespaces),
        (*(one for one in current.policies if not only and one.key not in keys), *new.policies),
    )


def impact(
    seen: Mapping[RecordedFlow, int], opened: Mapping[RecordedFlow, int], now: Replay, then: Replay
) -> list[ImpactRow]:
    """Return the flows whose verdict changes, denied ones first, then by their number.

    Flows with an end that one of the replays does not know have no part in it.
    """
    rows: dict[tuple[str, ...], ImpactRow] = {}
    for flow in dict.fromkeys((*seen, *opened)):
        if not (now.knows(flow) and then.knows(flow)):
            continue
        before, after = now.evaluate(flow), then.evaluate(flow)
        if str(before) == str(after):
            continue
        key = (str(flow.source), str(flow.target), str(flow.traffic), str(before), str(after))
        row = rows.setdefault(key, ImpactRow(*key[:3], 0, 0, *key[3:], after.reason))
        rows[key] = row._replace(seen=row.seen + seen.get(flow, 0), open=row.open + opened.get(flow, 0))
    return sorted(rows.values(), key=lambda row: (row.then != "deny", -row.seen - row.open, row))
