"""Notification of the service manager: sd_notify(3)."""

import os
import socket


def ready() -> None:
    """Report that every packet receives a verdict: a line ``ready`` on standard output, READY=1 to systemd."""
    print("ready", flush=True)
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)  # @: an abstract socket
            notify.send(b"READY=1")
