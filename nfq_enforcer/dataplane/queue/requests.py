"""Requests to netfilter by netlink, and the messages of its answers (linux/netlink.h, linux/netfilter/nfnetlink.h).

Each part of netfilter (queues, connection tracking, nf_tables, logs) is a subsystem with message types of its own. A
message is a header, the family with a number, and attributes (``netlink.attributes``).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import ERRNO, HEADER

REQUEST, ACK, DUMP = 0x001, 0x004, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
FAMILY = struct.Struct("!BBH")  # struct nfgenmsg: family, version, a number of the subsystem
RECEIVE_BYTES = 0x10000
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_MAX_ERRNO = 4095  # MAX_ERRNO (linux/err.h)


def open_socket(timeout: float | None = None) -> socket.socket:
    """Return a socket for requests to netfilter in this network namespace; ``timeout`` in seconds, None: wait."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
    connection.settimeout(timeout)
    return connection


def request(kind: int, flags: int = REQUEST, family: int = 0, number: int = 0, attributes: bytes = b"") -> bytes:
    """Return the message of a request; family 0 is any."""
    body = FAMILY.pack(family, 0, number) + attributes
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body


def four_bytes(number: int) -> bytes:
    """Return the data of an attribute with a number of 32 bits; netfilter has it in network order."""
    return number.to_bytes(4, "big")


def nul_terminated(text: str) -> bytes:
    """Return the data of an attribute with a text."""
    return text.encode() + b"\0"


def dump(
    kind: int, family: int = 0, attributes: bytes = b"", timeout: float | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of a dump; raise OSError if the kernel refuses it.

    It arrives as datagrams of many entries each, which the kernel writes as the socket is read; the entries may change
    meanwhile.
    """
    with open_socket(timeout) as connection:
        connection.send(request(kind, REQUEST | DUMP, family, attributes=attributes))
        yield from read_dump(connection)


def read_dump(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of a dump that was requested; raise OSError if the kernel refuses it."""
    while True:
        for found, body in split_messages(connection.recv(RECEIVE_BYTES)):
            if found == _DONE:
                return
            yield found, body


def split_messages(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each complete message of a datagram; raise OSError for an NLMSG_ERROR."""
    offset = 0
    while offset + HEADER.size <= len(received):
        size, kind, *_ = HEADER.unpack_from(received, offset)
        body = received[offset + HEADER.size : offset + size]
        if size < HEADER.size or offset + size > len(received):
            return
        if kind == _ERROR and len(body) >= ERRNO.size:
            raise _kernel_error(*ERRNO.unpack_from(body))
        yield kind, body
        offset += size + 3 & ~3


def _kernel_error(number: int) -> OSError:
    """Return the error for a negative errno of the kernel; EPROTO for a number that is none."""
    error = -number if 0 < -number <= _MAX_ERRNO else errno.EPROTO
    return OSError(error, os.strerror(error))
