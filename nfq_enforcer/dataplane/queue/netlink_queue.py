"""The driver ``netlink``: speaks to the kernel itself, for what the library has no words for.

Large pieces of data are judged uncut (GSO), which bulk transfers owe their speed to; packets that may be stamped are
copied whole; and packets that are accepted as they are get one verdict together. Messages of several packets could be
received together, too (recvmmsg): by ctypes that was measured to be no faster than one ``recv`` after the other.

One socket is bound to three queues. Most packets meet the first, which copies their headers. What leaves by a cluster
interface meets the second, which copies them whole, because they may get a stamp. The third is met by what one of
the first two hands on: a piece of data that is so large already that a stamp has no room in it, which the kernel cuts
on the way to this queue. So the sender's largest piece (``gso_max_size``) needs no lowering.
"""

import errno
import os
import socket

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import MAX_PAYLOAD
from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import Again, MessageError, Packets, VerdictBatch
from nfq_enforcer.dataplane.queue.protocol import MAX_WAITING, Judge, QueueNumbers, why_not_bound
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.errors import NfqError

DRIVER = "netlink"
HEADERS = 1024  # bytes of a packet that is only judged: even of an ICMP error's two chains; fewer are not faster

_ACCEPT, _OFFLOAD_OPENER, _OFFLOAD_FLOW = Verdict.ACCEPT, Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW
_AT_ONCE = 64  # packets
_UNSENT = 1 << 17  # bytes of answers that are sent before more packets are judged
_SOCKET_BYTES = 64 << 20  # for messages that wait: 4,096 short ones and some hundred whole ones

# asm-generic/socket.h and linux/netlink.h; the socket module does not name them
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NO_ENOBUFS, _CAP_ACK = 270, 5, 10


class Unsupported(NfqError):
    """The kernel has NFQUEUE, but not what this driver needs of it."""


class NetlinkQueue:
    """Three queues, bound to one socket."""

    driver = DRIVER

    def __init__(
        self, numbers: QueueNumbers, judge: Judge, *, fail_open: bool = False, next_worker: int | None = None
    ) -> None:
        """Bind the queues; raise NfqError with the reason if the kernel refuses, Unsupported if it cannot.

        ``next_worker``: the queue of another worker for what is to be handed on to that one.
        """
        self.numbers = numbers
        self.epoch = 0
        self._judge = judge
        self._packets = Packets()
        self._answers = VerdictBatch()
        self._verdicts: dict[Verdict, int] = {
            Verdict.DROP: netlink.DROP,
            Verdict.REQUEUE_WHOLE: netlink.hand_on(numbers.stamped),
            Verdict.REQUEUE_SEGMENTED: netlink.hand_on(numbers.segmented),
        }
        if next_worker is not None:  # who may just be away
            self._verdicts[Verdict.REQUEUE_NEXT] = netlink.hand_on(next_worker, bypass=fail_open)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        except OSError as error:
            raise NfqError(why_not_bound(numbers.judged, error)) from error
        try:
            self._set_up()
            self._bind(numbers, netlink.FAIL_OPEN if fail_open else 0)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the socket."""
        return self._socket.fileno()

    def answer(self) -> bool:
        """Answer packets that wait, at most one batch; say whether more may wait.

        Each queue's packets are answered in the order in which they came.
        """
        receive, read, judge, answers = self._socket.recv, self._packets.read, self._judge, self._answers
        accepted = answers.accepted
        try:
            for _ in range(_AT_ONCE):
                message = receive(netlink.LONGEST_MESSAGE)
                try:
                    packet, indev, outdev, skb, payload = read(message)
                except MessageError:
                    netlink.error(message)  # a verdict came too late: the packet went with its interface
                    continue
                verdict = judge(payload, indev, outdev, skb)
                if verdict is _ACCEPT:
                    accepted[message[netlink.OF_QUEUE]] = packet
                else:
                    what = verdict if isinstance(verdict, bytes) else self._verdict(verdict, message)
                    answers.add(message[netlink.OF_QUEUE], packet, what)
                    if answers.size > _UNSENT:
                        self._send()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # the kernel had no memory for a message; the rules' counters tell
                raise
        finally:
            self._send()
        return True

    def close(self) -> None:
        """Unbind the queues."""
        self._socket.close()

    def _verdict(self, verdict: Verdict, message: bytes) -> int | Again:
        if verdict is _OFFLOAD_FLOW or verdict is _OFFLOAD_OPENER:
            return Again(connmark.signed(netlink.mark(message), verdict, self.epoch))
        return self._verdicts[verdict]

    def _send(self) -> None:
        """Send the answers that are not sent."""
        messages = self._answers.take()
        if messages:
            self._socket.sendmsg(messages)

    def _set_up(self) -> None:
        """Give the socket room, and have it go on after an overflow with what fits, rather than with nothing."""
        for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, force, _SOCKET_BYTES)
            except PermissionError:  # root of a user namespace, to whom limits apply
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
        self._socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # else what cannot be obeyed comes back whole
        self._socket.bind((0, 0))
        self._socket.setblocking(False)

    def _bind(self, numbers: QueueNumbers, flags: int) -> None:
        """Bind all queues, then open them, so that no packet comes between the kernel's answers."""
        for number in numbers:
            # Segments meet a queue without the flag, which is why the kernel has cut them.
            large = 0 if number == numbers.segmented else netlink.GSO
            self._socket.send(netlink.bind(netlink.queue_number(number), MAX_WAITING, flags | large))
            refused = netlink.error(self._socket.recv(netlink.LONGEST_MESSAGE))
            if refused == errno.EOPNOTSUPP:
                raise Unsupported(
                    f"this kernel's NFQUEUE cannot do what the driver '{DRIVER}' needs (NFQA_CFG_F_GSO, since Linux "
                    "3.11): choose the driver 'auto' or 'netfilterqueue'"
                )
            if refused:
                raise NfqError(why_not_bound(number, OSError(refused, os.strerror(refused))))
        sizes = (HEADERS, MAX_PAYLOAD, MAX_PAYLOAD)
        self._socket.sendmsg(
            netlink.copy(netlink.queue_number(n), size) for n, size in zip(numbers, sizes, strict=True)
        )
