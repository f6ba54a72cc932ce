"""Counters and heartbeat of one worker, in memory that it shares with the agent, so that they outlive the worker."""

import mmap
import os
from collections.abc import Mapping

from nfq_enforcer.core.verdict import DropReason

_NAMES = ("accepted", "dropped", "events_lost", "internal_errors", "flows", "flows_evicted", "handed_over", *DropReason)
_INDEX = {name: index for index, name in enumerate(_NAMES)}
_HEARTBEAT = len(_NAMES)  # behind the counters
_BYTES = 8 * (_HEARTBEAT + 1)

ACCEPTED, DROPPED, EVENTS_LOST, INTERNAL_ERRORS, FLOWS, FLOWS_EVICTED, OFFLOADED = range(7)


class Counters:
    """Counters: a row of unsigned 64-bit numbers; one process writes it, others read it."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind the descriptor; closing the descriptor is left to the caller."""
        self._map = mmap.mmap(descriptor, _BYTES)
        self.row = memoryview(self._map).cast("Q")

    @staticmethod
    def create() -> int:
        """Return a descriptor of new, zeroed memory of the right size, which child processes may inherit."""
        descriptor = os.memfd_create("nfq-enforcer-counters", 0)
        os.ftruncate(descriptor, _BYTES)
        return descriptor

    def count_drop(self, reason: DropReason) -> None:
        """Count a drop, in total and by reason."""
        self.row[DROPPED] += 1
        self.row[_INDEX[reason]] += 1

    def read(self) -> Mapping[str, int]:
        """Return all counters by name: seven of the worker, and one for each drop reason."""
        return dict(zip(_NAMES, self.row, strict=False))

    def beat(self) -> None:
        """Increment the heartbeat; see ``liveness``."""
        self.row[_HEARTBEAT] += 1

    @property
    def beats(self) -> int:
        """Return the heartbeat."""
        return self.row[_HEARTBEAT]

    @property
    def verdicts(self) -> int:
        """Return the number of verdicts, one a packet."""
        return self.row[ACCEPTED] + self.row[DROPPED]

    def close(self) -> None:
        """Unmap the memory."""
        self.row.release()
        self._map.close()
