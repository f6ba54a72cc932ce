"""Datagrams between hosts of the lab, sent and timed by this very process: its sockets are in their namespaces."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from nfq_enforcer.lab.lab import Lab
from tests.support.apart import enter

_PATIENCE = 5.0  # seconds without any answer
_EVERY = 0.001  # seconds between two datagrams


def socket_in(lab: Lab, host: str, address: str, port: int = 0) -> socket.socket:
    """Return a UDP socket in the namespace of a host; a namespace belongs to a thread, so one makes it."""

    def make() -> socket.socket:
        enter(Path("/run/netns") / lab.topology.namespace(host))
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


@contextmanager
def echoed(lab: Lab, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Give the address of a port of a host that sends every datagram back."""
    address = str(lab.address(host))
    end, wake = os.pipe()
    with socket_in(lab, host, address, port) as server:
        thread = threading.Thread(target=_echo, args=(server, end))
        thread.start()
        try:
            yield address, port
        finally:
            os.close(wake)
            thread.join()
            os.close(end)


def _echo(server: socket.socket, end: int) -> None:
    while end not in select.select([server.fileno(), end], [], [])[0]:
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)


def first_answer(sender: socket.socket, to: tuple[str, int]) -> float:
    """Send a datagram every millisecond until one is answered; return how long after the first that was, in seconds."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < _PATIENCE:
        sender.sendto(b"?", to)
        if select.select([sender], [], [], _EVERY)[0]:
            return time.perf_counter() - begun
    raise RuntimeError(f"no datagram to {to} was answered within {_PATIENCE:.0f} s")


class Flow:
    """A flow of datagrams, one after the other has been answered; knows the longest wait for an answer."""

    def __init__(self, sender: socket.socket, to: tuple[str, int]) -> None:
        """Begin to send at once."""
        self.longest = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(sender, to))
        self._thread.start()

    def end(self) -> float:
        """Stop sending; return the longest wait in seconds."""
        self._ends.set()
        self._thread.join()
        return self.longest

    def _send(self, sender: socket.socket, to: tuple[str, int]) -> None:
        while not self._ends.wait(_EVERY):
            self.longest = max(self.longest, first_answer(sender, to))
            while select.select([sender], [], [], 0)[0]:
                sender.recv(100)
