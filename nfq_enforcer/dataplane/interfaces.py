"""Interfaces of this host by index, as queue messages name them; its addresses. Messages: linux/if_link.h."""

import fcntl
import json
import socket
import struct
import subprocess
from collections.abc import Set
from ipaddress import IPv4Address, IPv6Address, ip_address

from nfq_enforcer.core.context import Interface
from nfq_enforcer.dataplane import rtnetlink
from nfq_enforcer.dataplane.queue.netlink import MessageError, attributes
from nfq_enforcer.dataplane.rtnetlink import GET_LINK, LINK, LINK_INFO, MASTER, NETLINK_ROUTE
from nfq_enforcer.errors import NfqError

_PORT_KIND = 4  # IFLA_INFO_SLAVE_KIND
_ADDRESS_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)
_LINK_GROUP = 0x1  # RTMGRP_LINK
_SIOCGIFMTU = 0x8921  # linux/sockios.h
_IFREQ = struct.Struct("16si20x")


class Interfaces(dict[int, Interface | None]):
    """Interface cache: name and MTU by index, until ``invalidate``, so that a packet needs no system call.

    Index 0 has None. An interface that no longer exists has the name ``if<index>``. With br_netfilter, packets come
    from the port of a bridge, and leave by one. If the bridge is a cluster interface, its port has its name: other
    nodes are behind it. A port that only endpoints use keeps its own.
    """

    def __init__(self) -> None:
        """Start without cluster interfaces."""
        super().__init__()
        self._cluster: Set[str] = frozenset()
        self._own: Set[str] = frozenset()

    def __missing__(self, index: int) -> Interface | None:
        """Read the interface from the kernel and cache it."""
        interface = _read(index) if index else None
        if interface is not None and self._cluster and interface.name not in self._own:
            bridge = bridge_of(index)
            interface = interface._replace(name=bridge) if bridge and bridge in self._cluster else interface
        self[index] = interface
        return interface

    def use(self, cluster: Set[str], own: Set[str]) -> None:
        """Use these cluster interfaces, and these that only endpoints use, from now on."""
        self._cluster, self._own = cluster, own
        self.invalidate()

    def invalidate(self) -> None:
        """Empty the cache: interfaces are renamed, replaced, and get other MTUs."""
        self.clear()


def _read(index: int) -> Interface:
    try:
        name = socket.if_indextoname(index)
        return Interface(name, mtu(name))
    except OSError:
        return Interface(f"if{index}", 0xFFFF)


def bridge_of(index: int) -> str | None:
    """Return the bridge of which an interface is a port, None for any other interface."""
    try:
        with rtnetlink.open_socket() as connection:
            _, body = rtnetlink.get(connection, GET_LINK, LINK.pack(0, 0, index, 0, 0))
        link = attributes(body[LINK.size :])
        if attributes(link.get(LINK_INFO, b"")).get(_PORT_KIND) != b"bridge\0":
            return None
        return socket.if_indextoname(rtnetlink.number(link[MASTER]))
    except (OSError, ValueError, KeyError, MessageError):  # it is gone
        return None


def mtu(name: str) -> int:
    """Return an interface's MTU in bytes (netdevice(7)); raise OSError if the interface does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
    return int(_IFREQ.unpack(reply)[1])


def open_address_notifications() -> socket.socket:
    """Return a non-blocking socket that becomes readable with each change of an address; raise OSError."""
    return _open_notifications(_ADDRESS_GROUPS)


def open_link_notifications() -> socket.socket:
    """Return a non-blocking socket that becomes readable with each change of an interface; raise OSError."""
    return _open_notifications(_LINK_GROUP)


def _open_notifications(groups: int) -> socket.socket:
    notifications = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    try:
        notifications.bind((0, groups))
        notifications.setblocking(False)
    except OSError:
        notifications.close()
        raise
    return notifications


def host_addresses() -> list[tuple[str, IPv4Address | IPv6Address]]:
    """Return this host's global addresses with their interfaces, in the order of ``ip address``."""
    try:
        listed = subprocess.run(
            ["ip", "-j", "address", "show", "scope", "global"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise NfqError("ip not found in PATH: install the package iproute2") from None
    except subprocess.CalledProcessError as error:
        raise NfqError(f"ip address failed: {error.stderr.strip()}") from None
    return [
        (link["ifname"], ip_address(entry["local"]))
        for link in json.loads(listed.stdout)
        for entry in link.get("addr_info", ())
        if "local" in entry  # ip prints {} for an address that the scope filter excludes
    ]
