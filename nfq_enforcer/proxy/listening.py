"""Listening ports of this host, which the kernel is asked for by netlink (sock_diag(7)).

The kernel compares the ports with a range, so the answer has as many sockets as are wanted, and not all of the host.
"""

import socket
import struct
from collections.abc import Iterable, Iterator

from nfq_enforcer.proxy.envoy import EnvoyError

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG, linux/netlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY, linux/sock_diag.h
_REQUEST, _DUMP = 1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_LISTEN = 1 << 10  # TCP_LISTEN, include/net/tcp_states.h
_BYTECODE, _AT_LEAST, _AT_MOST = 1, 2, 3  # INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_QUESTION = struct.Struct("=BBBBI48x")  # struct inet_diag_req_v2: family, protocol, extensions, -, states, socket
_COMPARISON = struct.Struct("=BBHHH")  # two struct inet_diag_bc_op: code, offsets if it holds and if not; -, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_PORT = struct.Struct("!4xH")  # struct inet_diag_msg: family, state, timer, retransmissions, the socket's port
_ERRNO = struct.Struct("=i")
_RECEIVED = 1 << 16


def ports(first: int, last: int, families: Iterable[socket.AddressFamily]) -> frozenset[int]:
    """Return the TCP ports in a range on which something listens in each family; raise EnvoyError if nobody knows."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            return frozenset.intersection(*(frozenset(_ports(kernel, first, last, family)) for family in families))
    except OSError as error:
        raise EnvoyError(f"this kernel does not list listening sockets (CONFIG_INET_DIAG): {error.strerror}") from None


def _ports(kernel: socket.socket, first: int, last: int, family: socket.AddressFamily) -> Iterator[int]:
    kernel.send(_question(first, last, family))
    while True:
        data = kernel.recv(_RECEIVED)
        offset = 0
        while offset < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = -_ERRNO.unpack_from(data, offset + _HEADER.size)[0]
                raise OSError(number, "the request is refused")
            yield _PORT.unpack_from(data, offset + _HEADER.size)[0]
            offset += (length + 3) & ~3


def _question(first: int, last: int, family: socket.AddressFamily) -> bytes:
    """Return the request: a comparison that holds goes on with the next, one that does not jumps behind the end."""
    code = _COMPARISON.pack(_AT_LEAST, 8, 20, 0, first) + _COMPARISON.pack(_AT_MOST, 8, 12, 0, last)
    body = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(code), _BYTECODE) + code
    return _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST | _DUMP, 0, 0) + body
