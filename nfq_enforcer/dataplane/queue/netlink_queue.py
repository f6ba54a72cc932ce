"""The driver ``netlink``: exchanges netlink messages with the kernel itself, for features that the library lacks.

Large packets are decided unsegmented (NFQA_CFG_F_GSO), which accounts for the throughput of bulk transfers. Packets
that may get a stamp are copied whole. Packets that are accepted unchanged share one batch verdict
(NFQNL_MSG_VERDICT_BATCH). Receiving several messages with one system call (recvmmsg, by ctypes) was measured as well:
it is no faster than one ``recv`` after the other.

Known flows are spread over sockets by their addresses, and have three queues on each. Most packets reach the first,
which copies their headers. Packets that leave by a cluster interface reach the second, which copies all bytes, because
they may get a stamp. The third receives packets that a verdict requeues: an unsegmented packet that is already too
large to hold a stamp. The kernel segments it on the way, because the third queue lacks NFQA_CFG_F_GSO. So the sender's
``gso_max_size`` needs no change.

Openings have two queues, each on a socket of its own, and copied whole: a few small packets each.
"""

import errno
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import MAX_PAYLOAD
from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import QUEUE_FIELD, Marked, MessageError, PacketReader, VerdictBatch
from nfq_enforcer.dataplane.queue.protocol import (
    BATCH,
    QUEUE_MAXLEN,
    HeldPacket,
    QueueNumbers,
    Redirect,
    Result,
    VerdictFunction,
    explain_bind_error,
)
from nfq_enforcer.dataplane.rules import connmark, packet_mark
from nfq_enforcer.errors import NfqError

# bytes copied of a packet that is never rewritten: room for both header chains of an ICMP error, the packet's own and
# the quoted one; a smaller range was not measurably faster
HEADERS_COPY_RANGE = 1024

# looking a member of an enum up takes longer than the packet path has
_ACCEPT, _OFFLOAD_OPENER, _OFFLOAD_FLOW = Verdict.ACCEPT, Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW
_MAX_UNSENT = 1 << 17  # bytes of verdicts; they are sent before further packets are read
_SOCKET_BYTES = 16 << 20  # for waiting messages: some thousand with headers and some hundred with whole packets

# asm-generic/socket.h and linux/netlink.h; the socket module lacks these names
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NO_ENOBUFS, _CAP_ACK = 270, 5, 10


class Unsupported(NfqError):
    """The kernel has NFQUEUE, but lacks a feature that this driver needs."""


class Binding(NamedTuple):
    """Binding of one queue to the socket."""

    number: int
    copy_range: int  # bytes
    flags: int


class SocketBindings(NamedTuple):
    """Bindings of one socket, and the queues to which its verdicts REQUEUE_* send a packet."""

    queues: tuple[Binding, ...]
    whole: int
    segmented: int


def bindings(numbers: QueueNumbers, *, fail_open: bool) -> list[SocketBindings]:
    """Return the bindings of a worker's queues by socket; with ``fail_open`` packets pass while their queue overflows.

    In the queue without NFQA_CFG_F_GSO, ``nfqnl_enqueue_packet`` segments a GSO packet (skb_gso_segment).
    """
    overflow = netlink.FAIL_OPEN if fail_open else 0
    flags = overflow | netlink.GSO
    known = [
        SocketBindings(
            (
                Binding(headers, HEADERS_COPY_RANGE, flags),
                Binding(whole, MAX_PAYLOAD, flags),
                Binding(segmented, MAX_PAYLOAD, overflow),
            ),
            whole,
            segmented,
        )
        for headers, whole, segmented in numbers.places()
    ]
    openings = [
        SocketBindings((Binding(number, MAX_PAYLOAD, flags),), numbers.whole, numbers.segmented)
        for number in (numbers.openings, numbers.excess)
    ]
    return known + openings


class NetlinkQueue:
    """Netlink queue: queues that take their turns together, bound to one netlink socket."""

    def __init__(
        self,
        bindings: SocketBindings,
        decide: VerdictFunction,
        *,
        fail_open: bool = False,
        next_worker: int | None = None,
    ) -> None:
        """Bind the queues; raise NfqError with the reason if the kernel refuses, Unsupported if it lacks a feature.

        ``next_worker``: the queue of the next worker, for the verdict REQUEUE_NEXT; None for the last worker.
        """
        self.epoch = 0
        self._numbers = [netlink.queue_number(binding.number) for binding in bindings.queues]
        self._decide = decide
        self._reader = PacketReader()
        self._batch = VerdictBatch()
        self._netfilter_verdicts: dict[Verdict, int] = {
            Verdict.ACCEPT: netlink.ACCEPT,
            Verdict.DROP: netlink.DROP,
            Verdict.REQUEUE_WHOLE: netlink.requeue(bindings.whole),
            Verdict.REQUEUE_SEGMENTED: netlink.requeue(bindings.segmented),
        }
        if next_worker is not None:  # its socket may be unbound at the moment: the worker may be restarting
            self._netfilter_verdicts[Verdict.REQUEUE_NEXT] = netlink.requeue(next_worker, bypass=fail_open)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        except OSError as error:
            raise NfqError(explain_bind_error(bindings.queues[0].number, error)) from error
        try:
            self._configure_socket()
            self._bind(bindings.queues)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def process_batch(self, limit: int = BATCH) -> bool:
        """Return verdicts for waiting packets, ``limit`` at most; return whether more may wait.

        The packets of a queue get their verdicts in the order of arrival, so no packet overtakes another of its queue.
        """
        # Attributes that the loop needs for each packet are looked up once.
        receive, read, decide, batch = self._socket.recv, self._reader.read, self._decide, self._batch
        accepted = batch.accepted
        try:
            for _ in range(limit):
                message = receive(netlink.MAX_MESSAGE_BYTES)
                try:
                    packet_id, indev, outdev, skb, payload = read(message)
                except MessageError:
                    # NLMSG_ERROR for a verdict of ours: the packet was no longer parked, because the kernel drops the
                    # packets of an interface that goes down (nfqnl_dev_drop). Any other message raises again.
                    netlink.read_errno(message)
                    continue
                verdict = decide(payload, indev, outdev, skb)
                if verdict is _ACCEPT:
                    # One batch verdict will accept all parked packets of this queue up to the last id stored here.
                    accepted[message[QUEUE_FIELD]] = packet_id
                elif isinstance(verdict, HeldPacket):
                    self._hold(message, packet_id, verdict)
                    accepted = batch.accepted
                else:
                    result = verdict if isinstance(verdict, bytes) else self._netfilter_verdict(verdict, message)
                    batch.add(message[QUEUE_FIELD], packet_id, result)
                    if batch.size > _MAX_UNSENT:
                        self._send()
        except BlockingIOError:  # no further message waits
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # the kernel had no memory for a message; the rules' counters show it
                raise
        finally:
            # The verdicts of a batch wait in user space until here, for at most one batch: a packet that arrives alone
            # gets its verdict at once, because the next ``recv`` raises BlockingIOError.
            self._send()
        return True

    def set_max_length(self, length: int) -> None:
        """Set the number of parked packets beyond which the kernel drops."""
        self._socket.sendmsg(netlink.set_max_length(number, length) for number in self._numbers)

    def close(self) -> None:
        """Unbind the queues."""
        self._socket.close()

    def _netfilter_verdict(self, verdict: Verdict | Redirect, message: bytes) -> int | Marked:
        if isinstance(verdict, Redirect):
            return Marked(netlink.REPEAT, packet_mark.redirected(netlink.read_mark(message), verdict.slot))
        if verdict is Verdict.UNDECIDED:
            return Marked(netlink.ACCEPT, packet_mark.undecided(netlink.read_mark(message)))
        if verdict is _OFFLOAD_FLOW or verdict is _OFFLOAD_OPENER:
            # A verdict cannot set a connmark; a rule does so when the packet comes by with this request in its mark.
            return Marked(netlink.REPEAT, connmark.add_request(netlink.read_mark(message), verdict, self.epoch))
        return self._netfilter_verdicts[verdict]

    def _hold(self, message: bytes, packet_id: bytes, held: HeldPacket) -> None:
        """Leave a packet parked until its verdict is settled."""
        queue = message[QUEUE_FIELD]

        def settle(verdict: Result) -> None:
            result = verdict if isinstance(verdict, bytes) else self._netfilter_verdict(verdict, message)
            self._socket.sendmsg(self._batch.settle(queue, packet_id, result))

        self._batch.hold(queue, packet_id)
        held.settle = settle

    def _send(self) -> None:
        """Send the verdicts that are not sent yet."""
        messages = self._batch.take()
        if messages:
            self._socket.sendmsg(messages)

    def _configure_socket(self) -> None:
        """Enlarge the buffers; after an overflow the kernel goes on with the messages that fit (NETLINK_NO_ENOBUFS)."""
        for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, force, _SOCKET_BYTES)
            except PermissionError:  # root of a user namespace: net.core.rmem_max and wmem_max apply
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
        self._socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # else an error quotes the whole refused message
        self._socket.bind((0, 0))
        self._socket.setblocking(False)

    def _bind(self, bindings: Sequence[Binding]) -> None:
        """Bind all queues, then set their copy ranges, so that no packet arrives between the kernel's replies.

        Until its copy range is set, a queue drops packets (NFQNL_COPY_NONE).
        """
        for number, _, flags in bindings:
            self._socket.send(netlink.bind(netlink.queue_number(number), QUEUE_MAXLEN, flags))
            error = netlink.read_errno(self._socket.recv(netlink.MAX_MESSAGE_BYTES))
            if error == errno.EOPNOTSUPP:
                raise Unsupported(
                    "this kernel's NFQUEUE cannot do what the driver 'netlink' needs (NFQA_CFG_F_GSO, since Linux "
                    "3.11): choose the driver 'auto' or 'netfilterqueue'"
                )
            if error:
                raise NfqError(explain_bind_error(number, OSError(error, os.strerror(error))))
        self._socket.sendmsg(
            netlink.set_copy_range(netlink.queue_number(number), copy_range) for number, copy_range, _ in bindings
        )
