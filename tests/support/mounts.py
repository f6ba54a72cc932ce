"""Mounts of an agent: ``ip netns exec`` gives each process of a lab a mount namespace of its own."""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode

_LOCK = Path("/run/xtables.lock")


def enter_mounts(pid: int, *command: str) -> None:
    """Run a command among the mounts of a process."""
    subprocess.run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", *command], check=True)


@contextmanager
def xtables_locked(lab: Lab, node: LabNode) -> Iterator[None]:
    """Hold the lock of iptables, as another program does, among the mounts of a node's agent."""
    file = lab.network.state / f"{node.name}-xtables.lock"
    _LOCK.touch()
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        enter_mounts(node.pid, "mount", "--bind", str(file), str(_LOCK))
        try:
            yield
        finally:
            enter_mounts(node.pid, "umount", "--lazy", str(_LOCK))  # a waiting program has it open
