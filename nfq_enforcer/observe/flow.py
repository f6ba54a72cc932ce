"""Rendering of flow events: a JSON object with Hubble's field names, or one line of text.

The names are those of Hubble's ``flow.proto`` (cilium/cilium, api/v1/flow/flow.proto) in its JSON form: ``IP`` and the
keys of ``l4`` keep their capitals. ``enforced_by`` is an addition: the rules that enforce the endpoint, for a drop
because no rule allows the packet.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP

HubbleFlow = dict[str, Any]

VERDICTS = tuple(str(verdict) for verdict in FlowVerdict)
_MAX_RULES = 8  # of each kind in one flow
_PORTED = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
_ICMP = {ICMP: "ICMPv4", ICMPV6: "ICMPv6"}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def render(event: FlowEvent, names: Ends, node: str, wall_time: float) -> HubbleFlow:
    """Return the event as a JSON object; ``names`` at the time of the event, ``wall_time`` in seconds since the epoch.

    The source of a reply is its sender, which is the destination of the opening.
    """
    opening = event.opening
    opener = (opening.src, opening.sport, _end(opening.source, names.source))
    other = (opening.dst, opening.dport, _end(opening.destination, names.destination))
    (src, sport, source), (dst, dport, destination) = (other, opener) if event.is_reply else (opener, other)
    flow: HubbleFlow = {
        "time": datetime.fromtimestamp(wall_time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "verdict": str(event.verdict),
    }
    if event.reason is not None:
        flow["drop_reason_desc"] = str(event.reason)
    if src:
        flow["IP"] = {
            "source": str(ip_address(src)),
            "destination": str(ip_address(dst)),
            "ipVersion": "IPv4" if len(src) == 4 else "IPv6",
        }
        flow["l4"] = _l4(event, sport, dport)
    flow |= {
        "source": source,
        "destination": destination,
        "Type": "L3_L4",
        "node_name": node,
        "traffic_direction": event.direction.upper(),
        "is_reply": event.is_reply,
    }
    if event.allowed_by:
        for direction in Direction:
            flow |= _rules(f"{direction}_allowed_by", (r for r in event.allowed_by if r.direction == direction))
    for direction in Direction:
        flow |= _rules(f"{direction}_denied_by", (r for r in event.denied_by if r.direction == direction))
    return flow | _rules("enforced_by", event.enforced_by) | {"Summary": _summary(event)}


def _l4(event: FlowEvent, sport: int, dport: int) -> HubbleFlow:
    opening = event.opening
    if opening.proto in _PORTED:
        ports: HubbleFlow = {"source_port": sport, "destination_port": dport}
        if opening.proto == TCP:
            ports["flags"] = dict.fromkeys(_flag_names(event.tcp_flags), True)
        return {_PORTED[opening.proto]: ports}
    if opening.proto in _ICMP:
        return {_ICMP[opening.proto]: {"type": opening.icmp_type, "code": opening.icmp_code}}
    return {"protocol": opening.proto}


def _end(identity: Identity, names: End) -> HubbleFlow:
    end: HubbleFlow = {"identity": identity}
    if names.labels is not None:
        end["labels"] = [str(label) for label in names.labels]
    if names.name:
        end |= {"namespace": names.namespace, "pod_name": names.name}
    return end


def _rules(field: str, rules: Iterable[RuleRef]) -> HubbleFlow:
    refs = [{"kind": rule.kind, "namespace": rule.namespace, "name": rule.name, "rule": rule.place} for rule in rules]
    return {field: refs[:_MAX_RULES]} if refs else {}


def _flag_names(flags: int) -> list[str]:
    return [name for bit, name in enumerate(_TCP_FLAGS) if flags >> bit & 1]


def _summary(event: FlowEvent) -> str:
    opening = event.opening
    if opening.proto == TCP:
        return f"TCP Flags: {', '.join(_flag_names(event.tcp_flags)) or 'none'}"
    if opening.proto in _ICMP:
        return f"{_ICMP[opening.proto]} type {opening.icmp_type} code {opening.icmp_code}"
    return _PORTED.get(opening.proto, f"IP protocol {opening.proto}" if opening.src else "unreadable")


class Logged(NamedTuple):
    """Logged event: a flow event with the names of its ends at the time of the event."""

    event: FlowEvent
    names: Ends
    wall_time: float  # s since the epoch

    def render(self, node: str) -> HubbleFlow:
        """Return the event as a JSON object."""
        return render(self.event, self.names, node, self.wall_time)


def render_lost(number: int) -> HubbleFlow:
    """Return the object that replaces the flows that a reader lost (Hubble's ``LostEvent``)."""
    return {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": number}}


def compact(flow: Mapping[str, Any]) -> str:
    """Return a flow as one line, in the form of ``hubble observe``."""
    if "lost_events" in flow:
        return f"EVENTS LOST: {flow['lost_events']['num_events_lost']} came faster than they were read"
    time = datetime.fromisoformat(flow["time"]).astimezone().strftime("%b %d %H:%M:%S.%f")[:-3]
    arrow = "<-" if flow["is_reply"] else "->"
    ends = [_end_text(flow, "source"), _end_text(flow, "destination")]
    if flow["is_reply"]:
        ends.reverse()  # the opener is first, as in Hubble
    words = [f"{time} [{flow['node_name']}]:", ends[0], arrow, ends[1], flow["traffic_direction"], flow["verdict"]]
    if "drop_reason_desc" in flow:
        words.append(flow["drop_reason_desc"])
    words.append(f"({flow['Summary']})")
    return " ".join([*words, *_explanation(flow)])


def _end_text(flow: Mapping[str, Any], side: str) -> str:
    end = flow[side]
    address = flow.get("IP", {}).get(side, "?")
    name = f"{end['namespace']}/{end['pod_name']}" if "pod_name" in end else address
    if ":" in name:
        name = f"[{name}]"
    ports = [l4[f"{side}_port"] for name, l4 in flow.get("l4", {}).items() if name in _PORTED.values()]
    return f"{name}{''.join(f':{port}' for port in ports)} ({_identity_text(end)})"


def _identity_text(end: Mapping[str, Any]) -> str:
    reserved = [label for label in end.get("labels", ()) if label.startswith("reserved:")]
    if reserved:
        return str(reserved[0].removeprefix("reserved:"))
    if not end["identity"]:
        return "unknown"
    own = [label for label in end.get("labels", ()) if "pod_name" not in end and ":io." not in label]
    return " ".join([f"ID:{end['identity']}", *own])


def _explanation(flow: Mapping[str, Any]) -> list[str]:
    allowed = [*flow.get("egress_allowed_by", ()), *flow.get("ingress_allowed_by", ())]
    if allowed:
        return [f"allowed by {_documents(allowed)}"]
    reason = flow.get("drop_reason_desc")
    if reason is None:
        return []
    sentence = DropReason[reason].description
    denied = [*flow.get("egress_denied_by", ()), *flow.get("ingress_denied_by", ())]
    if denied:
        return [f"{sentence}: {_documents(denied)}"]
    enforced = flow.get("enforced_by", ())
    return [f"{sentence}; enforced by {_documents(enforced)}" if enforced else sentence]


def _documents(rules: Iterable[Mapping[str, str]]) -> str:
    names = (f"{rule['namespace']}/{rule['name']}" if rule["namespace"] else rule["name"] for rule in rules)
    return ", ".join(dict.fromkeys(names))
