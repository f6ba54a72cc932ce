"""NFQUEUE as the rest of the program sees it: the interface of a queue, the same for both drivers.

A rule with the target NFQUEUE parks a packet in a numbered queue of the kernel (net/netfilter/nfnetlink_queue.c). The
kernel sends a message about it to the one socket that is bound to that number: a packet id, the interfaces, flags, and
as many bytes of the packet as the queue's copy range allows. The packet stays parked until the socket returns a
verdict for its id:

- NF_DROP: the packet is freed.
- NF_ACCEPT: the packet leaves the hook, with other bytes if the verdict carries a payload (``nfqnl_mangle``).
- NF_QUEUE: the packet moves to another queue.
- NF_REPEAT: the packet traverses the rules of the hook once more. The verdict sets another packet mark, so that a rule
  treats the packet differently this time.

``nf_reinject`` sends an accepted packet through the rest of the network stack within the system call that delivers the
verdict. That takes most of the time that a packet costs.

The kernel limits the number of parked packets of a queue and the bytes of messages on the socket. Beyond either limit
it drops packets, or accepts them without a verdict if the queue fails open (NFQA_CFG_F_FAIL_OPEN). While no socket is
bound, packets are dropped, or accepted if the rule has ``--queue-bypass``. When a socket closes, ``nfqnl_flush`` drops
its parked packets.

Where a sender leaves segmentation to the network card (GSO), a queue may receive the unsegmented packet of up to
64 KiB, which costs little more than one of 1,500 bytes. Its checksum is then incomplete (CHECKSUM_PARTIAL). Without
NFQA_CFG_F_GSO the kernel segments the packet first and queues each segment.

A driver is a class with the methods of ``Queue``: ``netlink_queue.py`` exchanges netlink messages with the kernel
itself, ``library_queue.py`` uses the library NetfilterQueue.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from nfq_enforcer.core.verdict import Verdict

BATCH = 64  # packets of one batch at most
QUEUE_MAXLEN = 4096  # packets parked in a queue before the kernel drops, or accepts without a verdict

KNOWN_QUEUES = 16  # of each kind for known flows, for one worker

QUEUE_COUNT = 1 << 16  # queue numbers have 16 bits
_PROC = "/proc/{}/net/netfilter/nfnetlink_queue"


class Redirect(NamedTuple):
    """Redirect: the verdict that sends a SYN, which asks for a slot, to one (NF_REPEAT with the slot in its mark)."""

    slot: int  # of 16 bits


Result = Verdict | bytes | Redirect
"""Result of a verdict function; ``bytes`` accept the packet with these bytes in place of its own."""
Settle = Callable[[Result], None]


class HeldPacket:
    """Held packet: the result of a verdict function for a packet that stays parked until its verdict is settled."""

    __slots__ = ("arrival", "result", "settle")

    def __init__(self, result: Result) -> None:
        """Keep the verdict that the packet gets if all goes well."""
        self.result = result
        self.arrival: tuple[bytes, int, int] | None = None  # bytes and interfaces, if a capture may record the packet
        self.settle: Settle = lambda verdict: None  # set by the driver, which parks the packet


VerdictFunction = Callable[[bytes, int, int, int], Result | HeldPacket]
"""Verdict function: packet bytes, input interface index, output interface index (0: none) and flags to a verdict.

The flags are the argument ``skb`` of ``Enforcer.decide``.
"""


class Queue(Protocol):
    """Queue: queues that take their turns together, bound to one socket."""

    epoch: int  # of the connmarks that the verdicts OFFLOAD_* request (see ``rules.connmark``); set by the worker

    def fileno(self) -> int:
        """Return the descriptor that is readable while packets wait."""

    def process_batch(self, limit: int = BATCH) -> bool:
        """Return verdicts for waiting packets, ``limit`` at most; return whether more may wait."""

    def set_max_length(self, length: int) -> None:
        """Set the number of parked packets beyond which the kernel drops, if the driver can."""

    def close(self) -> None:
        """Unbind the queues; the kernel drops packets that are still parked."""


BatchTimer = Callable[[Queue, int], bool]
"""Function that returns verdicts as ``Queue.process_batch`` does, and measures the time."""


class QueueNumbers(NamedTuple):
    """Queue numbers of one worker. A driver with one kind of queue for known flows has the first number three times.

    The first three kinds receive the packets of flows that the kernel's conntrack has confirmed, so that a worker has
    accepted a packet of each before. All other packets may open a flow. They reach the other two queues, which a flood
    may fill without the loss of a packet of a known flow (see ``rules.opening_rules``).

    Each of the first three kinds is a range of ``KNOWN_QUEUES`` consecutive numbers, of which the field has the first.
    A flood inside a known flow fills one of them, at the cost of the flows in the same place of the range only. The
    kernel picks the place by a hash of both addresses, for IPv4 also of the protocol, which is the same in both
    directions (``nfqueue_hash``, include/net/netfilter/nf_queue.h). So all packets of a flow have the same place in
    the range of each kind.

    With several workers, the numbers of each kind are consecutive through all workers, because ``--queue-balance``
    spreads packets over consecutive queue numbers. The kernel scales the hash to the length of the range
    (``reciprocal_scale``: hash * length >> 32), so the place among the queues of n workers, divided by
    ``KNOWN_QUEUES``, is the place among n openings: floor(floor(x * k) / k) = floor(x). So every packet of a flow, in
    either direction and at every hook, reaches a queue of the same worker.
    """

    headers: int  # packets that are never rewritten: the kernel copies only their headers
    whole: int  # packets that leave by a cluster interface and may get a stamp: the kernel copies all bytes
    segmented: int  # packets without room for a stamp: the kernel segments them before it queues them here
    openings: int  # openings within the budgets of their sources; the kernel copies all bytes
    excess: int  # other openings, with the smallest share of a busy worker

    def places(self) -> list[tuple[int, int, int]]:
        """Return the queues for known flows by their place in the ranges."""
        return [(self.headers + place, self.whole + place, self.segmented + place) for place in range(KNOWN_QUEUES)]

    @property
    def known(self) -> frozenset[int]:
        """Return the numbers of all queues for known flows."""
        return frozenset(number for place in self.places() for number in place)

    @property
    def all(self) -> frozenset[int]:
        """Return the distinct numbers."""
        return self.known | {self.openings, self.excess}


_KINDS = 3  # of queues for known flows
QUEUES_OF_WORKER = _KINDS * KNOWN_QUEUES + 2


def allocate_queues(first: int, workers: int) -> tuple[QueueNumbers, ...]:
    """Return the queue numbers of this many workers, counted from ``first``."""
    kind = workers * KNOWN_QUEUES
    openings = first + _KINDS * kind
    known = range(first, first + kind, KNOWN_QUEUES)
    return tuple(
        QueueNumbers(headers, headers + kind, headers + 2 * kind, openings + worker, openings + workers + worker)
        for worker, headers in enumerate(known)
    )


def all_queues(firsts: Sequence[int]) -> range:
    """Return all queues of a kind for known flows, from the first one of each worker."""
    return range(firsts[0], firsts[-1] + KNOWN_QUEUES)


def max_workers(first: int) -> int:
    """Return the number of workers for which queue numbers exist, counted from ``first``."""
    return (QUEUE_COUNT - first) // QUEUES_OF_WORKER


class QueueCounts(NamedTuple):
    """Queue counts: a line of nfnetlink_queue, the kernel's counts of a bound queue (``seq_show``)."""

    number: int
    waiting: int  # parked packets
    lost: int  # dropped because the queue or the socket buffer was full
    last_id: int  # of a packet


def read_queues(process: int | str = "thread-self") -> list[QueueCounts]:
    """Return the counts of all bound queues in the network namespace of a process; raise OSError without NFQUEUE.

    The columns are those of ``seq_show`` in net/netfilter/nfnetlink_queue.c: queue number, port id, queue_total,
    copy mode, copy range, queue_dropped, queue_user_dropped, id sequence, 1.
    """
    rows = (list(map(int, line.split())) for line in Path(_PROC.format(process)).read_text().splitlines())
    return [QueueCounts(row[0], row[2], row[5] + row[6], row[7]) for row in rows]


class Backlog(NamedTuple):
    """Backlog: the kernel's counts of queues."""

    waiting: int  # parked packets
    lost: int  # dropped because the queue or the socket buffer was full


def backlog(*numbers: int) -> Backlog | None:
    """Return the backlog of bound queues in sum; None if no socket is bound to any of them."""
    try:
        queues = read_queues()
    except FileNotFoundError:
        return None
    wanted = set(numbers)
    bound = [queue for queue in queues if queue.number in wanted]
    return Backlog(sum(queue.waiting for queue in bound), sum(queue.lost for queue in bound)) if bound else None


def explain_bind_error(number: int, error: OSError) -> str:
    """Return the message for the user about a queue that the kernel refuses to bind."""
    if not Path(_PROC.format("thread-self")).exists():
        return (
            "this kernel has no NFQUEUE (nfnetlink_queue): load the module nfnetlink_queue "
            "or use a kernel built with CONFIG_NETFILTER_NETLINK_QUEUE"
        )
    if backlog(number) is not None:
        return (
            f"queue {number} is taken by another program: stop it, or choose other numbers with "
            f"first_queue in the configuration"
        )
    return f"queue {number} cannot be bound: {error}"
