"""Source addresses that a host uses before it has one of its own, or beside it: the exemptions from the source check.

A packet from an endpoint's interface must have an address of an endpoint of that interface as its source. A host that
configures itself cannot have it yet: it asks for an address (DHCP, duplicate address detection), and reports its groups
meanwhile. On its link it uses an IPv6 address that it has made itself (RFC 4291 section 2.5.6), and no router forwards
these packets.

The kernel's rules at the interface (``dataplane/rules/source_filter.py``) and the worker's check both follow this list.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.wire.packet import ICMPV6, IGMP, UDP, Packet

_LISTENER = (131, 132, 143)  # MLD: report, done, report of version 2 (RFC 3810 section 5.2.13)
_SOLICITATIONS = (133, 135)  # of routers; of neighbours, for duplicate address detection (RFC 4862 section 5.4.2)


class ExemptSource(NamedTuple):
    """Exempt source: packets from these addresses to those, with these other properties, need no endpoint's address."""

    sources: IPv4Network | IPv6Network
    destinations: IPv4Network | IPv6Network
    proto: int | None = None  # None: any
    ports: tuple[int, int] | None = None  # source and destination; None: any
    icmp_types: tuple[int, ...] | None = None  # None: any

    def matches(self, packet: Packet | Opening) -> bool:
        """Tell whether the packet, or the opening that it would make, is exempt."""
        return (
            _contains(self.sources, packet.src)
            and _contains(self.destinations, packet.dst)
            and self.proto in {None, packet.proto}
            and (self.ports is None or self.ports == (packet.sport, packet.dport))
            and (self.icmp_types is None or packet.icmp_type in self.icmp_types)
        )


def _contains(network: IPv4Network | IPv6Network, address: bytes) -> bool:
    number = int.from_bytes(address, "big")
    return len(address) * 8 == network.max_prefixlen and number & int(network.netmask) == int(network.network_address)


_NOWHERE4, _NOWHERE6 = ip_network("0.0.0.0/32"), ip_network("::/128")
_LINK, _LINK_GROUPS = ip_network("fe80::/10"), ip_network("ff02::/16")

EXEMPT_SOURCES = (
    ExemptSource(_NOWHERE4, ip_network("255.255.255.255/32"), UDP, ports=(68, 67)),  # RFC 2131 section 4.1
    ExemptSource(_NOWHERE4, ip_network("224.0.0.0/4"), IGMP),  # RFC 3376 section 4.2.13
    ExemptSource(_NOWHERE6, _LINK_GROUPS, ICMPV6, icmp_types=(*_LISTENER, *_SOLICITATIONS)),
    ExemptSource(_LINK, _LINK),
    ExemptSource(_LINK, _LINK_GROUPS),
)


def is_exempt(packet: Packet | Opening) -> bool:
    """Tell whether a packet from an endpoint's interface may have this source without an endpoint that owns it."""
    return any(exempt.matches(packet) for exempt in EXEMPT_SOURCES)
