"""Datagrams between hosts of the lab, sent and timed by this process through sockets in the hosts' namespaces."""

import select
import socket
import threading
import time

_TIMEOUT = 5.0  # seconds without any reply
_INTERVAL = 0.001  # seconds between two datagrams


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
