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

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict

QUEUE_MAXLEN = 4096  # packets parked in a queue before the kernel drops, or accepts without a verdict

QUEUE_COUNT = 1 << 16  # queue numbers have 16 bits
_PROC = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


VerdictFunction = Callable[[bytes, int, int, int], Verdict | bytes]
"""Verdict function: packet bytes, input interface index, output interface index (0: none) and flags to a verdict.

The flags are the argument ``skb`` of ``Enforcer.decide``. A result of type ``bytes`` accepts the packet with these
bytes in place of its own.
"""


class Queue(Protocol):
    """Queue: the queues of one worker, bound to one socket."""

    driver: Driver
    requeues: bool  # the worker has further queues, to which the verdicts REQUEUE_* send a packet
    numbers: "QueueNumbers"
    epoch: int  # of the connmarks that the verdicts OFFLOAD_* request (see ``rules.connmark``); set by the worker

    def fileno(self) -> int:
        """Return the descriptor that is readable while packets wait."""

    def process_batch(self) -> bool:
        """Return verdicts for waiting packets, a few dozen at most; return whether more may wait."""

    def close(self) -> None:
        """Unbind the queues; the kernel drops packets that are still parked."""


class QueueNumbers(NamedTuple):
    """Queue numbers of one worker. A driver that needs a single queue has the same number three times.

    With several workers, the numbers of each kind are consecutive, because ``--queue-balance`` spreads packets over
    consecutive queue numbers. The kernel picks the queue by a hash of both addresses, which is the same in both
    directions (``nfqueue_hash``, include/net/netfilter/nf_queue.h), and all three ranges have the same length. So
    every packet of a flow, in either direction and at every hook, reaches a queue of the same worker.
    """

    headers: int  # packets that are never rewritten: the kernel copies only their headers
    whole: int  # packets that leave by a cluster interface and may get a stamp: the kernel copies all bytes
    segmented: int  # packets without room for a stamp: the kernel segments them before it queues them here

    @property
    def all(self) -> frozenset[int]:
        """Return the distinct numbers."""
        return frozenset(self)


QUEUES_OF_WORKER = len(QueueNumbers._fields)


def allocate_queues(first: int, workers: int) -> tuple[QueueNumbers, ...]:
    """Return the queue numbers of this many workers, counted from ``first``."""
    return tuple(
        QueueNumbers(headers, headers + workers, headers + 2 * workers) for headers in range(first, first + workers)
    )


def max_workers(first: int) -> int:
    """Return the number of workers for which queue numbers exist, counted from ``first``."""
    return (QUEUE_COUNT - first) // QUEUES_OF_WORKER


class Backlog(NamedTuple):
    """Backlog: the kernel's counts of queues."""

    waiting: int  # parked packets
    lost: int  # dropped because the queue or the socket buffer was full


def backlog(*numbers: int) -> Backlog | None:
    """Return the backlog of bound queues in sum; None if no socket is bound to any of them.

    The columns are those of ``seq_show`` in net/netfilter/nfnetlink_queue.c: queue number, port id, queue_total,
    copy mode, copy range, queue_dropped, queue_user_dropped, id sequence.
    """
    try:
        rows = [list(map(int, line.split())) for line in _PROC.read_text().splitlines()]
    except FileNotFoundError:
        return None
    bound = [row for row in rows if row[0] in numbers]
    return Backlog(sum(row[2] for row in bound), sum(row[5] + row[6] for row in bound)) if bound else None


def explain_bind_error(number: int, error: OSError) -> str:
    """Return the message for the user about a queue that the kernel refuses to bind."""
    if not _PROC.exists():
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
