"""Forged stamps: only stamps of this node leave by a cluster interface, whoever sends the packet."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

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
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    SINGLE_QUEUE,
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
# A whole TCP connection whose every packet has the option, by setsockopt(2).
CONNECT_WITH_OPTION = """
import socket, sys
target, level, name, option = sys.argv[1], *map(int, sys.argv[2:4]), bytes.fromhex(sys.argv[4])
with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as client:
    client.settimeout(1.0)
    client.setsockopt(level, name, option)
    assert option.strip(bytes(1)) in client.getsockopt(level, name, 100)
    try:
        client.connect((target, 80))
        print("open")
    except OSError:
        print("refused")
"""


class Place(NamedTuple):
    """Place of a stamp in the packets of a socket: the socket option that puts it there (linux/in.h, linux/in6.h)."""

    name: str
    family: int
    level: int
    option: int
    start: str  # of the options, in hexadecimal digits
    end: str
    is_stamp: bool  # an option among those for each hop is none


PLACES = [
    Place("IP_OPTIONS", 4, socket.IPPROTO_IP, socket.IP_OPTIONS, "9e081000", "", is_stamp=True),
    Place("IPV6_DSTOPTS", 6, socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, "00011e061000", "010400000000", is_stamp=True),
    Place("IPV6_HOPOPTS", 6, socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, "00011e061000", "010400000000", is_stamp=False),
]


@pytest.fixture(scope="module", params=SINGLE_QUEUE, ids=str)
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


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
async def test_a_forged_stamp_opens_no_connection_at_the_next_node(guarded: Lab, place: Place) -> None:
    """A frontend opens its connection with the same option, by its own identity."""
    policies, since = Policies(guarded), now()
    await policies.apply("front-to-back", FRONT_TO_BACK)
    option = f"{place.start}{identities(guarded)['front2']:08x}{place.end}"
    target = str(guarded.address("back2", place.family))
    parameters = (target, str(place.level), str(place.option), option)

    for machine, expected in ((UNDECLARED, "refused"), ("n1", "refused"), ("back1", "refused"), ("front1", "open")):
        outcome = run_in(guarded, machine, sys.executable, "-c", CONNECT_WITH_OPTION, *parameters).strip()
        assert (machine, outcome) == (machine, expected)

    ends = {"source": str(guarded.address(UNDECLARED, place.family)), "destination": target, "port": HTTP}
    node, reason = ("n1", "STAMP_UNTRUSTED") if place.is_stamp else ("n2", "POLICY_DENIED")
    await asyncio.to_thread(await_flow, guarded.nodes[node], since, verdict="DROPPED", reason=reason, **ends)
    await policies.withdraw_all()
