"""Stamping: packets to other nodes get a stamp, all other packets get none."""

from ipaddress import ip_network

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.verdict import Verdict
from tests.support.nodes import (
    ETH0,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    from_client,
)
from tests.support.packets import (
    Build,
    ping,
    request,
    sctp,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)


def test_what_goes_to_another_node_is_stamped(node: Node, at: Addresses) -> None:
    for dst in (at.client, at.second_node, at.cluster):
        for payload in (syn(at.web, dst), request(at.web, dst), udp(at.web, dst), ping(at.web, dst)):
            assert node.forward(payload, VETH_WEB, ETH0).payload == stamped(payload, WEB)


def test_what_the_host_endpoint_sends_is_stamped(node: Node, at: Addresses) -> None:
    assert node.send(syn(at.web, at.client), ETH0).payload == stamped(syn(at.web, at.client), WEB)
    assert node.send(stamped(udp(at.web, at.client), OTHER), ETH0).payload == stamped(udp(at.web, at.client), WEB)


@pytest.mark.parametrize("build", [syn, udp, ping, sctp])
def test_what_stays_on_the_node_or_goes_to_the_world_bears_no_stamp(node: Node, at: Addresses, build: Build) -> None:
    decisions = [
        node.forward(build(at.web, at.world), VETH_WEB, WAN0),
        node.forward(build(at.web, at.db), VETH_WEB, VETH_DB),
        node.receive(build(at.web, at.host), VETH_WEB),
        node.send(build(at.host, at.web), VETH_WEB),
        node.receive(build(at.web, at.client), VETH_WEB),  # redirected to the host itself
    ]
    assert [decision.payload for decision in decisions] == [None] * 5


def test_replies_to_another_node_are_stamped(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    reply = syn_ack(at.web, at.client)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_replies_to_a_stamped_opener_are_stamped_whatever_address_a_router_gave_it(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.world, at.web))
    reply = syn_ack(at.web, at.world)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_replies_to_an_unstamped_opener_on_another_node_are_stamped(node: Node, at: Addresses) -> None:
    node.forward(syn(at.second_node, at.web), ETH0, VETH_WEB)
    reply = syn_ack(at.web, at.second_node)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_what_stays_on_the_node_bears_no_stamp_although_its_addresses_are_in_the_clusters_networks(
    node: Node, at: Addresses
) -> None:
    node.load(ipcache=Ipcache({}, [ip_network("0.0.0.0/0"), ip_network("::/0")]))
    decisions = [
        node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB),
        node.forward(syn_ack(at.db, at.web), VETH_DB, VETH_WEB),
        node.receive(udp(at.web, at.host), VETH_WEB),
        node.send(udp_answer(at.host, at.web), VETH_WEB),
        node.send(syn(at.host, at.web), VETH_WEB),
        node.receive(syn_ack(at.web, at.host), VETH_WEB),
    ]
    assert [decision.payload for decision in decisions] == [None] * 6


def test_replies_to_the_world_or_the_host_bear_no_stamp(node: Node, at: Addresses) -> None:
    node.forward(syn(at.world, at.web), WAN0, VETH_WEB)
    node.send(syn(at.host, at.web), VETH_WEB)
    node.forward(syn(at.db, at.web), VETH_DB, VETH_WEB)

    assert node.forward(syn_ack(at.web, at.world), VETH_WEB, WAN0) == Decision(Verdict.ACCEPT)
    assert node.receive(syn_ack(at.web, at.host), VETH_WEB) == Decision(Verdict.ACCEPT)
    assert node.forward(syn_ack(at.web, at.db), VETH_WEB, VETH_DB) == Decision(Verdict.ACCEPT)


def test_a_received_stamp_stays_as_it_came(node: Node, at: Addresses) -> None:
    assert from_client(node, syn(at.client, at.web)).payload is None
