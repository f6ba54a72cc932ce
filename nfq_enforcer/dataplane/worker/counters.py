"""Counters and heartbeat of one worker, in memory that it shares with the agent, so that they outlive the worker.

A row of numbers: the plain counters, drops by direction and reason, new flows by direction and verdict, the latency of
verdicts by bucket, and the heartbeat.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict

ACCEPTED, DROPPED, EVENTS_LOST, INTERNAL_ERRORS, FLOWS, FLOWS_EVICTED, OFFLOADED, STAMPS_MADE, STAMPS_READ = range(9)
_PLAIN = (
    *("accepted", "dropped", "events_lost", "internal_errors", "flows", "flows_evicted", "handed_over"),
    *("stamps_made", "stamps_read", "latency_ns"),
)
_LATENCY_NS = len(_PLAIN) - 1

UNKNOWN_DIRECTION = "unknown"
DIRECTIONS = (*map(str, Direction), UNKNOWN_DIRECTION)
FLOW_VERDICTS = (FlowVerdict.FORWARDED, FlowVerdict.AUDIT)
LATENCY_BOUNDS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3)  # s; then infinity
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in LATENCY_BOUNDS)

_DROPS = len(_PLAIN)
_NEW_FLOWS = _DROPS + len(DropReason) * len(DIRECTIONS)
_LATENCY = _NEW_FLOWS + len(FLOW_VERDICTS) * len(Direction)
_HEARTBEAT = _LATENCY + len(LATENCY_BOUNDS) + 1
_BYTES = 8 * (_HEARTBEAT + 1)

_OF_REASON = {reason: _DROPS + place * len(DIRECTIONS) for place, reason in enumerate(DropReason)}
# a comparison by identity is faster than a look-up of a member of an enum
_INGRESS, _EGRESS, _FORWARDED = Direction.INGRESS, Direction.EGRESS, FlowVerdict.FORWARDED


def drops_name(direction: str, reason: DropReason) -> str:
    """Return the name of a counter of drops."""
    return f"{direction} {reason}"


def flows_name(direction: Direction, verdict: FlowVerdict) -> str:
    """Return the name of a counter of new flows."""
    return f"{direction} {verdict} flows"


def latency_name(place: int) -> str:
    """Return the name of the counter of packets in one bucket: their latency is within its bound, and no lower one."""
    return f"latency {place}"


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

    def count_drop(self, reason: DropReason, direction: Direction | None) -> None:
        """Count a drop, in total and by direction and reason; None: the direction is not known."""
        self.row[DROPPED] += 1
        self.row[_OF_REASON[reason] + (0 if direction is _INGRESS else 1 if direction is _EGRESS else 2)] += 1

    def count_flow(self, verdict: FlowVerdict, direction: Direction) -> None:
        """Count a new flow, which policy allows (FORWARDED) or would refuse without audit mode (AUDIT)."""
        self.row[_NEW_FLOWS + (0 if verdict is _FORWARDED else 2) + (0 if direction is _INGRESS else 1)] += 1

    def count_latency(self, seconds: float, packets: int) -> None:
        """Count packets by the time until their verdicts were sent."""
        nanoseconds = int(seconds * 1e9)
        self.row[_LATENCY_NS] += nanoseconds * packets
        self.row[_LATENCY + bisect_left(_BOUNDS_NS, nanoseconds)] += packets

    def read(self) -> Mapping[str, int]:
        """Return all counters by name, and the sum of the drops of each reason by its name."""
        row = self.row.tolist()
        drops = {str(reason): sum(row[first : first + len(DIRECTIONS)]) for reason, first in _OF_REASON.items()}
        return dict(zip(_NAMES, row, strict=False)) | drops

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


def _names() -> Iterator[str]:
    yield from _PLAIN
    yield from (drops_name(direction, reason) for reason in DropReason for direction in DIRECTIONS)
    yield from (flows_name(direction, verdict) for verdict in FLOW_VERDICTS for direction in Direction)
    yield from map(latency_name, range(len(LATENCY_BOUNDS) + 1))


_NAMES = tuple(_names())
