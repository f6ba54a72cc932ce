"""Packets that exceed the MTU with a stamp, and packets with a truncated copy in the queue."""

from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse, parse_quoted
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    EVERYTHING_FROM_CLIENT,
    MTU,
    NOBODY,
    OTHER,
    V4,
    V6,
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
    LONG,
    TOO_BIG,
    cut_short,
    error,
    identity_on,
    packed,
    stamped,
    syn,
    tcp,
    udp,
    with_options,
)


def test_a_packet_cut_short_is_judged_like_any_other(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": NOBODY})

    assert accepted(node.forward(cut_short(stamped(udp(at.client, at.web, data=LONG), CLIENT)), ETH0, VETH_WEB))
    drop = node.forward(cut_short(udp(at.web, at.world, data=LONG)), VETH_WEB, WAN0)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_a_packet_cut_short_cannot_be_stamped(node: Node, at: Addresses) -> None:
    too_long = cut_short(tcp(at.web, at.client, 40_000, 80, ACK, LONG))

    for drop in (node.forward(too_long, VETH_WEB, ETH0), node.send(too_long, ETH0)):
        assert refused(drop) is DropReason.PAYLOAD_TOO_LONG
        assert (event(drop).direction, event(drop).tcp_flags) == (Direction.EGRESS, ACK)


def test_a_forged_stamp_on_a_packet_cut_short_does_not_get_out(node: Node, at: Addresses) -> None:
    drop = node.forward(cut_short(stamped(udp(at.web, at.world, data=LONG), OTHER)), VETH_WEB, WAN0)

    assert refused(drop) is DropReason.PAYLOAD_TOO_LONG


def filled(at: Addresses, src: str, dst: str, *, less: int, df: bool = True) -> bytes:
    """Return a datagram that is so much shorter than the MTU."""
    headers = len(udp(src, dst, data=b"", df=df))
    return udp(src, dst, data=bytes(MTU - less - headers), df=df)


# An IPv6 packet that the kernel has reassembled from fragments looks like an unfragmented one, so it is not dropped
# here: the kernel fragments it again or drops it.
TOO_LONG = {4: DropReason.FRAG_NEEDED, 6: None}


def test_a_forwarded_datagram_that_its_stamp_makes_too_long_is_answered_with_the_size_that_fits(
    node: Node, at: Addresses
) -> None:
    room = stamp.overhead(at.version)
    too_long = filled(at, at.web, at.client, less=room - 1)

    decision = node.forward(too_long, VETH_WEB, ETH0)

    assert refused(decision) is TOO_LONG[at.version]
    assert decision.answer is not None
    answer = parse(decision.answer)
    assert (answer.src, answer.dst) == (packed(at.host), packed(at.web))
    assert (answer.icmp_type, answer.icmp_code) == TOO_BIG[at.version]
    assert int.from_bytes(decision.answer[answer.l4_offset + 4 : answer.l4_offset + 8], "big") == MTU - room
    assert parse_quoted(decision.answer, answer).key == parse(too_long).key
    assert accepted(node.send(decision.answer, VETH_WEB))
    assert accepted(node.forward(filled(at, at.web, at.client, less=room), VETH_WEB, ETH0))


def test_the_answer_reaches_its_endpoint_under_any_policy(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, allow_localhost=False)
    answer = node.forward(filled(at, at.web, at.client, less=0), VETH_WEB, ETH0).answer
    assert answer is not None

    assert accepted(node.send(answer, VETH_WEB))


def test_a_flow_is_logged_with_its_first_packet_that_is_not_too_long(node: Node) -> None:
    """Two packets are dropped, and answered; the log has two drops, then the flow, once."""
    too_long, fitting = filled(V4, V4.web, V4.client, less=0), filled(V4, V4.web, V4.client, less=8)

    for _ in range(2):
        drop = node.forward(too_long, VETH_WEB, ETH0)
        assert refused(drop) is DropReason.FRAG_NEEDED
        assert drop.answer is not None
        assert node.send(drop.answer, VETH_WEB).event is None  # an error about the flow reports nothing
    assert event(node.forward(fitting, VETH_WEB, ETH0)).verdict is FlowVerdict.FORWARDED
    assert node.forward(fitting, VETH_WEB, ETH0).event is None
    assert refused(node.forward(too_long, VETH_WEB, ETH0)) is DropReason.FRAG_NEEDED
    assert node.forward(fitting, VETH_WEB, ETH0).event is None


def test_a_policy_that_closes_a_flow_before_its_first_packet_that_fits_logs_the_drop(node: Node) -> None:
    node.forward(filled(V4, V4.web, V4.client, less=0), VETH_WEB, ETH0)
    node.load(egress={"web": NOBODY})

    assert refused(node.forward(filled(V4, V4.web, V4.client, less=8), VETH_WEB, ETH0)) is DropReason.POLICY_DENIED


def test_an_audited_denial_is_logged_with_the_first_packet_that_is_not_too_long(node: Node) -> None:
    node.load(egress={"web": NOBODY}, audit=True)
    assert refused(node.forward(filled(V4, V4.web, V4.client, less=0), VETH_WEB, ETH0)) is DropReason.FRAG_NEEDED

    assert event(node.forward(filled(V4, V4.web, V4.client, less=8), VETH_WEB, ETH0)).verdict is FlowVerdict.AUDIT


def test_without_an_address_of_its_own_the_node_cannot_answer(node: Node, at: Addresses) -> None:
    node.load(node_addresses={})

    decision = node.forward(filled(at, at.web, at.client, less=0), VETH_WEB, ETH0)
    assert (refused(decision), decision.answer) == (TOO_LONG[at.version], None)


def test_a_datagram_that_came_in_fragments_goes_on_stamped_to_be_cut_again(node: Node, at: Addresses) -> None:
    reassembled = filled(at, at.web, at.client, less=-1)

    decision = node.forward(reassembled, VETH_WEB, ETH0)

    assert (refused(decision), decision.answer) == (None, None)
    assert decision.payload == stamped(reassembled, WEB)


def test_no_error_is_sent_about_an_error(node: Node, at: Addresses) -> None:
    about = udp(at.client, at.web, data=bytes(100))
    from_client(node, about)
    message = error(at.web, at.client, about)

    decision = node.forward(message, VETH_WEB, ETH0, mtu=len(message))
    assert (refused(decision), decision.answer) == (TOO_LONG[at.version], None)


def test_a_forwarded_datagram_that_may_be_fragmented_goes_on(node: Node) -> None:
    long = filled(V4, V4.web, V4.client, less=0, df=False)

    assert node.forward(long, VETH_WEB, ETH0).payload == stamped(long, WEB)


def test_a_datagram_of_this_host_that_its_stamp_makes_too_long_may_be_fragmented(node: Node) -> None:
    first = node.send(filled(V4, V4.web, V4.client, less=0), ETH0)

    assert first.payload is not None
    sent = parse(first.payload)
    assert (accepted(first), sent.df, sent.length) == (True, False, MTU + stamp.overhead(4))
    assert identity_on(first.payload) == WEB
    assert event(first).verdict is FlowVerdict.FORWARDED


def test_a_datagram_of_this_host_gets_an_identification_of_its_own_for_its_fragments(node: Node) -> None:
    datagram = bytearray(filled(V4, V4.web, V4.client, less=0))
    datagram[4:6] = bytes(2)
    sent = [node.send(bytes(datagram), ETH0).payload for _ in range(2)]

    assert [payload[4:6] for payload in sent if payload is not None] == [b"\0\1", b"\0\2"]


def test_an_ipv6_datagram_of_this_host_is_left_to_the_kernel_to_fragment(node: Node) -> None:
    long = filled(V6, V6.web, V6.client, less=0)

    decision = node.send(long, ETH0)
    assert decision.payload == stamped(long, WEB)
    assert event(decision).verdict is FlowVerdict.FORWARDED


def test_a_header_without_room_for_the_stamp_is_a_drop_of_its_own_name(node: Node) -> None:
    full = with_options(syn(V4.web, V4.client), bytes((7, 39, 4)) + bytes(37))  # record route

    assert refused(node.forward(full, VETH_WEB, ETH0)) is DropReason.STAMP_NO_ROOM
