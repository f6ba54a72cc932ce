"""Addresses of a node: packets from any of them are from ``remote-node`` at the other nodes."""

import sys
from collections.abc import Iterator

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, PATIENT, Policies, policy, run_in, start_all

FLOATING = {4: "172.31.0.55", 6: "fd00:31::55"}
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


@pytest.fixture(scope="module")
def floating(make_served: MakeLab) -> Iterator[Lab]:
    """Give a lab with agents, in which node n1 has a second address on the segment."""
    lab = make_served()
    for family, address in FLOATING.items():
        prefix = {4: 24, 6: 64}[family]
        run_in(lab, "n1", "ip", "address", "add", f"{address}/{prefix}", "dev", UPLINK, *["nodad"][: family == 6])
    start_all(lab)
    yield lab


def connect(lab: Lab, machine: str, source: str, target: str, patience: float) -> str:
    return run_in(lab, machine, sys.executable, "-c", CONNECT, source, target, str(patience)).strip()


@pytest.mark.parametrize("family", [4, 6])
async def test_a_node_is_remote_node_from_each_of_its_addresses(floating: Lab, family: int) -> None:
    policies = Policies(floating)
    await policies.apply("from-nodes", policy("from-nodes", "backend", ingress=[{"fromEntities": ["remote-node"]}]))
    target = str(floating.address("back2", family))

    for source in (str(floating.address("n1", family)), FLOATING[family], GATEWAY[family]):
        assert (source, connect(floating, "n1", source, target, PATIENT)) == (source, "open")
    assert connect(floating, "world", str(floating.address("world", family)), target, BRIEF) == "refused"
    await policies.withdraw_all()
