"""Latency of verdicts: one of many turns is measured, each packet of its batches with the batch's time."""

import os
from collections.abc import Iterator
from itertools import count

import pytest

from nfq_enforcer.dataplane.worker.counters import ACCEPTED, Counters
from nfq_enforcer.dataplane.worker.latency import TURNS, LatencySample


@pytest.fixture
def counters() -> Iterator[Counters]:
    memory = Counters.create()
    row = Counters(memory)
    yield row
    row.close()
    os.close(memory)


class Batch:
    """Queue with one batch of so many packets."""

    epoch = 0

    def __init__(self, counters: Counters, packets: int) -> None:
        self._counters, self._packets = counters, packets
        self.limits: list[int] = []

    def fileno(self) -> int:
        return 1

    def process_batch(self, limit: int = 64) -> bool:
        self.limits.append(limit)
        self._counters.row[ACCEPTED] += self._packets
        return True

    def set_max_length(self, length: int) -> None:
        """Ignore the length."""

    def close(self) -> None:
        """Close nothing."""


def test_one_of_many_turns_is_measured(counters: Counters) -> None:
    sample = LatencySample(counters, lambda: 0.0)

    measured = [sample.next_turn() is not None for _ in range(3 * TURNS)]

    assert measured == ([False] * (TURNS - 1) + [True]) * 3


def test_each_packet_of_a_measured_batch_counts_with_its_time(counters: Counters) -> None:
    seconds = count(0.0, 0.004)
    sample, batch = LatencySample(counters, lambda: next(seconds)), Batch(counters, 5)
    timer = next(filter(None, (sample.next_turn() for _ in range(TURNS))))

    assert timer(batch, 7)

    found = counters.read()
    assert batch.limits == [7]
    assert (found["latency 7"], found["latency_ns"]) == (5, 20_000_000)


def test_a_batch_without_a_verdict_counts_nothing(counters: Counters) -> None:
    sample = LatencySample(counters, lambda: 0.0)
    timer = next(filter(None, (sample.next_turn() for _ in range(TURNS))))

    timer(Batch(counters, 0), 7)

    assert set(counters.read().values()) == {0}
