"""Several workers: their number, and the queue numbers of each."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.dataplane.queue.protocol import KNOWN_QUEUES, QueueNumbers, allocate_queues, max_workers
from nfq_enforcer.dataplane.worker import workers


@pytest.mark.parametrize(
    ("cores", "first_queue", "number"),
    [(1, 100, 1), (2, 100, 1), (3, 100, 1), (4, 100, 2), (16, 100, 8), (64, 100, 8), (64, 65436, 2), (64, 65486, 1)],
)
def test_half_of_the_cores_judge_as_far_as_there_are_numbers(
    monkeypatch: pytest.MonkeyPatch, cores: int, first_queue: int, number: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))

    assert workers.default_number(first_queue) == number


def test_each_kind_of_queue_is_in_a_row() -> None:
    assert allocate_queues(100, 1) == (QueueNumbers(100, 116, 132, 148, 149),)
    assert allocate_queues(100, 3) == (
        QueueNumbers(100, 148, 196, 244, 247),
        QueueNumbers(116, 164, 212, 245, 248),
        QueueNumbers(132, 180, 228, 246, 249),
    )
    assert sorted(number for one in allocate_queues(100, 3) for number in one.all) == list(range(100, 250))


@given(st.integers(0, (1 << 32) - 1), st.integers(1, 256))
def test_a_flow_reaches_the_same_worker_by_each_kind_of_queue(hashed: int, workers: int) -> None:
    numbers = allocate_queues(0, workers)

    def balanced(first: int, length: int) -> int:
        """Return the queue by ``nfqueue_hash`` and ``reciprocal_scale`` of the kernel."""
        return first + (hashed * length >> 32)

    (worker,) = (one for one in numbers if one.openings == balanced(numbers[0].openings, workers))
    places = [balanced(first, workers * KNOWN_QUEUES) for first in (numbers[0].headers, numbers[0].whole)]

    assert worker.excess == balanced(numbers[0].excess, workers)
    assert [(*places, places[1] - worker.whole + worker.segmented)] == [
        place for place in worker.places() if place[0] == places[0]
    ]


@pytest.mark.parametrize(("first_queue", "number"), [(0, 1310), (65386, 3), (65387, 2), (65486, 1)])
def test_no_queue_has_a_number_that_there_is_not(first_queue: int, number: int) -> None:
    assert max_workers(first_queue) == number
    assert (
        allocate_queues(first_queue, number)[-1].excess <= 65535 < allocate_queues(first_queue, number + 1)[-1].excess
    )
