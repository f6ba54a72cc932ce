"""Queues of a worker by priority: known flows, openings within budgets, excess openings.

Each priority has sockets of its own, so packets of known flows wait neither in a queue nor in a socket buffer behind
openings. The queues take turns: a queue that a batch does not empty takes no more than its share of the worker, and
none starves. Openings have the first turn, so that no packet overtakes an earlier one of its flow, except in a flood.

Known flows are spread over several sockets by their addresses (see ``QueueNumbers``), with equal shares. So a flow that
sends more than the worker can decide costs only the flows of the same socket. The sockets share the room for parked
packets, too: a queue that is alone in being full may be as long as one for all known flows would be. When several stay
full, each has its part. Otherwise a flood of unsegmented packets could occupy gigabytes of the kernel's memory.
"""

from collections.abc import Collection, Sequence, Set

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.queue.protocol import BATCH, QUEUE_MAXLEN, BatchTimer, Queue, QueueNumbers

# Openings in a batch after one that has not emptied the queue. The kernel limits the rate of openings within budgets.
# The rate of excess openings depends on the senders alone, so they have the smallest share.
_OPENINGS_SHARE, _EXCESS_SHARE = 8, 2
_SMALL = 16  # packets in a batch of one of many queues for known flows
_CALM = 1.0  # s without as many full queues, until their parts grow again: each change costs some 50 µs


class _OpeningTurn:
    """Opening turn: one queue of openings, and the size of its next batch."""

    def __init__(self, queue: Queue, share: int) -> None:
        self._queue = queue
        self._share = share
        self._limit = BATCH

    def take(self, timer: BatchTimer | None) -> bool:
        """Return verdicts for one batch of waiting packets; return whether more may wait."""
        more = timer(self._queue, self._limit) if timer else self._queue.process_batch(self._limit)
        self._limit = self._share if more else min(BATCH, self._limit + 1)  # slowly: a flood that pauses is still one
        return more


class Room:
    """Room: the length of each queue for known flows, a power of two."""

    def __init__(self) -> None:
        """Begin with no full queue."""
        self.length = QUEUE_MAXLEN
        self._growth = 0.0  # time until which the parts do not grow

    def divide(self, full: int, now: float) -> bool:
        """Divide the room among so many full queues; return whether the length has changed."""
        length = QUEUE_MAXLEN >> max(full - 1, 0).bit_length()
        if length <= self.length:
            self._growth = now + _CALM
        elif now < self._growth:
            return False
        changed, self.length = length != self.length, length
        return changed


class PriorityQueues:
    """Priority queues: all queues of one worker, by priority."""

    def __init__(self, driver: Driver, numbers: QueueNumbers, queues: Sequence[Queue]) -> None:
        """Take bound queues of a driver, those of known flows first, then those of openings and excess."""
        self.driver = driver
        self.numbers = numbers
        self._queues = queues
        *self._known, openings, excess = queues
        self._places = {queue.fileno(): place for place, queue in enumerate(self._known)}
        self._openings = {
            excess.fileno(): _OpeningTurn(excess, _EXCESS_SHARE),
            openings.fileno(): _OpeningTurn(openings, _OPENINGS_SHARE),
        }
        self._room = Room()
        # places of queues for known flows since the last division of the room
        self._unfinished: set[int] = set()  # after a turn that has not emptied them
        self._emptied: set[int] = set()
        self._full: set[int] = set()  # before the last division: not emptied by any turn

    @property
    def requeues(self) -> bool:
        """Return whether the worker has further queues, to which the verdicts REQUEUE_* send a packet."""
        return self.driver is Driver.NETLINK

    @property
    def filenos(self) -> Set[int]:
        """Return the descriptors that are readable while packets wait."""
        return self._places.keys() | self._openings.keys()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the connmarks that the verdicts OFFLOAD_* request (see ``rules.connmark``)."""
        for queue in self._queues:
            queue.epoch = epoch

    def process_ready(self, ready: Collection[int], timer: BatchTimer | None = None) -> bool:
        """Return verdicts for one batch of each queue with a readable descriptor; return whether more may wait.

        Other descriptors are ignored. With a ``timer`` each batch is measured. The first packets of a flow may still
        wait as openings when the verdict on one of them makes the next ones packets of a known flow. So openings are
        decided first, and once more: those that arrived before the verdicts.
        """
        more = False
        for descriptor, turn in self._openings.items():
            if descriptor in ready and (turn.take(timer) or turn.take(timer)):
                more = True
        places = sorted(self._places[descriptor] for descriptor in ready if descriptor in self._places)
        return self._process_known(places, timer) or more

    def _process_known(self, places: Sequence[int], timer: BatchTimer | None) -> bool:
        """Return verdicts for one batch of each of these queues; return whether more may wait.

        The batch of a queue that is alone is large, which saves system calls and costs no other queue a wait.
        """
        more, limit = False, max(_SMALL, BATCH // max(len(places), 1))
        for place in places:
            queue = self._known[place]
            if timer(queue, limit) if timer else queue.process_batch(limit):
                more = True
                self._unfinished.add(place)
            else:
                self._emptied.add(place)
        return more

    def divide_room(self, now: float) -> None:
        """Divide the room for parked packets among the queues for known flows that stay full, since one division."""
        full = self._unfinished - self._emptied
        if self._room.divide(len(full & self._full), now):
            for queue in self._known:
                queue.set_max_length(self._room.length)
        self._full = full
        self._unfinished.clear()
        self._emptied.clear()

    def close(self) -> None:
        """Unbind the queues; the kernel drops packets that are still parked."""
        for queue in self._queues:
            queue.close()
