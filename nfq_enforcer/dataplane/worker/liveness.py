"""Liveness of a worker: its heartbeat, and the evidence that distinguishes a stuck worker from a starved one. Pure.

A worker increments its heartbeat, a number in the memory that it shares with the agent, after every batch of packets
and in every run of housekeeping, so at least every ``idle`` seconds. The agent compares the number at a fixed interval.
An interval without a heartbeat counts against the worker by the time in which the worker could have sent one:

- The process sleeps, is stopped or waits for a device: the length of the interval counts. A longer interval counts as
  two, so that a suspended machine, or an agent that was itself without a processor, accuses no worker.
- The process is runnable (state R): three times the processor time that it used counts, at most the interval. A worker
  that works needs some milliseconds of it for a heartbeat, so a third of a second is the evidence of an endless loop,
  also where others leave it only a third of a processor. A worker that waits for a processor accumulates nothing: a new
  process would get no more of the processor, and would lose the parked packets.

A worker is stuck, and is killed and replaced, once the counted time reaches a limit. While it starts, used processor
time is a heartbeat, because the import of modules has no other; a deadline for the start limits an endless loop.
"""

from typing import NamedTuple

_WEIGHT_OF_CPU = 3.0


class ProcessSample(NamedTuple):
    """Process sample: the state and the processor time of a process (proc(5), ``/proc/PID/stat``)."""

    state: str  # R running or runnable, S sleeping, D waiting for a device, T stopped, t traced, Z ended
    cpu: float  # s, user and system


STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "ended",
}


def parse_stat(text: str, ticks: int) -> ProcessSample:
    """Read a line of ``/proc/PID/stat``; ``ticks`` is the number of clock ticks in a second.

    The second field is the name in parentheses, which may contain any character, parentheses too.
    """
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessSample(fields[0], (int(fields[11]) + int(fields[12])) / ticks)


class Liveness:
    """Liveness: the heartbeat of one worker process, as seen at the checks so far."""

    def __init__(self, now: float, limit: float, interval: float) -> None:
        """Begin with a heartbeat; ``limit`` is the counted time of a stuck worker, both in seconds."""
        self._limit = limit
        self._longest = 2 * interval
        self._checked = now
        self._beats = -1
        self._cpu = 0.0
        self.state = "S"
        self.last_beat = now
        self.silent = 0.0  # counted time since the last heartbeat

    def check(self, now: float, beats: int, sample: ProcessSample, *, starting: bool = False) -> None:
        """Add the interval since the last check."""
        used, elapsed = sample.cpu - self._cpu, min(now - self._checked, self._longest)
        if beats != self._beats or (starting and used > 0):
            self.last_beat, self.silent = now, 0.0
        else:
            self.silent += min(_WEIGHT_OF_CPU * used, elapsed) if sample.state == "R" else elapsed
        self._checked, self._beats, self._cpu, self.state = now, beats, sample.cpu, sample.state

    @property
    def working(self) -> bool:
        """Return whether the last heartbeat is recent: less than half the limit counts since then."""
        return self.silent < self._limit / 2

    @property
    def stuck(self) -> bool:
        """Return whether the worker has to be replaced."""
        return self.silent >= self._limit

    @property
    def reason(self) -> str:
        """Return the evidence in words."""
        return f"no heartbeat for {self._checked - self.last_beat:.1f} s, process {STATES.get(self.state, self.state)}"
