"""Latency of verdicts: measured for all packets of some batches, which costs the others a comparison.

The time runs from the moment at which the worker begins to read a batch until its verdicts are sent, so it is the
longest that a packet of the batch may have taken. The time in the queue before that is not in it: the kernel gives
packets a timestamp only while a program asks for timestamps of all packets (``net_enable_timestamp``). In the system
call that sends the verdicts the kernel carries the packets on, up to the next queue.
"""

from collections.abc import Callable

from nfq_enforcer.dataplane.queue.protocol import BatchTimer, Queue
from nfq_enforcer.dataplane.worker.counters import Counters

TURNS = 16  # turns of the worker's loop, of which one is measured


class LatencySample:
    """Latency sample: measures each batch of one in ``TURNS`` turns."""

    def __init__(self, counters: Counters, clock: Callable[[], float]) -> None:
        """Set the counters, which have the histogram, and the clock in seconds."""
        self._counters = counters
        self._clock = clock
        self._turn = 0

    def next_turn(self) -> BatchTimer | None:
        """Return the function that processes and measures a batch, None for a turn that is not measured."""
        self._turn += 1
        if self._turn < TURNS:
            return None
        self._turn = 0
        return self._process_batch

    def _process_batch(self, queue: Queue, limit: int) -> bool:
        """Return verdicts for a batch, as ``Queue.process_batch`` does; count its packets by their latency."""
        counters, begin = self._counters, self._clock()
        before = counters.verdicts
        more = queue.process_batch(limit)
        if packets := counters.verdicts - before:
            counters.count_latency(self._clock() - begin, packets)
        return more
