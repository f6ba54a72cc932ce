"""Interfaces of this host by index, as queue messages name them."""

import fcntl
import json
import socket
import struct
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address

from nfq_enforcer.core.context import Interface
from nfq_enforcer.errors import NfqError

_SIOCGIFMTU = 0x8921  # linux/sockios.h
_IFREQ = struct.Struct("16si20x")


class Interfaces(dict[int, Interface | None]):
    """Interface cache: name and MTU by index, until ``invalidate``, so that a packet needs no system call.

    Index 0 has None. An interface that no longer exists has the name ``if<index>``.
    """

    def __missing__(self, index: int) -> Interface | None:
        """Read the interface from the kernel and cache it."""
        self[index] = interface = _read(index) if index else None
        return interface

    def invalidate(self) -> None:
        """Empty the cache: interfaces are renamed, replaced, and get other MTUs."""
        self.clear()


def _read(index: int) -> Interface:
    try:
        name = socket.if_indextoname(index)
        return Interface(name, mtu(name))
    except OSError:
        return Interface(f"if{index}", 0xFFFF)


def mtu(name: str) -> int:
    """Return an interface's MTU in bytes (netdevice(7)); raise OSError if the interface does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        reply = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
    return int(_IFREQ.unpack(reply)[1])


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
