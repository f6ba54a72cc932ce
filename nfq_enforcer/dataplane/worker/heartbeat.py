"""Check of a worker's heartbeat by the agent: reads the shared counter and ``/proc/PID/stat`` at an interval."""

import asyncio
import os
import time
from pathlib import Path

from nfq_enforcer.dataplane.worker.counters import Counters
from nfq_enforcer.dataplane.worker.liveness import Liveness, ProcessSample, parse_stat
from nfq_enforcer.dataplane.worker.timings import WorkerTimings

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Heartbeat:
    """Heartbeat: the liveness of one worker, through all its processes."""

    def __init__(self, counters: Counters, timings: WorkerTimings) -> None:
        """Set the counters that the worker writes; check nothing yet."""
        self._counters = counters
        self._timings = timings
        self._liveness: Liveness | None = None
        self.bound = False  # the process has bound its queues
        self._worked = time.monotonic()  # the last time at which the worker had bound queues and sent heartbeats

    async def stuck(self, pid: int) -> str:
        """Check the heartbeat of a new process until the process is stuck; return the evidence."""
        timings, self.bound = self._timings, False
        self._liveness = starting = Liveness(time.monotonic(), timings.heartbeat_at_start, timings.heartbeat_check)
        while not self._liveness.stuck:
            await asyncio.sleep(timings.heartbeat_check)
            now = time.monotonic()
            if self.bound and self._liveness is starting:
                self._liveness = Liveness(now, timings.heartbeat, timings.heartbeat_check)
            # A process that has ended has no such file; its end is noticed elsewhere.
            sample = _sample(pid) or ProcessSample("Z", 0.0)
            self._liveness.check(now, self._counters.beats, sample, starting=not self.bound)
            if self.working:
                self._worked = self._liveness.last_beat
        return self._liveness.reason

    @property
    def working(self) -> bool:
        """Return whether the worker has bound its queues and sends heartbeats, while its process runs."""
        return self.bound and self._liveness is not None and self._liveness.working

    @property
    def evidence(self) -> str:
        """Return the reason why the worker does not work, while its process runs."""
        if self._liveness is None or self._liveness.working:
            return "the process has not bound its queues yet"
        return self._liveness.reason

    @property
    def worked(self) -> float:
        """Return the last time at which the worker worked, in seconds since the epoch."""
        return time.time() - (time.monotonic() - self._worked)


def _sample(pid: int) -> ProcessSample | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(), _CLOCK_TICKS)
    except OSError:
        return None
