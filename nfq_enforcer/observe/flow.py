"""Logged flow events, and their JSON objects with Hubble's field names.

The names are those of Hubble's ``flow.proto`` (cilium/cilium, api/v1/flow/flow.proto) in its JSON form: ``IP`` and the
keys of ``l4`` keep their capitals. Additions: ``enforced_by``, the rules that enforce the endpoint, for a drop because
no rule allows the packet; ``l7.tls``, with the server name of a ClientHello; ``flow_end``, with the packets and bytes
of a flow that is over; the place of a rule in its document. ``observe.hubble`` makes the strict form of upstream.
"""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from nfq_enforcer.core.events import FlowEnd, FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nfq_enforcer.observe import l7

if TYPE_CHECKING:  # ``observe`` prints flows without the policy documents that names are made of
    from nfq_enforcer.cluster.names import End, Ends

HubbleFlow = dict[str, Any]

DROP_EVENT, TRACE_EVENT, POLICY_VERDICT_EVENT, L7_EVENT = 1, 4, 5, 129  # types of Cilium's monitor
_TO_ENDPOINT, _FROM_ENDPOINT = 0, 5
DROP_NUMBERS = {  # of the drop reasons that Hubble has as well, under the same name or under another
    DropReason.INVALID_SOURCE_IP: 132,
    DropReason.POLICY_DENIED: 133,
    DropReason.INVALID_PACKET: 134,
    DropReason.NO_ENDPOINT: 152,
    DropReason.FRAG_NOT_SUPPORTED: 157,
    DropReason.CT_NO_MATCH: 163,
    DropReason.INVALID_IDENTITY: 171,
    DropReason.POLICY_DENY: 181,
}
_CACHED = 4096  # texts of addresses and labels, which most flows share
_MAX_RULES = 8  # of each kind in one flow
PORTED = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
PORTLESS = {ICMP: "ICMPv4", ICMPV6: "ICMPv6"}
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


class Side(NamedTuple):
    """Side: the sender or the receiver of the packet that made an event."""

    address: bytes  # empty: unreadable
    port: int
    identity: Identity
    names: "End"


class EventIds:
    """Event ids: a UUID for each event of one agent, of a random part and a number (RFC 9562, version 8)."""

    def __init__(self) -> None:
        """Choose the random part."""
        text = f"{secrets.randbits(74):019x}"
        self._begin = f"{text[:8]}-{text[8:12]}-8{text[12:15]}-{0x8000 | int(text[15:], 16) & 0x3FFF:04x}-"
        self._numbers = count()

    def next(self) -> str:
        """Return the UUID of the next event."""
        return f"{self._begin}{next(self._numbers):012x}"


class Logged(NamedTuple):
    """Logged event: a flow event with the names of its ends at the time of the event."""

    event: FlowEvent
    names: "Ends"
    wall_time: float  # s since the epoch
    node: str  # that decided it
    uuid: str  # of the event

    @property
    def sides(self) -> tuple[Side, Side]:
        """Return source and destination. The source of a reply is its sender, the destination of the opening."""
        opening, names = self.event.opening, self.names
        opener = Side(opening.src, opening.sport, opening.source, names.source)
        other = Side(opening.dst, opening.dport, opening.destination, names.destination)
        return (other, opener) if self.event.is_reply else (opener, other)


def render(logged: Logged) -> HubbleFlow:
    """Return a logged event as a JSON object."""
    event, (source, destination) = logged.event, logged.sides
    flow: HubbleFlow = {
        "time": _time(logged.wall_time),
        "uuid": logged.uuid,
        "verdict": str(event.verdict),
    }
    if event.reason is not None:
        flow["drop_reason_desc"] = str(event.reason)
    if source.address:
        flow["IP"] = {
            "source": _address(source.address),
            "destination": _address(destination.address),
            "ipVersion": "IPv4" if len(source.address) == 4 else "IPv6",
        }
        flow["l4"] = _l4(event, source.port, destination.port)
    flow |= {
        "source": _end(source.identity, source.names),
        "destination": _end(destination.identity, destination.names),
        "Type": "L7" if event.l7 else "L3_L4",
        "node_name": logged.node,
        "event_type": _event_type(event),
        "traffic_direction": event.direction.upper(),
        "is_reply": event.is_reply,
    }
    if event.l7 is not None:
        flow["l7"] = l7.render(event.l7)
    if event.end is not None:
        flow["flow_end"] = _flow_end(event.end)
    if event.allowed_by:
        for direction in Direction:
            flow |= _rules(f"{direction}_allowed_by", (r for r in event.allowed_by if r.direction == direction))
    for direction in Direction:
        flow |= _rules(f"{direction}_denied_by", (r for r in event.denied_by if r.direction == direction))
    return flow | _rules("enforced_by", event.enforced_by) | {"Summary": _summary(event)}


@lru_cache(_CACHED)
def _address(packed: bytes) -> str:
    return str(ip_address(packed))


@lru_cache(_CACHED)
def _texts(labels: Labels) -> tuple[str, ...]:
    return tuple(map(str, labels))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _event_type(event: FlowEvent) -> HubbleFlow:
    """Return type and subtype of Cilium's monitor for an event of the same kind (cilium/cilium, pkg/monitor/api)."""
    if event.l7 is not None:
        return {"type": L7_EVENT}
    if event.verdict is FlowVerdict.DROPPED and event.reason is not None:
        return {"type": DROP_EVENT, "sub_type": DROP_NUMBERS.get(event.reason, 0)}
    if event.verdict is FlowVerdict.AUDIT:
        return {"type": POLICY_VERDICT_EVENT}
    return {"type": TRACE_EVENT, "sub_type": _TO_ENDPOINT if event.direction is Direction.INGRESS else _FROM_ENDPOINT}


def _flow_end(end: FlowEnd) -> HubbleFlow:
    """Return the end of a flow; a number of 64 bits is a string, as in Hubble's JSON form."""
    duration = {} if end.duration is None else {"duration_ns": str(round(end.duration * 1e9))}
    return {
        "cause": str(end.cause),
        **duration,
        "sent": {"packets": str(end.sent.packets), "bytes": str(end.sent.bytes)},
        "received": {"packets": str(end.received.packets), "bytes": str(end.received.bytes)},
    }


def _l4(event: FlowEvent, sport: int, dport: int) -> HubbleFlow:
    opening = event.opening
    if opening.proto in PORTED:
        ports: HubbleFlow = {"source_port": sport, "destination_port": dport}
        if opening.proto == TCP and event.l7 is None and event.end is None:
            ports["flags"] = dict.fromkeys(_flag_names(event.tcp_flags), True)
        return {PORTED[opening.proto]: ports}
    if opening.proto in PORTLESS:
        return {PORTLESS[opening.proto]: {"type": opening.icmp_type, "code": opening.icmp_code}}
    return {"protocol": opening.proto}


def _end(identity: Identity, names: "End") -> HubbleFlow:
    end: HubbleFlow = {"identity": identity}
    if names.labels is not None:
        end["labels"] = list(_texts(names.labels))
    if names.name:
        end |= {"namespace": names.namespace, "pod_name": names.name}
    return end


def _rules(field: str, rules: Iterable[RuleRef]) -> HubbleFlow:
    refs = [_rule(rule) for rule in rules]
    return {field: refs[:_MAX_RULES]} if refs else {}


def _rule(rule: RuleRef) -> HubbleFlow:
    ref: HubbleFlow = {"kind": rule.kind, "namespace": rule.namespace, "name": rule.name, "rule": rule.place}
    ref |= {"spec": rule.spec} if rule.spec else {}
    if rule.order is not None:
        tier, priority, action, title = rule.order
        ref |= {"tier": tier, "priority": priority, "action": action} | ({"rule_name": title} if title else {})
    return ref


def _flag_names(flags: int) -> list[str]:
    return [name for bit, name in enumerate(TCP_FLAGS) if flags >> bit & 1]


def _summary(event: FlowEvent) -> str:
    opening = event.opening
    if event.end is not None:
        return _end_summary(event.end, _protocol(opening.proto))
    if event.l7 is not None:
        return l7.summary(event.l7)
    if opening.proto == TCP:
        return f"TCP Flags: {', '.join(_flag_names(event.tcp_flags)) or 'none'}"
    if opening.proto in PORTLESS:
        return f"{PORTLESS[opening.proto]} type {opening.icmp_type} code {opening.icmp_code}"
    return _protocol(opening.proto) if opening.src else "unreadable"


def _protocol(number: int) -> str:
    return PORTED.get(number) or PORTLESS.get(number) or f"IP protocol {number}"


def _end_summary(end: FlowEnd, protocol: str) -> str:
    after = "" if end.duration is None else f" after {end.duration:.3f} s"
    sent, received = (f"{count.packets} packets, {count.bytes} bytes" for count in (end.sent, end.received))
    return f"{protocol} {end.cause}{after}: sent {sent}; received {received}"


def render_lost(number: int, node: str) -> HubbleFlow:
    """Return the object that replaces the flows that a reader lost (Hubble's ``LostEvent``)."""
    return {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": number}, "node_name": node}
