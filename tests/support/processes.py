"""Processes that tests stop for a while."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.dataplane.worker.liveness import parse_stat


class Effort(NamedTuple):
    """Effort: the work of a process until a time, or between two times."""

    elapsed: float  # s
    cpu: float  # s of processor time of all threads
    wake_ups: int  # of the main thread, each after a wait

    @classmethod
    def of(cls, pid: int) -> "Effort":
        """Return the effort of a process so far."""
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        cpu = parse_stat((folder / "stat").read_text(), os.sysconf("SC_CLK_TCK")).cpu
        return cls(time.monotonic(), cpu, int(status["voluntary_ctxt_switches"]))

    def since(self, before: "Effort") -> "Effort":
        """Return the effort since an earlier time."""
        elapsed, cpu = self.elapsed - before.elapsed, self.cpu - before.cpu
        return Effort(elapsed, cpu, self.wake_ups - before.wake_ups)

    @property
    def text(self) -> str:
        """Return the effort in words."""
        used = f"used {self.cpu:.2f} s of a processor in {self.elapsed:.1f} s"
        return f"{used}, woke up {self.wake_ups} times"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process (SIGSTOP) for the duration of the context; it may end meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def on_one_processor(*pids: int) -> Iterator[None]:
    """Confine this thread and processes of one thread to one processor.

    The packets that they send then stay in order: each processor has a queue of its own for packets that a veth
    delivers (netif_rx, net/core/dev.c), and one that has no time keeps them, while those of another arrive.
    """
    before = {pid: os.sched_getaffinity(pid) for pid in (0, *pids)}
    processor = min(before[0])
    try:
        for pid in before:
            os.sched_setaffinity(pid, {processor})
        yield
    finally:
        for pid, processors in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(pid, processors)


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended; one that its parent has not waited for yet has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
