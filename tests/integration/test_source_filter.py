"""Forged sources: a packet or fragment with the address of a neighbour dies at its sender's node, in the kernel.

A token in each packet shows its arrival, or the arrival of its datagram. A datagram of the victim follows, the marker:
once it has arrived, no earlier packet is on its way any more.
"""

import asyncio
import itertools
import signal
import sys
from collections.abc import Iterable
from ipaddress import ip_address

import pytest
import yaml

from nfq_enforcer.agent import client
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.fragments import fragment, fragments
from tests.support.labs import (
    FAMILIES,
    PATIENT,
    PER_FLOW,
    PROGRAM,
    DatapathSettings,
    await_flow,
    identities,
    now,
    run_in,
    stamps_on,
    until,
)
from tests.support.metrics import scrape
from tests.support.open_flows import is_offloaded, open_flow
from tests.support.packets import BAD_STAMPS, datagram, with_options

# Sends whole packets as they are: raw(7) for IPv4, and IPV6_HDRINCL for IPv6.
SEND = """
import socket, sys
for text in sys.argv[2:]:
    packet = bytes.fromhex(text)
    family = socket.AF_INET if packet[0] >> 4 == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        if family == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_IPV6, 36, 1)
        sender.sendto(packet, (sys.argv[1], 0))
"""
TABLE = "inet nfq_enforcer"
TABLES = {f"table {TABLE}", "table bridge nfq_enforcer"}
VICTIM, ATTACKER, TARGET = "front1", "back1", "back2"
both_families = pytest.mark.parametrize("family", FAMILIES)
_numbers = itertools.count(1)


# The table of nftables drops a forged source before any queue, so no driver meets it: each driver and each mode once.
DATAPATH_SETTINGS = [DatapathSettings("netlink"), DatapathSettings("netfilterqueue", mode=PER_FLOW)]


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    lab = make_served()
    lab.start_agents(**datapath.settings)
    return lab


def send(lab: Lab, machine: str, *sent: bytes) -> None:
    target = str(ip_address(parse_ends(sent[0])[1]))
    run_in(lab, machine, sys.executable, "-c", SEND, target, *(one.hex() for one in sent))


def parse_ends(packet: bytes) -> tuple[bytes, bytes]:
    start, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    return packet[start : start + size], packet[start + size : start + 2 * size]


def from_to(lab: Lab, source: str, target: str, family: int, data: bytes, *, sport: int = 40_000) -> bytes:
    """Return a datagram from the address of ``source``, whoever sends it."""
    src, dst = (str(lab.address(name, family)) for name in (source, target))
    return datagram(src, dst, sport, 53, data, df=False)


async def arriving(
    lab: Lab, *steps: tuple[str, Iterable[bytes]], target: str = TARGET, family: int, victim: str = VICTIM
) -> list[bytes]:
    """Send the packets of each machine in turn, then the victim's marker; return the packets before it."""
    marker = b"marker %d" % next(_numbers)
    async with Capture(lab.network, target, UPLINK) as capture, asyncio.timeout(PATIENT):
        for machine, sent in steps:
            send(lab, machine, *sent)
        send(lab, victim, from_to(lab, victim, target, family, marker))
        while not any(marker in seen.data for seen in capture.packets()):
            await asyncio.sleep(0.05)
    return [seen.data for seen in capture.packets() if b"token" in seen.data]


def halves(lab: Lab, family: int) -> tuple[list[bytes], int]:
    """Return three fragments of a datagram from the victim to the target, and their number."""
    number = 1000 + next(_numbers)
    data = b"".join(b"token%d " % part + bytes(1000 - 8) for part in range(3))
    whole = from_to(lab, VICTIM, TARGET, family, data[8:])
    return fragments(whole, (1000, 1000), number), number


# -- fragments ---------------------------------------------------------------------------------------------------------


@both_families
async def test_a_large_datagram_arrives_stamped(guarded: Lab, family: int) -> None:
    parts, _ = halves(guarded, family)

    arrived = await arriving(guarded, (VICTIM, parts), family=family)

    assert all(any(b"token%d" % part in one for one in arrived) for part in range(1, 3))
    assert {identity for one in arrived for identity in stamps_on(one)} == {identities(guarded)[VICTIM]}


@pytest.mark.parametrize("forged", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("attacker_first", [True, False], ids=["before", "after"])
@both_families
async def test_a_neighbours_fragment_is_not_joined(
    guarded: Lab, forged: int, attacker_first: bool, family: int
) -> None:
    parts, _ = halves(guarded, family)
    own = (VICTIM, [part for place, part in enumerate(parts) if place != forged])
    others = (ATTACKER, [parts[forged]])

    assert await arriving(guarded, *((others, own) if attacker_first else (own, others)), family=family) == []


@both_families
async def test_an_overlapping_fragment_of_a_neighbour_changes_nothing(guarded: Lab, family: int) -> None:
    parts, number = halves(guarded, family)
    whole = from_to(guarded, VICTIM, TARGET, family, b"")
    false = fragment(whole, 1000, b"false" + bytes(1387), number, more=True)

    arrived = await arriving(guarded, (VICTIM, parts[:1]), (ATTACKER, [false]), (VICTIM, parts[1:]), family=family)

    assert arrived
    assert not any(b"false" in one for one in arrived)


# -- whole packets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("borrowed", [VICTIM, "front2", "world", "n1"])
@both_families
async def test_a_forged_source_is_dropped_counted_and_shown(guarded: Lab, borrowed: str, family: int) -> None:
    port = 50_000 + next(_numbers)
    forged = from_to(guarded, borrowed, TARGET, family, b"token", sport=port)
    node, since = guarded.nodes["n1"], now()
    before = node.status()["source_filter"]["drops"].get(f"veth-{ATTACKER}", 0)

    assert await arriving(guarded, (ATTACKER, [forged]), family=family) == []

    flow = await_flow(node, since, verdict="DROPPED", source=str(guarded.address(borrowed, family)))
    assert (flow["drop_reason_desc"], flow["traffic_direction"]) == ("INVALID_SOURCE_IP", "EGRESS")
    assert flow["l4"]["UDP"] == {"source_port": port, "destination_port": 53}
    assert node.status()["source_filter"]["drops"][f"veth-{ATTACKER}"] == before + 1
    assert node.status()["worker"]["INVALID_SOURCE_IP"] >= before + 1
    assert scrape(guarded, "n1")["source_filter_drops_total"] >= 1


@pytest.mark.parametrize(
    ("sender", "victim", "target"),
    [(ATTACKER, VICTIM, TARGET), (ATTACKER, VICTIM, "front3"), ("world", "front2", TARGET)],
)
@both_families
async def test_no_neighbour_gets_into_an_open_flow(
    guarded: Lab, datapath: DatapathSettings, sender: str, victim: str, target: str, family: int
) -> None:
    """Also where the kernel passes the flow by itself: the source comes before the connmark."""
    port = open_flow(guarded, victim, target, family)
    assert is_offloaded(guarded, f"n{victim[-1]}", port) == (datapath.mode == PER_FLOW)
    forged = from_to(guarded, victim, target, family, b"token", sport=port)

    assert await arriving(guarded, (sender, [forged]), target=target, family=family, victim=victim) == []


@pytest.mark.parametrize("reason", BAD_STAMPS)
@both_families
async def test_an_invalid_stamp_does_not_pass_in_an_offloaded_flow(
    guarded: Lab, datapath: DatapathSettings, reason: str, family: int
) -> None:
    port = open_flow(guarded, VICTIM, TARGET, family)
    assert is_offloaded(guarded, "n2", port) == (datapath.mode == PER_FLOW)
    plain = from_to(guarded, VICTIM, TARGET, family, b"token", sport=port)
    forged = with_options(plain, bytes.fromhex(BAD_STAMPS[reason][family]))
    before = guarded.nodes["n2"].status()["worker"][reason]

    assert await arriving(guarded, ("world", [forged]), family=family) == []

    assert guarded.nodes["n2"].status()["worker"][reason] == before + 1


# -- endpoints and interfaces ------------------------------------------------------------------------------------------


def declared(name: str, node: str, interface: str | None, *ips: object, role: str = "frontend") -> tuple[str, str]:
    """Return the file of an Endpoint document."""
    spec = {"node": node, "ips": [str(ip) for ip in ips]} | ({} if interface is None else {"interface": interface})
    metadata = {"name": name, "labels": {"role": role}}
    document = {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}
    return f"{name}.yaml", yaml.safe_dump(document)


def declare(lab: Lab, *documents: tuple[str, str]) -> None:
    client.call(lab.nodes["n1"].socket, "apply", timeout=2 * PATIENT, files=list(documents), wait=PATIENT)


async def test_several_endpoints_on_one_interface_have_their_addresses_only(guarded: Lab) -> None:
    second = {4: "10.31.1.77", 6: "fd00:31:1::4d"}
    declare(guarded, declared("second", "n1", f"veth-{VICTIM}", *second.values()))
    try:
        for family in FAMILIES:
            target = str(guarded.address(TARGET, family))
            packet = datagram(second[family], target, 40_000, 53, b"token", df=False)

            assert len(await arriving(guarded, (VICTIM, [packet]), family=family)) == 1
            assert await arriving(guarded, (ATTACKER, [packet]), family=family) == []
    finally:
        client.call(guarded.nodes["n1"].socket, "delete_endpoints", timeout=PATIENT, names=["default/second"])

    for family in FAMILIES:
        packet = datagram(second[family], str(guarded.address(TARGET, family)), 40_000, 53, b"token", df=False)
        assert await arriving(guarded, (VICTIM, [packet]), family=family) == []


async def test_an_interface_that_comes_later_is_checked_from_its_first_packet_on(guarded: Lab) -> None:
    late = f"late{next(_numbers)}"
    topology = guarded.topology.attach(late, "n1")
    declare(guarded, declared(late, "n1", f"veth-{late}", *topology.machine(late).addresses))

    guarded.attach(late, "n1")

    for family in FAMILIES:
        parts, _ = halves(guarded, family)
        assert await arriving(guarded, (late, parts[:1]), (VICTIM, parts[1:]), family=family) == []
        own = from_to(guarded, late, TARGET, family, b"token")
        assert len(await arriving(guarded, (late, [own]), family=family)) == 1


# -- the table ---------------------------------------------------------------------------------------------------------

CHANGES = {
    "delete the table": (f"nft delete table {TABLE}", "is missing"),
    "flush the table": (f"nft flush table {TABLE}", "chain forged has other rules"),
    "flush a chain": (f"nft flush chain {TABLE} endpoints", "chain endpoints has other rules"),
    "accept first": (f"nft insert rule {TABLE} prerouting accept", "chain prerouting has other rules"),
    "flush a set": (f"nft flush set {TABLE} owned4", "set owned4 lacks"),
    "add a member": (f"nft add element {TABLE} owned4 {{ veth-{ATTACKER} . 10.31.1.10 }}", "set owned4 has 1 others"),
    "switch off": (f"nft add table {TABLE} {{ flags dormant\\; }}", "is switched off"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_table_is_restored(guarded: Lab, change: str) -> None:
    command, fault = CHANGES[change]
    node = guarded.nodes["n1"]
    before = node.status()

    run_in(guarded, "n1", "sh", "-c", command)
    await until(lambda: node.status()["rules"]["repairs"] > before["rules"]["repairs"])

    state = node.status()["rules"]
    assert state["intact"]
    assert fault in state["last_missing"]
    assert f"table {TABLE}" in state["last_missing"]
    for family in FAMILIES:
        forged = from_to(guarded, VICTIM, TARGET, family, b"token")
        assert await arriving(guarded, (ATTACKER, [forged]), family=family) == []
    dropped = before["source_filter"]["drops"].get(f"veth-{ATTACKER}", 0)
    assert node.status()["source_filter"]["drops"][f"veth-{ATTACKER}"] >= dropped + 2


async def test_no_table_remains_after_the_agent(guarded: Lab, datapath: DatapathSettings) -> None:
    node = guarded.nodes["n1"]
    node.stop()
    assert tables(guarded).isdisjoint(TABLES)

    node.start(**datapath.settings)
    node.wait_until_ready()
    assert tables(guarded) >= TABLES
    node.stop(signal.SIGKILL)
    assert tables(guarded) >= TABLES
    removed = run_in(guarded, "n1", *PROGRAM, "cleanup")
    assert all(table in removed for table in TABLES)
    assert tables(guarded).isdisjoint(TABLES)
    node.start(**datapath.settings)
    node.wait_until_ready()


def tables(lab: Lab) -> set[str]:
    """Return the tables of nftables at n1."""
    return set(run_in(lab, "n1", "nft", "list", "tables").splitlines())
