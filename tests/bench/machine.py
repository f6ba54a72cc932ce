"""Description of the machine of a run, limited to properties that affect the figures."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def describe() -> dict[str, str]:
    """Return the machine's hardware and software, without names of its owner."""
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(_first(r'MemTotal: *([0-9]+)', Path('/proc/meminfo').read_text())) / (1 << 20):.0f} GiB",
        # Without the suffix, which names a distribution or a provider rather than the kernel.
        "kernel": f"{platform.system()} {_first(r'([0-9.]+)', platform.release())}",
        "python": platform.python_version(),
        "iptables": subprocess.run(["iptables", "-V"], check=True, capture_output=True, text=True).stdout.split()[1],
    }


def sentence(described: Mapping[str, str]) -> str:
    """Render a description on one line."""
    return ", ".join(f"{name} {value}" for name, value in described.items())


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""
