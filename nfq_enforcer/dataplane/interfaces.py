"""The host's interfaces, as the queue numbers them."""

import fcntl
import json
import socket
import struct
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address

from nfq_enforcer.core.context import Interface
from nfq_enforcer.errors import NfqError

Address = IPv4Address | IPv6Address

_SIOCGIFMTU = 0x8921  # linux/sockios.h
_IFREQ = struct.Struct("16si20x")


class Interfaces(dict[int, Interface | None]):
    """Names and MTUs by index, remembered until ``forget``: a packet must not cost a system call.

    Index 0 has None. An interface that is gone has the name ``if<index>``.
    """

    def __missing__(self, index: int) -> Interface | None:
        """Ask the kernel."""
        self[index] = found = _ask(index) if index else None
        return found

    def forget(self) -> None:
        """Ask the kernel anew: interfaces are renamed, replaced and resized."""
        self.clear()


def _ask(index: int) -> Interface:
    try:
        name = socket.if_indextoname(index)
        return Interface(name, mtu(name))
    except OSError:
        return Interface(f"if{index}", 0xFFFF)


def mtu(name: str) -> int:
    """Return an interface's MTU in bytes (netdevice(7)); raise OSError if there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
    return int(_IFREQ.unpack(answer)[1])


def host_addresses() -> list[tuple[str, Address]]:
    """Return this host's global addresses, each with its interface, in the kernel's order, as iproute2 lists them."""
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
        if "local" in entry  # one that is filtered out leaves an empty place
    ]
