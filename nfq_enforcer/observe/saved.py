"""Saved streams of flows: lines of JSON, as ``observe -o json`` or ``-o jsonpb`` prints them, or Hubble itself.

A flow becomes a logged event again, so that filters and explanations work on a file as on a running agent. Fields that
upstream has and this program does not are left out of the event; they stay in the JSON object.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from ipaddress import ip_address
from operator import attrgetter
from typing import Any, NamedTuple

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import DnsMessage, FlowEnd, FlowEvent, HttpMessage, L7Message, TlsMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import WHOLE, Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.observe import form
from nfq_enforcer.observe.flow import PORTED, PORTLESS, TCP_FLAGS, HubbleFlow, Logged
from nfq_enforcer.observe.hubble import from_response
from nfq_enforcer.observe.l7 import DNS_TYPES
from nfq_enforcer.observe.query import Query
from nfq_enforcer.observe.text import beside, is_flow
from nfq_enforcer.text import read_json

_PLACE = re.compile(r"(ingress|egress)(Deny)?(?:\[(\d{1,9})\])?")
_PROTOCOLS = {name: number for number, name in (PORTED | PORTLESS).items()}
_TYPES = {name: number for number, name in DNS_TYPES.items()}


class Saved(NamedTuple):
    """Saved flow: the JSON object, and the logged event."""

    item: HubbleFlow
    logged: Logged


def read(lines: Iterable[str]) -> Iterator[Saved | str]:
    """Yield the flows of a stream; for a line that is none, a sentence about it."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = from_response(_object(line))
            yield Saved(item, parse(item)) if is_flow(item) else f"line {number}: {beside(item)}"
        except ValueError as error:
            yield f"line {number} is no flow: {error}"


def select(lines: Iterable[str], query: Query, note: Callable[[str], None]) -> Iterator[Saved]:
    """Yield the flows of a stream that a query selects; ``note`` receives a sentence for each line that is no flow."""
    yield from query.select(_flows(lines, note), attrgetter("logged"))


def _flows(lines: Iterable[str], note: Callable[[str], None]) -> Iterator[Saved]:
    for item in read(lines):
        if isinstance(item, str):
            note(item)
        else:
            yield item


def _object(line: str) -> Mapping[str, Any]:
    value = read_json(line)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def parse(flow: Mapping[str, Any]) -> Logged:
    """Return the logged event of a flow; raise ValueError, with the place, if it has not the form of one."""
    form.check(flow)
    source, destination = (_end(flow.get(side, {})) for side in ("source", "destination"))
    is_reply = bool(flow.get("is_reply", False))
    reason = str(flow.get("drop_reason_desc"))
    event = FlowEvent(
        0.0,
        FlowVerdict(flow["verdict"]),
        DropReason[reason] if reason in DropReason.__members__ else None,
        Direction.EGRESS if flow.get("traffic_direction") == "EGRESS" else Direction.INGRESS,
        _opening(flow, source[0], destination[0], is_reply=is_reply),
        _tcp_flags(flow.get("l4", {}).get("TCP", {})),
        is_reply,
        tuple(_rules(flow, "egress_allowed_by", "ingress_allowed_by")),
        tuple(_rules(flow, "enforced_by")),
        tuple(_rules(flow, "egress_denied_by", "ingress_denied_by")),
        _message(flow["l7"]) if "l7" in flow else None,
        _flow_end(flow["flow_end"]) if "flow_end" in flow else None,
    )
    names = Ends(destination[1], source[1]) if is_reply else Ends(source[1], destination[1])
    time = datetime.fromisoformat(flow["time"]).timestamp()
    return Logged(event, names, time, str(flow.get("node_name", "")), str(flow.get("uuid", "")))


def _end(end: Mapping[str, Any]) -> tuple[Identity, End]:
    labels = Labels(map(parse_label, end["labels"])) if "labels" in end else None
    return Identity(int(end.get("identity", 0))), End(labels, end.get("namespace", ""), end.get("pod_name", ""))


def parse_label(text: str) -> Label:
    """Return the label of its text form, ``source:key=value``."""
    name, _, value = text.partition("=")
    source, colon, key = name.partition(":")
    return Label(source, key, value) if colon else Label(DEFAULT_SOURCE, name, value)


def _opening(flow: Mapping[str, Any], source: Identity, destination: Identity, *, is_reply: bool) -> Opening:
    addresses = flow.get("IP", {})
    src, dst = (ip_address(addresses[side]).packed if side in addresses else b"" for side in ("source", "destination"))
    l4 = flow.get("l4", {})
    known: list[tuple[int, Mapping[str, Any]]] = [(_PROTOCOLS[name], l4[name]) for name in l4 if name in _PROTOCOLS]
    proto, fields = known[0] if known else (int(l4.get("protocol", 0)), {})
    ports = int(fields.get("source_port", 0)), int(fields.get("destination_port", 0))
    icmp = (int(fields.get("type", 0)), int(fields.get("code", 0))) if proto in PORTLESS else (-1, -1)
    if is_reply:
        return Opening(dst, src, proto, *ports[::-1], *icmp, False, destination, source)
    return Opening(src, dst, proto, *ports, *icmp, False, source, destination)


def _tcp_flags(tcp: Mapping[str, Any]) -> int:
    flags = tcp.get("flags", {})
    return sum(1 << bit for bit, name in enumerate(TCP_FLAGS) if flags.get(name))


def _rules(flow: Mapping[str, Any], *fields: str) -> Iterator[RuleRef]:
    for field in fields:
        for rule in flow.get(field, ()):
            yield _rule(rule, Direction.EGRESS if field.startswith("egress") else Direction.INGRESS)


def _rule(rule: Mapping[str, Any], direction: Direction) -> RuleRef:
    found = _PLACE.fullmatch(rule.get("rule", ""))
    number, deny = WHOLE, False
    if found:
        direction, deny = Direction(found[1]), bool(found[2])
        number = WHOLE if found[3] is None else int(found[3])
    order = None
    if "tier" in rule and "priority" in rule and "action" in rule:
        title = rule.get("rule_name", "")
        order = RuleOrder(Tier(rule["tier"]), int(rule["priority"]), Action(rule["action"]), title)
    names = rule.get("kind", ""), rule.get("namespace", ""), rule.get("name", "")
    return RuleRef(*names, direction, number, int(rule.get("spec", 0)), deny, order)


def _message(l7: Mapping[str, Any]) -> L7Message | None:
    is_response = l7.get("type") == "RESPONSE"
    if "http" in l7:
        return _http(l7["http"], int(l7.get("latency_ns", 0)), is_response=is_response)
    if "dns" in l7:
        return _dns(l7["dns"], is_answer=is_response)
    return TlsMessage(str(l7["tls"].get("server_name", ""))) if "tls" in l7 else None


def _http(http: Mapping[str, Any], latency_ns: int, *, is_response: bool) -> HttpMessage:
    headers = tuple((str(header["key"]), str(header.get("value", ""))) for header in http.get("headers", ()))
    statuses = [value for key, value in headers if key == "grpc-status" and value.isdigit()]
    return HttpMessage(
        is_response,
        str(http.get("method", "")),
        str(http.get("url", "")),
        str(http.get("protocol", "")),
        int(http.get("code", 0)),
        latency_ns,
        tuple(pair for pair in headers if pair[0] != "grpc-status"),
        int(statuses[-1]) if statuses else None,
    )


def _dns(dns: Mapping[str, Any], *, is_answer: bool) -> DnsMessage:
    kinds = dns.get("qtypes", ())
    return DnsMessage(
        is_answer,
        dns.get("query", "").removesuffix(".").lower(),
        _dns_type(kinds[0]) if kinds else 0,
        int(dns.get("rcode", 0)),
        int(dns.get("ttl", 0)),
        tuple(ip_address(address).packed for address in dns.get("ips", ())),
        tuple(name.removesuffix(".") for name in dns.get("cnames", ())),
    )


def _dns_type(name: str) -> int:
    return _TYPES[name] if name in _TYPES else int(name.removeprefix("TYPE"))


def _flow_end(end: Mapping[str, Any]) -> FlowEnd:
    duration = int(end["duration_ns"]) / 1e9 if "duration_ns" in end else None
    counts = (Traffic(int(end[side]["packets"]), int(end[side]["bytes"])) for side in ("sent", "received"))
    return FlowEnd(EndCause(end["cause"]), duration, *counts)
