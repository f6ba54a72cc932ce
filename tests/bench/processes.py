"""CPU time and memory of processes, and counters of the machine, read from /proc."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from nfq_enforcer.dataplane.queue.protocol import read_queues

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Memory: the resident memory of a process, in MiB."""

    now: float
    peak: float


def cpu(pid: int) -> float:
    """Return the CPU time of a process in seconds, in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime, see proc(5)


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    pids = [root]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids


def tree_cpu(root: int) -> float:
    """Return the CPU time of a process and its descendants in seconds, including descendants that have ended."""
    return sum(sum(_times(pid)) for pid in tree(root)) / _TICKS


def tree_memory(root: int) -> float:
    """Return the memory of a process and its descendants in MiB; shared memory counts once (PSS)."""
    lines = [line for pid in tree(root) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class CpuTimes(NamedTuple):
    """CpuTimes: the times of all cores together, in seconds."""

    softirq: float
    idle: float
    all: float

    @classmethod
    def read(cls) -> Self:
        """Return the times since the machine's boot."""
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(field) for field in line.split()[1:9]]  # guest times are part of the user times, see proc(5)
        return cls(ticks[6] / _TICKS, (ticks[3] + ticks[4]) / _TICKS, sum(ticks) / _TICKS)

    def since(self, before: "CpuTimes") -> "CpuTimes":
        """Return the times between two moments."""
        return CpuTimes(*(now - then for now, then in zip(self, before, strict=True)))


def busy(seconds: float) -> float:
    """Return the share of all cores that is not idle; call it while no process of the measurement runs."""
    before = CpuTimes.read()
    time.sleep(seconds)
    spent = CpuTimes.read().since(before)
    return 1 - spent.idle / spent.all


class QueueCounters(NamedTuple):
    """QueueCounters: packets queued in a namespace, and packets lost there."""

    packets: int
    lost: int

    @classmethod
    def read(cls, pid: int) -> Self:
        """Return the sums over all queues in the namespace of a process."""
        queues = read_queues(pid)
        return cls(sum(queue.last_id for queue in queues), sum(queue.lost for queue in queues))


def _times(pid: int) -> list[int]:
    """Return utime, stime, cutime and cstime in ticks, see proc(5); an empty list for a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return list(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return []


def memory(pid: int) -> Memory:
    """Return the memory of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))
