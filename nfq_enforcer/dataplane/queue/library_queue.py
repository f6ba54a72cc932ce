"""The driver ``netfilterqueue``: the receive loop of the library NetfilterQueue, two system calls a packet.

It is the reference implementation, and the fallback for kernels that lack a feature of the driver ``netlink``. It has
one kind of queue for all packets of known flows, and two queues for openings, without NFQA_CFG_F_GSO: the kernel
segments large packets before it queues them, and copies 3,968 bytes of each packet.
"""

from contextlib import suppress

import netfilterqueue

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue.protocol import (
    BATCH,
    QUEUE_MAXLEN,
    HeldPacket,
    Redirect,
    Result,
    VerdictFunction,
    explain_bind_error,
)
from nfq_enforcer.dataplane.rules import connmark, packet_mark
from nfq_enforcer.errors import NfqError

# The library has a buffer of 4,096 bytes for a message of the kernel, and never answers a longer one: its packet would
# stay in the queue. Other attributes of a packet take up to 128 bytes (``nfqnl_build_packet_message``,
# net/netfilter/nfnetlink_queue.c): two bridge ports, a mark, a timestamp, a hardware address.
COPY_RANGE = 4096 - 128  # bytes of a packet that the kernel copies

_SOCKET_BYTES = QUEUE_MAXLEN * (COPY_RANGE + 256)


class LibraryQueue:
    """Library queue: one queue, bound by NetfilterQueue."""

    def __init__(self, number: int, decide: VerdictFunction) -> None:
        """Bind the queue; raise NfqError with the reason if the kernel refuses."""
        self.epoch = 0
        self._decide = decide
        self._remaining = 0  # packets until the callback leaves the library's loop
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(number, self._on_packet, QUEUE_MAXLEN, range=COPY_RANGE, sock_len=_SOCKET_BYTES)
        except OSError as error:
            raise NfqError(explain_bind_error(number, error)) from error

    def fileno(self) -> int:
        """Return the descriptor of the library's socket."""
        return self._queue.get_fd()

    def process_batch(self, limit: int = BATCH) -> bool:
        """Run the library's loop until no packet waits, or until the callback leaves it after ``limit`` packets."""
        self._remaining = limit
        with suppress(_BatchComplete):
            self._queue.run(block=False)
        return self._remaining == 0

    def set_max_length(self, length: int) -> None:
        """Do nothing: the library sets the length when it binds. Its queues have no packets above the MTU."""

    def close(self) -> None:
        """Unbind the queue."""
        self._queue.unbind()

    def _on_packet(self, packet: netfilterqueue.Packet) -> None:
        # The port of a bridge takes precedence over the bridge, as in ``PacketReader.read``.
        indev, outdev = packet.physindev or packet.indev, packet.physoutdev or packet.outdev
        verdict = self._decide(packet.get_payload(), indev, outdev, packet_mark.skb_flags(packet.get_mark()))
        if isinstance(verdict, HeldPacket):  # the packet stays parked as long as nobody gives the library a verdict
            verdict.settle = lambda result: self._settle(packet, result)
        else:
            self._settle(packet, verdict)
        self._remaining -= 1
        if self._remaining == 0:
            raise _BatchComplete

    def _settle(self, packet: netfilterqueue.Packet, verdict: Result) -> None:
        if isinstance(verdict, bytes):
            packet.set_payload(verdict)
            packet.accept()
        elif verdict is Verdict.ACCEPT:
            packet.accept()
        elif verdict is Verdict.DROP:
            packet.drop()
        elif verdict is Verdict.UNDECIDED:
            packet.set_mark(packet_mark.undecided(packet.get_mark()))
            packet.accept()
        else:  # OFFLOAD_*: the rules set the connmark; without further queues (``requeues``) no verdict is REQUEUE_*
            mark = packet.get_mark()
            packet.set_mark(
                packet_mark.redirected(mark, verdict.slot)
                if isinstance(verdict, Redirect)
                else connmark.add_request(mark, verdict, self.epoch)
            )
            packet.repeat()


class _BatchComplete(Exception):
    """End of a batch. An exception after the verdict is the only way to leave the library's loop."""
