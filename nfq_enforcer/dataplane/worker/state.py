"""State of workers, as far as the agent reports it in its status."""

from collections.abc import Mapping
from typing import NamedTuple


class Stuck(NamedTuple):
    """Stuck: a worker that does not work, because it has no process, no queues or no heartbeat."""

    since: float  # s since the epoch: the last time at which it worked
    reason: str


class WorkerState(NamedTuple):
    """Worker state: process, queues and counters of one worker, or of all workers together."""

    queues: tuple[int, ...]  # queue numbers, ascending
    pid: int | None  # of the first worker, for all together; None while no process runs
    restarts: int
    failure: str | None  # reason why a worker cannot be replaced at the moment
    counters: Mapping[str, int]  # by name, see ``counters``
    stuck: Stuck | None  # of the first worker that does not work, for all together
