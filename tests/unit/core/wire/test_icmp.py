"""Answers to datagrams that no longer fit: what RFC 1191, 1812 and 4443 ask for, and packets that may be fragmented."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from nfq_enforcer.core.wire.icmp import clear_df, too_big
from nfq_enforcer.core.wire.packet import parse, parse_quoted

ROUTER, ROUTER6 = bytes((10, 9, 9, 9)), bytes.fromhex("fd00" + 27 * "0" + "9")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF"), IPv6(src="fd00::1", dst="fd00::2")


def answer(payload: bytes, mtu: int = 1400) -> bytes:
    return too_big(payload, parse(payload), mtu, ROUTER if payload[0] >> 4 == 4 else ROUTER6)


def resummed(layers: Any) -> bytes:
    """Return the ICMP error with its checksums computed anew by scapy."""
    copy = layers.copy()
    if IP in copy:
        del copy[IP].chksum, copy[ICMP].chksum
    else:
        del copy[ICMPv6PacketTooBig].cksum
    return bytes(copy)


@pytest.mark.parametrize("size", [0, 1, 100, 101, 1472])
def test_an_ipv4_sender_is_told_the_next_hops_mtu(size: int) -> None:
    reply = IP(answer(bytes(V4 / UDP() / bytes(size))))

    assert (reply.src, reply.dst, reply.proto) == ("10.9.9.9", "10.0.0.1", 1)
    assert (reply[ICMP].type, reply[ICMP].code, reply[ICMP].nexthopmtu) == (3, 4, 1400)
    assert resummed(reply) == bytes(reply)


@pytest.mark.parametrize("size", [0, 1, 100, 101, 1452])
def test_an_ipv6_sender_is_told_the_next_hops_mtu(size: int) -> None:
    reply = IPv6(answer(bytes(V6 / UDP() / bytes(size))))

    assert (reply.src, reply.dst, reply.nh) == ("fd00::9", "fd00::1", 58)
    assert (reply[ICMPv6PacketTooBig].code, reply[ICMPv6PacketTooBig].mtu) == (0, 1400)
    assert resummed(reply) == bytes(reply)


def test_an_ipv4_answer_quotes_what_fits_in_576_bytes() -> None:
    payload = bytes(V4 / UDP() / bytes(range(256)) / bytes(1000))
    reply = answer(payload)

    assert (len(reply), IP(reply).len) == (576, 576)
    assert reply[28:] == payload[:548]


def test_an_ipv6_answer_quotes_what_fits_in_1280_bytes() -> None:
    payload = bytes(V6 / UDP() / bytes(range(256)) / bytes(1200))
    reply = answer(payload)

    assert (len(reply), IPv6(reply).plen) == (1280, 1240)
    assert reply[48:] == payload[:1232]


@pytest.mark.parametrize("network", [V4, V6])
def test_a_short_datagram_is_quoted_whole_and_nothing_behind_it(network: Any) -> None:
    payload = bytes(network / UDP() / b"data")

    assert answer(payload + bytes(6)) == answer(payload)
    assert answer(payload).endswith(payload)


@pytest.mark.parametrize("network", [V4, V6])
def test_an_answer_is_an_error_about_the_datagram(network: Any) -> None:
    payload = bytes(network / UDP(sport=1, dport=2) / bytes(1400))
    reply = answer(payload)

    assert parse(reply).error is True
    assert parse_quoted(reply, parse(reply)).key == parse(payload).key


@pytest.mark.parametrize("network", [V4, V6])
def test_a_truncated_datagram_can_be_answered(network: Any) -> None:
    payload = bytes(network / UDP() / bytes(1400))

    assert answer(payload[:100]).endswith(payload[:100])


def cleared(layers: Any, identification: int = 4711) -> Any:
    return IP(clear_df(bytes(layers), identification))


def test_without_df_a_datagram_has_the_identification_it_lacked() -> None:
    packet = cleared(IP(flags="DF", id=0) / UDP() / b"data")

    assert (str(packet.flags), packet.id) == ("", 4711)


def test_without_df_a_datagram_keeps_the_identification_it_had() -> None:
    assert cleared(IP(flags="DF", id=9) / UDP()).id == 9


@pytest.mark.parametrize("options", [[], [IPOption_RR(routers=["10.0.0.3"])]])
def test_clearing_df_changes_only_the_header_and_its_checksum(options: list[Any]) -> None:
    layers = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF", id=0, options=options) / TCP() / b"data"

    expected = IP(bytes(layers))
    expected.flags, expected.id, expected.chksum = 0, 4711, None

    assert bytes(cleared(layers)) == bytes(expected)
