"""Unfinished checksums: what the kernel has left is finished to what it should have been, and nothing else is."""

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkData

from nfq_enforcer.core.wire.checksums import finish, is_unfinished
from nfq_enforcer.core.wire.packet import UDP, checksum, parse
from tests.support.nodes import FAMILIES, V4, V6, Addresses
from tests.support.packets import Build, ip, ping, request, stamped, syn, udp, unfinished


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


def left(payload: bytes) -> bool:
    packet = parse(payload)
    return is_unfinished(payload, packet.key, packet.l4_offset)


def finished(payload: bytes) -> bytes:
    packet = parse(payload)
    assert is_unfinished(payload, packet.key, packet.l4_offset)
    return finish(payload, packet.proto, packet.l4_offset)


def sctp(at: Addresses, checksum: int | None = None) -> bytes:
    start = IP(src=at.web, dst=at.db) if at.version == 4 else IPv6(src=at.web, dst=at.db)
    return bytes(start / SCTP(sport=1, dport=2, chksum=checksum) / SCTPChunkData(data=b"some data"))


@pytest.mark.parametrize("build", [syn, request, udp])
def test_what_is_left_is_finished_to_the_checksum_that_covers_all(at: Addresses, build: Build) -> None:
    whole = build(at.web, at.db)

    assert finished(unfinished(whole)) == whole


def test_an_odd_number_of_bytes_is_summed_as_if_one_followed(at: Addresses) -> None:
    whole = udp(at.web, at.db, data=bytes(range(101)))

    assert finished(unfinished(whole)) == whole


def test_a_stamp_before_the_transport_header_is_no_part_of_it(at: Addresses) -> None:
    whole = stamped(udp(at.web, at.db), 300)

    assert finished(unfinished(whole)) == whole


def test_the_checksum_of_icmpv6_is_finished_too() -> None:
    whole = ping(V6.web, V6.db)

    assert finished(unfinished(whole)) == whole


def test_sctp_has_a_crc_and_leaves_it_empty(at: Addresses) -> None:
    assert finished(sctp(at, checksum=0)) == sctp(at)


def test_a_checksum_of_zero_is_written_as_its_other_form(at: Addresses) -> None:
    plain = udp(at.web, at.db, data=b"\0\0")
    packet = parse(plain)
    data = plain[packet.l4_offset + 6 : packet.l4_offset + 8]  # its checksum, as data, makes the sum zero
    zero = unfinished(udp(at.web, at.db, data=data))

    assert checksum(zero[packet.l4_offset :]) == 0
    assert finished(zero)[packet.l4_offset + 6 : packet.l4_offset + 8] == b"\xff\xff"


@pytest.mark.parametrize("build", [syn, udp])
def test_what_is_finished_is_not_left(at: Addresses, build: Build) -> None:
    assert not left(build(at.web, at.db))


def test_in_a_tunnel_it_is_the_inner_checksum_that_is_left(at: Addresses) -> None:
    inner = unfinished(syn(at.web, at.db))
    encapsulated = udp(at.web, at.db, 4789, inner)
    without_checksum = bytearray(encapsulated)
    start = parse(encapsulated).l4_offset
    without_checksum[start + 6 : start + 8] = bytes(2)

    assert not left(encapsulated)
    assert not left(bytes(without_checksum))
    assert not left(ip(at.web, at.db, 47, b"\0\0\x08\0" + inner))


def test_a_finished_sctp_packet_is_not_left(at: Addresses) -> None:
    assert not left(sctp(at))


def test_a_packet_of_no_known_protocol_has_nothing_that_we_could_finish() -> None:
    assert not left(ip(V4.web, V4.db, 33, bytes(16)))
    assert left(unfinished(udp(V4.web, V4.db)))
    assert parse(udp(V4.web, V4.db)).proto == UDP
