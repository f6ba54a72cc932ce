"""What a process costs, as /proc says."""

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """What a process has in memory, in MiB."""

    now: float
    most: float  # that it ever had


def cpu(pid: int) -> float:
    """Return the seconds that a process has computed, in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime, see proc(5)


def memory(pid: int) -> Memory:
    """Return what a process has in memory."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))
