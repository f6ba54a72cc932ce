"""Verdicts leave nothing that only a collector of cycles could free: a worker runs without one, for it would pause."""

import gc
from collections.abc import Iterator

import pytest

from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.wire.packet import TCP
from tests.support.nodes import ETH0, FAMILIES, VETH_WEB, Node
from tests.support.packets import ACK, FIN, error, ping, pong, rst, stamped, syn, tcp, udp


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_packets_flows_and_policies_come_and_go_without_cycles(uncollected: None) -> None:
    node = Node(maximum_flows=20, can_requeue=True)
    for turn in range(50):
        node.load(ingress={"web": [(WORLD, TCP, 80)]} if turn % 2 else None)
        node.now += 40
        for at in FAMILIES:
            for build in (syn, udp, ping, pong, rst):
                opening = build(at.web, at.client)
                node.forward(opening, VETH_WEB, ETH0)
                node.forward(opening, ETH0, VETH_WEB)  # a forged source
                node.forward(stamped(opening, 500), VETH_WEB, ETH0)
                node.forward(opening[:30], VETH_WEB, ETH0)
                node.forward(error(at.client, at.web, opening), ETH0, VETH_WEB)
            node.forward(tcp(at.web, at.client, 1000 + turn, 80, FIN | ACK, bytes(1400)), VETH_WEB, ETH0)
        node.flows.expire(node.now)

    assert gc.collect() == 0
