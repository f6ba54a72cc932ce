"""Notification of the service manager: sd_notify(3), sd_watchdog_enabled(3)."""

import os
import socket
from contextlib import suppress


def ready() -> None:
    """Report that every packet receives a verdict: a line ``ready`` on standard output, READY=1 to systemd."""
    print("ready", flush=True)
    _send(b"READY=1")


def stopping() -> None:
    """Report that the agent ends, so that it needs no further heartbeat."""
    with suppress(OSError):
        _send(b"STOPPING=1")


def watchdog() -> None:
    """Send a heartbeat: the agent works."""
    with suppress(OSError):  # a manager that restarts, or has no room: the next heartbeat follows soon
        _send(b"WATCHDOG=1")


def watchdog_limit() -> float | None:
    """Return the time, in seconds, within which systemd expects a heartbeat; None if it expects none of this process.

    WATCHDOG_PID is the process that systemd started; a process with another id has merely inherited the variables.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isascii() or not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1_000_000


def _send(state: bytes) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)  # @: an abstract socket
            notify.setblocking(False)
            notify.send(state)
