"""Packets in a known flow that do not come from the flow's own endpoint, and replies that need a stamp."""

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.core.wire.packet import TCP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    EVERYTHING_FROM_CLIENT,
    HTTP,
    NOBODY,
    OTHER,
    VETH_WEB,
    WAN0,
    Addresses,
    Node,
    accepted,
    event,
    from_client,
    refused,
)
from tests.support.packets import (
    fin,
    identity_on,
    request,
    response,
    rst,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)


def test_a_strangers_packet_neither_passes_in_a_flow_nor_cuts_it(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    from_client(node, syn(at.client, at.web))
    strangers = [(stamped(request(at.client, at.web), OTHER), ETH0)]
    strangers += [(payload(at.client, at.web), way) for payload in (request, rst, fin, syn) for way in (ETH0, WAN0)]

    for payload, come_by in strangers:
        drop = node.forward(payload, come_by, VETH_WEB)
        assert refused(drop) is DropReason.POLICY_DENIED
        assert event(drop).opening.source == (OTHER if identity_on(payload) else WORLD)

    assert from_client(node, request(at.client, at.web)) == Decision(Verdict.ACCEPT)
    assert [flow.opening.source for flow in node.flows] == [CLIENT]


def test_a_strangers_packet_does_not_cut_a_flow_that_a_new_policy_still_allows(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress={"web": HTTP})

    assert not accepted(from_client(node, request(at.client, at.web), OTHER))
    assert from_client(node, request(at.client, at.web)).event is None


def test_a_strangers_datagram_does_not_cut_a_flow_either(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})
    from_client(node, udp(at.client, at.web))

    assert not accepted(from_client(node, udp(at.client, at.web), OTHER))
    assert from_client(node, udp(at.client, at.web)).event is None


def test_a_stranger_whom_policy_allows_may_have_the_flow_and_its_owner_keeps_it_too(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [*HTTP, (OTHER, TCP, 80)]})
    from_client(node, syn(at.client, at.web))

    assert accepted(from_client(node, request(at.client, at.web), OTHER))
    assert accepted(from_client(node, request(at.client, at.web), CLIENT))
    assert accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))


def test_a_reply_of_another_nodes_endpoint_must_be_stamped(node: Node, at: Addresses) -> None:
    for sides in ({"egress": {"web": EVERYTHING_FROM_CLIENT}}, {"ingress": {"web": NOBODY}}):
        node = Node()
        node.load(**sides)
        node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

        for come_by in (ETH0, WAN0):
            drop = node.forward(syn_ack(at.client, at.web), come_by, VETH_WEB)
            assert refused(drop) is DropReason.STAMP_MISSING
        assert accepted(from_client(node, syn_ack(at.client, at.web)))
        assert refused(node.forward(response(at.client, at.web), ETH0, VETH_WEB)) is DropReason.STAMP_MISSING


def test_an_unstamped_reply_is_believed_where_the_node_says_so(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, trust_ipcache=True)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))


def test_a_reply_of_the_world_or_another_node_itself_needs_no_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    for server, way in ((at.world, WAN0), (at.second_node, ETH0), (at.cluster, ETH0)):
        node.forward(syn(at.web, server), VETH_WEB, way)
        assert accepted(node.forward(syn_ack(server, at.web), way, VETH_WEB))


def test_a_reply_passes_in_audit_without_its_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))


def test_a_service_may_answer_with_its_own_address_and_the_endpoints_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(syn(at.web, at.cluster), VETH_WEB, ETH0)

    assert accepted(from_client(node, syn_ack(at.cluster, at.web), CLIENT))


def test_what_the_host_answers_comes_from_nowhere_else(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.receive(udp(at.web, at.host), VETH_WEB)

    for come_by in (ETH0, WAN0):
        drop = node.forward(udp_answer(at.host, at.web), come_by, VETH_WEB)
        assert refused(drop) is DropReason.INVALID_SOURCE_IP
    assert accepted(node.send(udp_answer(at.host, at.web), VETH_WEB))


def test_a_reply_is_asked_for_its_stamp_again_when_its_sender_becomes_an_endpoint(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, ipcache=Ipcache({}))
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)
    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))

    node.load(ingress=CLOSED)
    assert accepted(node.forward(request(at.web, at.client), VETH_WEB, ETH0))
    assert refused(node.forward(response(at.client, at.web), ETH0, VETH_WEB)) is DropReason.STAMP_MISSING
