"""Packets: every protocol's flow fields, which packets answer which, and what is refused for which reason."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import GRE
from scapy.layers.sctp import SCTP

from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.packet import Packet, checksum, parse, parse_quoted, reply_key

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fd00" + 27 * "0" + "1"), bytes.fromhex("fd00" + 27 * "0" + "2")
V4, V4_BACK = IP(src="10.0.0.1", dst="10.0.0.2"), IP(src="10.0.0.2", dst="10.0.0.1")
V6, V6_BACK = IPv6(src="fd00::1", dst="fd00::2"), IPv6(src="fd00::2", dst="fd00::1")
ROUTER, ROUTER6 = IP(src="10.9.9.9", dst="10.0.0.1"), IPv6(src="fd00::9", dst="fd00::1")

AH = bytes((6, 4)) + bytes(22)  # 24 bytes, then TCP


def parsed(layers: Any) -> Packet:
    return parse(bytes(layers))


def refusal(payload: Any) -> DropReason:
    with pytest.raises(PacketError) as caught:
        parse(bytes(payload))
    return caught.value.reason


def quoted(layers: Any) -> Packet:
    payload = bytes(layers)
    return parse_quoted(payload, parse(payload))


def quote_refusal(layers: Any) -> DropReason:
    with pytest.raises(PacketError) as caught:
        quoted(layers)
    return caught.value.reason


def patched(layers: Any, at: int, *values: int) -> bytes:
    payload = bytearray(bytes(layers))
    payload[at : at + len(values)] = bytes(values)
    return bytes(payload)


# --- what a packet says


def test_a_tcp_packet_over_ipv4_gives_its_flow_fields() -> None:
    packet = parsed(V4 / TCP(sport=1025, dport=443, flags="S") / b"data")

    assert (packet.version, packet.proto, packet.src, packet.dst) == (4, 6, A, B)
    assert (packet.sport, packet.dport, packet.tcp_flags) == (1025, 443, 0x02)
    assert (packet.length, packet.l4_offset, packet.truncated, packet.options) == (44, 20, False, False)
    assert (packet.icmp_type, packet.icmp_code, packet.error) == (-1, -1, False)


def test_a_udp_packet_over_ipv6_gives_its_flow_fields() -> None:
    packet = parsed(V6 / UDP(sport=1025, dport=53) / b"data")

    assert (packet.version, packet.proto, packet.src, packet.dst) == (6, 17, A6, B6)
    assert (packet.sport, packet.dport, packet.tcp_flags) == (1025, 53, 0)
    assert (packet.length, packet.l4_offset, packet.truncated, packet.options) == (52, 40, False, False)


def test_a_key_is_protocol_addresses_and_ports() -> None:
    assert parsed(V4 / UDP(sport=1, dport=2)).key == b"\x11" + A + B + b"\0\1\0\2"
    assert parsed(V6 / TCP(sport=1, dport=2)).key == b"\x06" + A6 + B6 + b"\0\1\0\2"
    assert parsed(V4 / SCTP(sport=1, dport=2)).key == b"\x84" + A + B + b"\0\1\0\2"


@pytest.mark.parametrize(
    ("layers", "proto"),
    [(V4 / GRE(), 47), (V6 / GRE(), 47), (IP(src="10.0.0.1", dst="10.0.0.2", proto=50) / b"", 50)],
)
def test_another_protocol_has_no_ports_and_needs_no_header(layers: Any, proto: int) -> None:
    packet = parsed(layers)

    assert (packet.proto, packet.sport, packet.dport, packet.key[-4:]) == (proto, 0, 0, bytes(4))


def test_an_ipv6_packet_may_have_no_next_header() -> None:
    packet = parsed(IPv6(src="fd00::1", dst="fd00::2", nh=59))

    assert (packet.proto, packet.sport, packet.key) == (59, 0, b"\x3b" + A6 + B6 + bytes(4))


def test_df_is_the_ipv4_bit_and_always_so_in_ipv6() -> None:
    assert parsed(IP(flags="DF") / UDP()).df is True
    assert parsed(IP() / UDP()).df is False
    assert parsed(V6 / UDP()).df is True


def test_ipv4_options_move_the_ports() -> None:
    packet = parsed(
        IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_RR(routers=["10.0.0.3"])]) / TCP(sport=7, dport=8)
    )

    assert (packet.options, packet.l4_offset, packet.sport, packet.dport) == (True, 28, 7, 8)
    assert packet.key == b"\x06" + A + B + b"\0\7\0\x08"


@pytest.mark.parametrize(
    ("extension", "size", "options"),
    [
        (IPv6ExtHdrHopByHop(), 8, False),
        (IPv6ExtHdrDestOpt(), 8, True),
        (IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(), 16, True),
        (IPv6ExtHdrRouting(type=2, segleft=0, addresses=["fd00::7"]), 24, False),
        (IPv6ExtHdrFragment(offset=0, m=0), 8, False),
    ],
)
def test_ipv6_extension_headers_are_walked(extension: Any, size: int, options: bool) -> None:
    packet = parsed(V6 / extension / UDP(sport=7, dport=8))

    assert (packet.proto, packet.sport, packet.dport, packet.l4_offset) == (17, 7, 8, 40 + size)
    assert (packet.options, packet.key) == (options, b"\x11" + A6 + B6 + b"\0\7\0\x08")


def test_an_ipv6_authentication_header_counts_in_four_byte_units() -> None:
    packet = parsed(IPv6(src="fd00::1", dst="fd00::2", nh=51) / AH / bytes(TCP(sport=7, dport=8)))

    assert (packet.proto, packet.sport, packet.l4_offset) == (6, 7, 64)


def test_a_payload_cut_short_by_the_queue_is_judged_by_its_headers() -> None:
    whole, whole6 = bytes(V4 / TCP() / bytes(1000)), bytes(V6 / TCP() / bytes(1000))

    assert parse(whole[:40]).truncated is True
    assert parse(whole6[:60]).truncated is True
    assert (parse(whole[:40]).length, parse(whole[:40]).key) == (1040, parse(whole).key)


def test_bytes_behind_the_packet_are_not_part_of_it() -> None:
    assert parse(bytes(V4 / UDP()) + bytes(18)).truncated is False
    assert refusal(bytes(IP(len=27) / UDP()) + bytes(18)) is DropReason.INVALID_PACKET


# --- what it does to a connection


@pytest.mark.parametrize(
    ("flags", "opens", "is_syn_ack", "is_rst"),
    [
        ("S", True, False, False),
        ("SEC", True, False, False),
        ("SA", False, True, False),
        ("A", False, False, False),
        ("FA", False, False, False),
        ("RA", False, False, True),
        ("", False, False, False),
    ],
)
def test_tcp_flags_say_what_a_packet_does(flags: str, opens: bool, is_syn_ack: bool, is_rst: bool) -> None:
    packet = parsed(V4 / TCP(flags=flags))

    assert (packet.opens, packet.is_syn_ack, packet.is_rst) == (opens, is_syn_ack, is_rst)


@pytest.mark.parametrize("request_type", [8, 13, 15, 17])
def test_icmp_requests_open_and_their_replies_do_not(request_type: int) -> None:
    answer = {8: 0, 13: 14, 15: 16, 17: 18}[request_type]

    assert parsed(V4 / ICMP(type=request_type)).opens is True
    assert parsed(V4 / ICMP(type=answer)).opens is False


def test_an_icmpv6_echo_request_opens() -> None:
    assert parsed(V6 / ICMPv6EchoRequest()).opens is True
    assert parsed(V6 / ICMPv6EchoReply()).opens is False


# --- what answers it


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (V4 / TCP(sport=1, dport=2), V4_BACK / TCP(sport=2, dport=1)),
        (V6 / UDP(sport=1, dport=2), V6_BACK / UDP(sport=2, dport=1)),
        (V4 / SCTP(sport=1, dport=2), V4_BACK / SCTP(sport=2, dport=1)),
        (V4 / GRE(), V4_BACK / GRE()),
        (V4 / ICMP(type=8, id=7), V4_BACK / ICMP(type=0, id=7)),
        (V4 / ICMP(type=13, id=7), V4_BACK / ICMP(type=14, id=7)),
        (V4 / ICMP(type=15, id=7), V4_BACK / ICMP(type=16, id=7)),
        (V4 / ICMP(type=17, id=7), V4_BACK / ICMP(type=18, id=7)),
        (V6 / ICMPv6EchoRequest(id=7), V6_BACK / ICMPv6EchoReply(id=7)),
        (V4 / ICMP(type=3, code=1), V4_BACK / ICMP(type=3, code=1)),
    ],
)
def test_a_packet_and_its_reply_name_each_other(packet: Any, reply: Any) -> None:
    assert reply_key(parsed(packet).key) == parsed(reply).key
    assert reply_key(parsed(reply).key) == parsed(packet).key


def test_a_request_and_the_reply_sent_the_same_way_are_different_flows() -> None:
    assert parsed(V4 / ICMP(type=8, id=7)).key != parsed(V4 / ICMP(type=0, id=7)).key


def test_no_other_icmp_message_has_the_key_of_a_query() -> None:
    reply_with_a_telling_identifier = V4 / ICMP(type=0, id=0x0501)

    assert parsed(V4 / ICMP(type=5, code=1)).key != parsed(reply_with_a_telling_identifier).key


# --- ICMP


def test_an_icmp_query_has_type_and_code_but_no_ports() -> None:
    packet = parsed(V4 / ICMP(type=8, code=0, id=0x1234))

    assert (packet.icmp_type, packet.icmp_code, packet.sport, packet.dport) == (8, 0, 0, 0)
    assert packet.key == b"\x01" + A + B + b"\x12\x34\x08\x00"


def test_an_icmpv6_message_other_than_a_query_or_an_error_needs_four_bytes() -> None:
    assert parsed(V6 / ICMPv6MLReport()).icmp_type == 131
    assert parsed(V6 / IPv6ExtHdrHopByHop(nh=58) / bytes((200, 9, 0, 0))).icmp_code == 9
    assert refusal(V6 / IPv6ExtHdrHopByHop(nh=58) / bytes((200, 9, 0))) is DropReason.INVALID_PACKET
    assert refusal(V6 / IPv6ExtHdrHopByHop(nh=58) / bytes((128, 0, 0, 0))) is DropReason.INVALID_PACKET


@pytest.mark.parametrize("error_type", [3, 11, 12])
def test_an_icmp_error_is_one(error_type: int) -> None:
    assert parsed(ROUTER / ICMP(type=error_type) / V4 / UDP()).error is True


@pytest.mark.parametrize("other_type", [0, 4, 5, 8])
def test_a_redirect_source_quench_or_echo_is_no_error(other_type: int) -> None:
    assert parsed(ROUTER / ICMP(type=other_type) / V4 / UDP()).error is False


@pytest.mark.parametrize("error_type", [1, 2, 3, 4])
def test_an_icmpv6_error_is_one(error_type: int) -> None:
    assert parsed(ROUTER6 / ICMPv6DestUnreach(type=error_type) / V6 / UDP()).error is True


@pytest.mark.parametrize(
    "layers",
    [V4 / TCP(sport=1, dport=2), V4 / UDP(sport=1, dport=2), V4 / SCTP(sport=1, dport=2), V4 / ICMP(id=7), V4 / GRE()],
)
def test_an_icmp_error_quotes_the_packet_it_is_about(layers: Any) -> None:
    assert quoted(ROUTER / ICMP(type=3, code=1) / bytes(layers)[:28]).key == parsed(layers).key


@pytest.mark.parametrize(
    "layers",
    [
        V6 / TCP(sport=1, dport=2),
        V6 / UDP(sport=1, dport=2),
        V6 / ICMPv6EchoRequest(id=7),
        V6 / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2),
    ],
)
def test_an_icmpv6_error_quotes_the_packet_it_is_about(layers: Any) -> None:
    assert quoted(ROUTER6 / ICMPv6PacketTooBig(mtu=1400) / bytes(layers)[:56]).key == parsed(layers).key


def test_a_quoted_packet_may_have_options() -> None:
    inner = IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_RR(routers=["10.0.0.3"])]) / UDP(sport=7, dport=8)

    assert quoted(ROUTER / ICMP(type=3) / inner).dport == 8


def test_a_quote_has_no_tcp_flags_and_says_how_long_the_packet_was() -> None:
    packet = quoted(ROUTER / ICMP(type=3, code=4) / bytes(V4 / TCP(flags="S") / bytes(1460))[:28])

    assert (packet.tcp_flags, packet.opens, packet.length, packet.truncated) == (0, False, 1500, True)


def test_a_quoted_first_fragment_has_its_ports() -> None:
    assert quoted(ROUTER / ICMP(type=11, code=1) / IP(flags="MF") / UDP(sport=7)).sport == 7
    assert quoted(ROUTER6 / ICMPv6DestUnreach() / V6 / IPv6ExtHdrFragment(m=1) / UDP(sport=7)).sport == 7


@pytest.mark.parametrize(
    "layers",
    [
        ROUTER / ICMP(type=3),
        ROUTER / ICMP(type=3) / bytes(V4 / UDP())[:19],
        ROUTER / ICMP(type=3) / bytes(V4 / UDP())[:27],
        ROUTER / ICMP(type=3) / bytes(V4 / ICMP())[:27],
        ROUTER / ICMP(type=3) / IP(frag=9) / UDP(),
        ROUTER / ICMP(type=3) / V6 / UDP(),
        ROUTER / ICMP(type=8) / V4 / UDP(),
        ROUTER6 / ICMPv6DestUnreach() / V4 / UDP(),
        ROUTER6 / ICMPv6DestUnreach() / bytes(V6 / UDP())[:39],
        ROUTER6 / ICMPv6DestUnreach() / bytes(V6 / IPv6ExtHdrDestOpt() / UDP())[:47],
        ROUTER6 / ICMPv6DestUnreach() / V6 / IPv6ExtHdrFragment(offset=9) / UDP(),
        ROUTER6 / IPv6ExtHdrHopByHop(nh=58) / bytes((1, 0, 0, 0)),
    ],
)
def test_a_quote_that_cannot_be_read_is_refused(layers: Any) -> None:
    assert quote_refusal(layers) is DropReason.INVALID_PACKET


# --- what is refused


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x45",
        patched(V4 / UDP(), 0, 0x55),  # version 5
        patched(V4 / UDP(), 0, 0x44),  # a header of 16 bytes
        patched(V4 / UDP(), 0, 0x4F),  # a header longer than the packet
        patched(V4 / UDP(), 2, 0, 19),  # a total length within the header
        bytes(V4 / UDP())[:19],
        bytes(V6 / UDP())[:39],
        patched(V6 / UDP(), 4, 0, 0),  # no payload, yet UDP
    ],
)
def test_a_broken_ip_header_is_refused(payload: bytes) -> None:
    assert refusal(payload) is DropReason.INVALID_PACKET


@pytest.mark.parametrize(
    "payload",
    [
        bytes(V4 / TCP())[:39],
        patched(V4 / TCP(), 32, 0x40),  # a TCP header of 16 bytes
        patched(V4 / TCP(), 32, 0x60),  # a TCP header longer than the packet
        bytes(V4 / UDP())[:27],
        patched(V4 / UDP(), 24, 0, 7),  # a UDP length within the header
        bytes(V4 / SCTP())[:31],
        bytes(V4 / ICMP())[:27],
        bytes(V6 / TCP())[:59],
        bytes(V6 / ICMPv6EchoRequest())[:47],
        *(bytes(V6 / IPv6ExtHdrHopByHop(nh=58) / bytes((error_type, 0, *bytes(5)))) for error_type in (1, 2, 3, 4)),
        patched(V4 / UDP(), 9, 58),  # ICMPv6 over IPv4
        patched(V6 / UDP(), 6, 1),  # ICMP over IPv6
    ],
)
def test_a_broken_transport_header_is_refused(payload: bytes) -> None:
    assert refusal(payload) is DropReason.INVALID_PACKET


@pytest.mark.parametrize(
    "layers",
    [
        bytes(V6 / IPv6ExtHdrHopByHop() / UDP())[:47],
        patched(V6 / IPv6ExtHdrHopByHop() / UDP(), 41, 200),  # longer than the packet
        V6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP(),  # Hop-by-Hop comes first or not at all
        V6 / IPv6ExtHdrRouting(type=0, segleft=0) / UDP(),
        V6 / IPv6ExtHdrRouting(type=2, segleft=1, addresses=["fd00::7"]) / UDP(),
    ],
)
def test_a_broken_or_unfinished_extension_header_is_refused(layers: Any) -> None:
    assert refusal(layers) is DropReason.INVALID_PACKET


@pytest.mark.parametrize(
    "layers",
    [
        IP(flags="MF") / UDP(),
        IP(frag=185) / UDP(),
        V6 / IPv6ExtHdrFragment(m=1) / UDP(),
        V6 / IPv6ExtHdrFragment(offset=185) / UDP(),
    ],
)
def test_a_fragment_is_refused_as_one(layers: Any) -> None:
    assert refusal(layers) is DropReason.FRAG_NOT_SUPPORTED


# --- checksum


def test_the_checksum_of_a_header_is_the_one_scapy_computes() -> None:
    header = bytes(V4 / UDP())[:20]

    assert checksum(header[:10] + bytes(2) + header[12:]) == int.from_bytes(header[10:12], "big")


def test_the_checksum_pads_an_odd_byte_at_the_end() -> None:
    assert checksum(b"\x12\x34\x56") == checksum(b"\x12\x34\x56\x00") == 0xFFFF - (0x1234 + 0x5600)
