"""A glance: what is plain is seen as it is, what is not is left to a closer look."""

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.fast_parse import parse_fast
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from tests.support.nodes import FAMILIES, V4, V6, Addresses
from tests.support.packets import (
    ACK,
    Build,
    fin,
    ip,
    ping,
    request,
    response,
    rst,
    sctp,
    stamped,
    syn,
    syn_ack,
    tcp,
    udp,
    with_options,
)


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


@pytest.mark.parametrize("build", [request, response, syn_ack, fin, rst, udp])
def test_key_and_offset_are_those_that_parsing_gives(at: Addresses, build: Build) -> None:
    payload = build(at.client, at.web)
    packet = parse(payload)

    assert parse_fast(payload) == (packet.key, None, packet.tcp_flags, packet.l4_offset, packet.length)


@pytest.mark.parametrize("build", [request, response, syn_ack, fin, rst, udp])
def test_a_stamp_is_read(at: Addresses, build: Build) -> None:
    payload = stamped(build(at.client, at.web), 300)
    packet = parse(payload)

    assert parse_fast(payload) == (packet.key, 300, packet.tcp_flags, packet.l4_offset, packet.length)


def test_a_packet_cut_short_is_seen_to_be(at: Addresses) -> None:
    payload = udp(at.client, at.web, data=bytes(500))
    packet = parse(payload)

    assert parse_fast(payload[:100]) == (packet.key, None, 0, packet.l4_offset, packet.length)


@pytest.mark.parametrize("build", [syn, ping, sctp])
def test_what_opens_a_connection_or_has_no_such_ports_is_not_plain(at: Addresses, build: Build) -> None:
    assert parse_fast(build(at.client, at.web)) is None
    assert parse_fast(stamped(build(at.client, at.web), 300)) is None


def test_other_protocols_are_not_plain(at: Addresses) -> None:
    assert parse_fast(ip(at.client, at.web, 47, bytes(40))) is None


ODD_STAMPS = [Stamp(Identity(300), key_id=1), Stamp(Identity(300), tag=bytes(8))]


@pytest.mark.parametrize("odd", ODD_STAMPS)
def test_a_stamp_of_another_form_takes_a_closer_look(at: Addresses, odd: Stamp) -> None:
    payload = udp(at.client, at.web)

    assert parse_fast(stamp.write(payload, parse(payload), odd)) is None


def test_other_options_take_a_closer_look() -> None:
    router_alert = bytes((148, 4, 0, 0))

    assert parse_fast(with_options(udp(V4.client, V4.web), router_alert)) is None
    assert parse_fast(with_options(udp(V4.client, V4.web), router_alert * 2)) is None
    assert parse_fast(with_options(udp(V6.client, V6.web), bytes((0, 1, 4, 1, 0, 0, 0)))) is None


def test_what_stands_behind_the_stamp_takes_a_closer_look() -> None:
    payload = bytearray(stamped(udp(V6.client, V6.web), 300))
    payload[50:52] = bytes((4, 4))  # an option in place of the padding

    assert parse_fast(bytes(payload)) is None


@pytest.mark.parametrize("fragment", [b"\x20\x00", b"\x00\x01", b"\x01\x00"])
def test_fragments_are_not_plain(fragment: bytes) -> None:
    payload = udp(V4.client, V4.web)

    assert parse_fast(payload[:6] + fragment + payload[8:]) is None


def test_bytes_behind_the_packet_are_not_plain(at: Addresses) -> None:
    assert parse_fast(udp(at.client, at.web) + b"\0") is None


@pytest.mark.parametrize("nibble", [0x40, 0x60])
def test_a_tcp_header_of_a_wrong_size_is_not_plain(at: Addresses, nibble: int) -> None:
    payload = bytearray(tcp(at.client, at.web, 1, 2, ACK))
    payload[parse(bytes(payload)).l4_offset + 12] = nibble

    assert parse_fast(bytes(payload)) is None


def test_a_datagram_shorter_than_its_header_is_not_plain(at: Addresses) -> None:
    payload = bytearray(udp(at.client, at.web))
    start = parse(bytes(payload)).l4_offset
    payload[start + 4 : start + 6] = b"\0\x07"

    assert parse_fast(bytes(payload)) is None


@pytest.mark.parametrize("payload", [b"", b"\x45", b"\x00" * 60])
def test_what_is_no_ip_packet_is_not_plain(payload: bytes) -> None:
    assert parse_fast(payload) is None


@pytest.mark.parametrize("build", [request, udp])
def test_headers_that_are_not_whole_are_not_plain(at: Addresses, build: Build) -> None:
    for payload in (build(at.client, at.web, data=b""), stamped(build(at.client, at.web, data=b""), 300)):
        for size in range(len(payload)):
            assert parse_fast(payload[:size]) is None
