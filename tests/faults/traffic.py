"""Traffic of one host under faults, a program in its namespace: allowed flows, new connections, forbidden packets.

``stage.py`` starts it with a plan in JSON and sends one command a line; each answer is one line of JSON. ``begin``
opens the flows that are not open and starts to count; ``end`` returns the counts once no attempt is under way any more.
It imports the standard library only.

Every forbidden attempt is one packet, and the receiving host counts its arrival on its interface, before any server.
The times are of CLOCK_MONOTONIC, which is the same in all namespaces.
"""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

ECHO, STREAM, DATAGRAMS = 7000, 7001, 7002  # ports: TCP echo, a stream in which the server sends, UDP echo
TICK = 0.01  # s between two messages of a flow that measures gaps
LIMIT = 5.0  # s for a new connection, from its start to the first answer
# s for an open flow to answer after a fault, or else it counts as cut: TCP may repeat a packet only once the outage has
# lasted twice as long.
PATIENCE = 60.0
GIVE_UP = 0.4  # s after which a forbidden attempt is over
_IPV6_DSTOPTS = 59  # linux/in6.h
_TCP, _UDP, _OPTIONS = 6, 17, 60

Json = dict[str, Any]


def family_of(address: str) -> socket.AddressFamily:
    """Return the family of an address in text form."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- servers ----------------------------------------------------------------------------------------------------------


class EchoServer(asyncio.Protocol):
    """EchoServer: returns the bytes of a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class EchoDatagrams(asyncio.DatagramProtocol):
    """EchoDatagrams: returns datagrams that begin with a question mark."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        if data.startswith(b"?"):
            self._transport.sendto(data, address)


class StreamServer(asyncio.Protocol):
    """StreamServer: sends a byte every tick, and receives nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._task = asyncio.get_running_loop().create_task(self._send(transport))

    def connection_lost(self, error: Exception | None) -> None:
        self._task.cancel()

    async def _send(self, transport: asyncio.Transport) -> None:
        while True:
            transport.write(b".")
            await asyncio.sleep(TICK)


async def serve(addresses: list[str]) -> None:
    """Listen on every port of these addresses, to the end of the program."""
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_server(EchoServer, address, ECHO, backlog=4096)
        await loop.create_server(StreamServer, address, STREAM)
        await loop.create_datagram_endpoint(EchoDatagrams, (address, DATAGRAMS))


# -- allowed flows ----------------------------------------------------------------------------------------------------


class Flow:
    """Flow: one allowed flow that stays open, and the times of what arrives in it."""

    def __init__(self, address: str, port: int, interval: float) -> None:
        self._peer = (address, port)
        self._interval = interval
        self._socket: socket.socket | None = None
        self._sent = itertools.count(1)
        self._answered = 0
        self._last = time.monotonic()
        self.gap = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _kind(self) -> socket.SocketKind:
        return socket.SOCK_DGRAM if self._peer[1] == DATAGRAMS else socket.SOCK_STREAM

    @property
    def is_stream(self) -> bool:
        """Return whether only the server sends."""
        return self._peer[1] == STREAM

    @property
    def open(self) -> bool:
        """Return whether the flow is open and no error has ended it."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def measures_gaps(self) -> bool:
        """Return whether messages come often enough that the time between two of them is of interest."""
        return self._interval <= TICK

    async def start(self) -> None:
        """Open the flow; raise OSError or TimeoutError."""
        await self.stop()
        loop = asyncio.get_running_loop()
        self._socket = opened = socket.socket(family_of(self._peer[0]), self._kind)
        opened.setblocking(False)
        if self._kind is socket.SOCK_STREAM:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(LIMIT):
            await loop.sock_connect(opened, self._peer)
        self._last = time.monotonic()
        self._tasks = [loop.create_task(self._receive(opened))]
        if not self.is_stream:
            self._tasks.append(loop.create_task(self._send(opened)))

    async def stop(self) -> None:
        """Close the flow."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._socket is not None:
            self._socket.close()

    def begin(self) -> None:
        """Measure gaps from now on."""
        self.gap, self._last = 0.0, time.monotonic()

    async def answers(self, patience: float) -> bool:
        """Return whether an answer to a message arrives that is sent from now on; close the flow otherwise."""
        wanted, begun = next(self._sent), time.monotonic()
        while time.monotonic() < begun + patience and self.open:
            if self._last > begun if self.is_stream else self._answered > wanted:
                return True
            await asyncio.sleep(5 * TICK)
        await self.stop()
        return False

    async def _send(self, opened: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = b"?%015d" % next(self._sent)
            try:
                await loop.sock_sendall(opened, message)
            except OSError as error:
                if self._kind is socket.SOCK_STREAM or error.errno == errno.EBADF:
                    raise
            await asyncio.sleep(self._interval)

    async def _receive(self, opened: socket.socket) -> None:
        loop, rest = asyncio.get_running_loop(), b""
        while True:
            try:
                data = await loop.sock_recv(opened, 1 << 14)
            except OSError:
                if self._kind is socket.SOCK_STREAM:
                    raise
                await asyncio.sleep(TICK)
                continue
            if not data:
                raise ConnectionResetError
            now = time.monotonic()
            self.gap, self._last = max(self.gap, now - self._last), now
            if not self.is_stream:
                rest += data
                while len(rest) >= 16:
                    self._answered, rest = max(self._answered, int(rest[1:16])), rest[16:]


class Connections:
    """Connections: new allowed connections at a rate; each is opened, answered and closed, or has failed."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.tried = self.failed = 0
        self.slowest = 0.0
        self._running: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Count from now on."""
        self.tried = self.failed = 0
        self.slowest = 0.0

    async def run(self, rate: float) -> None:
        """Make connections until cancelled."""
        loop = asyncio.get_running_loop()
        due, addresses = loop.time(), itertools.cycle(self._addresses)
        while True:
            task = loop.create_task(self._attempt(next(addresses)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            due = max(due + 1 / rate, loop.time() - 0.1)  # after a pause, at most a tenth of a second is made up for
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def end(self) -> None:
        """Return when the connections that are under way have been answered or have failed."""
        await asyncio.gather(*tuple(self._running))

    async def _attempt(self, address: str) -> None:
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        self.tried += 1
        with socket.socket(family_of(address)) as opened:
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
            try:
                async with asyncio.timeout(LIMIT):
                    await loop.sock_connect(opened, (address, ECHO))
                    await loop.sock_sendall(opened, b"?")
                    if await loop.sock_recv(opened, 1) != b"?":
                        raise ConnectionResetError
            except OSError:  # TimeoutError is one
                self.failed += 1
            else:
                self.slowest = max(self.slowest, time.monotonic() - begun)


# -- forbidden packets ------------------------------------------------------------------------------------------------


class Forbidden:
    """Forbidden: attempts at a rate, each of one packet: a SYN, a datagram, a datagram with a forged stamp."""

    def __init__(self, attempts: list[Json]) -> None:
        self._attempts = attempts
        self.tried = 0
        self._running: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Count from now on."""
        self.tried = 0

    async def run(self, rate: float) -> None:
        """Make attempts until cancelled."""
        loop = asyncio.get_running_loop()
        due, attempts = loop.time(), itertools.cycle(self._attempts)
        while True:
            task = loop.create_task(self._attempt(**next(attempts)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            due = max(due + 1 / rate, loop.time() - 0.1)
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def end(self) -> None:
        """Return when the attempts that are under way are over."""
        await asyncio.gather(*tuple(self._running))

    async def _attempt(self, address: str, port: int, option: str = "") -> None:
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_DGRAM if port == DATAGRAMS else socket.SOCK_STREAM
        with socket.socket(family_of(address), kind) as attempt, contextlib.suppress(OSError):
            attempt.setblocking(False)
            if option:
                set_option(attempt, bytes.fromhex(option))
            self.tried += 1
            async with asyncio.timeout(GIVE_UP):
                await loop.sock_connect(attempt, (address, port))
                if kind is socket.SOCK_DGRAM:
                    await loop.sock_sendall(attempt, b"forbidden")


def set_option(opened: socket.socket, option: bytes) -> None:
    """Have every packet of a socket bear this IPv4 option or IPv6 Destination Options header."""
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_DSTOPTS, option)


def opening(packet: bytes) -> tuple[bytes, bytes, int, int] | None:
    """Return source, destination, protocol and port of a SYN or a datagram to the echo port; None for any other."""
    if packet[0] >> 4 == 4:
        source, destination, protocol, start = packet[12:16], packet[16:20], packet[9], (packet[0] & 0x0F) * 4
    else:
        source, destination, protocol, start = packet[8:24], packet[24:40], packet[6], 40
        if protocol == _OPTIONS:
            protocol, start = packet[start], start + (packet[start + 1] + 1) * 8
    port = int.from_bytes(packet[start + 2 : start + 4])
    if protocol == _TCP and packet[start + 13] & 0x12 != 0x02:  # SYN without ACK
        return None
    return (source, destination, protocol, port) if protocol in (_TCP, _UDP) else None


class Arrivals:
    """Arrivals: forbidden packets that this host has received, by their ends."""

    def __init__(self, openings: list[Json]) -> None:
        self._forbidden = {
            (packed(one["source"]), packed(one["destination"]), _UDP if one["port"] == DATAGRAMS else _TCP, one["port"])
            for one in openings
        }
        # Of every interface, also of one that the host gets later: ETH_P_ALL.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.setblocking(False)
        self.times: list[float] = []
        self.ends: dict[str, int] = {}

    def begin(self) -> None:
        """Count from now on."""
        self.times, self.ends = [], {}

    def start(self) -> None:
        """Receive from now on."""
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):  # nothing has come, or an interface is gone
            for _ in range(100):
                packet, about = self._socket.recvfrom(256)
                if about[2] == socket.PACKET_OUTGOING or about[1] not in (0x0800, 0x86DD) or len(packet) < 40:
                    continue
                if (found := opening(packet)) in self._forbidden:
                    self.times.append(time.monotonic())
                    text = self._text(found)
                    self.ends[text] = self.ends.get(text, 0) + 1

    @staticmethod
    def _text(found: tuple[bytes, bytes, int, int] | None) -> str:
        assert found is not None
        source, destination = (
            socket.inet_ntop(socket.AF_INET if len(one) == 4 else socket.AF_INET6, one) for one in found[:2]
        )
        return f"{source} to {destination} port {found[3]}"


def packed(address: str) -> bytes:
    """Return the bytes of an address."""
    return socket.inet_pton(family_of(address), address)


# -- the program ------------------------------------------------------------------------------------------------------


class Host:
    """Host: all traffic of one host, by its plan."""

    def __init__(self, plan: Json) -> None:
        self._plan = plan
        self._flows = [Flow(**one) for one in plan["flows"]]
        self._connections = Connections(plan["connect"])
        self._forbidden = Forbidden(plan["forbidden"])
        self._arrivals = Arrivals(plan["watch"])
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, **_: Any) -> Json:
        """Start servers and the count of arrivals."""
        await serve(self._plan["serve"])
        self._arrivals.start()
        return {}

    async def begin(self, rate: float = 0.0, forbidden_rate: float = 0.0, more: list[Json] | None = None) -> Json:
        """Open all flows and ``more``, then make new connections and forbidden attempts at these rates, and count."""
        self._flows += [Flow(**one) for one in more or []]
        unopened = await self._open_flows()
        for flow in self._flows:
            flow.begin()
        self._connections.begin()
        self._forbidden.begin()
        self._arrivals.begin()
        loop = asyncio.get_running_loop()
        if rate and self._plan["connect"]:
            self._tasks.append(loop.create_task(self._connections.run(rate)))
        if forbidden_rate and self._plan["forbidden"]:
            self._tasks.append(loop.create_task(self._forbidden.run(forbidden_rate)))
        return {"unopened": unopened, "flows": len(self._flows)}

    async def _open_flows(self) -> int:
        """Open the flows that are not open, some at a time; return the number of those that stay closed."""
        limit = asyncio.Semaphore(50)

        async def start(flow: Flow) -> bool:
            async with limit:
                try:
                    await flow.start()
                except OSError:
                    return False
                return True

        return (await asyncio.gather(*(start(flow) for flow in self._flows if not flow.open))).count(False)

    async def end(self, patience: float = PATIENCE) -> Json:
        """Stop new attempts; return the counts when all are over and every flow has answered or is cut."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        answers = await asyncio.gather(*(flow.answers(patience) for flow in self._flows))
        cut = [flow for flow, answered in zip(self._flows, answers, strict=True) if not answered]
        await asyncio.gather(self._connections.end(), self._forbidden.end())
        return {
            "flows": len(self._flows),
            "cut": len(cut),
            "cut_streams": sum(flow.is_stream for flow in cut),
            "gap": max((flow.gap for flow in self._flows if flow.measures_gaps), default=0.0),
            "new": self._connections.tried,
            "new_failed": self._connections.failed,
            "slowest": self._connections.slowest,
            "forbidden": self._forbidden.tried,
        }

    async def arrivals(self, **_: Any) -> Json:
        """Return the times at which forbidden packets have arrived here, and their ends."""
        return {"times": self._arrivals.times, "ends": self._arrivals.ends}

    async def renew(self, **_: Any) -> Json:
        """Close all flows; ``begin`` opens them again."""
        for flow in self._flows:
            await flow.stop()
        return {}

    async def close(self, **_: Any) -> Json:
        """Close the flows that were opened by ``more``."""
        planned = len(self._plan["flows"])
        extra, self._flows = self._flows[planned:], self._flows[:planned]
        for flow in extra:
            await flow.stop()
        return {}


async def run(plan: Json) -> None:
    """Carry out one command a line until the end of the input."""
    host = Host(plan)
    commands: dict[str, Callable[..., Awaitable[Json]]] = {
        name: getattr(host, name) for name in ("start", "begin", "end", "arrivals", "renew", "close")
    }
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        print(json.dumps(await commands[request.pop("command")](**request)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
