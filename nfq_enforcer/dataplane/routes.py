"""Interface of an address on this host: by its route and, behind a bridge, by the port to its network namespace.

A network plugin gives a workload a pair of veth devices, one of them in the workload's network namespace. The host
reaches the address by a route to the device of its own (ptp, kindnet, Calico, host-gw), or by a bridge of which the
device is a port (bridge, flannel). Of a bridge with br_netfilter, packets have the port as their interface. The kernel
tells the addresses in the network namespace at the other end of each port (IFA_TARGET_NETNSID), so a port is known
before its first packet, and without the runtime that made it. Messages: linux/rtnetlink.h, linux/if_addr.h.
"""

import socket
import struct
import sys
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nfq_enforcer.dataplane.interfaces import GET_LINK, LINK, MASTER, NETLINK_ROUTE, NEW_LINK
from nfq_enforcer.dataplane.queue.netlink import ATTRIBUTE, HEADER, attributes
from nfq_enforcer.dataplane.queue.requests import DUMP, RECEIVE_BYTES, REQUEST, split_messages
from nfq_enforcer.dataplane.rules import bridge_ports

_NEW_ADDRESS, _GET_ADDRESS, _NEW_ROUTE, _GET_ROUTE = 20, 22, 24, 26  # RTM_NEWADDR and so on
_DONE = 3  # NLMSG_DONE
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_UNICAST = 1  # RTN_UNICAST
_TO, _BY, _GATEWAY, _VIA = 1, 4, 5, 18  # RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL, _TARGET = 1, 2, 10  # IFA_ADDRESS, IFA_LOCAL, IFA_TARGET_NETNSID
_NAME, _PEER, _LINK_INFO, _PEER_NAMESPACE = 3, 5, 18, 37  # IFLA_IFNAME, _LINK, _LINKINFO, _LINK_NETNSID
_KIND = 1  # IFLA_INFO_KIND
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK, without which the kernel ignores IFA_TARGET_NETNSID
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TIMEOUT = 5.0  # s

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
    body = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + _attribute(_TO, address.packed)
    try:
        ((kind, answer),) = _request(_GET_ROUTE, body, REQUEST)
    except OSError:  # unreachable
        return None
    route = attributes(answer[_ROUTE.size :])
    if kind != _NEW_ROUTE or _ROUTE.unpack_from(answer)[7] != _UNICAST or _GATEWAY in route or _VIA in route:
        return None
    return _integer(route[_BY]) if _BY in route else None


def _link(index: int) -> tuple[str, bool]:
    """Return the name of an interface, and whether it is a bridge; raise OSError."""
    ((_, answer),) = _request(GET_LINK, LINK.pack(0, 0, index, 0, 0), REQUEST)
    link = attributes(answer[LINK.size :])
    info = attributes(link.get(_LINK_INFO, b""))
    return link[_NAME].rstrip(b"\0").decode(), info.get(_KIND, b"").rstrip(b"\0") == b"bridge"


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
    for kind, body in _request(GET_LINK, LINK.pack(0, 0, 0, 0, 0), REQUEST | DUMP):
        link = attributes(body[LINK.size :])
        if (
            kind == NEW_LINK
            and _integer(link.get(MASTER, bytes(4))) == bridge
            and {_PEER, _PEER_NAMESPACE} <= set(link)
        ):
            name = link[_NAME].rstrip(b"\0").decode()
            yield _Port(name, _integer(link[_PEER]), _integer(link[_PEER_NAMESPACE]))


def _holders(namespace: int, address: Address) -> Iterator[int]:
    """Yield the indexes of the interfaces with an address in another network namespace."""
    target = _attribute(_TARGET, namespace.to_bytes(4, sys.byteorder, signed=True))
    body = _ADDRESS.pack(_FAMILIES[address.version], 0, 0, 0, 0) + target
    try:
        for kind, found in _request(_GET_ADDRESS, body, REQUEST | DUMP):
            held = attributes(found[_ADDRESS.size :])
            if kind == _NEW_ADDRESS and address.packed in (held.get(_IFA_LOCAL), held.get(_IFA_ADDRESS)):
                yield int(_ADDRESS.unpack_from(found)[4])
    except OSError:  # the network namespace is gone
        return


def _request(kind: int, body: bytes, flags: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of an answer; raise OSError if the kernel refuses the request."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as connection:
        connection.settimeout(_TIMEOUT)
        connection.setsockopt(_SOL_NETLINK, _STRICT, 1)
        connection.send(HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body)
        while True:
            for found, answer in split_messages(connection.recv(RECEIVE_BYTES)):
                if found == _DONE:
                    return
                yield found, answer
            if not flags & DUMP:
                return


def _attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _integer(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder, signed=True)
