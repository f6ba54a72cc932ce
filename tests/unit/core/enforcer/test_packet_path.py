"""The packet path stays short: the modules of the package that one packet enters, by the functions that run for it."""

import sys
from pathlib import Path
from types import FrameType

import pytest

import nfq_enforcer
from nfq_enforcer.core.verdict import Verdict
from tests.support.nodes import CLIENT, ETH0, HTTP, VETH_WEB, Addresses, Node
from tests.support.packets import request, response, stamped, syn, syn_ack

PACKAGE = Path(nfq_enforcer.__file__).parent
FAST = {"core/enforcer.py", "core/wire/fast_parse.py", "core/tables/conntrack.py"}
SLOW = {
    *(*FAST, "core/wire/packet.py", "core/wire/stamp.py", "core/context.py", "core/offload.py"),
    *(
        "core/policy_verdict.py",
        "core/tables/snapshot.py",
        "core/tables/ipcache.py",
        "core/tables/prefixes.py",
        "core/tables/policymap.py",
    ),
    "core/identity.py",
}
HOST_TRAFFIC = {"core/host_traffic.py", "core/wire/scopes.py"}


def entered(node: Node, payload: bytes, come_by: str, leave_by: str) -> set[str]:
    """Return the modules in which a function is called for a forwarded packet, which must be accepted."""
    modules = set()

    def record(frame: FrameType, event: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            modules.add(str(path.relative_to(PACKAGE)))

    sys.setprofile(record)
    try:
        decision = node.forward(payload, come_by, leave_by)
    finally:
        sys.setprofile(None)
    assert decision.verdict is Verdict.ACCEPT
    return modules


@pytest.fixture
def connected(node: Node, at: Addresses) -> Node:
    """Give the node with an open connection from the client to web."""
    node.load(ingress={"web": HTTP})
    node.forward(stamped(syn(at.client, at.web), CLIENT), ETH0, VETH_WEB)
    node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)
    return node


def test_a_packet_of_a_known_flow_enters_three_modules_of_the_core_and_the_stamps_if_it_is_stamped_here(
    connected: Node, at: Addresses
) -> None:
    opener = stamped(request(at.client, at.web), CLIENT)
    reply = response(at.web, at.client)

    assert entered(connected, opener, ETH0, VETH_WEB) == FAST
    assert entered(connected, reply, VETH_WEB, ETH0) == FAST | {"core/wire/stamp.py"}


def test_the_first_packet_of_a_flow_enters_the_policy_verdict_and_its_tables_beside(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    assert entered(node, stamped(syn(at.client, at.web), CLIENT), ETH0, VETH_WEB) <= SLOW | HOST_TRAFFIC
