"""The driver ``netfilterqueue``: the library's own loop, one system call to receive a packet and one to answer it.

It is the reference, and the way out where a kernel refuses what the other driver needs. It has one queue for all: the
kernel cuts large pieces of data into segments first, and of each packet copies 4,016 bytes.
"""

from contextlib import suppress

import netfilterqueue

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue.protocol import MAX_WAITING, Judge, QueueNumbers, why_not_bound
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.errors import NfqError

DRIVER = "netfilterqueue"
LONGEST_COPY = 4016  # bytes of a packet that NetfilterQueue 1.1 copies; the rest is cut off without a word

_AT_ONCE = 64  # packets
_SOCKET_BYTES = MAX_WAITING * (LONGEST_COPY + 256)


class LibraryQueue:
    """A queue bound by the library."""

    driver = DRIVER

    def __init__(self, numbers: QueueNumbers, judge: Judge) -> None:
        """Bind the first of these queues, for all; raise NfqError with the reason if the kernel refuses."""
        self.numbers = QueueNumbers(numbers.judged, numbers.judged, numbers.judged)
        self.epoch = 0
        self._judge = judge
        self._left = 0  # packets to answer until the library's loop is to be left
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(numbers.judged, self._on_packet, MAX_WAITING, range=LONGEST_COPY, sock_len=_SOCKET_BYTES)
        except OSError as error:
            raise NfqError(why_not_bound(numbers.judged, error)) from error

    def fileno(self) -> int:
        """Return the library's socket."""
        return self._queue.get_fd()

    def answer(self) -> bool:
        """Answer packets that wait; the library's loop goes on while there are any, unless the callback leaves it."""
        self._left = _AT_ONCE
        with suppress(_Enough):
            self._queue.run(block=False)
        return self._left == 0

    def close(self) -> None:
        """Unbind the queue."""
        self._queue.unbind()

    def _on_packet(self, packet: netfilterqueue.Packet) -> None:
        indev, outdev = packet.physindev or packet.indev, packet.physoutdev or packet.outdev
        mark = packet.get_mark()
        verdict = self._judge(packet.get_payload(), indev, outdev, connmark.told(mark))
        if isinstance(verdict, bytes):
            packet.set_payload(verdict)
            packet.accept()
        elif verdict is Verdict.ACCEPT:
            packet.accept()
        elif verdict is Verdict.DROP:
            packet.drop()
        else:
            packet.set_mark(connmark.signed(mark, verdict, self.epoch))
            packet.repeat()
        self._left -= 1
        if self._left == 0:
            raise _Enough


class _Enough(Exception):
    """Leaves the library's loop, by the only way it has: an exception, after the verdict."""
