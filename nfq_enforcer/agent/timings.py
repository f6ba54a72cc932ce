"""Timings of the reconciler, of the rules guard, and of the watches for addresses and bridges."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReconcilerTimings:
    """Timings: intervals in seconds, and the size of a batch."""

    recheck: float = 1.0  # longest time for which open flows may pass by the peers of before a change
    offload_recheck: float = 60.0  # forces offloaded flows back through the queue (datapath per-flow)
    retry: float = 0.15  # from a reconciliation that failed to the next attempt; doubled by each further failure
    longest_retry: float = 2.0
    failure_check: float = 1.0  # longest time until a failure outside of ``run`` is found, and retried
    batch: int = 1000  # changes applied to the replica before other tasks run


@dataclass(frozen=True)
class GuardTimings:
    """Timings of the rules guard, in seconds."""

    interval: float = 1.0  # between two checks without a notification
    pause: float = 0.1  # shortest time between two checks
    log_lines: int = 5  # of repairs with the same faults, within ``log_period``
    log_period: float = 60.0


@dataclass(frozen=True)
class LookTimings:
    """Timings of looks at the host's addresses, or at its bridges, in seconds."""

    interval: float = 5.0  # between two reads without a notification
    pause: float = 0.2  # shortest time between two reads
    busy: float = 0.1  # part of the time that reads may take: a host with many addresses or ports is read less often
