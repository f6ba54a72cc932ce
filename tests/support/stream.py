"""A stream of packets between two machines of a lab while something else happens: no packet and no connection may fail.

A program of its own, with sockets in the namespaces of both machines, sends datagrams in an open flow, datagrams that
each open a flow, and TCP connections. The receiver's kernel records when a datagram arrives (SO_TIMESTAMPNS in
socket(7)), so a wait is the time on the way, in the queue and at the worker, without that of this program.
"""

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from nfq_enforcer.lab.lab import Lab
from tests.support.apart import call_in, enter

_ECHO, _SERVER = 7100, 7101
_INTERVAL = 0.001  # s between two datagrams of the open flow
_OPENINGS, _CONNECTIONS = 10, 20  # one of each, to so many datagrams of the open flow
_PATIENCE = 3.0  # s for a connection
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h
_DATAGRAM = struct.Struct("!QQ")  # number, and time of sending in ns since the epoch
_TIMESPEC = struct.Struct("@qq")
_SLOW = 0.005  # s


class Summary(NamedTuple):
    """Summary: the traffic from the start of a stream, or between two moments."""

    datagrams: int  # sent
    lost: int
    connections: int  # opened
    failed: int
    longest_known: float  # s, of a datagram of the open flow
    longest_opening: float  # s, of a datagram that opens a flow
    longest_connection: float  # s, until a connection is open
    slow: list[tuple[float, float]]  # time of sending, s since the epoch, and wait, of datagrams that waited over 5 ms


class Stream:
    """Stream: runs from the beginning of a ``with`` statement until ``end``."""

    def __init__(self, lab: Lab, source: str, target: str) -> None:
        """Keep the machines."""
        names = (lab.topology.namespace(source), lab.topology.namespace(target))
        addresses = (str(lab.address(source)), str(lab.address(target)))
        self._argv = [sys.executable, "-m", "tests.support.stream", *names, *addresses]

    def __enter__(self) -> Self:
        """Start."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, if ``end`` has not ended the stream."""
        if self._process.poll() is None:
            self._process.communicate("end\n")

    def summary(self) -> Summary:
        """Return the traffic since the start, or since the last summary."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("summary\n")
        self._process.stdin.flush()
        return Summary(**json.loads(self._process.stdout.readline()))


class _Traffic:
    """Traffic: the program's sockets and counts."""

    def __init__(self, namespaces: tuple[str, str], addresses: tuple[str, str]) -> None:
        source, target = namespaces
        self._from, self._to = addresses
        receiving, serving = (socket.SOCK_DGRAM, (self._to, _ECHO)), (socket.SOCK_STREAM, (self._to, _SERVER))
        self._receiver, self._server = call_in(target, lambda: (_socket(*receiving), _socket(*serving)))
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._server.listen(1000)
        enter(Path("/run/netns", source))
        self._sender = self._make(socket.SOCK_DGRAM)
        self._poll = select.epoll()
        for one in (self._receiver, self._server):
            self._poll.register(one, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN)
        self._connecting: dict[int, tuple[socket.socket, float]] = {}
        self._waiting: set[int] = set()  # numbers of datagrams on their way
        self._numbers = count()
        self._begin()

    def _begin(self) -> None:
        self._sent = self._connections = self._failed = 0
        self._known = self._opening = self._connection = 0.0
        self._slow: list[tuple[float, float]] = []

    def _make(self, kind: int) -> socket.socket:
        return _socket(kind, (self._from, 0))

    def run(self) -> None:
        """Send until the line ``end`` arrives, with a summary for each line ``summary``."""
        due = time.monotonic()
        for number in count():
            due = max(due + _INTERVAL, time.monotonic())
            self._send(self._sender, opening=False)
            if number % _OPENINGS == 0:
                with self._make(socket.SOCK_DGRAM) as fresh:
                    self._send(fresh, opening=True)
            if number % _CONNECTIONS == 0:
                self._connect()
                self._give_up()
            asked = False
            while (left := due - time.monotonic()) > 0 and not asked:
                asked = self._wait(left)
            if asked:
                if sys.stdin.readline() != "summary\n":
                    return
                self._summarize()

    def _wait(self, timeout: float) -> bool:
        """Handle what arrives in so many seconds, or return earlier; return whether a line waits."""
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout)]
        for descriptor in ready:
            self._handle(descriptor)
        return sys.stdin.fileno() in ready

    def _send(self, sender: socket.socket, *, opening: bool) -> None:
        number = next(self._numbers) << 1 | opening
        self._waiting.add(number)
        self._sent += 1
        sender.sendto(_DATAGRAM.pack(number, time.time_ns()), (self._to, _ECHO))

    def _handle(self, descriptor: int) -> None:
        if descriptor == self._receiver.fileno():
            self._receive()
        elif descriptor == self._server.fileno():
            self._server.accept()[0].close()
        elif descriptor in self._connecting:
            made, begun = self._connecting.pop(descriptor)
            self._poll.unregister(descriptor)
            self._connection = max(self._connection, time.monotonic() - begun)
            self._connections += 1
            self._failed += made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
            made.close()

    def _receive(self) -> None:
        while True:
            try:
                data, (control, *_), *_ = self._receiver.recvmsg(100, 100)
            except BlockingIOError:
                return
            number, sent = _DATAGRAM.unpack(data)
            seconds, nanoseconds = _TIMESPEC.unpack(control[2])
            wait = (seconds * 10**9 + nanoseconds - sent) / 1e9
            self._waiting.discard(number)
            if number & 1:
                self._opening = max(self._opening, wait)
            else:
                self._known = max(self._known, wait)
            if wait > _SLOW:
                self._slow.append((sent / 1e9, wait))

    def _connect(self) -> None:
        made = self._make(socket.SOCK_STREAM)
        self._connecting[made.fileno()] = made, time.monotonic()
        with contextlib.suppress(BlockingIOError):
            made.connect((self._to, _SERVER))
        self._poll.register(made, select.EPOLLOUT)

    def _give_up(self) -> None:
        late = time.monotonic() - _PATIENCE
        for descriptor in [one for one, (_, begun) in self._connecting.items() if begun < late]:
            self._poll.unregister(descriptor)
            self._connecting.pop(descriptor)[0].close()
            self._connections += 1
            self._failed += 1

    def _summarize(self) -> None:
        """Print the summary, once all datagrams have arrived or may count as lost."""
        deadline = time.monotonic() + _PATIENCE
        while (self._waiting or self._connecting) and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
            self._give_up()
        values = (self._sent, len(self._waiting), self._connections, self._failed, self._known, self._opening)
        print(json.dumps(Summary(*values, self._connection, self._slow)._asdict()), flush=True)
        self._waiting.clear()
        self._begin()


def _socket(kind: int, address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.setblocking(False)
    return made


if __name__ == "__main__":
    _Traffic((sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])).run()
