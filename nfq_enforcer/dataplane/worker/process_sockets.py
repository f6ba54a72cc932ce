"""Sockets of this host by their ends, with their cgroups: exact look-ups by sock_diag(7), without a dump.

The kernel looks the socket up as for an arriving packet, so a look-up finds connected sockets, listeners, and bound
sockets of UDP. It takes about 15 µs. Sockets of other protocols (raw, ICMP, SCTP) are not found. Messages:
linux/inet_diag.h.
"""

import socket
import struct
from contextlib import suppress

from nfq_enforcer.core.process_sockets import End
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.dataplane.queue.netlink import HEADER, MessageError, attributes

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _REQUEST = 20, 1  # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST
_QUERY = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS, _LINK = struct.Struct("!HH"), struct.Struct("=I")
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_ALL_STATES = 0xFFFFFFFF
_MESSAGE = 72  # bytes of struct inet_diag_msg
_STATE = 1  # its offset in there
_SYN_RECV, _NEW_SYN_RECV = 3, 12  # of a connection that is being opened to a listener
_CGROUP = 21  # INET_DIAG_CGROUP_ID
_CGROUP_NUMBER = struct.Struct("=Q")
_RECEIVE_BYTES = 1 << 13


class ProcessSockets:
    """Process sockets: look-ups of sockets in this network namespace."""

    def __init__(self) -> None:
        """Open a socket of netlink."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        self._socket.settimeout(1.0)  # the kernel answers while it takes the request

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
            return self._ask(proto, remote, local, index)[1]
        state, cgroup = self._ask(proto, local, remote, index)
        if cgroup is None and state in {_SYN_RECV, _NEW_SYN_RECV}:
            anyone = bytes(len(local[0])), 0
            return self._ask(proto, local, anyone, index)[1]
        return cgroup

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
            self._socket.send(HEADER.pack(HEADER.size + len(body), _BY_FAMILY, _REQUEST, 0, 0) + body)
            answer = self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            return 0, None
        return read_answer(answer)


def read_answer(answer: bytes) -> tuple[int, int | None]:
    """Return the state and cgroup of the socket in an answer; 0 and None for an error message."""
    if len(answer) < HEADER.size + _MESSAGE or HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return 0, None
    state = answer[HEADER.size + _STATE]
    try:
        number = attributes(answer[HEADER.size + _MESSAGE :]).get(_CGROUP, b"")
    except MessageError:
        return state, None
    return state, _CGROUP_NUMBER.unpack(number)[0] if len(number) == _CGROUP_NUMBER.size else None
