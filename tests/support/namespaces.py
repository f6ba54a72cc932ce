"""Sockets of this process in the namespaces of a lab's machines."""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar

from nfq_enforcer.lab.lab import Lab
from tests.support.apart import call_in

_SO_RCVBUFFORCE, _BUFFER = 33, 16 << 20
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
T = TypeVar("T")


def within(lab: Lab, machine: str, function: Callable[[], T]) -> T:
    """Call a function in a machine's namespace; sockets that it makes stay there."""
    return call_in(lab.topology.namespace(machine), function)


def socket_in(
    lab: Lab,
    machine: str,
    port: int = 0,
    *,
    address: str | None = None,
    kind: socket.SocketKind = socket.SOCK_DGRAM,
) -> socket.socket:
    """Return an IPv4 socket of a machine, bound to this address or else to the machine's."""

    def create() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address or str(lab.address(machine)), port))
        return made

    return within(lab, machine, create)


@contextmanager
def echoed(lab: Lab, machine: str, port: int, start: bytes = b"") -> Iterator[tuple[str, int]]:
    """Echo every datagram with this start to a port of a machine; yield the port's address.

    The server's buffer has room for a flood that policy allows: it reads all of it, to answer the others.
    """
    stop, stop_writer = os.pipe()
    with socket_in(lab, machine, port) as server:
        server.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        thread = threading.Thread(target=_echo, args=(server, stop, start))
        thread.start()
        try:
            yield str(lab.address(machine)), port
        finally:
            os.close(stop_writer)
            thread.join()
            os.close(stop)


def _echo(server: socket.socket, stop: int, start: bytes) -> None:
    while stop not in select.select([server.fileno(), stop], [], [])[0]:
        data, sender = server.recvfrom(100)
        if data.startswith(start):
            server.sendto(data, sender)


def link_socket(
    lab: Lab,
    machine: str,
    interface: str,
    family: int,
    port: int = 0,
    *,
    group: str | None = None,
    raw: int | None = None,
) -> socket.socket:
    """Return a UDP socket on one interface, or a ``raw`` one of this protocol; a member of ``group``."""

    def make() -> socket.socket:
        kind = socket.SOCK_DGRAM if raw is None else socket.SOCK_RAW
        made = socket.socket(_FAMILIES[family], kind, raw or 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        if family == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        made.bind(("", port))
        if group is not None:
            join(made, group, interface)
        return made

    return within(lab, machine, make)


def join(member: socket.socket, group: str, interface: str) -> None:
    """Join a group on an interface; call it in the socket's namespace."""
    packed, index = ip_address(group).packed, socket.if_nametoindex(interface)
    if len(packed) == 4:
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed + bytes(4) + struct.pack("i", index))
    else:
        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("i", index))


def received(
    receiver: socket.socket, timeout: float, wanted: Callable[[bytes], bool] = lambda _: True
) -> tuple[bytes, Any] | None:
    """Return the first packet that is ``wanted``, with the address that sent it; None after the timeout."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        with contextlib.suppress(TimeoutError):
            data, sender = receiver.recvfrom(65535)
            if wanted(data):
                return data, sender
    return None
