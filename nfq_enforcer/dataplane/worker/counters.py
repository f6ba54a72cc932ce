"""Counters of one worker, in memory that it shares with the agent, so that they outlive the worker."""

import mmap
import os
from collections.abc import Mapping

from nfq_enforcer.core.verdict import DropReason

_NAMES = ("accepted", "dropped", "events_lost", "internal_errors", "flows", "flows_evicted", "handed_over", *DropReason)
_PLACES = {name: place for place, name in enumerate(_NAMES)}
_BYTES = 8 * len(_NAMES)

ACCEPTED, DROPPED, EVENTS_LOST, INTERNAL_ERRORS, FLOWS, FLOWS_EVICTED, OFFLOADED = range(7)


class Counters:
    """A row of unsigned 64-bit numbers; one process writes, others read."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind the descriptor, which stays the caller's to close."""
        self._map = mmap.mmap(descriptor, _BYTES)
        self.row = memoryview(self._map).cast("Q")

    @staticmethod
    def create() -> int:
        """Return a descriptor of new, zeroed memory of the right size, that child processes may inherit."""
        descriptor = os.memfd_create("nfq-enforcer-counters", 0)
        os.ftruncate(descriptor, _BYTES)
        return descriptor

    def count_drop(self, reason: DropReason) -> None:
        """Count a drop, by its reason too."""
        self.row[DROPPED] += 1
        self.row[_PLACES[reason]] += 1

    def read(self) -> Mapping[str, int]:
        """Return all numbers by name: those of the module, and the name of each drop reason."""
        return dict(zip(_NAMES, self.row, strict=True))

    @property
    def judged(self) -> int:
        """Return how many packets have had their verdict."""
        return self.row[ACCEPTED] + self.row[DROPPED]

    def close(self) -> None:
        """Unmap."""
        self.row.release()
        self._map.close()
