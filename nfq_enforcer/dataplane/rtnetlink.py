"""Requests to the kernel's routing and link tables by netlink (rtnetlink(7)), and their answers.

Messages: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

import socket
import struct
import sys
from collections.abc import Iterator

from nfq_enforcer.dataplane.queue.netlink import HEADER, attribute, attributes
from nfq_enforcer.dataplane.queue.requests import DUMP, RECEIVE_BYTES, REQUEST, read_dump, split_messages

NETLINK_ROUTE = 0
GET_LINK = 18  # RTM_GETLINK
_NEW_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 20, 22  # RTM_NEWLINK, RTM_NEWADDR, RTM_GETADDR
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, interface
LINK_NAME, LINK_PEER, MASTER = 3, 5, 10  # IFLA_IFNAME, IFLA_LINK, IFLA_MASTER
LINK_INFO, LINK_NAMESPACE = 18, 37  # IFLA_LINKINFO, IFLA_LINK_NETNSID
LINK_KIND = 1  # IFLA_INFO_KIND
IFA_ADDRESS, IFA_LOCAL = 1, 2
_LINK_TARGET, _ADDRESS_TARGET = 46, 10  # IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID
TIMEOUT = 5.0  # s
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK


def open_socket(*, strict: bool = False) -> socket.socket:
    """Return a socket for requests; ``strict``: the kernel does not ignore the attributes of a dump."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    connection.settimeout(TIMEOUT)
    if strict:
        connection.setsockopt(_SOL_NETLINK, _STRICT, 1)
    return connection


def get(connection: socket.socket, kind: int, body: bytes) -> tuple[int, bytes]:
    """Return type and body of the answer to a request; raise OSError if the kernel refuses it."""
    _send(connection, kind, body, REQUEST)
    ((found, answer),) = split_messages(connection.recv(RECEIVE_BYTES))
    return found, answer


def dump(connection: socket.socket, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of a dump; raise OSError if the kernel refuses it."""
    _send(connection, kind, body, REQUEST | DUMP)
    return read_dump(connection)


def links(
    connection: socket.socket, *, family: int = 0, namespace: int | None = None
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield index and attributes of each link, of this namespace or (with ``strict``) of another one by its number.

    Raise OSError if the kernel refuses.
    """
    target = b"" if namespace is None else attribute(_LINK_TARGET, numbered(namespace))
    for kind, body in dump(connection, GET_LINK, LINK.pack(family, 0, 0, 0, 0) + target):
        if kind == _NEW_LINK and len(body) >= LINK.size:
            yield LINK.unpack_from(body)[2], attributes(body[LINK.size :])


def addresses(connection: socket.socket, namespace: int, *, family: int = 0) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield for each address of another namespace, by its number, the index of its link, and its attributes.

    ``connection`` is a strict one. Raise OSError if the kernel refuses.
    """
    target = attribute(_ADDRESS_TARGET, numbered(namespace))
    for kind, body in dump(connection, _GET_ADDRESS, _ADDRESS.pack(family, 0, 0, 0, 0) + target):
        if kind == _NEW_ADDRESS and len(body) >= _ADDRESS.size:
            yield _ADDRESS.unpack_from(body)[4], attributes(body[_ADDRESS.size :])


def number(data: bytes) -> int:
    """Return the number in an attribute, with its sign."""
    return int.from_bytes(data, sys.byteorder, signed=True)


def numbered(value: int) -> bytes:
    """Return the data of an attribute with a number."""
    return value.to_bytes(4, sys.byteorder, signed=True)


def text(data: bytes) -> str:
    """Return the text in an attribute, such as a name."""
    return data.rstrip(b"\0").decode(errors="surrogateescape")


def _send(connection: socket.socket, kind: int, body: bytes, flags: int) -> None:
    connection.send(HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body)
