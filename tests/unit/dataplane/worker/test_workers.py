"""Several workers: how many there are, and which queues are whose."""

import os

import pytest

from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, in_rows, most_workers
from nfq_enforcer.dataplane.worker import workers


@pytest.mark.parametrize(
    ("cores", "first_queue", "number"),
    [(1, 100, 1), (2, 100, 1), (3, 100, 1), (4, 100, 2), (16, 100, 8), (64, 100, 8), (64, 65530, 2), (64, 65533, 1)],
)
def test_half_of_the_cores_judge_as_far_as_there_are_numbers(
    monkeypatch: pytest.MonkeyPatch, cores: int, first_queue: int, number: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))

    assert workers.fitting(first_queue) == number


def test_each_kind_of_queue_is_in_a_row() -> None:
    assert in_rows(100, 1) == (QueueNumbers(100, 101, 102),)
    assert in_rows(100, 3) == (QueueNumbers(100, 103, 106), QueueNumbers(101, 104, 107), QueueNumbers(102, 105, 108))


@pytest.mark.parametrize(("first_queue", "number"), [(0, 21845), (65527, 3), (65528, 2), (65533, 1)])
def test_no_queue_has_a_number_that_there_is_not(first_queue: int, number: int) -> None:
    assert most_workers(first_queue) == number
    assert in_rows(first_queue, number)[-1].segmented <= 65535 < in_rows(first_queue, number + 1)[-1].segmented
