"""Addresses of a node: each of them is ``remote-node`` at the other nodes, and ``host`` at the node itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import ROUTER, UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FAMILIES, MODES, PATIENT, Policies, enforces_all, policy, run_in, start_all, until

FLOATING = {4: "172.31.0.55", 6: "fd00:31::55"}
LATE = {4: "172.31.0.56", 6: "fd00:31::56"}
GATEWAY = {4: "10.31.1.1", 6: "fd00:31:1::1"}
CONNECT = """
import socket, sys
source, target, patience = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET) as client:
    client.settimeout(float(patience))
    client.bind((source, 0))
    try:
        client.connect((target, 80))
        print("open")
    except OSError:
        print("refused")
"""


@pytest.fixture(scope="module", params=MODES)
def floating(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a lab with agents, in which node n1 has a second address on the segment."""
    lab = make_served()
    for family, address in FLOATING.items():
        prefix = {4: 24, 6: 64}[family]
        run_in(lab, "n1", "ip", "address", "add", f"{address}/{prefix}", "dev", UPLINK, *["nodad"][: family == 6])
    start_all(lab, datapath=request.param)
    yield lab


def connect(lab: Lab, machine: str, source: str, target: str, patience: float) -> str:
    return run_in(lab, machine, sys.executable, "-c", CONNECT, source, target, str(patience)).strip()


def of_n1(lab: Lab, family: int) -> tuple[str, ...]:
    return str(lab.address("n1", family)), FLOATING[family], GATEWAY[family]


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_node_is_remote_node_from_each_of_its_addresses(floating: Lab, family: int) -> None:
    policies = Policies(floating)
    await policies.apply("from-nodes", policy("from-nodes", "backend", ingress=[{"fromEntities": ["remote-node"]}]))
    target = str(floating.address("back2", family))

    for source in of_n1(floating, family):
        assert (source, connect(floating, "n1", source, target, PATIENT)) == (source, "open")
    assert connect(floating, "world", str(floating.address("world", family)), target, BRIEF) == "refused"
    await policies.withdraw_all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("entity", "client"), [("remote-node", "back2"), ("host", "back1")])
async def test_a_node_is_reached_as_a_node_at_each_of_its_addresses(
    floating: Lab, entity: str, client: str, family: int
) -> None:
    policies = Policies(floating)
    source = str(floating.address(client, family))
    for allowed in (entity, "world"):
        await policies.apply("to-nodes", policy("to-nodes", "backend", egress=[{"toEntities": [allowed]}]))
        expected, patience = ("open", PATIENT) if allowed == entity else ("refused", BRIEF)
        for target in of_n1(floating, family):
            assert (target, connect(floating, client, source, target, patience)) == (target, expected)
    await policies.withdraw_all()


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_address_is_the_nodes_from_its_addition_to_its_removal(floating: Lab, family: int) -> None:
    policies = Policies(floating)
    target, late = str(floating.address("back2", family)), LATE[family]

    def is_of(*expected: str) -> bool:
        """Return whether exactly these nodes have the address, as node n2 knows and enforces it."""
        nodes = client.call(floating.nodes["n2"].socket, "nodes")
        having = {node["name"] for node in nodes if late in node["addresses"]}
        return having == set(expected) and enforces_all(floating.nodes["n2"])

    await policies.apply("from-nodes", policy("from-nodes", "backend", ingress=[{"fromEntities": ["remote-node"]}]))
    with address_of(floating, "n1", late):
        await until(lambda: is_of("n1"))
        assert connect(floating, "n1", late, target, PATIENT) == "open"
    await until(is_of)
    with address_of(floating, ROUTER, late):  # which is no node of the cluster
        assert connect(floating, ROUTER, late, target, BRIEF) == "refused"
        await policies.apply("from-nodes", policy("from-nodes", "backend", ingress=[{"fromEntities": ["world"]}]))
        assert connect(floating, ROUTER, late, target, PATIENT) == "open"
    await policies.withdraw_all()


@contextmanager
def address_of(lab: Lab, machine: str, address: str) -> Iterator[None]:
    """Give a machine an address on the segment."""
    prefix, options = (128, ["nodad"]) if ":" in address else (32, [])
    run_in(lab, machine, "ip", "address", "add", f"{address}/{prefix}", "dev", UPLINK, *options)
    try:
        yield
    finally:
        run_in(lab, machine, "ip", "address", "del", f"{address}/{prefix}", "dev", UPLINK)
