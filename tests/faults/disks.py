"""Disks of a lab's nodes for their last known states: small, and full or read-only when a test makes them so."""

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import NODES

_SIZE = "3m"


def state_of(lab: Lab, node: str) -> Path:
    """Return the folder of a node's last known state."""
    return lab.network.state / f"{node}-state"


@contextmanager
def small_disks(lab: Lab) -> Iterator[None]:
    """Give each node a small disk of its own for its state."""
    with contextlib.ExitStack() as mounts:
        for name in NODES:
            folder = state_of(lab, name)
            folder.mkdir(mode=0o700)
            _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder))
            mounts.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        yield


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder to the last byte."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make the disk of a folder read-only; no process may have a file open for writing there."""
    _mount("-o", "remount,ro", str(folder))
    try:
        yield
    finally:
        _mount("-o", "remount,rw", str(folder))
