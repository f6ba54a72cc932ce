"""Details of the page: the flows and rules behind one edge, and every text made printable. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.observe.service_map import EdgeKey, Seen, map_of
from nfq_enforcer.text import printable

SHOWN = 100  # flows of an edge, the newest ones
EXAMINED = 2_000  # flows of an edge whose rules are counted
_RULE_FIELDS = {  # the field of a flow, and the sentence about its rules
    "egress_denied_by": "denied at egress by",
    "ingress_denied_by": "denied at ingress by",
    "egress_allowed_by": "allowed at egress by",
    "ingress_allowed_by": "allowed at ingress by",
    "enforced_by": "no rule allows it; closed by",
}


def clean(value: Any) -> Any:
    """Return data of JSON with every text printable: no control, bidirectional or zero-width character is left."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def edge_details(key: EdgeKey, flows: Iterable[tuple[Seen, bytes]], now: float) -> dict[str, Any]:
    """Return the flows of an edge, newest first, with the rules that decided them; ``flows`` are those of any edge."""
    of_edge = list(islice(((seen, text) for seen, text in flows if seen.edge == key), EXAMINED))
    parsed = [json.loads(text) for _, text in of_edge]
    edges = map_of((seen for seen, _ in of_edge), now).since(0).edges
    return {
        "edge": edges[0].to_json() if edges else None,
        "rules": _rules(parsed),
        "reasons": _reasons(parsed),
        "flows": [_row(seen, flow) for (seen, _), flow in islice(zip(of_edge, parsed, strict=True), SHOWN)],
        "total": len(of_edge),
        "examined": EXAMINED,
    }


def _rules(flows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rules that decided the flows, with the number of flows of each."""
    counts: Counter[tuple[str, str]] = Counter()
    refs: dict[tuple[str, str], Mapping[str, Any]] = {}
    for flow in flows:
        for field, sentence in _RULE_FIELDS.items():
            for rule in flow.get(field, ()):
                entry = sentence, json.dumps(rule, sort_keys=True)
                counts[entry] += 1
                refs[entry] = rule
    return [{"effect": entry[0], "flows": flows, **refs[entry]} for entry, flows in counts.most_common()]


def _reasons(flows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(str(flow["drop_reason_desc"]) for flow in flows if "drop_reason_desc" in flow)
    known = {str(reason): reason.description for reason in DropReason}
    return [
        {"reason": name, "description": known.get(name, ""), "flows": number} for name, number in counts.most_common()
    ]


def _row(seen: Seen, flow: Mapping[str, Any]) -> dict[str, Any]:
    addresses = flow.get("IP", {})
    return {
        "time": flow["time"],
        "uuid": str(flow.get("uuid", "")),
        "node": flow.get("node_name", ""),
        "direction": flow.get("traffic_direction", ""),
        "source": addresses.get("source", ""),
        "destination": addresses.get("destination", ""),
        "is_reply": bool(flow.get("is_reply")),
        "port": seen.port,
        "reason": seen.reason,
        "summary": flow.get("Summary", ""),
    }
