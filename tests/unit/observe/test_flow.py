"""Rendering of flows: JSON with Hubble's names, and one line in Hubble's form."""

from typing import Any
from uuid import RFC_4122
from uuid import UUID as UUID8

import pytest

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import DnsMessage, FlowEnd, FlowEvent, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import HOST, REMOTE_NODE, RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nfq_enforcer.observe import flow
from nfq_enforcer.observe.flow import EventIds, HubbleFlow, Logged, render_lost
from nfq_enforcer.observe.text import compact
from tests.support.packets import packed

pytestmark = pytest.mark.usefixtures("utc")
AT = 1_767_225_600.125  # 2026-01-01T00:00:00.125Z
FRONT, BACK, UNKNOWN = Identity(300), Identity(400), Identity(0)
FRONT4, BACK4, FRONT6, BACK6 = "10.1.0.10", "10.2.0.10", "fd01::10", "fd02::10"
SYN, SYN_ACK = 0x02, 0x12
UUID = "00000000-0000-8000-8000-000000000001"
LABELS = {FRONT: Labels.parse({"role": "frontend"}), BACK: Labels.parse({"container:role": "backend", "tier": ""})}


NAMES = {FRONT: "front1", BACK: "back1"}


def rule(name: str, direction: Direction = Direction.INGRESS, number: int = 0, namespace: str = "shop") -> RuleRef:
    kind = "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy"
    return RuleRef(kind, namespace, name, direction, number)


def opening(
    src: str = FRONT4,
    dst: str = BACK4,
    proto: int = TCP,
    port: int = 80,
    source: Identity = FRONT,
    destination: Identity = BACK,
    icmp: tuple[int, int] = (-1, -1),
) -> Opening:
    ported = proto in {TCP, UDP, SCTP}
    ports = (40_000, port) if ported else (0, 0)
    return Opening(packed(src), packed(dst), proto, *ports, *icmp, False, source, destination)


def event(opened: Opening | None = None, **changed: Any) -> FlowEvent:
    """Return the event of an allowed TCP connection from front1 to back1; ``changed`` overrides fields."""
    plain = FlowEvent(5.0, FlowVerdict.FORWARDED, None, Direction.INGRESS, opened or opening(), SYN, is_reply=False)
    return plain._replace(**changed)


def dropped(reason: DropReason, opened: Opening | None = None, **changed: Any) -> FlowEvent:
    return event(opened, verdict=FlowVerdict.DROPPED, reason=reason, **changed)


def unreadable() -> FlowEvent:
    nothing = Opening(b"", b"", 0, 0, 0, -1, -1, True, UNKNOWN, UNKNOWN)
    return dropped(DropReason.INVALID_PACKET, nothing, tcp_flags=0)


def called(identity: Identity) -> End:
    labels = {**RESERVED, **LABELS}.get(identity)
    return End(labels, "shop", NAMES[identity]) if identity in NAMES else End(labels)


def render(seen: FlowEvent) -> HubbleFlow:
    names = Ends(called(seen.opening.source), called(seen.opening.destination))
    return flow.render(Logged(seen, names, AT, "n1", UUID))


def line(seen: FlowEvent) -> str:
    """Return the compact line without time and node, which have a test of their own."""
    return compact(render(seen)).removeprefix("Jan 01 00:00:00.125 [n1]: ")


def test_a_connection_that_passed_has_hubbles_fields() -> None:
    seen = event(
        direction=Direction.INGRESS,
        allowed_by=(rule("out", Direction.EGRESS, 1), rule("in"), rule("all", namespace="")),
    )

    assert render(seen) == {
        "time": "2026-01-01T00:00:00.125000Z",
        "uuid": UUID,
        "verdict": "FORWARDED",
        "IP": {"source": FRONT4, "destination": BACK4, "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40_000, "destination_port": 80, "flags": {"SYN": True}}},
        "source": {"identity": 300, "labels": ["k8s:role=frontend"], "namespace": "shop", "pod_name": "front1"},
        "destination": {
            "identity": 400,
            "labels": ["container:role=backend", "k8s:tier"],
            "namespace": "shop",
            "pod_name": "back1",
        },
        "Type": "L3_L4",
        "node_name": "n1",
        "event_type": {"type": 4, "sub_type": 0},
        "traffic_direction": "INGRESS",
        "is_reply": False,
        "ingress_allowed_by": [
            {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "in", "rule": "ingress[0]"},
            {"kind": "CiliumClusterwideNetworkPolicy", "namespace": "", "name": "all", "rule": "ingress[0]"},
        ],
        "egress_allowed_by": [{"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "out", "rule": "egress[1]"}],
        "Summary": "TCP Flags: SYN",
    }


def test_a_reader_that_has_lost_flows_is_told_how_many() -> None:
    seen = render_lost(12, "n1")

    assert seen == {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": 12}, "node_name": "n1"}
    assert compact(seen) == "EVENTS LOST: 12 came faster than they were read"


def test_a_drop_has_its_reason_and_the_rules_that_closed_the_door() -> None:
    seen = render(dropped(DropReason.POLICY_DENIED, direction=Direction.EGRESS, enforced_by=(rule("only-db"),)))

    assert (seen["verdict"], seen["drop_reason_desc"], seen["traffic_direction"]) == (
        "DROPPED",
        "POLICY_DENIED",
        "EGRESS",
    )
    assert seen["enforced_by"] == [
        {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "only-db", "rule": "ingress[0]"}
    ]
    assert "ingress_allowed_by" not in seen


def test_a_drop_by_a_deny_rule_names_it_under_its_direction() -> None:
    deny = rule("no-telnet")._replace(deny=True)
    seen = render(dropped(DropReason.POLICY_DENY, denied_by=(deny,)))

    assert seen["ingress_denied_by"] == [
        {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "no-telnet", "rule": "ingressDeny[0]"}
    ]
    assert compact(seen).endswith("a deny rule forbids it: shop/no-telnet")


@pytest.mark.parametrize(("title", "named"), [("no telnet", {"rule_name": "no telnet"}), ("", {})])
def test_an_ordered_rule_has_its_tier_priority_action_and_name(title: str, named: dict[str, str]) -> None:
    order = RuleOrder(Tier.ADMIN, 10, Action.DENY, title)
    deny = RuleRef("ClusterNetworkPolicy", "", "admin", Direction.EGRESS, 1, order=order)
    seen = render(dropped(DropReason.POLICY_DENY, direction=Direction.EGRESS, denied_by=(deny,)))

    place = {"kind": "ClusterNetworkPolicy", "namespace": "", "name": "admin", "rule": "egress[1]"}
    assert seen["egress_denied_by"] == [{**place, "tier": "Admin", "priority": 10, "action": "Deny", **named}]
    assert compact(seen).endswith("a deny rule forbids it: admin egress[1] (Admin, Deny)")


def test_what_audit_lets_pass_has_the_reason_for_which_it_would_be_dropped() -> None:
    seen = render(event(verdict=FlowVerdict.AUDIT, reason=DropReason.POLICY_DENIED))

    assert (seen["verdict"], seen["drop_reason_desc"]) == ("AUDIT", "POLICY_DENIED")


@pytest.mark.parametrize(
    ("opened", "l4", "summary"),
    [
        (opening(proto=UDP, port=53), {"UDP": {"source_port": 40_000, "destination_port": 53}}, "UDP"),
        (opening(proto=SCTP, port=3868), {"SCTP": {"source_port": 40_000, "destination_port": 3868}}, "SCTP"),
        (opening(proto=ICMP, icmp=(8, 0)), {"ICMPv4": {"type": 8, "code": 0}}, "ICMPv4 type 8 code 0"),
        (
            opening(FRONT6, BACK6, ICMPV6, icmp=(128, 0)),
            {"ICMPv6": {"type": 128, "code": 0}},
            "ICMPv6 type 128 code 0",
        ),
        (opening(proto=47), {"protocol": 47}, "IP protocol 47"),
    ],
)
def test_each_protocol_has_its_own_form(opened: Opening, l4: HubbleFlow, summary: str) -> None:
    seen = render(event(opened, tcp_flags=0))

    assert (seen["l4"], seen["Summary"]) == (l4, summary)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (0, []),
        (0x01, ["FIN"]),
        (0x14, ["RST", "ACK"]),
        (0xFF, ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"]),
    ],
)
def test_tcp_flags_have_their_names(flags: int, names: list[str]) -> None:
    seen = render(event(tcp_flags=flags))

    assert seen["l4"]["TCP"]["flags"] == dict.fromkeys(names, True)
    assert seen["Summary"] == f"TCP Flags: {', '.join(names) or 'none'}"


def test_ipv6_is_named() -> None:
    assert render(event(opening(FRONT6, BACK6)))["IP"] == {
        "source": FRONT6,
        "destination": BACK6,
        "ipVersion": "IPv6",
    }


def test_a_reply_has_the_sender_of_the_reply_as_its_source() -> None:
    seen = render(dropped(DropReason.POLICY_DENIED, is_reply=True, tcp_flags=SYN_ACK))

    assert seen["is_reply"] is True
    assert seen["IP"] == {"source": BACK4, "destination": FRONT4, "ipVersion": "IPv4"}
    assert (seen["source"]["pod_name"], seen["destination"]["pod_name"]) == ("back1", "front1")
    assert (seen["l4"]["TCP"]["source_port"], seen["l4"]["TCP"]["destination_port"]) == (80, 40_000)


def test_a_packet_that_cannot_be_read_has_no_addresses() -> None:
    assert render(unreadable()) == {
        "time": "2026-01-01T00:00:00.125000Z",
        "uuid": UUID,
        "verdict": "DROPPED",
        "drop_reason_desc": "INVALID_PACKET",
        "event_type": {"type": 1, "sub_type": 134},
        "source": {"identity": 0},
        "destination": {"identity": 0},
        "Type": "L3_L4",
        "node_name": "n1",
        "traffic_direction": "INGRESS",
        "is_reply": False,
        "Summary": "unreadable",
    }


@pytest.mark.parametrize(
    ("identity", "labels"),
    [(HOST, ["reserved:host"]), (WORLD, ["reserved:world"]), (REMOTE_NODE, ["reserved:remote-node"])],
)
def test_a_reserved_identity_has_its_label_and_no_name(identity: Identity, labels: list[str]) -> None:
    assert render(event(opening(source=identity)))["source"] == {"identity": identity, "labels": labels}


def test_an_identity_that_is_not_known_here_is_a_number() -> None:
    assert render(event(opening("10.3.0.10", source=Identity(9999))))["source"] == {"identity": 9999}


def test_of_very_many_rules_only_some_are_named() -> None:
    closed = tuple(rule(f"policy-{number}") for number in range(50))

    assert [named["name"] for named in render(event(enforced_by=closed))["enforced_by"]] == [
        f"policy-{number}" for number in range(8)
    ]


def test_events_have_numbered_uuids_with_a_random_part_of_the_agent() -> None:
    ids, others = EventIds(), EventIds()
    first, second = UUID8(ids.next()), UUID8(ids.next())

    assert (first.version, first.variant) == (8, RFC_4122)
    assert second.int == first.int + 1
    assert UUID8(others.next()).int >> 48 != first.int >> 48


def ended(cause: EndCause = EndCause.CLOSED, duration: float | None = 1.2034) -> FlowEvent:
    end = FlowEnd(cause, duration, Traffic(12, 3400), Traffic(10, 1 << 40))
    return event(verdict=FlowVerdict.TRACED, tcp_flags=0, end=end)


def test_the_end_of_a_flow_has_its_packets_and_bytes_of_each_direction() -> None:
    seen = render(ended())

    assert (seen["verdict"], seen["Type"]) == ("TRACED", "L3_L4")
    assert seen["l4"] == {"TCP": {"source_port": 40_000, "destination_port": 80}}
    assert seen["flow_end"] == {
        "cause": "closed",
        "duration_ns": "1203400000",
        "sent": {"packets": "12", "bytes": "3400"},
        "received": {"packets": "10", "bytes": str(1 << 40)},
    }
    assert line(ended()) == (
        "shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) INGRESS TRACED "
        "(TCP closed after 1.203 s: sent 12 packets, 3400 bytes; received 10 packets, 1099511627776 bytes)"
    )


def test_the_end_of_a_flow_whose_beginning_is_unknown_has_no_duration() -> None:
    seen = render(ended(EndCause.EXPIRED, None))

    assert "duration_ns" not in seen["flow_end"]
    assert seen["Summary"].startswith("TCP expired: sent 12")


def test_a_line_tells_the_local_time_and_the_node() -> None:
    assert compact(render(event())) == (
        "Jan 01 00:00:00.125 [n1]: shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) "
        "INGRESS FORWARDED (TCP Flags: SYN)"
    )


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (
            event(
                allowed_by=(rule("out", Direction.EGRESS), rule("in"), rule("in", number=1), rule("all", namespace=""))
            ),
            "shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN) "
            "allowed by shop/out, shop/in, all",
        ),
        (
            dropped(DropReason.POLICY_DENIED, enforced_by=(rule("only-db"), rule("only-db", number=1))),
            "shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) INGRESS DROPPED POLICY_DENIED (TCP Flags: SYN) "
            "no rule allows it; enforced by shop/only-db",
        ),
        (
            dropped(DropReason.POLICY_DENIED, opening(proto=UDP, port=53), tcp_flags=0, direction=Direction.EGRESS),
            "shop/front1:40000 (ID:300) -> shop/back1:53 (ID:400) EGRESS DROPPED POLICY_DENIED (UDP) no rule allows it",
        ),
        (
            event(opening(proto=ICMP, icmp=(8, 0)), tcp_flags=0),
            "shop/front1 (ID:300) -> shop/back1 (ID:400) INGRESS FORWARDED (ICMPv4 type 8 code 0)",
        ),
        (
            event(opening(FRONT6, BACK6, ICMPV6, icmp=(128, 0)), tcp_flags=0),
            "shop/front1 (ID:300) -> shop/back1 (ID:400) INGRESS FORWARDED (ICMPv6 type 128 code 0)",
        ),
        (
            event(opening(proto=47), tcp_flags=0),
            "shop/front1 (ID:300) -> shop/back1 (ID:400) INGRESS FORWARDED (IP protocol 47)",
        ),
        (
            dropped(DropReason.STAMP_MISSING, is_reply=True, tcp_flags=SYN_ACK),
            "shop/front1:40000 (ID:300) <- shop/back1:80 (ID:400) INGRESS DROPPED STAMP_MISSING "
            "(TCP Flags: SYN, ACK) a reply from an endpoint of another node came without that node's stamp",
        ),
        (
            event(opening("203.0.113.9", source=WORLD)),
            "203.0.113.9:40000 (world) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN)",
        ),
        (
            event(opening("2001:db8::9", BACK6, source=WORLD)),
            "[2001:db8::9]:40000 (world) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN)",
        ),
        (
            event(opening("2001:db8::9", BACK6, ICMPV6, source=WORLD, icmp=(128, 0)), tcp_flags=0),
            "[2001:db8::9] (world) -> shop/back1 (ID:400) INGRESS FORWARDED (ICMPv6 type 128 code 0)",
        ),
        (
            event(opening("172.16.0.1", source=HOST)),
            "172.16.0.1:40000 (host) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN)",
        ),
        (
            event(opening("172.16.0.2", source=REMOTE_NODE)),
            "172.16.0.2:40000 (remote-node) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN)",
        ),
        (
            dropped(DropReason.CT_NO_MATCH, opening("10.9.0.9", source=UNKNOWN, destination=UNKNOWN)),
            "10.9.0.9:40000 (unknown) -> 10.2.0.10:80 (unknown) INGRESS DROPPED CT_NO_MATCH (TCP Flags: SYN) "
            "it belongs to no known connection and cannot open one",
        ),
        (
            event(opening("10.3.0.10", source=Identity(9999))),
            "10.3.0.10:40000 (ID:9999) -> shop/back1:80 (ID:400) INGRESS FORWARDED (TCP Flags: SYN)",
        ),
        (
            unreadable(),
            "? (unknown) -> ? (unknown) INGRESS DROPPED INVALID_PACKET (unreadable) the packet's headers are malformed",
        ),
        (
            event(verdict=FlowVerdict.AUDIT, reason=DropReason.POLICY_DENIED, enforced_by=(rule("only-db"),)),
            "shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) INGRESS AUDIT POLICY_DENIED (TCP Flags: SYN) "
            "no rule allows it; enforced by shop/only-db",
        ),
    ],
)
def test_a_line_says_who_to_whom_the_verdict_and_why(seen: FlowEvent, text: str) -> None:
    assert line(seen) == text


@pytest.mark.parametrize("reason", DropReason)
def test_every_drop_reason_has_its_sentence_in_the_line(reason: DropReason) -> None:
    assert line(dropped(reason)).endswith(f"DROPPED {reason} (TCP Flags: SYN) {reason.description}")


def dns(message: DnsMessage, **changed: Any) -> HubbleFlow:
    return render(event(opening(proto=UDP, port=53), tcp_flags=0, l7=message, **changed))


@pytest.mark.parametrize(
    ("message", "kind", "fields", "summary"),
    [
        (
            DnsMessage(False, "a.example", 28),
            "REQUEST",
            {"query": "a.example.", "qtypes": ["AAAA"]},
            "DNS query a.example. AAAA",
        ),
        (
            DnsMessage(True, "a.example", 1, 0, 30, (packed("192.0.2.1"), packed("192.0.2.2")), ("b.example",)),
            "RESPONSE",
            {
                "query": "a.example.",
                "ips": ["192.0.2.1", "192.0.2.2"],
                "ttl": 30,
                "cnames": ["b.example."],
                "qtypes": ["A"],
            },
            "DNS answer 192.0.2.1, 192.0.2.2 TTL 30 s by b.example. to a.example. A",
        ),
        (
            DnsMessage(True, "a.example", 1, 3),
            "RESPONSE",
            {"query": "a.example.", "rcode": 3, "qtypes": ["A"]},
            "DNS answer name does not exist to a.example. A",
        ),
        (
            DnsMessage(True, "", 4711, 16),
            "RESPONSE",
            {"query": ".", "rcode": 16, "qtypes": ["TYPE4711"]},
            "DNS answer rcode 16 to . TYPE4711",
        ),
    ],
)
def test_a_dns_message_has_the_fields_of_hubble(
    message: DnsMessage, kind: str, fields: dict[str, Any], summary: str
) -> None:
    flow = dns(message)

    assert (flow["Type"], flow["Summary"]) == ("L7", summary)
    assert flow["l7"] == {"type": kind, "dns": fields | {"observation_source": "proxy"}}
    assert f"({summary})" in compact(flow)


URL = "http://shop.example.com/userdata/42?full"
REQUEST = HttpMessage(False, "GET", URL, "HTTP/1.1", 403, 1_999_999, (("x-token", "a"), ("x-token", "b")))
RESPONSE = HttpMessage(True, "POST", URL, "HTTP/2", 200, 12_500_000, (), 0)


def test_a_refused_http_request_has_the_fields_of_hubble() -> None:
    seen = render(dropped(DropReason.HTTP_REFUSED, tcp_flags=0, enforced_by=(rule("users"),), l7=REQUEST))

    assert (seen["Type"], seen["is_reply"], seen["l4"]) == (
        "L7",
        False,
        {"TCP": {"source_port": 40_000, "destination_port": 80}},
    )
    assert seen["l7"] == {
        "type": "REQUEST",
        "latency_ns": "1999999",
        "http": {
            "code": 403,
            "method": "GET",
            "url": URL,
            "protocol": "HTTP/1.1",
            "headers": [{"key": "x-token", "value": "a"}, {"key": "x-token", "value": "b"}],
        },
    }
    assert compact(seen).endswith(
        "shop/front1:40000 (ID:300) -> shop/back1:80 (ID:400) INGRESS http-request DROPPED HTTP_REFUSED "
        f"(HTTP/1.1 GET {URL}) no HTTP rule allows the request; its client was answered 403; enforced by shop/users"
    )


def test_an_http_response_has_the_fields_of_hubble_and_the_status_of_grpc_is_a_header() -> None:
    seen = render(event(tcp_flags=0, is_reply=True, allowed_by=(rule("users"),), l7=RESPONSE))

    assert seen["l7"] == {
        "type": "RESPONSE",
        "latency_ns": "12500000",
        "http": {
            "code": 200,
            "method": "POST",
            "url": URL,
            "protocol": "HTTP/2",
            "headers": [{"key": "grpc-status", "value": "0"}],
        },
    }
    assert (seen["source"]["pod_name"], seen["destination"]["pod_name"]) == ("back1", "front1")
    assert compact(seen).endswith(
        "shop/front1:40000 (ID:300) <- shop/back1:80 (ID:400) INGRESS http-response FORWARDED "
        f"(HTTP/2 200 12ms (POST {URL})) allowed by shop/users"
    )


def test_zeros_and_empty_fields_of_an_http_message_are_left_out() -> None:
    seen = render(event(l7=HttpMessage(False, "GET", "http:///", "HTTP/1.0")))

    assert seen["l7"] == {"type": "REQUEST", "http": {"method": "GET", "url": "http:///", "protocol": "HTTP/1.0"}}


def test_a_server_name_is_shown() -> None:
    named = render(
        dropped(DropReason.TLS_REFUSED, tcp_flags=0, enforced_by=(rule("names"),), l7=TlsMessage("a.example"))
    )

    assert named["l7"] == {"type": "REQUEST", "tls": {"server_name": "a.example"}}
    assert "DROPPED TLS_REFUSED (TLS to a.example)" in compact(named)
    unnamed = render(event(tcp_flags=0, l7=TlsMessage("")))
    assert (unnamed["l7"], unnamed["Summary"]) == ({"type": "REQUEST", "tls": {}}, "TLS to no server name")
