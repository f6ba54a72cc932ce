"""The queue: what NFQUEUE is to the rest of the program.

The kernel parks a packet in a numbered queue and sends a copy to the one socket that is bound to it. Each packet gets
exactly one verdict: accept, perhaps with other bytes in its place, or drop. A driver is anything with the methods of
``Queue``; this one is the library NetfilterQueue.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import netfilterqueue

from nfq_enforcer.errors import NfqError

MAX_COPY = 4016  # bytes of a packet that NetfilterQueue 1.1 copies; the rest is cut off without a word
MAX_WAITING = 4096  # packets the kernel keeps for us before it drops

_PROC = Path("/proc/net/netfilter/nfnetlink_queue")
_SOCKET_BYTES = MAX_WAITING * (MAX_COPY + 256)


class Answer(NamedTuple):
    """The answer to one packet."""

    accept: bool
    payload: bytes | None = None  # in place of the packet's own bytes


Judge = Callable[[bytes, int, int], Answer]
"""Takes a packet's bytes and the indices of the interfaces it came in by and goes out by (0: none)."""


class Queue(Protocol):
    """A bound queue."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when packets wait."""

    def drain(self) -> None:
        """Answer packets until none waits; under load that is for ever, unless the judge interrupts."""

    def interrupt(self) -> None:
        """Have ``drain`` return once the packet at hand is answered; for the judge to call."""

    def close(self) -> None:
        """Unbind; packets that still wait are dropped by the kernel."""


class LibraryQueue:
    """The library's own loop: one system call to receive each packet, one to answer it."""

    def __init__(self, number: int, judge: Judge) -> None:
        """Bind the queue; raise NfqError with the reason if the kernel refuses."""
        self._judge = judge
        self._interrupted = False
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(number, self._on_packet, MAX_WAITING, range=MAX_COPY, sock_len=_SOCKET_BYTES)
        except OSError as error:
            raise NfqError(_why_not_bound(number, error)) from error

    def fileno(self) -> int:
        """Return the library's socket."""
        return self._queue.get_fd()

    def drain(self) -> None:
        """Answer packets until none waits or the judge interrupts."""
        self._interrupted = False
        with suppress(_Interrupted):
            self._queue.run(block=False)

    def interrupt(self) -> None:
        """Leave the library's loop, by the only way it has: an exception, after the verdict."""
        self._interrupted = True

    def close(self) -> None:
        """Unbind the queue."""
        self._queue.unbind()

    def _on_packet(self, packet: netfilterqueue.Packet) -> None:
        answer = self._judge(packet.get_payload(), packet.physindev or packet.indev, packet.physoutdev or packet.outdev)
        if answer.payload is not None:
            packet.set_payload(answer.payload)
        if answer.accept:
            packet.accept()
        else:
            packet.drop()
        if self._interrupted:
            raise _Interrupted


class _Interrupted(Exception):
    """Leaves the library's loop."""


class Backlog(NamedTuple):
    """What the kernel says of a queue."""

    waiting: int
    lost: int  # dropped because the queue or the socket was full


def backlog(number: int) -> Backlog | None:
    """Return the state of a bound queue, None if nobody is bound to it (net/netfilter/nfnetlink_queue.c, seq_show)."""
    try:
        rows = [list(map(int, line.split())) for line in _PROC.read_text().splitlines()]
    except FileNotFoundError:
        return None
    return next((Backlog(row[2], row[5] + row[6]) for row in rows if row[0] == number), None)


def _why_not_bound(number: int, error: OSError) -> str:
    if not _PROC.exists():
        return (
            "this kernel has no NFQUEUE (nfnetlink_queue): load the module nfnetlink_queue "
            "or use a kernel built with CONFIG_NETFILTER_NETLINK_QUEUE"
        )
    if backlog(number) is not None:
        return (
            f"queue {number} is taken by another program: stop it, or choose other numbers with "
            f"first_queue (0 to 65535) in the configuration"
        )
    return f"queue {number} cannot be bound: {error}"
