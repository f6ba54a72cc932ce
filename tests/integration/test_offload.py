"""Unsegmented packets (GSO): stamped before segmentation, whichever device segments them, and delivered intact."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    DRIVERS,
    FAMILIES,
    HTTP,
    PATIENT,
    DatapathSettings,
    ErrorCounters,
    between,
    identities,
    length,
    run_in,
    stamps_on,
)

BULK = 20_000_000
SEEN = 2_000_000  # bytes of a captured transfer
OFFLOADS = ("tso", "gso", "gro", "tx-udp-segmentation")
PORT = 5353
MUCH = {"netlink": (1 << 30, 5000), "netfilterqueue": (1 << 26, 5000)}  # bytes over TCP; bursts, of 20 datagrams each
WAYS = [("front1", "back2"), ("n3", "back2"), ("front1", "n3")]  # forwarded, sent by a host itself, delivered to a host

both_families = pytest.mark.parametrize("family", FAMILIES)
all_ways = pytest.mark.parametrize(("source", "target"), WAYS)

# Since Linux 4.18 one system call sends many datagrams of one size (UDP_SEGMENT, udp(7)).
BURSTS = """
import random

def bursts(number):
    chance = random.Random(1)
    for _ in range(number):
        size = chance.randint(1, 1400)
        yield size, size * chance.randint(1, min(40, 65000 // size)) - chance.randint(0, size - 1)
"""
BLAST = """
import hashlib, os, socket, sys

family, address, port, number = sys.argv[1:]
sender = socket.socket(socket.AF_INET if family == "4" else socket.AF_INET6, socket.SOCK_DGRAM)
sender.connect((address, int(port)))
digest = hashlib.sha256()
for size, length in bursts(int(number)):
    sender.setsockopt(socket.IPPROTO_UDP, 103, size)
    data = os.urandom(length)
    digest.update(data)
    sender.send(data)
    sender.recv(1)  # until all datagrams have arrived
print(digest.hexdigest())
"""
SINK = """
import hashlib, socket, sys

family, address, port, number = sys.argv[1:]
receiver = socket.socket(socket.AF_INET if family == "4" else socket.AF_INET6, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
receiver.bind((address, int(port)))
receiver.settimeout(10)
print("ready", flush=True)
digest = hashlib.sha256()
for _, left in bursts(int(number)):
    while left:
        data, sender = receiver.recvfrom(1 << 16)
        digest.update(data)
        left -= len(data)
    receiver.sendto(b"!", sender)
print(digest.hexdigest())
"""


@pytest.fixture(scope="module", params=DRIVERS)
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    """Run this module with each driver."""
    return DatapathSettings(request.param)


@pytest.fixture(scope="module", params=["on", "off"])
def offloads(request: pytest.FixtureRequest, guarded: Lab) -> Iterator[str]:
    """Switch segmentation offload on or off for every interface of the lab."""
    _switch(guarded, request.param)
    yield str(request.param)
    _switch(guarded, "on")


def _switch(lab: Lab, state: str) -> None:
    """Switch all segmentation offloads on or off; ignore those that an interface does not support."""
    for machine in lab.topology.machines.values():
        for interface in machine.interfaces:
            for offload in OFFLOADS:
                command = lab.network.command(machine.name, ["ethtool", "-K", interface.name, offload, state])
                subprocess.run(command, capture_output=True, check=False)


@both_families
@all_ways
async def test_a_bulk_transfer_arrives_intact_and_no_kernel_on_the_way_complains(
    guarded: Lab, offloads: str, source: str, target: str, family: int
) -> None:
    errors = ErrorCounters(guarded, source, target, "n1", "n2", "n3")

    outcome = await guarded.host(source).bulk(guarded.address(target, family), HTTP, BULK, 3 * PATIENT)

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", BULK, True)
    assert errors.since() == {}
    again, sent = errors.retransmitted(source)
    assert again <= sent // 100


@both_families
@all_ways
async def test_every_segment_of_it_bears_the_stamp(
    guarded: Lab, offloads: str, source: str, target: str, family: int
) -> None:
    names = identities(guarded)
    owner = {guarded.address(host, family): names[host] for host in (source, target)}

    async with guarded.capture() as capture:
        outcome = await guarded.host(source).bulk(guarded.address(target, family), HTTP, SEEN)

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", SEEN, True)
    seen = between(capture, [guarded.address(source, family)], [guarded.address(target, family)])
    assert sum(map(length, seen)) > SEEN
    assert {tuple(stamps_on(packet)) for packet in seen} == {(identity,) for identity in owner.values()}
    if offloads == "off":
        assert max(map(length, seen)) <= guarded.topology.mtu


@both_families
async def test_so_it_does_where_a_router_hides_its_sender(guarded: Lab, offloads: str, family: int) -> None:
    names, errors = identities(guarded), ErrorCounters(guarded, "db3", "n3", "rtr", "n1", "front1")
    guarded.network.masquerade(True)
    try:
        async with guarded.capture() as capture:
            outcome = await guarded.host("db3").bulk(guarded.address("front1", family), HTTP, SEEN, 3 * PATIENT)
    finally:
        guarded.network.masquerade(False)

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", SEEN, True)
    seen = between(capture, [guarded.address("rtr", family)], [guarded.address("front1", family)])
    assert sum(map(length, seen)) > SEEN
    assert {tuple(stamps_on(packet)) for packet in seen} == {(names["db3"],), (names["front1"],)}
    assert errors.since() == {}


@pytest.fixture(scope="module")
def bridged(make_served: MakeLab, datapath: DatapathSettings, runner: asyncio.Runner) -> Lab:
    """Return a lab with the endpoints of n1 behind ports of a bridge, and agents configured for it.

    If the kernel passes bridged packets to iptables (br_netfilter), an endpoint's interface is its port.
    """
    lab = make_served(memory=True)
    own = [endpoint for endpoint in lab.topology.endpoints if endpoint.node == "n1"]
    gateways = lab.topology.machine("n1").interfaces[-1].addresses
    commands = ["link add br0 type bridge", "link set br0 up"]
    commands += [f"address flush dev {endpoint.interface}" for endpoint in own]
    commands += [f"link set {endpoint.interface} master br0" for endpoint in own]
    commands += [f"address add {gateway} dev br0{' nodad' if gateway.version == 6 else ''}" for gateway in gateways]
    commands += [f"route replace {address} dev br0" for endpoint in own for address in endpoint.addresses]
    run_in(lab, "n1", "ip", "-batch", "-", text="\n".join(commands))
    lab.start_agents(**datapath.settings)
    if not Path("/proc/sys/net/bridge").exists():
        documents = lab.topology.endpoint_documents()
        for endpoint in own:
            documents = documents.replace(f"interface: {endpoint.interface}\n", "interface: br0\n")
        runner.run(lab.apply("endpoints", documents))
    return lab


@both_families
@pytest.mark.parametrize("offloading", ["on", "off"])
async def test_so_it_does_where_the_endpoints_are_on_a_bridge(bridged: Lab, offloading: str, family: int) -> None:
    _switch(bridged, offloading)
    names, errors = identities(bridged), ErrorCounters(bridged, "front1", "n1", "n2", "back2")

    for source, target in (("front1", "back2"), ("back2", "front1")):
        async with bridged.capture() as capture:
            outcome = await bridged.host(source).bulk(bridged.address(target, family), HTTP, SEEN, 3 * PATIENT)

        assert (outcome.status, outcome.received, outcome.intact) == ("ok", SEEN, True)
        seen = between(capture, [bridged.address(source, family)], [bridged.address(target, family)])
        assert sum(map(length, seen)) > SEEN
        assert {tuple(stamps_on(packet)) for packet in seen} == {(names["front1"],), (names["back2"],)}
    assert errors.since() == {}


@both_families
@all_ways
async def test_datagrams_that_are_sent_many_at_once_arrive_intact_and_stamped(
    guarded: Lab, offloads: str, source: str, target: str, family: int
) -> None:
    errors = ErrorCounters(guarded, source, target, "n1", "n2", "n3")

    async with guarded.capture() as capture:
        sent, received = blast(guarded, source, target, family)

    assert sent == received
    assert errors.since() == {}
    seen = between(capture, [guarded.address(source, family)], [guarded.address(target, family)])
    names = identities(guarded)
    assert {tuple(stamps_on(packet)) for packet in seen} == {(names[source],), (names[target],)}


@pytest.mark.timeout(240)
async def test_much_of_either_kind_arrives_intact(guarded: Lab, driver: str) -> None:
    size, bursts = MUCH[driver]

    outcome = await guarded.host("front1").bulk(guarded.address("back2"), HTTP, size, 6 * PATIENT)
    sent, received = blast(guarded, "front1", "back2", 4, bursts)

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", size, True)
    assert sent == received


def blast(lab: Lab, source: str, target: str, family: int, bursts: int = 200) -> tuple[str, str]:
    """Send bursts of datagrams of random sizes; return the digests of sent and of received data."""
    arguments = [str(family), str(lab.address(target, family)), str(PORT), str(bursts)]
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    with lab.network.in_namespace(target, [sys.executable, "-c", BURSTS + SINK, *arguments], **pipe) as sink:
        assert sink.stdout is not None
        assert sink.stdout.readline() == "ready\n"
        with lab.network.in_namespace(source, [sys.executable, "-c", BURSTS + BLAST, *arguments], **pipe) as sender:
            return sender.communicate(timeout=6 * PATIENT)[0], sink.communicate(timeout=PATIENT)[0]


@pytest.mark.parametrize("largest", [65_536, 185_000])
@both_families
async def test_pieces_that_have_no_room_for_a_stamp_are_not_lost(guarded: Lab, largest: int, family: int) -> None:
    """IPv6 exceeds 65,535 bytes with BIG TCP; a packet without room for a stamp is segmented on requeue."""
    errors = ErrorCounters(guarded, "front1", "back2", "n1", "n2")
    size = ("ip", "link", "set", UPLINK, "gso_max_size")
    run_in(guarded, "front1", *size, str(largest))
    try:
        outcome = await guarded.host("front1").bulk(guarded.address("back2", family), HTTP, BULK, 3 * PATIENT)
    finally:
        run_in(guarded, "front1", *size, "65536")

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", BULK, True)
    assert errors.since() == {}
