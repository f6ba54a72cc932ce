"""Rendering of flow events: a JSON object with Hubble's field names, or one line of text.

The names are those of Hubble's ``flow.proto`` (cilium/cilium, api/v1/flow/flow.proto) in its JSON form: ``IP`` and the
keys of ``l4`` keep their capitals. ``enforced_by`` is an addition: the rules that enforce the endpoint, for a drop
because no rule allows the packet. So is ``l7.tls``, with the server name of a ClientHello.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from nfq_enforcer.core.events import DnsMessage, FlowEvent, HttpMessage, L7Message, TlsMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP

if TYPE_CHECKING:  # ``observe`` prints flows without the policy documents that names are made of
    from nfq_enforcer.cluster.names import End, Ends

HubbleFlow = dict[str, Any]

VERDICTS = tuple(str(verdict) for verdict in FlowVerdict)
_MAX_RULES = 8  # of each kind in one flow
_PORTED = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}
_ICMP = {ICMP: "ICMPv4", ICMPV6: "ICMPv6"}
_DNS_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV"}
_DNS_TYPES |= {35: "NAPTR", 43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA"}
_RCODES = ("no error", "format error", "server failure", "name does not exist", "not implemented", "refused")
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def render(event: FlowEvent, names: "Ends", node: str, wall_time: float) -> HubbleFlow:
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
        "Type": "L7" if event.l7 else "L3_L4",
        "node_name": node,
        "traffic_direction": event.direction.upper(),
        "is_reply": event.is_reply,
    }
    if event.l7 is not None:
        flow["l7"] = _l7(event.l7)
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
        if opening.proto == TCP and event.l7 is None:
            ports["flags"] = dict.fromkeys(_flag_names(event.tcp_flags), True)
        return {_PORTED[opening.proto]: ports}
    if opening.proto in _ICMP:
        return {_ICMP[opening.proto]: {"type": opening.icmp_type, "code": opening.icmp_code}}
    return {"protocol": opening.proto}


def _l7(message: L7Message) -> HubbleFlow:
    if isinstance(message, TlsMessage):
        return {"type": "REQUEST", "tls": {"server_name": message.server_name} if message.server_name else {}}
    if isinstance(message, DnsMessage):
        return {"type": "RESPONSE" if message.is_answer else "REQUEST", "dns": _dns(message)}
    # a number of 64 bits is a string in Hubble's JSON form
    latency = {"latency_ns": str(message.latency_ns)} if message.latency_ns else {}
    return {"type": "RESPONSE" if message.is_response else "REQUEST", **latency, "http": _http(message)}


def _http(message: HttpMessage) -> HubbleFlow:
    """Return an HTTP message in Hubble's field names, which have the status of gRPC as a header."""
    headers = list(message.headers)
    if message.grpc_status is not None:
        headers.append(("grpc-status", str(message.grpc_status)))
    http: HubbleFlow = {
        "code": message.code,
        "method": message.method,
        "url": message.url,
        "protocol": message.protocol,
        "headers": [{"key": name, "value": value} for name, value in headers],
    }
    return {field: value for field, value in http.items() if value}


def _http_summary(message: HttpMessage) -> str:
    """Return the words of Hubble: ``HTTP/1.1 GET http://…``, ``HTTP/1.1 200 12ms (GET http://…)``."""
    request = f"{message.method} {message.url}"
    if not message.is_response:
        return f"{message.protocol} {request}"
    return f"{message.protocol} {message.code} {message.latency_ns // 1_000_000}ms ({request})"


def _dns(message: DnsMessage) -> HubbleFlow:
    """Return a DNS message in Hubble's field names; zeros and empty lists are left out, as in its JSON form."""
    dns: HubbleFlow = {
        "query": f"{message.name}.",
        "ips": [str(ip_address(address)) for address in message.addresses],
        "ttl": message.ttl,
        "cnames": [f"{name}." for name in message.aliases],
        "observation_source": "proxy",
        "rcode": message.rcode,
        "qtypes": [_dns_type(message)],
    }
    return {field: value for field, value in dns.items() if value}


def _dns_type(message: DnsMessage) -> str:
    return _DNS_TYPES.get(message.type, f"TYPE{message.type}")  # RFC 3597 section 5


def _dns_summary(message: DnsMessage) -> str:
    query = f"{message.name}. {_dns_type(message)}"
    if not message.is_answer:
        return f"DNS query {query}"
    words = [", ".join(str(ip_address(address)) for address in message.addresses)]
    if message.rcode or not message.addresses:
        words = [_RCODES[message.rcode] if message.rcode < len(_RCODES) else f"rcode {message.rcode}"]
    words += [f"TTL {message.ttl} s"] if message.addresses else []
    words += [f"by {', '.join(f'{name}.' for name in message.aliases)}"] if message.aliases else []
    return f"DNS answer {' '.join(words)} to {query}"


def _end(identity: Identity, names: "End") -> HubbleFlow:
    end: HubbleFlow = {"identity": identity}
    if names.labels is not None:
        end["labels"] = [str(label) for label in names.labels]
    if names.name:
        end |= {"namespace": names.namespace, "pod_name": names.name}
    return end


def _rules(field: str, rules: Iterable[RuleRef]) -> HubbleFlow:
    refs = [_rule(rule) for rule in rules]
    return {field: refs[:_MAX_RULES]} if refs else {}


def _rule(rule: RuleRef) -> HubbleFlow:
    ref: HubbleFlow = {"kind": rule.kind, "namespace": rule.namespace, "name": rule.name, "rule": rule.place}
    if rule.order is not None:
        tier, priority, action, title = rule.order
        ref |= {"tier": tier, "priority": priority, "action": action} | ({"rule_name": title} if title else {})
    return ref


def _flag_names(flags: int) -> list[str]:
    return [name for bit, name in enumerate(_TCP_FLAGS) if flags >> bit & 1]


def _summary(event: FlowEvent) -> str:
    opening = event.opening
    if isinstance(event.l7, HttpMessage):
        return _http_summary(event.l7)
    if isinstance(event.l7, TlsMessage):
        return f"TLS to {event.l7.server_name or 'no server name'}"
    if event.l7 is not None:
        return _dns_summary(event.l7)
    if opening.proto == TCP:
        return f"TCP Flags: {', '.join(_flag_names(event.tcp_flags)) or 'none'}"
    if opening.proto in _ICMP:
        return f"{_ICMP[opening.proto]} type {opening.icmp_type} code {opening.icmp_code}"
    return _PORTED.get(opening.proto, f"IP protocol {opening.proto}" if opening.src else "unreadable")


class Logged(NamedTuple):
    """Logged event: a flow event with the names of its ends at the time of the event."""

    event: FlowEvent
    names: "Ends"
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
    words = [f"{time} [{flow['node_name']}]:", ends[0], arrow, ends[1], flow["traffic_direction"]]
    if "http" in flow.get("l7", ()):
        words.append(f"http-{flow['l7']['type'].lower()}")
    words.append(flow["verdict"])
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
    return ", ".join(dict.fromkeys(map(_document, rules)))


def _document(rule: Mapping[str, str]) -> str:
    if "tier" in rule:
        return f"{rule['name']} {rule['rule']} ({rule['tier']}, {rule['action']})"
    return f"{rule['namespace']}/{rule['name']}" if rule["namespace"] else rule["name"]
