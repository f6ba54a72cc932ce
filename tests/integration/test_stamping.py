"""Stamps on the wire: on every packet between nodes, on no packet that leaves the cluster, within the MTU."""

import struct
from collections.abc import Iterable, Iterator, Mapping

import pytest

from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import IPAddress
from nfq_enforcer.lab.traffic_host import AttemptResult
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    DNS,
    DRIVERS,
    ENDPOINTS,
    FAMILIES,
    HTTP,
    PATIENT,
    PER_FLOW,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    between,
    ends,
    from_role,
    identities,
    length,
    now,
    outcomes,
    passes,
    policy,
    stamps_on,
    start,
)

BULK = 3_000_000
IP_HEADER = {4: 20, 6: 40}
UDP_HEADER = 8
TCP_HEADER = {"netfilterqueue": 20, "netlink": 60 + 8}  # the length that the kernel may read, see ruleset.mss
COPY_RANGE = {"netfilterqueue": 3968, "netlink": 65531}
OVERHEAD = {4: 8, 6: 16}  # bytes of a stamp
TCP, SYN = 6, 0x02
both_families = pytest.mark.parametrize("family", FAMILIES)


DATAPATH_SETTINGS = DATAPATHS


def every_address(lab: Lab, hosts: Iterable[str]) -> list[IPAddress]:
    return [lab.address(host, family) for host in hosts for family in FAMILIES]


def payload(mtu: int, family: int) -> int:
    """Return the size of the largest datagram that fits."""
    return mtu - IP_HEADER[family] - UDP_HEADER


def check_stamps(mode: str, seen: Iterable[bytes], owner: Mapping[IPAddress, int]) -> None:
    """Check that each packet has its sender's stamp; in per-flow mode only the first packet of each direction must."""
    known: set[bytes] = set()
    for packet in seen:
        key = parse(packet).key
        expected = [owner[ends(packet)[0]]]
        assert stamps_on(packet) in ([expected, []] if mode == PER_FLOW and key in known else [expected])
        known.add(key)


class TestEveryPacket:
    async def test_between_nodes_bears_exactly_its_senders_identity(
        self, guarded: Lab, datapath: DatapathSettings
    ) -> None:
        expected = passes(ENDPOINTS, ENDPOINTS)

        async with guarded.capture() as capture:
            assert await outcomes(guarded, expected) == expected

        names = identities(guarded)
        owner = {address: names[name] for name in ENDPOINTS for address in guarded.topology.machine(name).addresses}
        seen = between(capture, owner, owner)
        check_stamps(datapath.mode, seen, owner)
        assert {ends(packet) for packet in seen} == {
            (guarded.address(a, family), guarded.address(b, family))
            for a in ENDPOINTS
            for b in ENDPOINTS
            for family in FAMILIES
            if _node(guarded, a) != _node(guarded, b)
        }

    @pytest.mark.parametrize("target", ["back2", "db3", "n3"])
    async def test_of_a_bulk_transfer_bears_it_and_all_arrives_intact(
        self, guarded: Lab, target: str, datapath: DatapathSettings
    ) -> None:
        names = identities(guarded)
        owner = {guarded.address(host, family): names[host] for host in ("front1", target) for family in FAMILIES}

        for family in FAMILIES:
            async with guarded.capture() as capture:
                outcome = await guarded.host("front1").bulk(guarded.address(target, family), HTTP, BULK)

            assert (outcome.status, outcome.received, outcome.intact) == ("ok", BULK, True)
            seen = between(capture, [guarded.address("front1", family)], [guarded.address(target, family)])
            assert sum(map(length, seen)) > BULK
            check_stamps(datapath.mode, seen, owner)

    async def test_to_and_from_the_world_bears_none(self, guarded: Lab) -> None:
        expected = passes(["world"], ENDPOINTS) | passes(ENDPOINTS, ["world"])

        async with guarded.capture() as capture:
            assert await outcomes(guarded, expected) == expected

        seen = between(capture, every_address(guarded, ["world"]), every_address(guarded, ENDPOINTS))
        assert len(seen) >= 2 * len(expected)
        assert {tuple(stamps_on(packet)) for packet in seen} == {()}

    async def test_within_a_node_bears_none(self, guarded: Lab) -> None:
        expected = passes(["front1"], ["back1"])

        async with arrivals(guarded, "back1") as capture:
            assert await outcomes(guarded, expected) == expected

        seen = between(capture, every_address(guarded, ["front1"]), every_address(guarded, ["back1"]))
        assert len(seen) >= 2 * len(expected)
        assert {tuple(stamps_on(packet)) for packet in seen} == {()}


def _node(lab: Lab, endpoint: str) -> str:
    return next(one.node for one in lab.topology.endpoints if one.name == endpoint)


class TestMasquerade:
    """A router between two nodes replaces the sender's address; the identity still arrives."""

    @pytest.fixture(autouse=True)
    def hidden(self, guarded: Lab) -> Iterator[None]:
        guarded.network.masquerade(True)
        yield
        guarded.network.masquerade(False)

    async def test_the_identity_arrives_and_decides(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("db", policy("db-to-front", "frontend", ingress=[from_role("db")]))
        begun, names = now(), identities(guarded)
        expected = passes(["db3"], ["front1"])
        refused = dict.fromkeys(passes(["front3", "n3"], ["front1"]), "timeout")

        assert await outcomes(guarded, expected | refused) == expected | refused

        for family in FAMILIES:
            router = str(guarded.address("rtr", family))
            assert (await guarded.host("db3").connect(guarded.address("front1", family), HTTP)).seen_as == router
            flow = await_flow(guarded.nodes["n1"], begun, source=router, verdict="FORWARDED", port=HTTP)
            assert flow["source"]["identity"] == names["db3"]

    async def test_replies_are_stamped_too(self, guarded: Lab, datapath: DatapathSettings) -> None:
        async with guarded.capture() as capture:
            for family in FAMILIES:
                assert (await guarded.host("db3").connect(guarded.address("front1", family), HTTP, PATIENT)).ok

        names = identities(guarded)
        senders = {"rtr": names["db3"], "front1": names["front1"]}
        seen = between(capture, every_address(guarded, ["rtr"]), every_address(guarded, ["front1"]))
        replies = [packet for packet in seen if ends(packet)[0] in guarded.topology.machine("front1").addresses]
        assert len(replies) >= 2 * 3  # SYN-ACK, data, FIN
        owner = {guarded.address(host, family): name for host, name in senders.items() for family in FAMILIES}
        check_stamps(datapath.mode, seen, owner)


@pytest.fixture(scope="module")
def tight(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Return a lab in which endpoints have the MTU of the segment, without room for a stamp."""
    lab = make_served(stamp_room=0)
    lab.start_agents(**datapath.settings)
    return lab


class TestRoom:
    """A packet that is too long with its stamp causes an ICMP error; these endpoints have no reduced MTU."""

    @both_families
    async def test_tcp_agrees_on_segments_that_fit(self, tight: Lab, family: int, driver: str) -> None:
        async with tight.capture() as capture:
            outcome = await tight.host("front1").bulk(tight.address("back2", family), HTTP, BULK)

        assert (outcome.received, outcome.intact) == (BULK, True)
        seen = between(capture, [tight.address("front1", family)], [tight.address("back2", family)])
        options = [mss for mss in map(_mss, seen) if mss]
        assert options == [1500 - IP_HEADER[family] - TCP_HEADER[driver] - OVERHEAD[family]] * 2  # SYN and SYN-ACK

    @both_families
    async def test_an_endpoint_is_told_the_size_that_fits(self, tight: Lab, family: int) -> None:
        size = payload(tight.topology.mtu, family)

        async with arrivals(tight, "front1") as capture:
            outcome = await _send(tight, "front1", "back2", family, size)

        assert outcome.status == "too-big"
        errors = between(capture, [tight.address("n1", family)], [tight.address("front1", family)])
        assert min(map(_too_big, errors)) == tight.topology.mtu - OVERHEAD[family]
        assert (await _send(tight, "front1", "back2", family, size - OVERHEAD[family])).ok

    async def test_a_datagram_that_may_be_fragmented_is(self, tight: Lab) -> None:
        size = payload(tight.topology.mtu, 4)

        async with tight.capture() as capture:
            assert (await _send(tight, "front2", "back1", 4, size, dont_fragment=False)).ok

        fragments = _fragments(tight, capture, "front2", "back1", 4)
        assert len(fragments) == 2
        assert {tuple(stamps_on(fragment)) for fragment in fragments} == {(identities(tight)["front2"],)}

    async def test_ipv6_is_fragmented_by_its_sender_once_it_knows(self, tight: Lab) -> None:
        size = payload(tight.topology.mtu, 6)

        async with arrivals(tight, "front2") as capture:
            assert (await _send(tight, "front2", "back1", 6, size, BRIEF, dont_fragment=False)).status == "timeout"

        errors = between(capture, [tight.address("n2", 6)], [tight.address("front2", 6)])
        assert min(map(_too_big, errors)) == tight.topology.mtu - OVERHEAD[6]
        assert (await _send(tight, "front2", "back1", 6, size, dont_fragment=False)).ok


def _mss(packet: bytes) -> int | None:
    """Return the MSS in a SYN, None for any other packet."""
    _, start = _transport(packet)
    if not packet[start + 13] & SYN:
        return None
    kind, size, mss = struct.unpack_from("!BBH", packet, start + 20)
    assert (kind, size) == (2, 4)
    return int(mss)


def _transport(packet: bytes) -> tuple[int, int]:
    """Return the transport protocol and the offset of its header; in IPv6 at most a stamp precedes it."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 0x0F) * 4
    return (packet[40], 40 + (packet[41] + 1) * 8) if packet[6] == 60 else (packet[6], 40)


def _too_big(error: bytes) -> int:
    """Return the MTU in an ICMP error."""
    _, start = _transport(error)
    assert error[start : start + 2] == bytes((3, 4) if error[0] >> 4 == 4 else (2, 0))
    return int.from_bytes(error[start + 4 : start + 8], "big")


async def _send(
    lab: Lab, source: str, target: str, family: int, size: int, timeout: float = PATIENT, *, dont_fragment: bool = True
) -> AttemptResult:
    address = lab.address(target, family)
    return await lab.host(source).send_udp(address, DNS, timeout, size=size, dont_fragment=dont_fragment)


def _fragments(lab: Lab, capture: Capture, source: str, target: str, family: int) -> list[bytes]:
    """Return the captured packets from source to target."""
    way = (lab.address(source, family), lab.address(target, family))
    return [packet.data for packet in capture.packets() if ends(packet.data) == way]


class TestSize:
    @pytest.mark.parametrize(("family", "dont_fragment"), [(4, True), (4, False), (6, False)])
    async def test_a_full_datagram_of_the_host_itself_arrives_all_the_same(
        self, guarded: Lab, family: int, dont_fragment: bool
    ) -> None:
        size = payload(guarded.topology.mtu, family)

        outcome = await _send(guarded, "n3", "back1", family, size, dont_fragment=dont_fragment)

        assert (outcome.status, outcome.answered_by) == ("ok", "back1")

    async def test_a_socket_of_the_host_that_forbids_ipv6_to_fragment_is_told_so(self, guarded: Lab) -> None:
        """IPv6 has no DF bit that a rewrite could clear; the kernel respects the socket's setting."""
        size = payload(guarded.topology.mtu, 6)

        assert (await _send(guarded, "n3", "back1", 6, size)).status == "too-big"
        assert (await _send(guarded, "n3", "back1", 6, size - OVERHEAD[6])).ok

    @both_families
    async def test_every_fragment_is_stamped(self, guarded: Lab, family: int) -> None:
        async with guarded.capture() as capture:
            assert (await _send(guarded, "front1", "back2", family, 3000, dont_fragment=False)).ok

        fragments = _fragments(guarded, capture, "front1", "back2", family)
        assert len(fragments) == 3
        assert {tuple(stamps_on(fragment)) for fragment in fragments} == {(identities(guarded)["front1"],)}

    @both_families
    async def test_what_the_queue_can_copy_is_stamped_in_all_its_fragments(
        self, guarded: Lab, family: int, driver: str
    ) -> None:
        size = COPY_RANGE[driver] - 16 - IP_HEADER[family] - UDP_HEADER

        async with guarded.capture() as capture:
            assert (await _send(guarded, "front1", "back2", family, size, dont_fragment=False)).ok

        fragments = _fragments(guarded, capture, "front1", "back2", family)
        assert sum(map(length, fragments)) > size
        assert {tuple(stamps_on(fragment)) for fragment in fragments} == {(identities(guarded)["front1"],)}

    @both_families
    async def test_what_the_queue_cannot_copy_cannot_be_stamped(self, guarded: Lab, family: int, driver: str) -> None:
        node = guarded.nodes["n1"]
        size, before = COPY_RANGE[driver] + 1 - IP_HEADER[family] - UDP_HEADER, node.status()["worker"]

        for target, status, timeout in (("back1", "ok", PATIENT), ("back2", "timeout", BRIEF)):
            outcome = await _send(guarded, "front1", target, family, size, timeout, dont_fragment=False)
            assert (target, outcome.status) == (target, status)

        reason = "PAYLOAD_TOO_LONG"
        assert node.status()["worker"][reason] == before[reason] + 1

    async def test_a_bulk_transfer_within_a_node_passes(self, guarded: Lab) -> None:
        outcomes = [await guarded.host("front1").bulk(guarded.address("back1", f), HTTP, BULK) for f in FAMILIES]

        assert [(outcome.received, outcome.intact) for outcome in outcomes] == [(BULK, True)] * 2


@pytest.fixture(scope="module")
def jumbo(make_lab: MakeLab) -> Lab:
    return make_lab(memory=True, mtu=9000)


@pytest.mark.parametrize("name", DRIVERS)
def test_an_mtu_that_the_queue_cannot_copy_is_warned_of(jumbo: Lab, name: str) -> None:
    node = start(jumbo, "n1", driver=name)
    node.stop()

    warning = "WARNING interface eth0 has an MTU of 9000, but the driver netfilterqueue copies 3968 bytes"
    assert (warning in node.log.read_text()) == (name == "netfilterqueue")
