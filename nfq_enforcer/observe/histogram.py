"""Histogram of durations, as Prometheus has it. Pure."""

from bisect import bisect_left

from nfq_enforcer.observe.status import HistogramStatus

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Histogram: durations by bucket, from 5 ms to a minute, and their sum."""

    def __init__(self, bounds: tuple[float, ...] = _BOUNDS) -> None:
        """Begin empty; ``bounds``: the upper bounds of the buckets in s, to which one without a bound is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def read(self) -> HistogramStatus:
        """Return the present numbers."""
        return HistogramStatus(self._bounds, tuple(self._counts), self._sum)
