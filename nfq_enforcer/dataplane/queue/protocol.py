"""The queue: what NFQUEUE is to the rest of the program, whichever driver speaks to it.

A rule with the target NFQUEUE parks a packet in a numbered queue of the kernel, which sends a copy of it to the one
socket that is bound to that number: an id, the interfaces, flags, and as many of its bytes as the socket wants. The
packet stays where it is until the socket gives a verdict on its id: drop, or accept, perhaps with other bytes in the
packet's place, go on to another queue, or go through the hook's rules once more (with another mark, so that they do
something else with it). An accepted packet goes the rest of its way at once, within the system call that brings the
verdict: that is most of what a packet costs.

A queue holds so many packets and a socket so many bytes. What comes beyond that is dropped by the kernel, or accepted
unseen if the queue fails open; so is everything while no socket is bound. When a socket is closed, what waits is
dropped.

Where the sender leaves it to the network card to cut large pieces of data into packets (GSO), a queue may take the
uncut piece as one packet of up to 64 KiB, which costs little more than one of 1,500 bytes. Its checksum is then not
finished. Else the kernel cuts it before it queues the pieces.

A driver is anything with the methods of ``Queue``: ``netlinkqueue.py`` speaks to the kernel itself, ``libraryqueue.py``
leaves that to the library NetfilterQueue.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from nfq_enforcer.core.verdict import Verdict

MAX_WAITING = 4096  # packets the kernel keeps for us before it drops, or lets pass

_NUMBERS = 1 << 16  # of queues
_PROC = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


Judge = Callable[[bytes, int, int, int], Verdict | bytes]
"""Takes a packet's bytes, the indices of the interfaces it came in by and goes out by (0: none), and its flags.

The flags are ``skb`` of ``Enforcer.decide``. The answer is a verdict, or the bytes with which the packet is accepted.
"""


class Queue(Protocol):
    """What is bound to the queues of one worker."""

    driver: str  # its name, as the configuration has it
    numbers: "QueueNumbers"
    epoch: int  # in which flows are left to the kernel (see ``marks``); to be written to

    def fileno(self) -> int:
        """Return the descriptor that is readable when packets wait."""

    def answer(self) -> bool:
        """Answer packets that wait, a few dozen at most; say whether more may wait."""

    def close(self) -> None:
        """Unbind; packets that still wait are dropped by the kernel."""


class QueueNumbers(NamedTuple):
    """The queues of one worker. A driver that needs but one has the same number three times.

    Of several workers each kind is in a row: the kernel spreads packets over queues with numbers in a row. It does so
    by a hash of both addresses, the same for either direction (``nfqueue_hash``, include/net/netfilter/nf_queue.h), and
    rows are of one length. So whichever way a packet of a flow goes, it meets a queue of the same worker.
    """

    judged: int  # what is only judged: of these packets the headers are copied
    stamped: int  # what leaves toward other nodes, and so may be rewritten: copied whole
    segmented: int  # what cannot be rewritten before the kernel has cut it into segments

    @property
    def all(self) -> frozenset[int]:
        """Return each number once."""
        return frozenset(self)


def in_rows(first: int, workers: int) -> tuple[QueueNumbers, ...]:
    """Return the queues of so many workers, from a number on."""
    return tuple(
        QueueNumbers(judged, judged + workers, judged + 2 * workers) for judged in range(first, first + workers)
    )


def most_workers(first: int) -> int:
    """Return for how many workers there are numbers, from this one on."""
    return (_NUMBERS - first) // len(QueueNumbers._fields)


class Backlog(NamedTuple):
    """What the kernel says of queues."""

    waiting: int
    lost: int  # dropped because the queue or the socket was full


def backlog(*numbers: int) -> Backlog | None:
    """Return the state of bound queues in sum, None if nobody is bound (net/netfilter/nfnetlink_queue.c, seq_show)."""
    try:
        rows = [list(map(int, line.split())) for line in _PROC.read_text().splitlines()]
    except FileNotFoundError:
        return None
    ours = [row for row in rows if row[0] in numbers]
    return Backlog(sum(row[2] for row in ours), sum(row[5] + row[6] for row in ours)) if ours else None


def why_not_bound(number: int, error: OSError) -> str:
    """Return the sentence for a queue that the kernel refuses."""
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
