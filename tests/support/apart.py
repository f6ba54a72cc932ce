"""Scenarios in a network namespace of their own, with a loopback interface only, removed at the scenario's end."""

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def run_apart(scenario: Coroutine[Any, Any, T], *addresses: str) -> T:
    """Run a scenario in a new namespace whose loopback has these addresses too; return its result.

    unshare(2) applies to the calling thread, so a new thread runs the scenario; processes that the scenario starts are
    in the same namespace.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run, scenario, addresses).result()


def _run(scenario: Coroutine[Any, Any, T], addresses: tuple[str, ...]) -> T:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        scenario.close()
        raise OSError(ctypes.get_errno(), f"no network namespace: {os.strerror(ctypes.get_errno())}")
    lines = ["link set lo up", *(f"address add {address} dev lo" for address in addresses)]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    return asyncio.run(scenario)


def call_in(namespace: str, function: Callable[[], T]) -> T:
    """Call a function in a network namespace by its name, in a new thread, because setns(2) is for a thread."""

    def call() -> T:
        enter(Path("/run/netns", namespace))
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def enter(namespace: Path) -> None:
    """Move this thread into the network namespace of a file, as those in /run/netns."""
    with namespace.open() as file:
        if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
