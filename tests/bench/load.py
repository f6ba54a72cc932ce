"""Load of a client: its rate and its cost, and its program in a network namespace."""

import subprocess
from collections.abc import Sequence
from typing import NamedTuple


class Load(NamedTuple):
    """Load: the rate of requests, and the CPU time of the measured processes for each, in µs."""

    rate: float
    cpu_us: float


def run_in_namespace(namespace: str, argv: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run a program in a network namespace by its name; return its output, whatever its status."""
    command = ["ip", "netns", "exec", namespace, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
