"""Ports of the bridges of this host, and br_netfilter, by which their frames traverse the hooks of IP.

br_netfilter is a module that another program may load at any time (Docker does). It registers its hooks in a network
namespace with the first bridge of it, or when it is loaded later than that. Messages: linux/if_link.h.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.dataplane import rtnetlink
from nfq_enforcer.dataplane.queue.netlink import ATTRIBUTE
from nfq_enforcer.dataplane.rtnetlink import LINK_NAME, MASTER

_LOADED = Path("/proc/sys/net/bridge")  # a directory of br_netfilter
_BRIDGE = 7  # AF_BRIDGE: the kernel lists ports only
_ADDRESS, _PORT = 1, 12  # IFLA_ADDRESS, IFLA_PROTINFO
_STATE = 1  # IFLA_BRPORT_STATE, the first attribute of a port; network cards with a switch have others
_ETHERNET = 6  # bytes
_NFT_NAME = re.compile(rb"[!#-)+-\[\]-~]+")  # a name that nft reads between quotation marks as it is


class Bridges(NamedTuple):
    """Bridges: the state of those of this host."""

    ports: frozenset[tuple[str, str]]  # name and hardware address of each port of a bridge
    loaded: bool  # br_netfilter is


def filters_frames() -> bool:
    """Return whether br_netfilter is loaded."""
    return _LOADED.exists()


def read() -> Bridges:
    """Return the present state; raise OSError if the kernel does not tell the ports."""
    loaded = filters_frames()
    return Bridges(frozenset(_ports()), loaded)


def _ports() -> Iterator[tuple[str, str]]:
    with rtnetlink.open_socket() as connection:
        for _, link in rtnetlink.links(connection, family=_BRIDGE):
            port, address = link.get(_PORT, b""), link.get(_ADDRESS, b"")
            is_port = MASTER in link and len(port) >= ATTRIBUTE.size and ATTRIBUTE.unpack_from(port)[1] == _STATE
            name = link.get(LINK_NAME, b"").rstrip(b"\0")
            if is_port and len(address) == _ETHERNET and _NFT_NAME.fullmatch(name):
                yield name.decode(), address.hex(":")
