"""Ends of flows: each reported once, with the packets and bytes of both directions, for every way to end."""

import pytest

from nfq_enforcer.core.tables.conntrack import Conntrack, FlowState
from nfq_enforcer.core.tables.flow_ends import MAX_REPORTED, EndCause, FlowEnds, Traffic
from nfq_enforcer.core.verdict import Direction, FlowVerdict
from nfq_enforcer.core.wire.packet import parse
from tests.support.nodes import (
    CLIENT,
    ETH0,
    HTTP,
    NOBODY,
    V4,
    VETH_DB,
    VETH_WEB,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    from_client,
)
from tests.support.packets import fin, packed, request, response, rst, stamped, syn, syn_ack, udp, udp_answer


def server_fin(at: Addresses) -> bytes:
    """Return the FIN of the server of a connection from ``at.client``."""
    payload = bytearray(response(at.web, at.client))
    payload[parse(bytes(payload)).l4_offset + 13] |= 0x01
    return bytes(payload)


def connect(node: Node, at: Addresses) -> list[bytes]:
    """Open a connection from client to web with a request and its answer; return the packets as they arrived."""
    packets = [
        *(stamped(packet, CLIENT) for packet in (syn(at.client, at.web), request(at.client, at.web))),
        *(syn_ack(at.web, at.client), response(at.web, at.client)),
    ]
    for place in (0, 2, 1, 3):
        way = (ETH0, VETH_WEB) if place < 2 else (VETH_WEB, ETH0)
        assert accepted(node.forward(packets[place], *way))
    return packets


def length(*packets: bytes) -> int:
    return sum(map(len, packets))


def test_a_connection_that_both_sides_close_is_reported_with_its_traffic(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    first, second, third, fourth = connect(node, at)
    node.now += 2.5
    from_client(node, fin(at.client, at.web))
    assert node.ended() == []
    node.forward(server_fin(at), VETH_WEB, ETH0)
    last = request(at.client, at.web)
    from_client(node, last)
    node.now += 0.5
    assert node.ended() == []
    node.now += 0.6

    (ended,) = node.ended()

    assert (ended.verdict, ended.reason, ended.direction) == (FlowVerdict.TRACED, None, Direction.INGRESS)
    assert (ended.time, ended.tcp_flags, ended.is_reply) == (node.now, 0, False)
    assert (ended.opening.src, ended.opening.dst) == (packed(at.client), packed(at.web))
    assert (ended.opening.source, ended.opening.destination) == (CLIENT, WEB)
    assert ended.end is not None
    assert (ended.end.cause, ended.end.duration) == (EndCause.CLOSED, 2.5)
    stamp = len(first) - len(syn(at.client, at.web))
    sent = length(first, second, fin(at.client, at.web), last) + 2 * stamp
    assert ended.end.sent == Traffic(4, sent)
    assert ended.end.received == Traffic(3, length(third, fourth, server_fin(at)))
    node.now += 1000
    assert node.ended() == []


def test_a_reset_ends_a_connection(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    connect(node, at)
    from_client(node, rst(at.client, at.web))
    node.now += 1.1

    assert [one.end.cause for one in node.ended() if one.end] == [EndCause.RESET]


def test_a_flow_without_a_packet_for_long_has_expired(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(CLIENT, 17, 53)]})
    from_client(node, udp(at.client, at.web))
    node.now += 1.0
    node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0)
    node.now += 200.0
    node.flows.expire(node.now)

    (ended,) = node.ended()

    assert ended.end is not None
    assert (ended.end.cause, ended.end.duration) == (EndCause.EXPIRED, 1.0)
    assert (ended.end.sent.packets, ended.end.received.packets) == (1, 1)


def test_an_answer_that_never_came_is_no_traffic(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    from_client(node, syn(at.client, at.web))
    node.now += 61.0
    node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)  # too late: it finds no flow

    (ended,) = node.ended()

    assert ended.end is not None
    assert (ended.end.cause, ended.end.duration, ended.end.received) == (EndCause.EXPIRED, 0.0, Traffic(0, 0))


def test_a_connection_that_one_side_has_closed_counts_as_closed(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    connect(node, at)
    from_client(node, fin(at.client, at.web))
    node.now += 500
    node.flows.expire(node.now)

    assert [one.end.cause for one in node.ended() if one.end] == [EndCause.CLOSED]


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_a_flow_that_policy_cuts_is_reported_once(node: Node, at: Addresses, proto: str) -> None:
    node.load(ingress={"web": [(CLIENT, 0, 0)]})
    packet = request(at.client, at.web) if proto == "TCP" else udp(at.client, at.web)
    from_client(node, syn(at.client, at.web) if proto == "TCP" else packet)
    node.load(ingress={"web": NOBODY})
    assert not accepted(from_client(node, packet))
    assert not accepted(from_client(node, packet))

    assert [one.end.cause for one in node.ended() if one.end] == [EndCause.CUT]
    node.now += 1000
    node.flows.expire(node.now)
    assert node.ended() == []


def test_a_packet_of_a_stranger_ends_no_flow(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    connect(node, at)
    node.load(ingress={"web": HTTP})
    assert not accepted(from_client(node, request(at.client, at.web), identity=501))

    assert node.ended() == []


def test_a_new_connection_from_the_same_port_replaces_the_old_one(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(CLIENT, 17, 53)]})
    from_client(node, udp(at.client, at.web))
    flow = next(iter(node.flows))
    node.flows.create(parse(udp(at.client, at.web)), node.now)

    assert flow.over
    assert [one.end.cause for one in node.ended() if one.end] == [EndCause.REPLACED]


def test_an_evicted_flow_is_reported() -> None:
    node = Node(maximum_flows=1)
    node.load(ingress={"web": [(CLIENT, 0, 0)]})
    from_client(node, syn(V4.client, V4.web))
    from_client(node, syn(V4.client, V4.web, 81))

    (ended,) = node.ended()

    assert ended.end is not None
    assert (ended.end.cause, ended.opening.dport) == (EndCause.EVICTED, 80)


def test_a_flush_ends_what_was_not_established_and_keeps_the_traffic_of_all_else(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(CLIENT, 0, 0)]})
    connect(node, at)
    from_client(node, udp(at.client, at.web))
    started = node.now
    node.now += 10
    for flow in list(node.flows):
        node.flows.forget(flow, node.now)

    assert [one.end.cause for one in node.ended() if one.end] == [EndCause.FLUSHED]
    (kept,) = node.flows
    assert (kept.state, kept.started) == (FlowState.ESTABLISHED, started)
    from_client(node, request(at.client, at.web))
    from_client(node, rst(at.client, at.web))
    node.now += 2
    (ended,) = node.ended()
    assert ended.end is not None
    assert (ended.end.duration, ended.end.sent.packets, ended.end.received.packets) == (10.0, 4, 2)


def test_the_duration_of_an_imported_flow_is_unknown(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    node.import_flow(syn(at.client, at.web))
    assert accepted(from_client(node, request(at.client, at.web)))
    from_client(node, rst(at.client, at.web))
    node.now += 2

    (ended,) = node.ended()

    assert ended.end is not None
    assert (ended.end.duration, ended.end.sent.packets) == (None, 2)


def test_an_imported_flow_without_a_packet_is_not_reported(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    node.import_flow(syn(at.client, at.web))
    node.now += 100
    node.flows.expire(node.now)

    assert (len(node.flows), node.ended()) == (0, [])


def test_a_flow_from_an_endpoint_is_reported_on_its_side(node: Node, at: Addresses) -> None:
    node.load(egress={"db": [(CLIENT, 0, 0)]})
    assert event(node.forward(udp(at.db, at.client), VETH_DB, ETH0)).direction is Direction.EGRESS
    node.now += 100
    node.flows.expire(node.now)

    assert [one.direction for one in node.ended()] == [Direction.EGRESS]


def ending(number: int) -> FlowEnds:
    """Return the ends of so many flows."""
    flows = Conntrack(number, 0.0)
    for port in range(number):
        flow = flows.create(parse(udp("10.0.0.1", "10.0.0.2", port % 50_000 + 1)), 0.0)
        flow.source, flow.slot = CLIENT, 0
        flows.ends.add(flow, EndCause.EXPIRED, 0.0)
    return flows.ends


def test_in_a_second_a_limited_number_of_ends_is_reported_and_the_others_are_counted() -> None:
    ends = ending(MAX_REPORTED + 10)

    assert len(list(ends.take(0.0))) == MAX_REPORTED
    assert ends.lost == 10
    assert list(ends.take(0.5)) == []


def test_the_next_second_has_room_again() -> None:
    ends = ending(10)
    assert len(list(ends.take(0.0))) == 10
    ends.add(Conntrack(1, 0.0).create(parse(udp("10.0.0.1", "10.0.0.2")), 0.0), EndCause.EXPIRED, 1.0)

    assert list(ends.take(1.5)) == []  # that one was never evaluated


def test_no_more_than_a_few_thousand_ends_wait() -> None:
    ends = ending(4010)

    assert ends.lost == 10
