"""Forged stamps: only stamps of this node leave by a cluster interface, whoever sends the packet."""

import asyncio
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    DATAPATHS,
    FAMILIES,
    FRONT_TO_BACK,
    PATIENT,
    DatapathSettings,
    Policies,
    await_flow,
    identities,
    now,
    run_in,
    stamps_on,
    start_all,
)
from tests.support.packets import udp

UNDECLARED = "rogue"
# Sends a whole packet as it is: raw(7) for IPv4, and IPV6_HDRINCL for IPv6.
SEND_RAW = """
import socket, sys
packet, target = bytes.fromhex(sys.argv[1]), sys.argv[2]
if packet[0] >> 4 == 4:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.sendto(packet, (target, 0))
else:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, 36, 1)
        sender.sendto(packet, (target, 0))
"""
# A whole TCP connection whose every packet has the option, by setsockopt(IP_OPTIONS).
CONNECT_WITH_OPTION = """
import socket, sys
target, option = sys.argv[1], bytes.fromhex(sys.argv[2])
with socket.socket() as client:
    client.settimeout(1.0)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
    try:
        client.connect((target, 80))
        print("open")
    except OSError:
        print("refused")
"""


@pytest.fixture(scope="module", params=[one for one in DATAPATHS if one.queues == 1], ids=str)
def guarded(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a lab with agents, and a workload on n1 that no document declares."""
    settings: DatapathSettings = request.param
    lab = make_served()
    start_all(lab, **settings.settings)
    lab.attach(UNDECLARED, "n1")
    yield lab


def forged(lab: Lab, source: str, target: str, family: int) -> bytes:
    """Return a datagram to a target that bears a frontend's identity."""
    plain = udp(source, str(lab.address(target, family)), 53, b"forged")
    return stamp.write(plain, parse(plain), Stamp(Identity(identities(lab)["front2"])))


async def arriving(lab: Lab, machine: str, packet: bytes) -> list[bytes]:
    """Send a packet from a machine, then the same without a stamp; return those that arrive at n2, in order.

    The second packet always passes. Its arrival shows that the first one is not on its way any more.
    """
    target = str(ip_address(parse(packet).dst))
    plain = stamp.strip(packet, parse(packet)).replace(b"forged", b"marker")
    async with Capture(lab.network, "n2", UPLINK) as capture, asyncio.timeout(PATIENT):
        for sent in (packet, plain):
            run_in(lab, machine, sys.executable, "-c", SEND_RAW, sent.hex(), target)
        while not any(b"marker" in seen.data for seen in capture.packets()):
            await asyncio.sleep(0.05)
    return [seen.data for seen in capture.packets() if b"forged" in seen.data]


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stamp_of_an_undeclared_workload_does_not_leave_its_node(guarded: Lab, family: int) -> None:
    packet = forged(guarded, str(guarded.address(UNDECLARED, family)), "back2", family)
    since = now()

    assert await arriving(guarded, UNDECLARED, packet) == []
    flow = await_flow(guarded.nodes["n1"], since, verdict="DROPPED")
    assert flow["drop_reason_desc"] == "STAMP_UNTRUSTED"


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stamp_of_a_host_that_is_no_endpoint_is_stripped(guarded: Lab, family: int) -> None:
    packet = forged(guarded, str(guarded.address("n1", family)), "back2", family)

    (arrived,) = await arriving(guarded, "n1", packet)
    assert stamps_on(arrived) == []


async def test_a_forged_stamp_opens_no_connection_at_the_next_node(guarded: Lab) -> None:
    policies = Policies(guarded)
    await policies.apply("front-to-back", FRONT_TO_BACK)
    option = stamp.stamp_template(Stamp(Identity(identities(guarded)["front2"])), 4, 6).header.hex()
    target = str(guarded.address("back2", 4))

    for machine in (UNDECLARED, "n1", "back1"):
        outcome = run_in(guarded, machine, sys.executable, "-c", CONNECT_WITH_OPTION, target, option).strip()
        assert (machine, outcome) == (machine, "refused")
    assert (await guarded.host("front1").connect(guarded.address("back2", 4), 80, PATIENT)).status == "ok"
    await policies.withdraw_all()
