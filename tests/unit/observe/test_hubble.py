"""Hubble's JSON form: read by protobuf with upstream's fields, and read back without a loss."""

import json
from typing import Any

import pytest
from google.protobuf import json_format

from nfq_enforcer.core.events import DnsMessage, FlowEnd, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import WHOLE, Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, UDP
from nfq_enforcer.observe import saved
from nfq_enforcer.observe.flow import Logged, render, render_lost
from nfq_enforcer.observe.hubble import from_response, to_response
from nfq_enforcer.observe.query import Query
from tests.support.flows import DB, FRONT, dropped, logged, opening, rule
from tests.support.hubble_proto import response_class
from tests.support.packets import packed

ORDERED = RuleRef(
    "ClusterNetworkPolicy", "", "admin", Direction.EGRESS, 2, 0, False, RuleOrder(Tier.ADMIN, 10, Action.ACCEPT, "all")
)
EVENTS = {
    "allowed": logged(allowed_by=(rule("out", Direction.EGRESS, 1), ORDERED, rule("in"), rule("all", namespace=""))),
    "isolated": dropped(enforced_by=(RuleRef("NetworkPolicy", "shop", "none", Direction.INGRESS, WHOLE),)),
    "second spec": logged(allowed_by=(rule("in")._replace(spec=3),)),
    "denied": dropped(reason=DropReason.POLICY_DENY, denied_by=(rule("no")._replace(deny=True),)),
    "reply": logged(is_reply=True, tcp_flags=0x12),
    "audit": logged(verdict=FlowVerdict.AUDIT, reason=DropReason.POLICY_DENIED, direction=Direction.EGRESS),
    "udp": logged(opening(proto=UDP), tcp_flags=0),
    "sctp": logged(opening(proto=SCTP), tcp_flags=0),
    "icmp": logged(opening(proto=ICMP, ports=(0, 0), icmp=(8, 0)), tcp_flags=0),
    "icmpv6": logged(opening(FRONT, DB, src="fd01::1", proto=ICMPV6, ports=(0, 0), icmp=(128, 1)), tcp_flags=0),
    "gre": logged(opening(FRONT, WORLD, proto=47, ports=(0, 0)), tcp_flags=0),
    "request": logged(
        l7=HttpMessage(False, "GET", "http://a/b?c", "HTTP/1.1", headers=(("x", "1"), ("x", "2"))), tcp_flags=0
    ),
    "response": logged(
        l7=HttpMessage(True, "POST", "http://a/b.C/D", "HTTP/2", 200, 1 << 40, (("y", ""),), 7),
        tcp_flags=0,
        is_reply=True,
    ),
    "query": logged(opening(proto=UDP), l7=DnsMessage(False, "www.example.com", 1), tcp_flags=0),
    "answer": logged(
        opening(proto=UDP),
        l7=DnsMessage(True, "a.b", 4711, 3, 60, (packed("192.0.2.1"), packed("fd00::1")), ("c.d",)),
        tcp_flags=0,
        is_reply=True,
    ),
    "hello": logged(l7=TlsMessage("example.com"), tcp_flags=0),
    "no server name": logged(l7=TlsMessage(""), tcp_flags=0),
    "end": logged(
        verdict=FlowVerdict.TRACED,
        end=FlowEnd(EndCause.CLOSED, 1.5, Traffic(12, 3400), Traffic(10, 1 << 46)),
        tcp_flags=0,
    ),
    "expired": logged(
        verdict=FlowVerdict.TRACED, end=FlowEnd(EndCause.EXPIRED, None, Traffic(1, 40), Traffic(0, 0)), tcp_flags=0
    ),
    "unreadable": dropped(
        opening(WORLD, WORLD)._replace(src=b"", dst=b"", proto=0, sport=0, dport=0),
        DropReason.INVALID_PACKET,
        tcp_flags=0,
    ),
    **{str(reason): dropped(reason=reason) for reason in DropReason},
}


def read_by_protobuf(response: dict[str, Any]) -> Any:
    """Return the message that protobuf reads; it fails for a field or value that upstream does not have."""
    message, pool = response_class()
    return json_format.Parse(json.dumps(response), message(), ignore_unknown_fields=False, descriptor_pool=pool)


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_each_field_is_one_of_upstream(event: Logged) -> None:
    message = read_by_protobuf(to_response(render(event))).flow
    source, destination = event.sides

    assert message.time.ToMicroseconds() == round(event.wall_time * 1e6)
    assert (message.uuid, message.node_name) == (event.uuid, event.node)
    assert (
        message.DESCRIPTOR.fields_by_name["verdict"].enum_type.values_by_name[event.event.verdict].number
        == message.verdict
    )
    assert message.is_reply.value is event.event.is_reply
    assert (message.source.identity, message.destination.identity) == (source.identity, destination.identity)
    assert list(message.source.labels) == [str(label) for label in source.names.labels or ()]
    assert (message.destination.namespace, message.destination.pod_name) == destination.names[1:]
    assert message.l7.http.method == (event.event.l7.method if isinstance(event.event.l7, HttpMessage) else "")
    assert (event.event.opening.proto == 6 and event.event.tcp_flags & 2 != 0) == message.l4.TCP.flags.SYN


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_nothing_is_lost_on_the_way_through_either_form(event: Logged) -> None:
    flow = render(event)
    again = from_response(json.loads(json.dumps(to_response(flow))))

    assert again == flow
    assert from_response(flow) == flow
    parsed = saved.parse(again)
    assert parsed._replace(event=parsed.event._replace(time=event.event.time)) == event
    assert render(parsed) == flow


def test_an_own_drop_reason_keeps_its_name_beside_that_of_upstream() -> None:
    flow = to_response(render(dropped(reason=DropReason.STAMP_MISSING)))["flow"]

    assert (flow["drop_reason"], flow["drop_reason_desc"]) == (0, "DROP_REASON_UNKNOWN")
    assert flow["extensions"]["value"]["drop_reason_desc"] == "STAMP_MISSING"


def test_notes_beside_the_flows_are_of_upstream_too() -> None:
    lost = read_by_protobuf(to_response(render_lost(12, "n1")))

    assert (lost.lost_events.num_events_lost, lost.node_name) == (12, "n1")


# As 'hubble observe -o jsonpb' prints one, with fields that this program does not write.
UPSTREAM = {
    "flow": {
        "time": "2024-05-06T07:08:09.123456789Z",
        "uuid": "1e0a1c5a-6f9e-4d8c-8f1e-2f6f2c0a8a11",
        "verdict": "DROPPED",
        "drop_reason": 157,
        "ethernet": {"source": "0a:00:00:00:00:01", "destination": "0a:00:00:00:00:02"},
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2", "ipVersion": "IPv4"},
        "l4": {"UDP": {"source_port": 53, "destination_port": 4242}},
        "source": {"ID": 7, "identity": 12, "labels": ["k8s:app=x", "reserved:y"], "workloads": [{"name": "w"}]},
        "destination": {"identity": 13, "namespace": "b", "pod_name": "p-1"},
        "Type": "L3_L4",
        "event_type": {"type": 1, "sub_type": 157},
        "traffic_direction": "INGRESS",
        "drop_reason_desc": "IP_FRAGMENTATION_NOT_SUPPORTED",
        "egress_denied_by": [{"name": "d", "namespace": "b", "revision": "3"}],
        "Summary": "UDP",
    },
    "node_name": "kind/worker",
    "time": "2024-05-06T07:08:09.123456789Z",
}


def test_a_stream_of_hubble_itself_is_read() -> None:
    flow = from_response(UPSTREAM)
    event = saved.parse(flow)

    assert (flow["node_name"], flow["drop_reason_desc"]) == ("kind/worker", "FRAG_NOT_SUPPORTED")
    assert event.event.reason is DropReason.FRAG_NOT_SUPPORTED
    assert event.event.denied_by == (RuleRef("", "b", "d", Direction.EGRESS, WHOLE),)
    assert event.names.source.labels is not None
    assert str(event.names.source.labels) == "k8s:app=x;reserved:y"
    assert Query({"to-pod": ["b/p"], "drop-reason": ["FRAG_NOT_SUPPORTED"]}).admits(event)


def test_the_lines_of_a_file_are_selected_and_wrong_ones_noted() -> None:
    lines = [
        json.dumps(UPSTREAM),
        "",
        json.dumps(render(EVENTS["allowed"])),
        json.dumps({"lost_events": {"num_events_lost": "3"}}),
        "[]",
        "{",
        json.dumps({"flow": {"verdict": "MAYBE", "time": "2024-05-06T07:08:09Z"}}),
        json.dumps({"flow": {"time": "2024-05-06T07:08:09Z"}}),
        json.dumps(to_response(render(EVENTS["end"]))),
        json.dumps({"flow": {"verdict": "DROPPED", "time": "yesterday"}}),
        json.dumps({"verdict": "DROPPED", "time": "2024-05-06T07:08:09Z", "IP": 7}),
    ]
    notes: list[str] = []

    flows = list(saved.select(lines, Query({"verdict": ["DROPPED", "FORWARDED", "VERDICT_UNKNOWN"]}), notes.append))

    assert [flow.item["verdict"] for flow in flows] == ["DROPPED", "FORWARDED", "VERDICT_UNKNOWN"]
    assert [note.partition(":")[0] for note in notes] == [
        *("line 4", "line 5 is no flow", "line 6 is no flow", "line 7 is no flow", "line 10 is no flow"),
        "line 11 is no flow",
    ]
    assert notes[0] == "line 4: EVENTS LOST: 3 came faster than they were read"
