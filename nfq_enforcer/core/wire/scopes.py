"""Address scopes: addresses that name a host on one link only, a group of hosts, or no host yet."""

from ipaddress import IPv4Network, IPv6Network

_BROADCAST = b"\xff\xff\xff\xff"
_GROUPS = {4: (0xE0 << 24, 4), 6: (0xFF << 120, 8)}  # first address, bits: 224.0.0.0/4 and 240.0.0.0/4; ff00::/8


def is_group(address: bytes) -> bool:
    """Tell whether the address is a multicast group, or all hosts on the link (limited broadcast)."""
    if len(address) == 4:
        return address[0] & 0xF0 == 0xE0 or address == _BROADCAST
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    """Tell whether the address is an IPv6 unicast address of one link (``fe80::/10``)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_unspecified(address: bytes) -> bool:
    """Tell whether the address is that of a host without an address (``0.0.0.0``, ``::``)."""
    return not any(address)


def depends_on_link(address: bytes) -> bool:
    """Tell whether the hosts that receive a packet with this destination depend on the link that it is sent on."""
    return address[0] >= 0xE0 and (is_group(address) or is_link_local(address))


def has_only_groups(network: IPv4Network | IPv6Network) -> bool:
    """Tell whether the network has no unicast address. Of IPv4, 240.0.0.0/4 counts as broadcast."""
    first, bits = _GROUPS[network.version]
    return network.prefixlen >= bits and int(network.network_address) >= first
