"""Links of another network namespace: for each address in it, the interface of this host at the other end.

The kernel reads a namespace by its number, without entering it (linux/net_namespace.h, IFLA_TARGET_NETNSID in
linux/if_link.h, since Linux 5.0). The number of a namespace is assigned with the first link that spans both, so a
namespace without a number has no such link.
"""

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.dataplane import rtnetlink
from nfq_enforcer.dataplane.queue.netlink import attribute, attributes
from nfq_enforcer.dataplane.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    LINK_INFO,
    LINK_KIND,
    LINK_NAME,
    LINK_NAMESPACE,
    LINK_PEER,
    MASTER,
)

_GET_NUMBER = 90  # RTM_GETNSID
_INTEGER_BYTES = 4
_GENERAL = struct.Struct("=B3x")  # struct rtgenmsg
_NUMBER, _DESCRIPTOR = 1, 3  # NETNSA_NSID, NETNSA_FD
_DATA = 2  # IFLA_INFO_DATA
_CALLS = {4: 36, 6: 37}  # IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES
_SYSCTLS = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
_PASSED = Path("/proc/sys/net/bridge")  # a directory of br_netfilter
_OWN = Path("/proc/self/ns/net")


class Attachment(NamedTuple):
    """Attachment: the link by which an address of another namespace is connected."""

    kind: str  # of the link in the other namespace: veth, macvlan, ipvlan, …; empty: unknown
    interface: str | None  # of this host, at the other end; None: no interface of this host
    bridge: str | None  # of which that interface is a port
    passed: bool  # frames between ports of the bridge traverse the hooks of IP (br_netfilter); False without a bridge


class _Link(NamedTuple):
    place: int  # its index in its namespace
    name: str
    kind: str
    peer: int  # place of the other end
    number: int | None  # of the namespace of the other end
    master: int
    calls: frozenset[int]  # IP versions for which this bridge passes frames to the hooks of IP


def attachments(process: int) -> Mapping[bytes, Attachment]:
    """Return the attachment of each address of a process's network namespace.

    The namespace of this program has none. Raise OSError if the process has ended, or if the kernel does not answer.
    """
    with _opened(process) as namespace:
        if os.path.samestat(os.fstat(namespace), _OWN.stat()):
            return {}
        with rtnetlink.open_socket(strict=True) as connection:
            number = _number(connection, namespace)
            if number is None:
                return {}
            inner = {link.place: link for link in _links(connection, number)}
            addresses = list(_addresses(connection, number))
            here = {link.place: link for link in _links(connection)}
    outer = {link.peer: link for link in here.values() if link.number == number}
    return {
        address: _attachment(4 if len(address) == 4 else 6, inner[index], outer.get(index), here)
        for address, index in addresses
        if index in inner
    }


def _attachment(version: int, inner: _Link, outer: _Link | None, here: Mapping[int, _Link]) -> Attachment:
    if inner.kind != "veth" or outer is None:
        return Attachment(inner.kind, None, None, passed=False)
    bridge = here.get(outer.master)
    if bridge is None or bridge.kind != "bridge":
        return Attachment(inner.kind, outer.name, None, passed=False)
    return Attachment(inner.kind, outer.name, bridge.name, passed=version in bridge.calls | _called())


def _called() -> frozenset[int]:
    """Return the IP versions for which all bridges of this namespace pass frames to the hooks of IP."""
    return frozenset(version for version, name in _SYSCTLS.items() if _is_set(_PASSED / name))


def _is_set(sysctl: Path) -> bool:
    try:
        return sysctl.read_text().strip() == "1"
    except OSError:
        return False


@contextmanager
def _opened(process: int) -> Iterator[int]:
    """Give a descriptor of a process's network namespace."""
    descriptor = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _number(connection: socket.socket, namespace: int) -> int | None:
    """Return this namespace's number of another one, None if it has none."""
    body = _GENERAL.pack(0) + attribute(_DESCRIPTOR, rtnetlink.numbered(namespace))
    _, answer = rtnetlink.get(connection, _GET_NUMBER, body)
    number = _integer(attributes(answer[_GENERAL.size :]).get(_NUMBER))
    return None if number is None or number < 0 else number


def _links(connection: socket.socket, number: int | None = None) -> Iterator[_Link]:
    """Yield the links of this namespace, or of another one by its number."""
    for place, link in rtnetlink.links(connection, namespace=number):
        info = attributes(link.get(LINK_INFO, b""))
        data = attributes(info.get(_DATA, b"")) if info.get(LINK_KIND) == b"bridge\0" else {}
        yield _Link(
            place,
            rtnetlink.text(link.get(LINK_NAME, b"")),
            info.get(LINK_KIND, b"").rstrip(b"\0").decode(errors="replace"),
            _integer(link.get(LINK_PEER)) or 0,
            _integer(link.get(LINK_NAMESPACE)),
            _integer(link.get(MASTER)) or 0,
            frozenset(version for version, call in _CALLS.items() if data.get(call) == b"\x01"),
        )


def _addresses(connection: socket.socket, number: int) -> Iterator[tuple[bytes, int]]:
    """Yield each address of another namespace, with the index of its link."""
    for place, address in rtnetlink.addresses(connection, number):
        packed = address.get(IFA_LOCAL) or address.get(IFA_ADDRESS)
        if packed is not None:
            yield bytes(packed), place


def _integer(value: bytes | None) -> int | None:
    return rtnetlink.number(value) if value is not None and len(value) == _INTEGER_BYTES else None
