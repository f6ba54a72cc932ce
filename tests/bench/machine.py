"""The machine that a run is on, as far as figures depend on it."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def describe() -> dict[str, str]:
    """Return what the machine is; not whose."""
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(_first(r'MemTotal: *([0-9]+)', Path('/proc/meminfo').read_text())) / (1 << 20):.0f} GiB",
        # What a distribution or a provider adds to the version names them, rather than the kernel.
        "kernel": f"{platform.system()} {_first(r'([0-9.]+)', platform.release())}",
        "python": platform.python_version(),
        "iptables": subprocess.run(["iptables", "-V"], check=True, capture_output=True, text=True).stdout.split()[1],
    }


def sentence(described: Mapping[str, str]) -> str:
    """Return it on one line."""
    return ", ".join(f"{name} {value}" for name, value in described.items())


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""
