"""Unfinished checksums and GSO packets, and the verdicts that requeue a packet as segments or as a whole."""

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import TCP
from tests.support.nodes import (
    CLOSED,
    ETH0,
    MTU,
    OTHER,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    from_client,
    refused,
)
from tests.support.packets import (
    ACK,
    FIN,
    LONG,
    Build,
    cut_short,
    ip,
    request,
    rst,
    sctp,
    stamped,
    syn,
    tcp,
    udp,
    unfinished,
)

UNFINISHED, GSO = 1, 3  # bits of NFQA_SKB_INFO; a GSO packet has an unfinished checksum too
LONGEST = 65_531  # maximum bytes of a verdict's payload


@pytest.fixture
def passing_on() -> Node:
    return Node(can_requeue=True)


@pytest.mark.parametrize("build", [syn, request, udp])
def test_an_unfinished_checksum_is_finished_where_the_packet_is_stamped(
    node: Node, at: Addresses, build: Build
) -> None:
    whole = build(at.web, at.client)

    for _ in range(2):  # the first packet, and one of a known flow
        assert node.forward(unfinished(whole), VETH_WEB, ETH0, skb=UNFINISHED).payload == stamped(whole, WEB)


def test_an_unfinished_checksum_is_left_where_the_packet_goes_on_as_it_is(node: Node, at: Addresses) -> None:
    for _ in range(2):
        assert node.forward(unfinished(udp(at.web, at.world)), VETH_WEB, WAN0, skb=UNFINISHED).payload is None


def test_an_unfinished_checksum_is_finished_where_a_forged_stamp_is_taken_off(node: Node, at: Addresses) -> None:
    whole = udp(at.web, at.world)
    forged = unfinished(stamped(whole, OTHER))

    assert node.forward(forged, VETH_WEB, WAN0, skb=UNFINISHED).payload == whole


def test_of_what_will_be_cut_the_kernel_finishes_the_checksums(node: Node, at: Addresses) -> None:
    large = unfinished(request(at.web, at.client, data=bytes(20_000)))

    for _ in range(2):
        assert node.forward(large, VETH_WEB, ETH0, skb=GSO).payload == stamped(large, WEB)


def test_what_will_be_cut_is_not_held_against_the_mtu(node: Node, at: Addresses) -> None:
    headers = len(request(at.web, at.client, data=b""))
    large = unfinished(request(at.web, at.client, data=bytes(MTU - headers)))

    for _ in range(2):
        for decision in (node.forward(large, VETH_WEB, ETH0, skb=GSO), node.send(large, ETH0, skb=GSO)):
            assert (decision.payload, decision.answer) == (stamped(large, WEB), None)


def large_tcp(at: Addresses, length: int) -> bytes:
    """Return a TCP packet of this length, before segmentation by the kernel."""
    headers = len(request(at.web, at.client, data=b""))
    return unfinished(request(at.web, at.client, data=bytes(length - headers)))


def test_what_has_no_room_for_its_stamp_is_handed_on_to_come_in_segments(passing_on: Node, at: Addresses) -> None:
    room = LONGEST - stamp.overhead(at.version)
    passing_on.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert passing_on.forward(large_tcp(at, room), VETH_WEB, ETH0, skb=GSO).payload is not None
    for _ in range(2):
        decision = passing_on.forward(large_tcp(at, room + 1), VETH_WEB, ETH0, skb=GSO)
        assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


def test_a_connection_that_was_open_before_comes_in_segments_that_are_held_against_the_mtu(
    passing_on: Node, at: Addresses
) -> None:
    """Without its SYN seen, the connection's MSS may leave no room for a stamp."""
    headers = len(request(at.web, at.client, data=b""))
    segment = request(at.web, at.client, data=bytes(MTU - headers))

    for _ in range(2):
        assert passing_on.forward(large_tcp(at, 20_000), VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)
        assert passing_on.forward(segment, VETH_WEB, ETH0).answer is not None
    for again in (rst(at.web, at.client), syn(at.web, at.client)):
        passing_on.forward(again, VETH_WEB, ETH0)
    assert passing_on.forward(large_tcp(at, 20_000), VETH_WEB, ETH0, skb=GSO).payload is not None


def test_without_another_queue_what_has_no_room_for_its_stamp_is_dropped(node: Node, at: Addresses) -> None:
    drop = node.forward(large_tcp(at, LONGEST), VETH_WEB, ETH0, skb=GSO)

    assert refused(drop) is DropReason.STAMP_NO_ROOM


def test_a_datagram_without_room_is_dropped_whatever_other_queue_there_is(passing_on: Node, at: Addresses) -> None:
    datagram = udp(at.web, at.client, data=bytes(LONGEST - len(udp(at.web, at.client, data=b""))))

    assert refused(passing_on.forward(datagram, VETH_WEB, ETH0)) is DropReason.STAMP_NO_ROOM
    assert refused(passing_on.forward(cut_short(datagram), VETH_WEB, ETH0)) is DropReason.PAYLOAD_TOO_LONG


def test_what_is_cut_short_and_must_be_stamped_is_handed_on_to_come_whole(passing_on: Node, at: Addresses) -> None:
    long = request(at.web, at.client, data=LONG)

    for _ in range(2):
        assert passing_on.forward(cut_short(long), VETH_WEB, ETH0) == Decision(Verdict.REQUEUE_WHOLE)
    whole = passing_on.forward(long, VETH_WEB, ETH0)
    assert whole.payload == stamped(long, WEB)
    assert event(whole).verdict is FlowVerdict.FORWARDED
    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0) == Decision(Verdict.REQUEUE_WHOLE)


def test_what_is_handed_on_is_noted_when_it_comes_again(passing_on: Node, at: Addresses) -> None:
    from_client(passing_on, syn(at.client, at.web))
    before = [(flow.state, flow.expires, flow.reply_origin) for flow in passing_on.flows]
    passing_on.now += 1
    long = tcp(at.web, at.client, 80, 40_000, FIN | ACK, LONG)

    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0).verdict is Verdict.REQUEUE_WHOLE
    assert [(flow.state, flow.expires, flow.reply_origin) for flow in passing_on.flows] == before


def test_what_policy_refuses_is_not_handed_on(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress=CLOSED)

    drop = passing_on.forward(cut_short(udp(at.web, at.client, data=LONG)), VETH_WEB, ETH0)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_what_only_audit_lets_pass_is_logged_when_it_comes_again(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress=CLOSED, audit=True)
    long = udp(at.web, at.client, data=LONG)

    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0).event is None
    assert event(passing_on.forward(long, VETH_WEB, ETH0)).verdict is FlowVerdict.AUDIT


def test_a_forged_stamp_on_a_packet_cut_short_is_handed_on_to_be_taken_off(passing_on: Node, at: Addresses) -> None:
    forged = stamped(udp(at.web, at.world, data=LONG), OTHER)

    assert passing_on.forward(cut_short(forged), VETH_WEB, WAN0).verdict is Verdict.REQUEUE_WHOLE
    assert passing_on.forward(forged, VETH_WEB, WAN0).payload == udp(at.web, at.world, data=LONG)


def test_a_tunnels_packets_are_handed_on_to_get_their_inner_checksums(passing_on: Node, at: Addresses) -> None:
    inner = unfinished(syn(at.web, at.db))

    for payload in (ip(at.web, at.client, 47, inner), udp(at.web, at.client, 4789, inner)):
        for skb in (UNFINISHED, GSO):
            decision = passing_on.forward(payload, VETH_WEB, ETH0, skb=skb)
            assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


@pytest.mark.parametrize("build", [udp, sctp])
def test_what_is_not_tcp_is_cut_before_it_is_stamped(passing_on: Node, at: Addresses, build: Build) -> None:
    burst = build(at.web, at.client) if build is sctp else unfinished(build(at.web, at.client))

    assert passing_on.forward(burst, VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)
    assert accepted(passing_on.forward(build(at.web, at.client), VETH_WEB, ETH0))
    assert passing_on.forward(burst, VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)


def beyond(at: Addresses, src: str, dst: str) -> bytes:
    """Return the start of a packet that is longer than the maximum of its length field (BIG TCP)."""
    payload = bytearray(unfinished(request(src, dst, data=LONG)))
    length = slice(2, 4) if at.version == 4 else slice(4, 6)
    payload[length] = bytes(2)
    return bytes(payload)


def test_what_is_longer_than_its_header_can_say_is_judged_like_any_other(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress={"web": [(WORLD, TCP, 80)]})

    assert accepted(passing_on.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0, skb=GSO))
    assert accepted(passing_on.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0, skb=GSO))
    drop = passing_on.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_what_is_longer_than_its_header_can_say_comes_in_segments_to_be_stamped(
    passing_on: Node, at: Addresses
) -> None:
    decision = passing_on.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)

    assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


def test_without_another_queue_what_is_longer_than_its_header_can_say_is_not_stamped(node: Node, at: Addresses) -> None:
    drop = node.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)

    assert refused(drop) is DropReason.PAYLOAD_TOO_LONG


def test_a_length_of_zero_is_an_error_in_any_other_packet(node: Node, at: Addresses) -> None:
    assert refused(node.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0)) is DropReason.INVALID_PACKET
