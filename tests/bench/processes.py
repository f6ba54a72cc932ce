"""What a process costs, as /proc says."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """What a process has in memory, in MiB."""

    now: float
    most: float  # that it ever had


def cpu(pid: int) -> float:
    """Return the seconds that a process has computed, in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime, see proc(5)


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def tree_cpu(root: int) -> float:
    """Return the seconds that a process and its descendants have computed, those that have ended included."""
    return sum(sum(_times(pid)) for pid in tree(root)) / _TICKS


def tree_memory(root: int) -> float:
    """Return what a process and its descendants have in memory, in MiB; what they share counts once (PSS)."""
    lines = [line for pid in tree(root) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class Machine(NamedTuple):
    """What all cores together have done, in seconds."""

    softirq: float
    idle: float
    all: float

    @classmethod
    def read(cls) -> Self:
        """Return what they have done since the machine was started."""
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(field) for field in line.split()[1:9]]  # without guests, who are in user's already, see proc(5)
        return cls(ticks[6] / _TICKS, (ticks[3] + ticks[4]) / _TICKS, sum(ticks) / _TICKS)

    def since(self, before: "Machine") -> "Machine":
        """Return what they have done between the two moments."""
        return Machine(*(after - ago for after, ago in zip(self, before, strict=True)))


def busy(seconds: float) -> float:
    """Return how busy the cores are with other things, as a share of all; nothing of ours may run."""
    before = Machine.read()
    time.sleep(seconds)
    spent = Machine.read().since(before)
    return 1 - spent.idle / spent.all


class Queued(NamedTuple):
    """What the queues of a namespace have seen."""

    packets: int
    lost: int

    @classmethod
    def read(cls, pid: int) -> Self:
        """Return the sums over all queues in the namespace of a process."""
        lines = Path(f"/proc/{pid}/net/netfilter/nfnetlink_queue").read_text().splitlines()
        rows = [list(map(int, line.split())) for line in lines]
        return cls(sum(row[7] for row in rows), sum(row[5] + row[6] for row in rows))


def _times(pid: int) -> list[int]:
    """Return utime, stime and those of children that have ended, in ticks, see proc(5); none of who is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return list(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return []


def memory(pid: int) -> Memory:
    """Return what a process has in memory."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))
