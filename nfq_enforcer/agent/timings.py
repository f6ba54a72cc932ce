"""Timings of the reconciler."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReconcilerTimings:
    """Timings: intervals in seconds, and the size of a batch."""

    recheck: float = 1.0  # longest time for which open flows may pass by the peers of before a change
    offload_recheck: float = 60.0  # forces offloaded flows back through the queue (datapath per-flow)
    retry: float = 0.15  # from a reconciliation that failed to the next attempt
    failure_check: float = 1.0  # longest time until a failure outside of ``run`` is found, and retried
    batch: int = 1000  # changes applied to the replica before other tasks run
