"""Transit: this node stamps as ``world`` what it only routes to remote endpoints, and the next node believes that."""

from ipaddress import ip_network

import pytest

from nfq_enforcer.core.identity import KUBE_APISERVER, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.prefixes import Prefixes
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.core.wire.packet import TCP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    MTU,
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
    TOO_BIG,
    error,
    identity_on,
    packed,
    request,
    response,
    stamped,
    syn,
    syn_ack,
    udp,
)

OUTSIDE = Identity(1 << 24 | 7)


@pytest.mark.parametrize("come_by", [WAN0, ETH0])
def test_what_is_only_routed_to_a_remote_endpoint_is_stamped_as_the_world(
    node: Node, at: Addresses, come_by: str
) -> None:
    for payload in (syn(at.world, at.client), request(at.world, at.client), udp(at.world, at.cluster)):
        decision = node.forward(payload, come_by, ETH0)
        assert (decision.verdict, decision.event) == (Verdict.ACCEPT, None)
        assert identity_on(decision.payload) == WORLD


def test_an_address_of_the_cluster_is_not_believed_from_elsewhere(node: Node, at: Addresses) -> None:
    for source in (at.other, at.second_node):
        assert identity_on(node.forward(syn(source, at.client), WAN0, ETH0).payload) == WORLD


def test_another_nodes_packets_are_routed_as_they_are(node: Node, at: Addresses) -> None:
    for payload in (
        syn(at.second_node, at.client),
        request(at.other, at.client),
        stamped(syn(at.world, at.client), OTHER),
        stamped(syn(at.second_node, at.client), WORLD),
    ):
        decision = node.forward(payload, ETH0, ETH0)
        assert (decision.verdict, decision.payload, decision.event) == (Verdict.ACCEPT, None, None)


def test_errors_and_packets_to_the_world_are_routed_as_they_are(node: Node, at: Addresses) -> None:
    about = error(at.world, at.client, request(at.client, at.world), TOO_BIG)

    for payload in (about, udp(at.world, at.world)):
        decision = node.forward(payload, WAN0, ETH0)
        assert (decision.verdict, decision.payload) == (Verdict.ACCEPT, None)


def test_an_ipv4_packet_in_transit_that_does_not_fit_is_left_to_the_kernel_to_fragment(
    node: Node, at: Addresses
) -> None:
    size = MTU - len(udp(at.world, at.client, data=b""))
    decision = node.forward(udp(at.world, at.client, data=bytes(size)), WAN0, ETH0)

    assert decision.verdict is Verdict.ACCEPT
    assert identity_on(decision.payload) == WORLD
    assert (decision.answer is None) == (at.version == 4)
    if decision.payload is not None and at.version == 4:
        assert decision.payload[6:8] == bytes(2)


def test_behind_a_node_the_world_is_the_world_and_the_node_is_itself(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(WORLD, TCP, 80), (REMOTE_NODE, TCP, 81)]})

    for port, world, itself in ((80, True, False), (81, False, True)):
        assert accepted(from_client(node, syn(at.second_node, at.web, port), WORLD)) is world
        assert accepted(node.forward(syn(at.second_node, at.web, port), ETH0, VETH_WEB)) is itself


def test_the_world_keeps_the_identity_of_its_address_and_no_other(node: Node, at: Addresses) -> None:
    outside = Prefixes({ip_network(at.world): OUTSIDE, ip_network(at.second_node): OUTSIDE})
    peers = {packed(at.client): Peer(CLIENT, True), packed(at.second_node): Peer(REMOTE_NODE, True, is_node=True)}
    node.load(ipcache=Ipcache(peers, outside=outside))

    for source, identity in ((at.world, OUTSIDE), (at.second_node, WORLD), (at.client, WORLD)):
        assert event(from_client(node, syn(source, at.web), WORLD)).opening.source == identity


@pytest.mark.parametrize("identity", [None, WORLD])
def test_behind_the_node_of_the_api_server_the_world_is_not_the_api_server(
    node: Node, at: Addresses, identity: Identity | None
) -> None:
    peers = {packed(at.second_node): Peer(REMOTE_NODE, True, is_node=True)}
    servers = frozenset((packed(at.second_node), packed(at.world)))
    node.load(ingress={"web": [(KUBE_APISERVER, TCP, 80)]}, ipcache=Ipcache(peers, kube_apiserver=servers))

    for source, known in ((at.second_node, identity is None), (at.world, True)):
        payload = syn(source, at.web) if identity is None else stamped(syn(source, at.web), identity)
        assert accepted(node.forward(payload, ETH0, VETH_WEB)) is known


def test_an_endpoint_behind_the_node_of_the_api_server_is_itself_and_not_the_api_server(
    node: Node, at: Addresses
) -> None:
    peers = {packed(at.second_node): Peer(REMOTE_NODE, True, is_node=True), packed(at.client): Peer(CLIENT, True)}
    servers = frozenset((*peers, packed(at.world), packed(at.db)))
    node.load(
        ingress={"web": [(KUBE_APISERVER, TCP, 80), (OTHER, TCP, 81)]},
        ipcache=Ipcache(peers, kube_apiserver=servers),
    )

    for source, identity, port, allowed in (
        (at.second_node, OTHER, 80, False),
        (at.second_node, OTHER, 81, True),
        (at.client, OTHER, 80, False),
        (at.world, OTHER, 80, False),
        (at.client, CLIENT, 80, True),
    ):
        assert accepted(from_client(node, syn(source, at.web, port), identity)) is allowed
    assert accepted(node.forward(syn(at.db, at.web), VETH_DB, VETH_WEB))


def test_replies_to_the_world_behind_a_node_bear_no_stamp(node: Node, at: Addresses) -> None:
    assert accepted(from_client(node, syn(at.second_node, at.web), WORLD))
    reply = node.forward(syn_ack(at.web, at.second_node), VETH_WEB, ETH0)
    assert (reply.verdict, reply.payload) == (Verdict.ACCEPT, None)

    node.forward(syn(at.second_node, at.web, 81), ETH0, VETH_WEB)
    assert identity_on(node.forward(syn_ack(at.web, at.second_node, 81), VETH_WEB, ETH0).payload) == WEB


def test_the_stamp_of_the_world_proves_no_reply_of_an_endpoint(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert refused(from_client(node, response(at.client, at.web), WORLD)) is DropReason.STAMP_MISSING


def test_a_router_that_is_the_world_may_quote_a_packet_to_elsewhere(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)
    about = error(at.world, at.web, stamped(syn(at.web, at.client), WEB), TOO_BIG)

    assert accepted(from_client(node, about, WORLD))
    assert not accepted(from_client(node, about, OTHER))
