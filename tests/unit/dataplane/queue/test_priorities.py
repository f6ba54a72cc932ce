"""The queues of a worker take turns: openings first, each with its share while it stays full."""

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.queue.priorities import PriorityQueues, Room
from nfq_enforcer.dataplane.queue.protocol import BATCH, KNOWN_QUEUES, QUEUE_MAXLEN, allocate_queues

Log = list[tuple[int, int]]  # descriptor of a queue, decided packets


class Waiting:
    """A queue with so many packets, in the log of decided batches."""

    def __init__(self, number: int, log: Log, packets: int) -> None:
        self.epoch = 0
        self.packets = packets
        self.closed = False
        self.length = QUEUE_MAXLEN
        self._number = number
        self._log = log

    def fileno(self) -> int:
        return self._number

    def process_batch(self, limit: int = BATCH) -> bool:
        decided = min(limit, self.packets)
        self._log.append((self._number, decided))
        self.packets -= decided
        return decided == limit

    def set_max_length(self, length: int) -> None:
        self.length = length

    def close(self) -> None:
        self.closed = True


OPENINGS, EXCESS = 100, 101


def priorities(*known: int, openings: int = 0, excess: int = 0) -> tuple[PriorityQueues, list[Waiting], Log]:
    """Return the queues of known flows (from 1 on), openings and excess with these packets, and their log."""
    log: Log = []
    numbers = (*range(1, len(known) + 1), OPENINGS, EXCESS)
    queues = [
        Waiting(number, log, packets) for number, packets in zip(numbers, (*known, openings, excess), strict=True)
    ]
    return PriorityQueues(Driver.NETLINK, allocate_queues(100, 1)[0], queues), queues, log


def test_openings_are_decided_before_known_flows_and_once_more() -> None:
    queues, _, log = priorities(5, openings=3, excess=1)

    assert not queues.process_ready([1, OPENINGS, EXCESS])
    assert log == [(EXCESS, 1), (EXCESS, 0), (OPENINGS, 3), (OPENINGS, 0), (1, 5)]


def test_openings_that_stay_full_have_their_share_of_each_turn() -> None:
    queues, _, log = priorities(1000, openings=1000, excess=1000)

    assert queues.process_ready([1, OPENINGS, EXCESS])
    assert queues.process_ready([1, OPENINGS, EXCESS])
    assert log == [(EXCESS, BATCH), (OPENINGS, BATCH), (1, BATCH), (EXCESS, 2), (OPENINGS, 8), (1, BATCH)]


@pytest.mark.parametrize(("number", "batch"), [(1, 64), (2, 32), (3, 21), (4, 16), (16, 16)])
def test_queues_of_known_flows_have_equal_and_small_batches(number: int, batch: int) -> None:
    queues, _, log = priorities(*[1000] * number)

    assert queues.process_ready(range(number, 0, -1))
    assert log == [(place, batch) for place in range(1, number + 1)]


def test_a_queue_gets_its_full_batch_back_slowly() -> None:
    queues, (_, openings, _), log = priorities(0, openings=1000)
    queues.process_ready([OPENINGS])
    openings.packets = 0
    queues.process_ready([OPENINGS])  # empty, twice: the next limit is 10
    openings.packets = 1000
    queues.process_ready([OPENINGS])

    assert log[-1] == (OPENINGS, 10)


def test_queues_of_known_flows_that_stay_full_share_the_room_of_one() -> None:
    queues, each, _ = priorities(*[1000] * 3, 1, openings=1000)
    lengths = []
    for now in (0.0, 0.1):
        queues.process_ready([1, 2, 3, 4, OPENINGS])
        queues.divide_room(now)
        lengths.append([queue.length for queue in each])

    assert lengths == [[QUEUE_MAXLEN] * 6, [1024] * 4 + [QUEUE_MAXLEN] * 2]


def test_a_queue_that_was_empty_in_between_does_not_count_as_full() -> None:
    queues, (first, second, *_), _ = priorities(1000, 1000)
    for now in (0.0, 0.1):
        queues.process_ready([1, 2])
        second.packets = 0
        queues.process_ready([2])
        second.packets = 1000
        queues.divide_room(now)

    assert first.length == QUEUE_MAXLEN


@pytest.mark.parametrize("full", range(KNOWN_QUEUES + 1))
def test_the_parts_of_full_queues_are_no_more_than_the_whole(full: int) -> None:
    room = Room()
    room.divide(full, 0.0)

    assert max(1, full) * room.length <= QUEUE_MAXLEN < 2 * max(1, full) * room.length


def test_the_parts_grow_after_a_second_without_as_many_full_queues() -> None:
    room = Room()

    assert [
        (room.divide(full, now), room.length) for full, now in [(1, 0.0), (4, 0.1), (4, 0.5), (1, 1.4), (1, 1.6)]
    ] == [
        (False, 4096),
        (True, 1024),
        (False, 1024),
        (False, 1024),
        (True, 4096),
    ]


def test_only_queues_that_are_ready_are_read() -> None:
    queues, _, log = priorities(1, 1, openings=1, excess=1)

    assert not queues.process_ready([1, 99])
    assert log == [(1, 1)]


def test_all_queues_have_the_epoch_and_are_closed() -> None:
    queues, each, _ = priorities(0, 0)
    queues.set_epoch(7)
    queues.close()

    assert [(queue.epoch, queue.closed) for queue in each] == [(7, True)] * 4
    assert queues.filenos == {1, 2, OPENINGS, EXCESS}
