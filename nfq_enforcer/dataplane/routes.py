"""Interface of an address on this host: by its route and, behind a bridge, by the port to its network namespace.

A network plugin gives a workload a pair of veth devices, one of them in the workload's network namespace. The host
reaches the address by a route to the device of its own (ptp, kindnet, Calico, host-gw), or by a bridge of which the
device is a port (bridge, flannel). Of a bridge with br_netfilter, packets have the port as their interface. The kernel
tells the addresses in the network namespace at the other end of each port (IFA_TARGET_NETNSID), so a port is known
before its first packet, and without the runtime that made it. Messages: linux/rtnetlink.h, linux/if_addr.h.
"""

import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nfq_enforcer.dataplane import rtnetlink
from nfq_enforcer.dataplane.queue.netlink import attribute, attributes
from nfq_enforcer.dataplane.rtnetlink import (
    GET_LINK,
    IFA_ADDRESS,
    IFA_LOCAL,
    LINK,
    LINK_INFO,
    LINK_KIND,
    LINK_NAME,
    LINK_NAMESPACE,
    LINK_PEER,
    MASTER,
)
from nfq_enforcer.dataplane.rules import bridge_ports

_NEW_ROUTE, _GET_ROUTE = 24, 26  # RTM_NEWROUTE, RTM_GETROUTE
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_UNICAST = 1  # RTN_UNICAST
_TO, _BY, _GATEWAY, _VIA = 1, 4, 5, 18  # RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

Address = IPv4Address | IPv6Address


class _Port(NamedTuple):
    """_Port: a port of a bridge with its other end in another network namespace."""

    name: str
    peer: int  # index of the other end
    namespace: int  # number of its network namespace in this one


def find_interface(address: Address, excluded: Collection[str] = ()) -> str | None:
    """Return the interface of an address, None for one without an interface of its own; raise OSError.

    An address behind a router, or behind one of the ``excluded`` interfaces, has none of its own.
    """
    index = _route(address)
    if index is None:
        return None
    try:
        name, is_bridge = _link(index)
    except OSError:  # it is gone
        return None
    if name in excluded or name == "lo":
        return None
    if is_bridge and bridge_ports.filters_frames():
        return _port_of(index, address)
    return name


def _route(address: Address) -> int | None:
    """Return the index of the interface that reaches an address without a router in between."""
    family = _FAMILIES[address.version]
    body = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute(_TO, address.packed)
    try:
        kind, answer = _get(_GET_ROUTE, body)
    except OSError:  # unreachable
        return None
    route = attributes(answer[_ROUTE.size :])
    if kind != _NEW_ROUTE or _ROUTE.unpack_from(answer)[7] != _UNICAST or _GATEWAY in route or _VIA in route:
        return None
    return rtnetlink.number(route[_BY]) if _BY in route else None


def _link(index: int) -> tuple[str, bool]:
    """Return the name of an interface, and whether it is a bridge; raise OSError."""
    _, answer = _get(GET_LINK, LINK.pack(0, 0, index, 0, 0))
    link = attributes(answer[LINK.size :])
    info = attributes(link.get(LINK_INFO, b""))
    return rtnetlink.text(link[LINK_NAME]), info.get(LINK_KIND) == b"bridge\0"


def _port_of(bridge: int, address: Address) -> str | None:
    """Return the port of a bridge with an address at its other end."""
    ports = list(_ports(bridge))
    for namespace in dict.fromkeys(port.namespace for port in ports):
        holders = set(_holders(namespace, address))
        for port in ports:
            if port.namespace == namespace and port.peer in holders:
                return port.name
    return None


def _ports(bridge: int) -> Iterator[_Port]:
    """Yield the ports of a bridge that lead into other network namespaces."""
    with rtnetlink.open_socket(strict=True) as connection:
        for _, link in rtnetlink.links(connection):
            master = rtnetlink.number(link.get(MASTER, bytes(4)))
            if master == bridge and {LINK_PEER, LINK_NAMESPACE} <= set(link):
                ends = rtnetlink.number(link[LINK_PEER]), rtnetlink.number(link[LINK_NAMESPACE])
                yield _Port(rtnetlink.text(link[LINK_NAME]), *ends)


def _holders(namespace: int, address: Address) -> Iterator[int]:
    """Yield the indexes of the interfaces with an address in another network namespace."""
    try:
        with rtnetlink.open_socket(strict=True) as connection:
            for index, held in rtnetlink.addresses(connection, namespace, family=_FAMILIES[address.version]):
                if address.packed in (held.get(IFA_LOCAL), held.get(IFA_ADDRESS)):
                    yield index
    except OSError:  # the network namespace is gone
        return


def _get(kind: int, body: bytes) -> tuple[int, bytes]:
    with rtnetlink.open_socket(strict=True) as connection:
        return rtnetlink.get(connection, kind, body)
