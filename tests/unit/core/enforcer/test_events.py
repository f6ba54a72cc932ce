"""Flow events: the fields of the event for a new flow and for a drop."""

import pytest

from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import TCP, UDP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    EVERYTHING_FROM_CLIENT,
    HTTP,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    event,
    from_client,
    refused,
    rule,
)
from tests.support.packets import (
    SYN,
    error,
    fin,
    ip,
    packed,
    ping,
    request,
    response,
    syn,
    syn_ack,
    udp,
)


def test_a_new_flow_is_logged_once_with_all_that_is_known_of_it(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    log = event(from_client(node, syn(at.client, at.web, 80)))

    assert (log.time, log.verdict, log.reason) == (node.now, FlowVerdict.FORWARDED, None)
    assert (log.direction, log.is_reply, log.tcp_flags) == (Direction.INGRESS, False, SYN)
    assert (log.opening.src, log.opening.dst) == (packed(at.client), packed(at.web))
    assert (log.opening.proto, log.opening.sport, log.opening.dport) == (TCP, 40_000, 80)
    assert (log.opening.source, log.opening.destination, log.opening.to_host) == (CLIENT, WEB, False)
    assert log.allowed_by == (rule("web", Direction.INGRESS, 0),)
    assert log.enforced_by == ()


def test_packets_of_known_flows_are_not_logged(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    seen = [
        node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0),
        from_client(node, request(at.client, at.web)),
        from_client(node, error(at.client, at.web, response(at.web, at.client))),
        from_client(node, fin(at.client, at.web)),
    ]
    assert [decision.event for decision in seen] == [None] * 4


@pytest.mark.parametrize(
    ("leaving", "direction"), [(True, Direction.EGRESS), (False, Direction.INGRESS)], ids=["leaving", "entering"]
)
def test_a_flow_is_logged_on_the_side_of_the_endpoint(
    node: Node, at: Addresses, leaving: bool, direction: Direction
) -> None:
    if leaving:
        decision = node.forward(ping(at.web, at.world), VETH_WEB, WAN0)
    else:
        decision = node.forward(ping(at.world, at.web), WAN0, VETH_WEB)

    assert event(decision).direction is direction
    assert event(decision).opening.icmp_type == (8 if at.version == 4 else 128)


def test_each_drop_is_logged_with_the_side_and_rules_that_refuse_it(node: Node, at: Addresses) -> None:
    node.load(egress={"web": [(DB, TCP, 80)]})

    for _ in range(2):
        log = event(node.forward(udp(at.web, at.world), VETH_WEB, WAN0))
        assert (log.verdict, log.reason) == (FlowVerdict.DROPPED, DropReason.POLICY_DENIED)
        assert (log.direction, log.is_reply) == (Direction.EGRESS, False)
        assert (log.opening.proto, log.opening.source, log.opening.destination) == (UDP, WEB, WORLD)
        assert log.enforced_by == (rule("web", Direction.EGRESS, 99),)
        assert log.allowed_by == ()


@pytest.mark.parametrize(("come_by", "side"), [(VETH_WEB, Direction.EGRESS), (ETH0, Direction.INGRESS)])
def test_what_cannot_be_read_is_logged_without_addresses(node: Node, come_by: str, side: Direction) -> None:
    log = event(node.forward(b"\x45\x00", come_by, VETH_DB))

    assert (log.verdict, log.reason, log.direction) == (FlowVerdict.DROPPED, DropReason.INVALID_PACKET, side)
    assert (log.opening.src, log.opening.dst, log.opening.source, log.tcp_flags) == (b"", b"", 0, 0)


def test_a_drop_of_what_the_host_sends_to_an_endpoint_is_logged_at_its_ingress(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, allow_localhost=False)

    assert event(node.send(syn_ack(at.host, at.web), VETH_WEB)).direction is Direction.INGRESS


def test_a_protocol_without_ports_is_judged_by_its_peer(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})

    assert event(from_client(node, ip(at.client, at.web, 47, b"gre"))).opening.dport == 0
    assert refused(from_client(node, ip(at.other, at.web, 47, b"gre"), OTHER)) is DropReason.POLICY_DENIED
