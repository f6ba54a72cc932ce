"""ICMP errors: an error about a known flow passes with the flow, any other is evaluated against policy."""

from ipaddress import ip_address

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, parse
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    EVERYTHING_FROM_CLIENT,
    HTTP,
    NOBODY,
    OTHER,
    VETH_DB,
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
    LONG,
    TOO_BIG,
    Build,
    error,
    icmp,
    identity_on,
    packed,
    ping,
    pong,
    sctp,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)

STRANGER = 54321  # on a stamp, but of no identity in the cluster


@pytest.mark.parametrize("opener", [syn, udp, ping, sctp])
def test_an_error_about_a_flow_passes_with_it_in_either_direction(node: Node, at: Addresses, opener: Build) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": EVERYTHING_FROM_CLIENT})
    inbound, outbound = opener(at.client, at.web), opener(at.web, at.client)
    from_client(node, inbound)
    node.forward(outbound, VETH_WEB, ETH0)

    reply = node.forward(error(at.web, at.client, inbound), VETH_WEB, ETH0)
    assert accepted(reply)
    assert identity_on(reply.payload) == WEB
    assert accepted(from_client(node, error(at.client, at.web, outbound)))
    for router in (at.world, at.second_node, at.host):
        assert accepted(node.forward(error(router, at.web, outbound, TOO_BIG), ETH0, VETH_WEB))


def test_an_error_about_a_stamped_packet_passes_with_its_flow(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    sent = node.forward(syn(at.web, at.client), VETH_WEB, ETH0).payload
    assert sent is not None

    assert accepted(node.forward(error(at.second_node, at.web, sent), ETH0, VETH_WEB))


def test_an_error_about_a_reply_passes_with_its_flow(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    from_client(node, syn(at.client, at.web))

    assert accepted(from_client(node, error(at.client, at.web, syn_ack(at.web, at.client))))


@pytest.mark.parametrize(("audit", "reason"), [(False, DropReason.INVALID_IDENTITY), (True, None)])
def test_an_error_proves_nothing_by_an_identity_that_nobody_has(
    node: Node, at: Addresses, audit: bool, reason: DropReason | None
) -> None:
    """Neither as a router's nor as that of the flow's other end, whichever end opened the flow."""
    node.load(ingress={"web": HTTP}, egress={"web": EVERYTHING_FROM_CLIENT}, audit=audit)
    outbound = syn(at.web, at.client)
    node.forward(outbound, VETH_WEB, ETH0)
    from_client(node, syn(at.client, at.web))

    for about in (outbound, syn_ack(at.web, at.client)):
        for sender in (at.client, at.second_node, at.world):
            forged = stamped(error(sender, at.web, about, TOO_BIG), STRANGER)
            assert refused(node.forward(forged, ETH0, VETH_WEB)) is reason
        assert accepted(from_client(node, error(at.client, at.web, about, TOO_BIG)))


def test_an_error_by_an_identity_that_nobody_has_passes_where_no_policy_can_refuse_it(
    node: Node, at: Addresses
) -> None:
    about = udp(at.web, at.client)
    node.forward(about, VETH_WEB, ETH0)

    assert accepted(node.forward(stamped(error(at.client, at.web, about), STRANGER), ETH0, VETH_WEB))


def test_an_error_about_an_unknown_flow_is_held_against_policy(node: Node, at: Addresses) -> None:
    about = udp(at.web, at.client)
    assert accepted(from_client(node, error(at.client, at.web, about)))  # no side is enforced yet

    node.load(ingress=CLOSED)
    assert refused(from_client(node, error(at.client, at.web, about))) is DropReason.POLICY_DENIED
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})
    assert accepted(from_client(node, error(at.client, at.web, about)))
    assert len(node.flows) == 0


@pytest.mark.parametrize("last", [1, 2])
def test_an_error_is_handed_on_until_it_meets_the_worker_that_knows_the_flow(last: int, at: Addresses) -> None:
    workers = [Node(has_next=place < last) for place in range(last + 1)]
    for worker in workers:
        worker.load(ingress=CLOSED)
    about = udp(at.web, at.client)
    workers[last].forward(about, VETH_WEB, ETH0)
    packet = error(at.world, at.web, about, TOO_BIG)

    for worker in workers[:last]:
        assert worker.forward(packet, WAN0, VETH_WEB) == Decision(Verdict.REQUEUE_NEXT)
        assert len(worker.flows) == 0
    assert accepted(workers[last].forward(packet, WAN0, VETH_WEB))


def test_an_error_that_concerns_a_worker_is_decided_there_though_there_is_another(at: Addresses) -> None:
    node = Node(has_next=True)
    about = udp(at.web, at.client)
    node.forward(about, VETH_WEB, ETH0)

    assert accepted(node.forward(error(at.world, at.web, about), WAN0, VETH_WEB))
    node.load(egress={"web": NOBODY})
    assert refused(node.forward(error(at.world, at.web, about), WAN0, VETH_WEB)) is DropReason.POLICY_DENIED


def test_an_error_about_a_learned_flow_is_handed_on_to_who_may_have_seen_its_opener(at: Addresses) -> None:
    """Every worker imports all flows of the kernel's conntrack, but receives the packets of its own flows only."""
    first, last = Node(has_next=True), Node()
    about = udp(at.web, at.client)
    for worker in (first, last):
        worker.load(ingress=CLOSED)
        worker.import_flow(about)
    packet = error(at.world, at.web, about, TOO_BIG)

    assert first.forward(packet, WAN0, VETH_WEB) == Decision(Verdict.REQUEUE_NEXT)
    assert refused(last.forward(packet, WAN0, VETH_WEB)) is DropReason.POLICY_DENIED
    last.forward(about, VETH_WEB, ETH0)
    assert accepted(last.forward(packet, WAN0, VETH_WEB))


def test_nothing_but_an_error_that_can_be_read_is_handed_to_another_worker(at: Addresses) -> None:
    node = Node(has_next=True)
    about = udp(at.web, at.client)

    assert refused(from_client(node, error(at.client, at.web, b""))) is DropReason.INVALID_PACKET
    assert refused(node.forward(error(at.client, at.web, about), VETH_DB, VETH_WEB)) is DropReason.INVALID_SOURCE_IP
    node.load(ingress=CLOSED)
    assert refused(from_client(node, pong(at.client, at.web))) is DropReason.CT_NO_MATCH
    assert refused(from_client(node, udp(at.client, at.web))) is DropReason.POLICY_DENIED


def test_an_error_about_somebody_elses_flow_is_held_against_policy(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    about = udp(at.web, at.client)

    drop = node.forward(error(at.world, at.db, about), WAN0, VETH_DB)
    assert refused(drop) is DropReason.POLICY_DENIED
    assert (event(drop).opening.proto, event(drop).opening.source) == (ICMP if at.version == 4 else ICMPV6, WORLD)


def test_an_endpoint_may_not_speak_of_its_neighbours_flows(node: Node, at: Addresses) -> None:
    node.load(egress=CLOSED)
    about = udp(at.client, at.web)
    from_client(node, about)

    assert refused(node.forward(error(at.db, at.client, about), VETH_DB, ETH0)) is DropReason.POLICY_DENIED
    assert accepted(node.forward(error(at.web, at.client, about), VETH_WEB, ETH0))


def test_the_host_may_speak_of_a_flow_between_its_endpoints(node: Node, at: Addresses) -> None:
    node.load(ingress={"db": NOBODY}, allow_localhost=False)
    about = udp(at.db, at.web)
    node.forward(about, VETH_DB, VETH_WEB)

    assert accepted(node.send(error(at.host, at.db, about), VETH_DB))


def test_an_error_does_not_pass_with_a_flow_that_is_no_longer_allowed(node: Node, at: Addresses) -> None:
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    node.load(egress={"web": NOBODY})

    drop = node.forward(error(at.world, at.web, udp(at.web, at.client)), WAN0, VETH_WEB)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_an_error_passes_with_a_flow_that_a_new_policy_still_allows(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})

    assert accepted(from_client(node, error(at.client, at.web, udp_answer(at.web, at.client))))
    assert accepted(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0))


def test_an_error_with_a_forged_source_is_refused(node: Node, at: Addresses) -> None:
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    about = udp(at.web, at.client)

    assert refused(node.forward(error(at.client, at.web, about), VETH_DB, VETH_WEB)) is DropReason.INVALID_SOURCE_IP


def test_an_error_whose_quote_cannot_be_read_is_refused(node: Node, at: Addresses) -> None:
    assert refused(from_client(node, error(at.client, at.web, b""))) is DropReason.INVALID_PACKET


def test_an_error_that_policy_would_drop_is_logged_in_audit(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)

    decision = from_client(node, error(at.client, at.web, udp(at.web, at.client)))

    assert accepted(decision)
    assert (event(decision).verdict, event(decision).direction) == (FlowVerdict.AUDIT, Direction.INGRESS)


def test_an_error_of_a_remote_endpoint_about_a_flow_of_another_is_held_against_policy(
    node: Node, at: Addresses
) -> None:
    node.load(ingress=CLOSED)
    about = udp(at.web, at.client)
    node.forward(about, VETH_WEB, ETH0)

    other = error(at.other, at.web, about)
    assert refused(node.forward(stamped(other, OTHER), ETH0, VETH_WEB)) is DropReason.POLICY_DENIED
    assert refused(node.forward(stamped(other, CLIENT), ETH0, VETH_WEB)) is DropReason.POLICY_DENIED
    assert refused(node.forward(other, ETH0, VETH_WEB)) is DropReason.POLICY_DENIED
    assert accepted(from_client(node, error(at.client, at.web, about)))


def test_a_node_that_is_an_endpoint_may_report_on_what_it_routes(at: Addresses) -> None:
    node = Node()
    peers = {packed(at.client): Peer(CLIENT, remote=True), packed(at.other): Peer(OTHER, remote=True, is_node=True)}
    node.load(ingress=CLOSED, ipcache=Ipcache(peers))
    about = udp(at.web, at.client)
    node.forward(about, VETH_WEB, ETH0)

    assert accepted(node.forward(stamped(error(at.other, at.web, about, TOO_BIG), OTHER), ETH0, VETH_WEB))


def announcing(src: str, dst: str, about: bytes, mtu: int) -> bytes:
    """Return a "fragmentation needed" or "packet too big" error with this MTU."""
    kind, code = TOO_BIG[ip_address(src).version]
    return icmp(src, dst, kind, code, mtu.to_bytes(4, "big") + about[:128])


def announced(payload: bytes) -> int:
    offset = parse(payload).l4_offset
    return int.from_bytes(payload[offset + 4 : offset + 8], "big")


@pytest.mark.parametrize("router", ["world", "second_node"])
def test_the_mtu_that_a_router_announces_is_lowered_by_the_stamp(node: Node, at: Addresses, router: str) -> None:
    sent = node.forward(udp(at.web, at.client), VETH_WEB, ETH0).payload
    assert sent is not None

    relayed = node.forward(announcing(getattr(at, router), at.web, sent, 1400), ETH0, VETH_WEB).payload
    assert relayed is not None
    assert announced(relayed) == 1400 - stamp.overhead(at.version)
    assert relayed == announcing(getattr(at, router), at.web, sent, announced(relayed))  # its checksum included


def test_the_mtu_for_a_reply_that_bears_a_stamp_is_lowered_too(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    reply = node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0).payload
    assert reply is not None

    relayed = node.forward(announcing(at.second_node, at.web, reply, 1400), ETH0, VETH_WEB).payload
    assert relayed is not None
    assert announced(relayed) == 1400 - stamp.overhead(at.version)


def test_the_mtu_for_a_flow_without_a_stamp_stays(node: Node, at: Addresses) -> None:
    node.forward(udp(at.web, at.world), VETH_WEB, WAN0)

    about = announcing("203.0.113.1" if at.version == 4 else "2001:db8::1", at.web, udp(at.web, at.world), 1400)
    assert node.forward(about, WAN0, VETH_WEB).payload is None


@pytest.mark.parametrize("mtu", [0, 1, 67, 68, 70, 76, 77, 1279, 1280, 1281, 1296, 1297, 65535])
def test_no_mtu_is_lowered_below_the_minimum_of_its_family(node: Node, at: Addresses, mtu: int) -> None:
    sent = node.forward(udp(at.web, at.client), VETH_WEB, ETH0).payload
    assert sent is not None
    minimum = {4: 68, 6: 1280}[at.version]

    relayed = node.forward(announcing(at.world, at.web, sent, mtu), WAN0, VETH_WEB).payload
    expected = max(mtu - stamp.overhead(at.version), min(mtu, minimum))
    assert relayed is None if expected == mtu else (announced(relayed or b"") == expected)


def test_the_mtu_that_this_host_announces_has_allowed_for_the_stamp(node: Node, at: Addresses) -> None:
    sent = node.forward(udp(at.web, at.client), VETH_WEB, ETH0).payload
    assert sent is not None

    assert node.send(announcing(at.host, at.web, sent, 1400), VETH_WEB).payload is None


def test_a_truncated_announcement_is_requeued_to_be_rewritten(at: Addresses) -> None:
    node = Node(can_requeue=True)
    sent = node.forward(udp(at.web, at.client, data=LONG), VETH_WEB, ETH0).payload
    assert sent is not None
    whole = announcing(at.world, at.web, sent, 1400)

    assert node.forward(whole[:-8], WAN0, VETH_WEB) == Decision(Verdict.REQUEUE_WHOLE)
