"""Source addresses that no endpoint owns: those of a host without an address yet, or on its link."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Solicit
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLDone,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.packet import Packet as Layers

from nfq_enforcer.core.source_address import EXEMPT_SOURCES, is_exempt
from nfq_enforcer.core.wire.packet import parse

DISCOVER = UDP(sport=68, dport=67) / BOOTP() / DHCP(options=[("message-type", "discover"), "end"])
REPORT = IPv6ExtHdrHopByHop(options=[RouterAlert()])
NOWHERE4, NOWHERE6, LINK = {"src": "0.0.0.0"}, {"src": "::"}, {"src": "fe80::5054:ff:fe00:1"}

EXEMPT = {
    "DHCP": IP(**NOWHERE4, dst="255.255.255.255") / DISCOVER,
    "IGMP": IP(**NOWHERE4, dst="224.0.0.22", proto=2) / b"\x22\0\0\0\0\0\0\0",
    "router solicitation": IPv6(**NOWHERE6, dst="ff02::2") / ICMPv6ND_RS(),
    "duplicate address detection": IPv6(**NOWHERE6, dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fd00::1"),
    "listener report": IPv6(**NOWHERE6, dst="ff02::1:ff00:1") / REPORT / ICMPv6MLReport(),
    "listener done": IPv6(**NOWHERE6, dst="ff02::2") / REPORT / ICMPv6MLDone(),
    "listener report, version 2": IPv6(**NOWHERE6, dst="ff02::16") / REPORT / ICMPv6MLReport2(),
    "DHCPv6": IPv6(**LINK, dst="ff02::1:2") / UDP(sport=546, dport=547) / DHCP6_Solicit(),
    "neighbour on the link": IPv6(**LINK, dst="fe80::1") / TCP(dport=22),
}
FORGED = {
    "DHCP to one host": IP(**NOWHERE4, dst="10.0.0.1") / DISCOVER,
    "DHCP of a server": IP(**NOWHERE4, dst="255.255.255.255") / UDP(sport=67, dport=68),
    "other broadcast": IP(**NOWHERE4, dst="255.255.255.255") / UDP(sport=68, dport=68),
    "ping to all": IP(**NOWHERE4, dst="255.255.255.255") / ICMP(),
    "UDP to a group": IP(**NOWHERE4, dst="224.0.0.251") / UDP(sport=68, dport=67),
    "another address": IP(src="10.0.0.9", dst="255.255.255.255") / DISCOVER,
    "neighbour advertisement": IPv6(**NOWHERE6, dst="ff02::1") / ICMPv6ND_NA(),
    "echo request from nowhere": IPv6(**NOWHERE6, dst="ff02::1") / ICMPv6EchoRequest(),
    "duplicate address detection at one host": IPv6(**NOWHERE6, dst="fe80::1") / ICMPv6ND_NS(tgt="fe80::1"),
    "link-local to another link": IPv6(**LINK, dst="fd00::1") / UDP(dport=53),
    "link-local to a group of the site": IPv6(**LINK, dst="ff05::1:3") / UDP(dport=547),
    "IPv4 in IPv6": IPv6(src="::ffff:0.0.0.0", dst="ff02::1") / UDP(sport=68, dport=67),
}


@pytest.mark.parametrize("layers", EXEMPT.values(), ids=EXEMPT)
def test_a_host_without_an_address_may_ask_for_one(layers: Layers) -> None:
    assert is_exempt(parse(bytes(layers)))


@pytest.mark.parametrize("layers", FORGED.values(), ids=FORGED)
def test_no_other_packet_is_exempt(layers: Layers) -> None:
    assert not is_exempt(parse(bytes(layers)))


@given(src=st.ip_addresses(v=4), sport=st.integers(0, 65535), dport=st.integers(0, 65535))
def test_only_the_address_zero_is_exempt_in_ipv4(src: object, sport: int, dport: int) -> None:
    packet = parse(bytes(IP(src=str(src), dst="255.255.255.255") / UDP(sport=sport, dport=dport)))

    assert is_exempt(packet) == (str(src) == "0.0.0.0" and (sport, dport) == (68, 67))


NEAR_LINK = st.one_of(st.ip_addresses(network="fe00::/8"), st.ip_addresses(network="ff00::/13"), st.ip_addresses(v=6))


@given(src=NEAR_LINK, dst=NEAR_LINK)
def test_only_link_scope_is_exempt_in_ipv6_for_any_protocol(src: object, dst: object) -> None:
    packet = parse(bytes(IPv6(src=str(src), dst=str(dst)) / UDP(sport=546, dport=547)))

    assert is_exempt(packet) == any(
        exempt.proto is None and src in exempt.sources and dst in exempt.destinations for exempt in EXEMPT_SOURCES
    )
