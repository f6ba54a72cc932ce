"""Source filter: the sources that it permits, its exemptions, and the samples of dropped packets."""

import struct
from ipaddress import ip_address

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.source_address import EXEMPT_SOURCES
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.dataplane.rules import source_filter, source_samples
from nfq_enforcer.dataplane.rules.source_samples import Sample
from tests.support.fragments import fragments
from tests.support.packets import stamped, udp

OPEN = PolicyMap({}, enforced=False)


def snapshot(*, cluster: str = "eth0", **endpoints: tuple[str | None, bool, tuple[str, ...]]) -> Snapshot:
    """Return a snapshot with these endpoints: interface, whether it is the host, addresses."""
    local = {
        ip_address(address).packed: LocalEndpoint(name, Identity(300), interface, OPEN, OPEN, is_host)
        for name, (interface, is_host, addresses) in endpoints.items()
        for address in addresses
    }
    return Snapshot(1, local, Ipcache({}), frozenset({cluster}))


WEB = ("veth-web", False, ("10.0.0.1", "fd00::1"))
TWO = snapshot(web=WEB, db=("veth-web", False, ("10.0.0.2",)), loose=(None, False, ("10.0.0.3",)))


def test_the_members_follow_the_endpoints() -> None:
    wanted = source_filter.sources(TWO)

    assert wanted["interfaces"] == {"veth-web"}
    assert wanted["owned4"] == {("veth-web", "10.0.0.1"), ("veth-web", "10.0.0.2")}
    assert wanted["owned6"] == {("veth-web", "fd00::1")}
    assert wanted["bound4"] == {"10.0.0.1", "10.0.0.2"}
    assert wanted["bound6"] == {"fd00::1"}
    assert wanted["local4"] == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    assert wanted["local6"] == {"fd00::1"}


@pytest.mark.parametrize("interface", ["eth0", "eth1", "lo", None])
def test_the_interface_of_the_host_is_not_that_of_an_endpoint(interface: str | None) -> None:
    wanted = source_filter.sources(snapshot(host=(interface, True, ("192.0.2.1",))))

    assert wanted["interfaces"] == frozenset()
    assert wanted["bound4"] == {"192.0.2.1"}


def test_every_exempt_source_has_a_rule() -> None:
    rules = "; ".join(source_filter.chains({"eth0"})["endpoints"].rules)

    assert set(source_filter.bridge_chains()["endpoints"].rules) > set(
        source_filter.chains({"eth0"})["endpoints"].rules[:-1]
    )
    for exempt in EXEMPT_SOURCES:
        assert f"saddr {exempt.sources} " in rules
        assert f"daddr {exempt.destinations} " in rules
    assert "meta l4proto 17 th sport 68 th dport 67 accept" in rules
    assert "icmpv6 type { 131, 132, 143, 133, 135 } accept" in rules


# -- samples -----------------------------------------------------------------------------------------------------------


def message(payload: bytes, kind: int = 4 << 8, port: int | None = None) -> bytes:
    """Return the message of a logged packet that arrived by interface 5, or by a port of this bridge."""

    def attribute(number: int, data: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)

    body = struct.pack("!BBH", 2, 0, 1) + attribute(4, struct.pack("!I", 5))
    body += (attribute(6, struct.pack("!I", port)) if port is not None else b"") + attribute(9, payload)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_a_sample_becomes_a_drop_event() -> None:
    for src, dst in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        (sample,) = source_samples.decode(message(udp(src, dst, 53)))
        event = source_samples.drop_event(sample, TWO, "veth-web", 7.0)

        assert sample.interface == 5
        assert (event.time, event.reason, event.direction) == (7.0, DropReason.INVALID_SOURCE_IP, Direction.EGRESS)
        assert (str(ip_address(event.opening.src)), str(ip_address(event.opening.dst))) == (src, dst)
        assert (event.opening.proto, event.opening.dport) == (17, 53)


def test_a_sample_from_a_bridge_has_the_port() -> None:
    (sample,) = source_samples.decode(message(udp("10.0.0.1", "10.0.0.2"), port=7))

    assert sample.interface == 7


def test_a_stamp_of_a_strange_source_is_the_reason_as_for_a_worker() -> None:
    for src, reason in (("10.9.9.9", DropReason.STAMP_UNTRUSTED), ("10.0.0.3", DropReason.INVALID_SOURCE_IP)):
        sample = Sample(5, stamped(udp(src, "10.0.0.2"), 300))

        assert source_samples.drop_event(sample, TWO, "veth-web", 7.0).reason is reason


def test_a_fragment_has_addresses_and_protocol_but_no_ports() -> None:
    fragment = fragments(udp("10.0.0.1", "10.0.0.2", data=bytes(100)), (64,), 1)[1]

    event = source_samples.drop_event(Sample(5, fragment), TWO, "veth-other", 7.0)

    assert event.direction is Direction.INGRESS
    assert event.opening[:5] == (ip_address("10.0.0.1").packed, ip_address("10.0.0.2").packed, 17, 0, 0)


@pytest.mark.parametrize("payload", [b"", b"\x45", b"\x60" + bytes(20), b"\x00" * 60])
def test_bytes_that_are_no_packet_become_an_event_without_addresses(payload: bytes) -> None:
    event = source_samples.drop_event(Sample(5, payload), TWO, "eth0", 7.0)

    assert (event.opening.src, event.opening.dst) == (b"", b"")


def test_malformed_messages_give_no_sample() -> None:
    whole = message(udp("10.0.0.1", "10.0.0.2"))

    assert list(source_samples.decode(message(b"x", kind=4 << 8 | 1))) == []
    for end in range(len(whole)):
        assert list(source_samples.decode(whole[:end])) == []
    broken = whole[:20] + struct.pack("=HH", 2, 4) + whole[24:]
    assert list(source_samples.decode(broken)) == []
