"""Recording: logged events, summed up as flows."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import pytest

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, TlsHello
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.observe import recording as module
from nfq_enforcer.observe.recording import Recording
from nfq_enforcer.observe.saved import parse
from nfq_enforcer.policy.recorded import RecordedFlow, Seen

FRONT = {"identity": 300, "labels": ["k8s:role=frontend"], "namespace": "default", "pod_name": "front1"}
BACK = {"identity": 301, "labels": ["k8s:role=backend"], "namespace": "default", "pod_name": "back1"}
WORLD = {"identity": 2, "labels": ["reserved:world"]}
PASSED: dict[str, Any] = {
    "time": "2026-01-01T00:00:00Z",
    "verdict": "FORWARDED",
    "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"},
    "l4": {"TCP": {"source_port": 40_000, "destination_port": 80}},
    "source": FRONT,
    "destination": BACK,
    "node_name": "n1",
    "traffic_direction": "EGRESS",
    "is_reply": False,
}
END = {"cause": "closed", "sent": {"packets": "1", "bytes": "1"}, "received": {"packets": "1", "bytes": "1"}}


def l7(**message: Any) -> dict[str, Any]:
    return PASSED | {"l7": {"type": "REQUEST", **message}}


def recorded(*flows: dict[str, Any], dropped: bool = False) -> Recording:
    recording = Recording(dropped=dropped)
    for flow in flows:
        recording.add(parse(flow))
    return recording


def only(flows: Iterable[tuple[RecordedFlow, Seen]]) -> tuple[RecordedFlow, Seen]:
    (one,) = flows
    return one


def test_a_connection_that_two_nodes_have_logged_counts_once() -> None:
    there = PASSED | {"node_name": "n2", "traffic_direction": "INGRESS", "time": "2026-01-01T00:00:01Z"}
    again = PASSED | {"l4": {"TCP": {"source_port": 40_001, "destination_port": 80}}}

    recording = recorded(PASSED, there, again)

    flow, seen = only(recording.flows().items())
    assert (str(flow.source), str(flow.target), str(flow.traffic)) == ("default/front1", "default/back1", "80/TCP")
    assert (seen.times, seen.last, sum(seen.refused.values())) == (2, 1_767_225_601.0, 0)
    assert recording.nodes == {"n1", "n2"}


def test_refused_connections_are_counted_by_the_side() -> None:
    audited = PASSED | {"verdict": "AUDIT", "drop_reason_desc": "POLICY_DENIED"}
    dropped = audited | {"verdict": "DROPPED", "traffic_direction": "INGRESS"}

    assert only(recorded(audited, dropped).flows().items())[1].refused == {Direction.EGRESS: 1}
    with_dropped = only(recorded(audited, dropped, dropped=True).flows().items())[1]
    assert with_dropped.refused == {Direction.EGRESS: 1, Direction.INGRESS: 1}


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED"},
        {"verdict": "TRACED", "flow_end": END},
        {"verdict": "AUDIT", "drop_reason_desc": "CT_NO_MATCH"},
        {"IP": {}},
        {"l7": {"type": "RESPONSE", "dns": {"query": "a."}}, "is_reply": True},
    ],
)
def test_other_events_have_no_part(change: dict[str, Any]) -> None:
    assert recorded(PASSED | change).flows() == {}


def test_a_dropped_reply_is_no_flow() -> None:
    reply = PASSED | {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "is_reply": True}

    assert recorded(reply, dropped=True).flows() == {}


def test_flows_that_a_deny_rule_forbids_are_counted_and_left_out() -> None:
    recording = recorded(PASSED | {"verdict": "AUDIT", "drop_reason_desc": "POLICY_DENY"})

    assert recording.flows() == {}
    assert dict(recording.left_out) == {"denied by a deny rule, which no rule that allows can change": 1}


@pytest.mark.parametrize(
    ("flow", "request_"),
    [
        (l7(http={"method": "GET", "url": "http://a:80/b?c=d#e"}), HttpRequest("GET", "/b?c=d", "a:80")),
        (l7(http={"method": "GET", "url": "/b"}), HttpRequest("GET", "/b")),
        (l7(http={"method": "GET", "url": "http://a"}), HttpRequest("GET", "/", "a")),
        (l7(dns={"query": "A.Example."}), DnsQuestion("a.example")),
        (l7(tls={"server_name": "a.example"}), TlsHello("a.example")),
    ],
)
def test_requests_are_flows_of_their_own(flow: dict[str, Any], request_: object) -> None:
    recorded_requests = [one.traffic.request for one in recorded(PASSED, flow).flows()]

    assert recorded_requests == [None, request_]


def test_a_request_counts_once_with_its_response_or_with_one_of_both() -> None:
    request = l7(http={"method": "GET", "url": "/"})
    response = {"l7": {"type": "RESPONSE", "http": {"method": "GET", "url": "/", "code": 200}}, "is_reply": True}
    answered = PASSED | response | {"source": BACK, "destination": FRONT}
    answered |= {"IP": {"source": "10.0.0.2", "destination": "10.0.0.1"}}
    answered |= {"l4": {"TCP": {"source_port": 80, "destination_port": 40_000}}}

    for flows in ([request], [answered], [request, answered]):
        flow, seen = only(recorded(*flows).flows().items())
        assert (str(flow.source), str(flow.traffic), seen.times) == ("default/front1", "GET / on 80/TCP", 1)


def test_an_address_outside_has_the_names_that_its_client_was_given() -> None:
    outside = PASSED | {"destination": WORLD}
    answer = {"type": "RESPONSE", "dns": {"query": "a.example.", "ips": ["10.0.0.2"]}}
    learned = PASSED | {"l7": answer, "is_reply": True, "source": BACK, "destination": FRONT}
    learned |= {"l4": {"UDP": {"source_port": 53, "destination_port": 40_000}}}

    def names(*flows: dict[str, Any]) -> tuple[str, ...]:
        return only(recorded(*flows).flows().items())[0].target.fqdns

    assert names(outside, learned) == ("a.example",)
    assert names(PASSED, learned) == ()  # the address of an endpoint
    assert names(outside | {"source": BACK}, learned) == ()  # another client
    many = [
        learned | {"l7": answer | {"dns": {"query": f"{one}.example.", "ips": ["10.0.0.2"]}}} for one in "abcdefghijk"
    ]
    assert len(names(outside, *many)) == 8


def test_a_dns_server_is_reached_by_its_address() -> None:
    asked = l7(dns={"query": "a.example."}) | {"destination": WORLD, "l4": {"UDP": {"destination_port": 53}}}
    answer = {"type": "RESPONSE", "dns": {"query": "a.example.", "ips": ["10.0.0.2"]}}
    answered = asked | {"l7": answer, "is_reply": True, "source": WORLD, "destination": FRONT}
    answered |= {"IP": {"source": "10.0.0.2", "destination": "10.0.0.1"}, "l4": {"UDP": {"source_port": 53}}}

    flows = recorded(asked, answered, PASSED | {"destination": WORLD}).flows()

    assert {str(flow.traffic): flow.target.fqdns for flow in flows} == {
        "a query for a.example on 53/UDP": (),
        "80/TCP": ("a.example",),
    }


def test_icmp_is_a_flow_by_its_type() -> None:
    flow, _ = only(recorded(PASSED | {"l4": {"ICMPv4": {"type": 8}}}).flows().items())

    assert str(flow.traffic) == "ICMP type 8"
    assert flow.source.address == ip_address("10.0.0.1")


def test_the_number_of_flows_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FLOWS", 2)
    ports = (PASSED | {"l4": {"TCP": {"source_port": 1, "destination_port": port}}} for port in (1, 2, 3, 4, 1))

    recording = recorded(*ports)

    assert [seen.times for seen in recording.flows().values()] == [2, 1]
    assert dict(recording.left_out) == {"of more than 2 different flows": 2}


def test_connections_beyond_the_ports_that_are_told_apart_are_counted_by_their_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PORTS", 2)
    ports = (PASSED | {"l4": {"TCP": {"source_port": port, "destination_port": 80}}} for port in range(1, 6))

    assert only(recorded(*ports).flows().items())[1].times == 5
