"""The driver ``netfilterqueue``: the receive loop of the library NetfilterQueue, two system calls a packet.

It is the reference implementation, and the fallback for kernels that lack a feature of the driver ``netlink``. It has a
single queue for all packets, without NFQA_CFG_F_GSO: the kernel segments large packets before it queues them, and
copies 4,016 bytes of each packet.
"""

from contextlib import suppress

import netfilterqueue

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue.protocol import QUEUE_MAXLEN, QueueNumbers, VerdictFunction, explain_bind_error
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.errors import NfqError

COPY_RANGE = 4016  # bytes of a packet that NetfilterQueue 1.1 copies; it drops the rest without an error

_BATCH = 64  # packets
_SOCKET_BYTES = QUEUE_MAXLEN * (COPY_RANGE + 256)


class LibraryQueue:
    """Library queue: one queue, bound by NetfilterQueue."""

    driver = Driver.NETFILTERQUEUE
    requeues = False

    def __init__(self, numbers: QueueNumbers, decide: VerdictFunction) -> None:
        """Bind the first of these queues for all packets; raise NfqError with the reason if the kernel refuses."""
        self.numbers = QueueNumbers(numbers.headers, numbers.headers, numbers.headers)
        self.epoch = 0
        self._decide = decide
        self._remaining = 0  # packets until the callback leaves the library's loop
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(numbers.headers, self._on_packet, QUEUE_MAXLEN, range=COPY_RANGE, sock_len=_SOCKET_BYTES)
        except OSError as error:
            raise NfqError(explain_bind_error(numbers.headers, error)) from error

    def fileno(self) -> int:
        """Return the descriptor of the library's socket."""
        return self._queue.get_fd()

    def process_batch(self) -> bool:
        """Run the library's loop until no packet waits, or until the callback leaves it after one batch."""
        self._remaining = _BATCH
        with suppress(_BatchComplete):
            self._queue.run(block=False)
        return self._remaining == 0

    def close(self) -> None:
        """Unbind the queue."""
        self._queue.unbind()

    def _on_packet(self, packet: netfilterqueue.Packet) -> None:
        # The port of a bridge takes precedence over the bridge, as in ``PacketReader.read``.
        indev, outdev = packet.physindev or packet.indev, packet.physoutdev or packet.outdev
        mark = packet.get_mark()
        verdict = self._decide(packet.get_payload(), indev, outdev, connmark.sender_flag(mark))
        if isinstance(verdict, bytes):
            packet.set_payload(verdict)
            packet.accept()
        elif verdict is Verdict.ACCEPT:
            packet.accept()
        elif verdict is Verdict.DROP:
            packet.drop()
        else:  # OFFLOAD_*: the rules set the connmark; without further queues (``requeues``) no verdict is REQUEUE_*
            packet.set_mark(connmark.add_request(mark, verdict, self.epoch))
            packet.repeat()
        self._remaining -= 1
        if self._remaining == 0:
            raise _BatchComplete


class _BatchComplete(Exception):
    """End of a batch. An exception after the verdict is the only way to leave the library's loop."""
