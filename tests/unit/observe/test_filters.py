"""Filters of flows: each option, alternatives, both ends, and the words after not."""

import pytest

from nfq_enforcer.core.events import DnsMessage, FlowEnd, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, UDP
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.filters import BY_NAME, FlowFilter, path_of
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.query import Query
from tests.support.flows import AT, BACK, DB, FRONT, UUID, dropped, logged, opening

PLAIN = logged()
REPLY = logged(is_reply=True)
REFUSED = dropped()
AUDITED = logged(verdict=FlowVerdict.AUDIT, reason=DropReason.POLICY_DENIED, direction=Direction.EGRESS)
DENIED = dropped(reason=DropReason.POLICY_DENY)
TO_DB = logged(opening(FRONT, DB, src="fd01::10", ports=(1024, 5432)))
FROM_WORLD = logged(opening(WORLD, BACK, src="198.51.100.7"))
DATAGRAM = logged(opening(proto=UDP, ports=(5353, 53)), tcp_flags=0)
PING = logged(opening(proto=ICMP, ports=(0, 0), icmp=(8, 0)), tcp_flags=0)
PING6 = logged(opening(FRONT, DB, src="fd01::10", proto=ICMPV6, ports=(0, 0), icmp=(128, 0)), tcp_flags=0)
STREAM = logged(opening(proto=SCTP), tcp_flags=0)
GET = logged(l7=HttpMessage(False, "GET", "http://shop/users/42?debug=1", "HTTP/1.1", headers=(("X-Token", "a b"),)))
MISSING = logged(l7=HttpMessage(True, "POST", "http://shop/cart", "HTTP/1.1", 404), is_reply=True)
QUERY = logged(opening(proto=UDP, ports=(5353, 53)), l7=DnsMessage(False, "www.example.com", 1))
HELLO = logged(l7=TlsMessage("example.com"))
END = logged(verdict=FlowVerdict.TRACED, end=FlowEnd(EndCause.CLOSED, 1.0, Traffic(1, 1), Traffic(1, 1)))
UNREADABLE = dropped(
    opening(WORLD, WORLD)._replace(src=b"", dst=b"", proto=0, sport=0, dport=0), DropReason.INVALID_PACKET
)
ON_N2 = logged(node="n2")
SYN_ACK = logged(tcp_flags=0x12)
EVERY = {name: value for name, value in globals().items() if isinstance(value, Logged)}

FRONT_TO_BACK = "PLAIN REFUSED AUDITED DENIED DATAGRAM PING STREAM GET QUERY HELLO END ON_N2 SYN_ACK"
BACK_TO_FRONT = "REPLY MISSING"
BETWEEN = f"{FRONT_TO_BACK} {BACK_TO_FRONT}"
TCP_80 = "PLAIN REFUSED AUDITED DENIED STREAM GET HELLO END ON_N2 SYN_ACK"
FROM_FRONT = f"{FRONT_TO_BACK} TO_DB PING6"

CASES = [
    ("label", "role=frontend", f"{BETWEEN} TO_DB PING6"),
    ("label", "k8s:role=frontend", f"{BETWEEN} TO_DB PING6"),
    ("label", "role=backend", f"{BETWEEN} FROM_WORLD"),
    ("label", "k8s:role=backend", ""),
    ("from-label", "role=frontend", FROM_FRONT),
    ("from-label", "role=backend", BACK_TO_FRONT),
    ("to-label", "role in (backend, db)", f"{FROM_FRONT} FROM_WORLD"),
    ("to-label", "role=frontend,tier=web", BACK_TO_FRONT),
    ("to-label", "role=frontend,tier!=web", ""),
    ("from-label", "reserved:world", "FROM_WORLD UNREADABLE"),
    ("from-label", "!role", "FROM_WORLD UNREADABLE"),
    ("from-pod", "shop/front", FROM_FRONT),
    ("from-pod", "shop/front-1", FROM_FRONT),
    ("from-pod", "front", ""),
    ("to-pod", "back", f"{FRONT_TO_BACK} FROM_WORLD"),
    ("pod", "shop/", f"{BETWEEN} TO_DB PING6"),
    ("namespace", "shop", f"{BETWEEN} TO_DB PING6"),
    ("to-namespace", "default", f"{FRONT_TO_BACK} FROM_WORLD"),
    ("from-namespace", "default", BACK_TO_FRONT),
    ("from-identity", "300", FROM_FRONT),
    ("identity", "world", "FROM_WORLD UNREADABLE"),
    ("to-identity", "reserved:world", "UNREADABLE"),
    ("from-ip", "10.1.0.10", FRONT_TO_BACK),
    ("ip", "10.1.0.0/16", BETWEEN),
    ("from-ip", "fd00::/8", "TO_DB PING6"),
    ("to-ip", "10.1.0.77/16", BACK_TO_FRONT),
    ("to-port", "80", f"{TCP_80} FROM_WORLD"),
    ("from-port", "80", BACK_TO_FRONT),
    ("port", "5432", "TO_DB"),
    ("protocol", "udp", "DATAGRAM QUERY"),
    ("protocol", "TCP", f"{TCP_80} {BACK_TO_FRONT} FROM_WORLD TO_DB".replace(" STREAM", "")),
    ("protocol", "icmp", "PING PING6"),
    ("protocol", "icmpv4", "PING"),
    ("protocol", "icmpv6", "PING6"),
    ("protocol", "sctp", "STREAM"),
    ("protocol", "http", "GET MISSING"),
    ("protocol", "dns", "QUERY"),
    ("protocol", "tls", "HELLO"),
    ("verdict", "dropped", "REFUSED DENIED UNREADABLE"),
    ("verdict", "AUDIT", "AUDITED"),
    ("verdict", "TRACED", "END"),
    ("verdict", "REDIRECTED", ""),
    ("drop-reason", "policy_denied", "REFUSED AUDITED"),
    ("drop-reason-desc", "POLICY_DENY", "DENIED"),
    ("traffic-direction", "Egress", "AUDITED"),
    ("type", "drop", "REFUSED DENIED UNREADABLE"),
    ("type", "l7", "GET MISSING QUERY HELLO"),
    ("type", "flow-end", "END"),
    ("node-name", "n2", "ON_N2"),
    ("node-name", "*2", "ON_N2"),
    ("node-name", "n?", ""),
    ("node-name", "[n]2", ""),
    ("tcp-flags", "ack", "SYN_ACK"),
    ("tcp-flags", "SYN,ACK", "SYN_ACK"),
    ("ip-version", "v6", "TO_DB PING6"),
    ("ip-version", "none", "UNREADABLE"),
    ("ipv6", "v6", "TO_DB PING6"),
    ("http-method", "get", "GET"),
    ("http-path", "^/users/[0-9]+$", "GET"),
    ("http-path", "debug", ""),
    ("http-url", r"shop/.*debug=\d", "GET"),
    ("http-header", "x-token: a b", "GET"),
    ("http-header", "x-token:a", ""),
    ("http-status", "404", "MISSING"),
    ("http-status", "4+", "MISSING"),
    ("http-status", "5+", ""),
    ("dns-query", r"example\.com\.$", "QUERY"),
    ("dns-query", "^www$", ""),
]


def matching(name: str, *values: str) -> set[str]:
    """Return the names of the flows that match a filter."""
    one = FlowFilter({name: values})
    return {flow for flow, event in EVERY.items() if one.matches(event)}


@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_a_filter_matches(name: str, value: str, expected: str) -> None:
    assert matching(name, value) == set(expected.split())


def test_every_option_has_a_case() -> None:
    assert {name for name, *_ in CASES} | {"uuid", "ipv4"} == set(BY_NAME)


def test_one_event_by_its_uuid() -> None:
    assert FlowFilter({"uuid": [UUID]}).matches(PLAIN)
    assert not FlowFilter({"uuid": [UUID[:-1] + "2"]}).matches(PLAIN)


def test_a_version_without_a_value_is_that_of_its_name() -> None:
    assert matching("ipv4", BY_NAME["ipv4"].constant) == set(EVERY) - {"TO_DB", "PING6", "UNREADABLE"}


def test_a_connection_that_policy_allows_is_a_policy_verdict() -> None:
    assert matching("type", "policy-verdict") == set(EVERY) - {
        *("REFUSED", "DENIED", "UNREADABLE", "END", "GET", "MISSING", "QUERY", "HELLO"),
    }


def test_several_values_of_one_filter_are_alternatives() -> None:
    assert matching("protocol", "sctp", "tls") == {"STREAM", "HELLO"}


def test_a_flow_has_to_match_all_filters() -> None:
    both = FlowFilter({"from-label": ["role=frontend"], "to-port": ["5432", "53"]})

    assert both.matches(TO_DB)
    assert both.matches(DATAGRAM)
    assert not both.matches(PLAIN)


def test_filters_of_either_end_have_to_match_on_the_same_end() -> None:
    assert FlowFilter({"label": ["role=frontend"], "namespace": ["shop"]}).matches(PLAIN)
    assert FlowFilter({"label": ["role=frontend"], "namespace": ["shop"]}).matches(REPLY)
    assert not FlowFilter({"label": ["role=frontend"], "namespace": ["default"]}).matches(PLAIN)


def test_what_all_denying_filters_match_is_left_out() -> None:
    query = Query({"protocol": ["tcp"]}, {"to-port": ["80"], "from-label": ["role=frontend"]})

    assert not query.admits(PLAIN)
    assert query.admits(REPLY)
    assert query.admits(TO_DB)
    assert not query.admits(DATAGRAM)


WRONG = [
    ("from-label", "role=a=b", "'role=a=b' is no condition on a label; allowed: KEY"),
    ("label", "-x=1", "'-x' is not a label key"),
    ("label", "x=-", "'-' is not a label value"),
    ("from-ip", "10.0.0", "does not appear to be an IPv4 or IPv6 network"),
    ("to-port", "http", "allowed: 0 to 65535"),
    ("to-port", "65536", "allowed: 0 to 65535"),
    ("port", "-1", "allowed: 0 to 65535"),
    ("identity", "-1", "allowed: a number, host, world"),
    ("protocol", "ip", "allowed: tcp, udp"),
    ("verdict", "MAYBE", "allowed: FORWARDED, DROPPED"),
    ("drop-reason", "BAD", "allowed: POLICY_DENIED"),
    ("traffic-direction", "in", "allowed: ingress, egress"),
    ("type", "trace", "allowed: drop"),
    ("tcp-flags", "SIN", "allowed: FIN, SYN"),
    ("ip-version", "5", "allowed: v4, v6, none"),
    ("http-status", "4", "allowed: a code"),
    ("http-status", "x+", "allowed: a code"),
    ("http-status", "4+4", "allowed: a code"),
    ("http-header", "x-token", "allowed: NAME:VALUE"),
    ("http-path", "(", "missing )"),
    ("http-url", "[", "missing ]"),
    ("dns-query", "*", "no argument for repetition operator"),
]


@pytest.mark.parametrize(("name", "value", "reason"), WRONG)
def test_a_value_that_is_not_allowed_is_refused_with_the_allowed_ones(name: str, value: str, reason: str) -> None:
    with pytest.raises(BadInput) as refused:
        FlowFilter({name: [value]})

    assert str(refused.value).startswith(f"--{name} '{value}': ")
    assert reason in str(refused.value)


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown filter 'from-planet'; allowed: label, from-label"):
        FlowFilter({"from-planet": ["mars"]})


@pytest.mark.parametrize(
    ("url", "path"),
    [("http://a/b/c?d#e", "/b/c"), ("http://a", ""), ("/b?c", "/b"), ("*", "*"), ("a:1", "a:1"), ("", "")],
)
def test_the_path_of_a_url(url: str, path: str) -> None:
    assert path_of(url) == path


def test_a_range_of_time_has_both_ends() -> None:
    query = Query(since=AT, until=AT + 1)

    assert [query.admits(logged(at=AT + after)) for after in (-0.1, 0, 1, 1.1)] == [False, True, True, False]


def test_first_and_last_limit_the_flows_that_match() -> None:
    flows = [logged(at=AT + number, node=f"n{number % 2}") for number in range(6)]

    def nodes(**limits: int) -> list[float]:
        query = Query({"node-name": ["n1"]}, first=limits.get("first"), last=limits.get("last"))
        return [flow.wall_time - AT for flow in query.select(flows, lambda flow: flow)]

    assert nodes() == [1, 3, 5]
    assert nodes(last=2) == [3, 5]
    assert nodes(first=2) == [1, 3]
    assert nodes(last=0) == nodes(first=0) == []


def test_first_and_last_exclude_each_other() -> None:
    with pytest.raises(BadInput, match="first and last exclude each other"):
        Query(first=1, last=1)
