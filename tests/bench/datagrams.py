"""Datagrams between hosts of the lab, sent and timed by this process through sockets in the hosts' namespaces."""

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

_TIMEOUT = 5.0  # seconds without any reply
_INTERVAL = 0.001  # seconds between two datagrams


def socket_in(lab: Lab, host: str, address: str, port: int = 0) -> socket.socket:
    """Return a UDP socket in the namespace of a host; a thread creates it, because setns(2) applies to a thread."""

    def create() -> socket.socket:
        enter(Path("/run/netns") / lab.topology.namespace(host))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((address, port))
        return udp

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(create).result()


@contextmanager
def echoed(lab: Lab, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Echo every datagram to a port of a host; yield the port's address."""
    address = str(lab.address(host))
    stop, stop_writer = os.pipe()
    with socket_in(lab, host, address, port) as server:
        thread = threading.Thread(target=_echo, args=(server, stop))
        thread.start()
        try:
            yield address, port
        finally:
            os.close(stop_writer)
            thread.join()
            os.close(stop)


def _echo(server: socket.socket, stop: int) -> None:
    while stop not in select.select([server.fileno(), stop], [], [])[0]:
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)


def first_answer(sender: socket.socket, to: tuple[str, int]) -> float:
    """Send a datagram every millisecond until a reply arrives; return the seconds from the first one to the reply."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < _TIMEOUT:
        sender.sendto(b"?", to)
        if select.select([sender], [], [], _INTERVAL)[0]:
            return time.perf_counter() - begun
    raise RuntimeError(f"no datagram to {to} was answered within {_TIMEOUT:.0f} s")


class DatagramFlow:
    """DatagramFlow: sends datagrams, each after the reply to the one before, and records the longest wait."""

    def __init__(self, sender: socket.socket, to: tuple[str, int]) -> None:
        """Start to send at once."""
        self.longest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(sender, to))
        self._thread.start()

    def end(self) -> float:
        """Stop sending; return the longest wait in seconds."""
        self._stop.set()
        self._thread.join()
        return self.longest

    def _send(self, sender: socket.socket, to: tuple[str, int]) -> None:
        while not self._stop.wait(_INTERVAL):
            self.longest = max(self.longest, first_answer(sender, to))
            while select.select([sender], [], [], 0)[0]:
                sender.recv(100)
