"""Sockets of processes: how a packet of this host finds the process endpoint at its end.

Many processes share the addresses of a host, so an address does not tell which of them sends or receives a packet. Its
socket does: the kernel records the cgroup in which a socket was made, and never changes it. The look-up is a function
given to the enforcer, like the clock, and needed for the first packet of a flow only (docs: processes.md).
"""

from collections.abc import Callable

End = tuple[bytes, int]
"""End of a flow: address, and port (-1 for a protocol without ports)."""

FindSocket = Callable[[int, End, End, str | None], int | None]
"""Look-up of the socket with this protocol, local end and remote end; the packet leaves or arrives by the interface.

It returns the socket's cgroup, None if no socket is found, or one that has no cgroup any more (TIME-WAIT).
"""


def find_nothing(_proto: int, _local: End, _remote: End, _link: str | None) -> int | None:
    """Find no socket: a node without process endpoints."""
    return None
