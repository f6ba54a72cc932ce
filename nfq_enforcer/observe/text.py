"""Text forms of flows, as ``hubble observe`` prints them: ``compact``, ``dict`` and ``tab``.

They render JSON objects (see ``observe.flow``), so that a command needs nothing of the agent to print its answer. The
objects may come from a file, also one of Hubble's own: a field that is missing is left out.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from nfq_enforcer.core.verdict import DropReason

COLUMNS = ("TIMESTAMP", "NODE", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY")
_PORTED = ("TCP", "UDP", "SCTP")
_TITLE = 11  # columns of a title of the form ``dict``


class TextForm(NamedTuple):
    """Text form: how much of a flow is translated to names."""

    numeric: bool = False  # addresses and identities instead of names and labels

    def compact(self, flow: Mapping[str, Any]) -> str:
        """Return a flow as one line."""
        if not is_flow(flow):
            return beside(flow)
        ends = [self._end(flow, "source"), self._end(flow, "destination")]
        reply = bool(flow.get("is_reply"))
        if reply:
            ends.reverse()  # the opener is first, as in Hubble
        words = [f"{_time(flow)} [{flow.get('node_name', '')}]:", ends[0], "<-" if reply else "->", ends[1]]
        words += [str(flow.get("traffic_direction", "")), *_kind(flow), flow["verdict"], *_reason(flow)]
        return " ".join([*filter(None, words), f"({flow.get('Summary', '')})", *_explanation(flow)])

    def fields(self, flow: Mapping[str, Any]) -> list[str]:
        """Return a flow as lines of one field each, the form ``dict``."""
        if not is_flow(flow):
            return [beside(flow)]
        rows = zip(COLUMNS, self.row(flow), strict=True)
        lines = [f"{name:>{_TITLE}}: {value}" for name, value in rows]
        return [*lines, *(f"{'':>{_TITLE}}  {sentence}" for sentence in _explanation(flow))]

    def row(self, flow: Mapping[str, Any]) -> list[str]:
        """Return the values of ``COLUMNS`` for a flow, or for a loss."""
        if not is_flow(flow):
            return ["", "", "", "", "", "", beside(flow)]
        ends = (self._end(flow, side) for side in ("source", "destination"))
        kind = " ".join([*(_kind(flow) or [flow_type(flow)]), str(flow.get("traffic_direction", ""))])
        verdict = " ".join([flow["verdict"], *_reason(flow)])
        return [_time(flow), flow.get("node_name", ""), *ends, kind, verdict, flow.get("Summary", "")]

    def _end(self, flow: Mapping[str, Any], side: str) -> str:
        end = flow.get(side, {})
        address = flow.get("IP", {}).get(side, "?")
        named = "pod_name" in end and not self.numeric
        name = f"{end.get('namespace', '')}/{end['pod_name']}" if named else address
        if ":" in name:
            name = f"[{name}]"
        ports = [l4.get(f"{side}_port", 0) for name, l4 in flow.get("l4", {}).items() if name in _PORTED]
        return f"{name}{''.join(f':{port}' for port in ports)} ({self._identity(end)})"

    def _identity(self, end: Mapping[str, Any]) -> str:
        labels = end.get("labels", ())
        reserved = [label for label in labels if label.startswith("reserved:")]
        if self.numeric:
            return f"ID:{end.get('identity', 0)}"
        if reserved:
            return str(reserved[0].removeprefix("reserved:"))
        if not end.get("identity"):
            return "unknown"
        own = [label for label in labels if "pod_name" not in end and ":io." not in label]
        return " ".join([f"ID:{end['identity']}", *own])


def is_flow(item: Mapping[str, Any]) -> bool:
    """Return whether an item of a stream is a flow, and no note beside the flows."""
    return "verdict" in item


def beside(item: Mapping[str, Any]) -> str:
    """Return an item of a stream that is no flow: a number of lost flows, or the state of nodes."""
    if "lost_events" in item:
        return f"EVENTS LOST: {item['lost_events'].get('num_events_lost', 0)} came faster than they were read"
    state = item.get("node_status", {})
    names = ", ".join(state.get("node_names", ()))
    return f"{names}: {state.get('state_change', 'UNKNOWN')}: {state.get('message', '')}"


def flow_type(flow: Mapping[str, Any]) -> str:
    """Return the kind of an event, as ``observe --type`` filters it."""
    if "flow_end" in flow:
        return "flow-end"
    if "l7" in flow:
        return "l7"
    return "drop" if flow["verdict"] == "DROPPED" else "policy-verdict"


def _time(flow: Mapping[str, Any]) -> str:
    if "time" not in flow:
        return "N/A"
    return datetime.fromisoformat(flow["time"]).astimezone().strftime("%b %d %H:%M:%S.%f")[:-3]


def _kind(flow: Mapping[str, Any]) -> list[str]:
    message = flow.get("l7", {})
    protocol = next((name for name in ("http", "dns", "tls", "kafka") if name in message), None)
    return [f"{protocol}-{message.get('type', 'REQUEST').lower()}"] if protocol else []


def _reason(flow: Mapping[str, Any]) -> list[str]:
    return [flow["drop_reason_desc"]] if "drop_reason_desc" in flow else []


def _explanation(flow: Mapping[str, Any]) -> list[str]:
    allowed = [*flow.get("egress_allowed_by", ()), *flow.get("ingress_allowed_by", ())]
    if allowed:
        return [f"allowed by {documents(allowed)}"]
    reason = str(flow.get("drop_reason_desc"))
    if reason not in DropReason.__members__:
        return []
    sentence = DropReason[reason].description
    denied = [*flow.get("egress_denied_by", ()), *flow.get("ingress_denied_by", ())]
    if denied:
        return [f"{sentence}: {documents(denied)}"]
    enforced = flow.get("enforced_by", ())
    return [f"{sentence}; enforced by {documents(enforced)}" if enforced else sentence]


def documents(rules: Iterable[Mapping[str, str]]) -> str:
    """Return the documents of rules, each once."""
    return ", ".join(dict.fromkeys(map(_document, rules)))


def _document(rule: Mapping[str, str]) -> str:
    if "tier" in rule:
        return f"{rule.get('name', '')} {rule.get('rule', '')} ({rule['tier']}, {rule.get('action', '')})"
    name = rule.get("name", "")
    return f"{rule['namespace']}/{name}" if rule.get("namespace") else name


compact = TextForm().compact
