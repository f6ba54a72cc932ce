"""Several workers: their number, and the queue numbers of each."""

import os

import pytest

from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, allocate_queues, max_workers
from nfq_enforcer.dataplane.worker import workers


@pytest.mark.parametrize(
    ("cores", "first_queue", "number"),
    [(1, 100, 1), (2, 100, 1), (3, 100, 1), (4, 100, 2), (16, 100, 8), (64, 100, 8), (64, 65530, 2), (64, 65533, 1)],
)
def test_half_of_the_cores_judge_as_far_as_there_are_numbers(
    monkeypatch: pytest.MonkeyPatch, cores: int, first_queue: int, number: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))

    assert workers.default_number(first_queue) == number


def test_each_kind_of_queue_is_in_a_row() -> None:
    assert allocate_queues(100, 1) == (QueueNumbers(100, 101, 102),)
    assert allocate_queues(100, 3) == (
        QueueNumbers(100, 103, 106),
        QueueNumbers(101, 104, 107),
        QueueNumbers(102, 105, 108),
    )


@pytest.mark.parametrize(("first_queue", "number"), [(0, 21845), (65527, 3), (65528, 2), (65533, 1)])
def test_no_queue_has_a_number_that_there_is_not(first_queue: int, number: int) -> None:
    assert max_workers(first_queue) == number
    assert (
        allocate_queues(first_queue, number)[-1].segmented
        <= 65535
        < allocate_queues(first_queue, number + 1)[-1].segmented
    )
