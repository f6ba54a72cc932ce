"""Sockets of this host by their ends, with their cgroups, by sock_diag(7).

The kernel looks the socket up as for an arriving packet, so a look-up finds connected sockets, listeners, and bound
sockets of UDP. It takes about 15 µs. Sockets of other protocols (raw, ICMP, SCTP) are not found. Messages:
linux/inet_diag.h.

A socket that is connected to a translated address (DNAT in OUTPUT) has that address as its remote end, and its packets
have another one. So a packet without an exact match has the socket with the same local end, which the kernel lists in
200 µs. Sockets of several cgroups may share a local end, if they are connected to different servers; then the one
that is just opening a connection counts, and if that is not one cgroup either, none does.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from nfq_enforcer.core.process_sockets import End
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.dataplane.queue.netlink import HEADER, MessageError, attribute, attributes
from nfq_enforcer.dataplane.queue.requests import DUMP, REQUEST, read_dump

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_QUERY = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS, _LINK = struct.Struct("!HH"), struct.Struct("=I")
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_ALL_STATES = 0xFFFFFFFF
_MESSAGE = 72  # bytes of struct inet_diag_msg
_STATE = 1  # its offset in there
_SYN_RECV, _NEW_SYN_RECV = 3, 12  # of a connection that is being opened to a listener
_SYN_SENT, _TIME_WAIT = 2, 6
_CONNECTED = sum(1 << state for state in (1, _SYN_SENT, 4, 5, 8, 9, 11))  # ESTABLISHED to CLOSING, enum tcp_state
_LOCAL_ADDRESS = slice(8, 24)  # in struct inet_diag_msg
_MAPPED = bytes(10) + b"\xff\xff"  # prefix of an IPv4 address, as the local end of a socket of both families
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_OPERATION, _SOURCE_PORT_IS, _NO_MATCH = struct.Struct("=BBH"), 11, 12  # struct inet_diag_bc_op; INET_DIAG_BC_S_EQ
_CGROUP = 21  # INET_DIAG_CGROUP_ID
_CGROUP_NUMBER = struct.Struct("=Q")
_RECEIVE_BYTES = 1 << 13
_TIMEOUT = 1.0  # s; the kernel answers while it takes the request


class ProcessSockets:
    """Process sockets: look-ups of sockets in this network namespace."""

    def __init__(self) -> None:
        """Open a socket of netlink."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        self._socket.settimeout(_TIMEOUT)

    def find(self, proto: int, local: End, remote: End, link: str | None) -> int | None:
        """Return the number of the cgroup of the socket with these ends, None without one.

        ``link``: the interface of the packet, which matters for sockets that are bound to one.
        """
        if proto not in {TCP, UDP}:
            return None
        index = 0
        if link is not None:
            with suppress(OSError):
                index = socket.if_nametoindex(link)
        if proto == UDP:  # the kernel takes its two ends in the other order
            state, cgroup = self._ask(proto, remote, local, index)
        else:
            state, cgroup = self._ask(proto, local, remote, index)
        if cgroup is None and state in {_SYN_RECV, _NEW_SYN_RECV}:
            anyone = bytes(len(local[0])), 0
            return self._ask(proto, local, anyone, index)[1]
        return _find_by_local_end(proto, local) if cgroup is None and state != _TIME_WAIT else cgroup

    def close(self) -> None:
        """Close the socket of netlink."""
        self._socket.close()

    def _ask(self, proto: int, one: End, other: End, index: int) -> tuple[int, int | None]:
        """Return the state and cgroup of a socket; 0 and None for one that does not exist."""
        family = socket.AF_INET if len(one[0]) == 4 else socket.AF_INET6
        ports = _PORTS.pack(max(one[1], 0), max(other[1], 0))
        ends = one[0].ljust(16, b"\0") + other[0].ljust(16, b"\0")
        body = _QUERY.pack(family, proto, 0, _ALL_STATES) + ports + ends + _LINK.pack(index) + _ANY_COOKIE
        try:
            self._socket.send(HEADER.pack(HEADER.size + len(body), _BY_FAMILY, REQUEST, 0, 0) + body)
            answer = self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            return 0, None
        return read_answer(answer)


def read_answer(answer: bytes) -> tuple[int, int | None]:
    """Return the state and cgroup of the socket in an answer; 0 and None for an error message."""
    if len(answer) < HEADER.size + _MESSAGE or HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return 0, None
    return _read_socket(answer[HEADER.size :])


def _read_socket(body: bytes) -> tuple[int, int | None]:
    """Return the state and cgroup of the socket in a message of sock_diag."""
    state = body[_STATE]
    try:
        number = attributes(body[_MESSAGE:]).get(_CGROUP, b"")
    except MessageError:
        return state, None
    return state, _CGROUP_NUMBER.unpack(number)[0] if len(number) == _CGROUP_NUMBER.size else None


def _find_by_local_end(proto: int, local: End) -> int | None:
    """Return the number of the only cgroup with a connected socket of this local end; None without one."""
    address = local[0]
    mapped = _MAPPED + address if len(address) == 4 else address
    found: list[tuple[int, int]] = []
    for family, own in ((socket.AF_INET, address.ljust(16, b"\0")), (socket.AF_INET6, mapped)):
        if family == socket.AF_INET6 or len(address) == 4:
            with suppress(OSError):
                found += _connected(proto, family, own, local[1])
    opening = {cgroup for state, cgroup in found if state == _SYN_SENT}
    cgroups = opening or {cgroup for _, cgroup in found}
    return cgroups.pop() if len(cgroups) == 1 else None


def _connected(proto: int, family: int, address: bytes, port: int) -> Iterator[tuple[int, int]]:
    """Yield state and cgroup of each connected socket with this local end; raise OSError if the kernel refuses."""
    program = _OPERATION.pack(_SOURCE_PORT_IS, 2 * _OPERATION.size, _NO_MATCH) + _OPERATION.pack(0, 0, port)
    query = _QUERY.pack(family, proto, 0, _CONNECTED) + bytes(36) + _LINK.pack(0) + _ANY_COOKIE
    query += attribute(_BYTECODE, program)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as connection:
        connection.settimeout(_TIMEOUT)
        connection.send(HEADER.pack(HEADER.size + len(query), _BY_FAMILY, REQUEST | DUMP, 0, 0) + query)
        for _, body in read_dump(connection):
            state, cgroup = _read_socket(body)
            if cgroup is not None and body[_LOCAL_ADDRESS] == address:
                yield state, cgroup
