"""A node with a proxy between a client and a server, each in a network namespace, IPv4 and IPv6.

The rules of the node redirect connections to port ``8000 + N`` of the server to slot N, as a verdict does in an agent.
"""

import asyncio
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import BadStatusLine, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.core.tables.l7 import L7Match, ProxyProtocols
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest
from nfq_enforcer.proxy.proxy import Opening, Proxy
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.support.apart import call_in, enter

UID = 64532
FIRST_PORT = 15000
SERVER_PORT = 8000  # of slot 0
CLIENT = {4: "10.78.1.2", 6: "fd78:1::2"}
SERVER = {4: "10.78.2.2", 6: "fd78:2::2"}
SLOTS = 16  # with an echo server
REDIRECTED = 24
PATIENCE = 20.0  # s
DELIVERED, SENT = 0x04000000, 0x08000000
T = TypeVar("T")

_TABLE = """
table inet proxy {{
    chain prerouting {{
        type filter hook prerouting priority mangle;
        tcp flags & (syn | ack) != syn socket transparent 1 meta mark set {delivered:#x} accept
        {redirects}
    }}
    chain output {{
        type filter hook output priority mangle;
        meta mark & 0x0f000000 == {sent:#x} ip protocol tcp counter
        meta mark & 0x0f000000 == {sent:#x} ip6 nexthdr tcp counter
    }}
}}
"""
_REDIRECT = """meta nfproto {nfproto} tcp dport {port} tproxy {family} to {to} meta mark set {delivered:#x} accept"""


def mark(slot: int) -> int:
    """Return the mark of the packets of a slot."""
    return SENT | slot


def side(*matches: L7Match) -> tuple[L7Rule, ...]:
    """Return a side with these matches, each a rule of its own."""
    return tuple(
        L7Rule(RuleRef("CiliumNetworkPolicy", "default", "test", Direction.INGRESS, number), match)
        for number, match in enumerate(matches)
    )


def rule_set(*matches: L7Match) -> RuleSet:
    """Return a rule set with one side, which has these matches."""
    return RuleSet((side(*matches),))


class ProxyNetwork:
    """Proxy network: the three namespaces, with addresses, routes and the node's rules."""

    def __init__(self) -> None:
        """Make the namespaces."""
        self.client, self.node, self.server = (f"nfqe-px{os.getpid()}-{name}" for name in "cns")
        self._ip(*(f"netns add {name}" for name in (self.client, self.node, self.server)))
        self._connect(self.client, 1)
        self._connect(self.server, 2)
        for name in (self.client, self.node, self.server):
            self._ip(f"-n {name} link set lo up")
        forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        subprocess.run(["ip", "netns", "exec", self.node, "sysctl", "-qw", *forward], check=True)
        self._ip(
            f"-n {self.node} rule add fwmark {DELIVERED:#x}/{DELIVERED:#x} lookup 2004 pref 100",
            f"-n {self.node} -6 rule add fwmark {DELIVERED:#x}/{DELIVERED:#x} lookup 2004 pref 100",
            f"-n {self.node} route add local 0.0.0.0/0 dev lo table 2004",
            f"-n {self.node} -6 route add local ::/0 dev lo table 2004",
        )
        self.redirect(range(REDIRECTED))

    def redirect(self, slots: range) -> None:
        """Redirect the connections to the ports of these slots."""
        redirects = [
            _REDIRECT.format(
                nfproto=nfproto,
                family=family,
                port=SERVER_PORT + slot,
                to=f"{to}:{FIRST_PORT + slot}",
                delivered=DELIVERED,
            )
            for slot in slots
            for nfproto, family, to in (("ipv4", "ip", "127.0.0.1"), ("ipv6", "ip6", "[::1]"))
        ]
        text = _TABLE.format(delivered=DELIVERED, sent=SENT, redirects="\n".join(redirects))
        subprocess.run(["ip", "netns", "exec", self.node, "nft", "-f", "-"], input=text, text=True, check=True)

    def sent_by_proxy(self) -> dict[int, int]:
        """Return the number of packets with the proxy's mark, by family."""
        argv = ["ip", "netns", "exec", self.node, "nft", "-j", "list", "chain", "inet", "proxy", "output"]
        rules = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["nftables"]
        found = [
            expression["counter"]["packets"]
            for entry in rules
            for expression in entry.get("rule", {}).get("expr", ())
            if "counter" in expression
        ]
        return dict(zip((4, 6), found, strict=True))

    def remove(self) -> None:
        """Remove the namespaces."""
        self._ip(*(f"netns del {name}" for name in (self.client, self.node, self.server)))

    def _connect(self, host: str, number: int) -> None:
        self._ip(
            f"-n {self.node} link add v{number} type veth peer name uplink netns {host}",
            f"-n {self.node} address add 10.78.{number}.1/24 dev v{number}",
            f"-n {self.node} address add fd78:{number}::1/64 dev v{number} nodad",
            f"-n {self.node} link set v{number} up",
            f"-n {host} address add 10.78.{number}.2/24 dev uplink",
            f"-n {host} address add fd78:{number}::2/64 dev uplink nodad",
            f"-n {host} link set uplink up",
            f"-n {host} route add default via 10.78.{number}.1",
            f"-n {host} -6 route add default via fd78:{number}::1",
        )

    @staticmethod
    def _ip(*commands: str) -> None:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)


class Seen(NamedTuple):
    """Seen: one request as the server received it."""

    client: str
    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    port: int  # of the proxy


class EchoServer:
    """Echo server: an HTTP/1.1 server without a view of its own, which keeps what it receives."""

    def __init__(self) -> None:
        """Start without requests."""
        self.seen: list[Seen] = []
        self.connections = 0
        self._servers: list[asyncio.Server] = []

    async def listen(self, ports: range) -> None:
        """Listen on these ports."""
        for port in ports:
            self._servers.append(await asyncio.start_server(self._serve, ["0.0.0.0", "::"], port, backlog=1024))

    async def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await self._exchange(reader, writer)
        except (EOFError, OSError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = tuple((name, value.strip()) for name, _, value in (each.partition(":") for each in lines))
        fields = {name.lower(): value for name, value in headers}
        body = await _body(reader, fields)
        client, port = writer.get_extra_info("peername")[:2]
        self.seen.append(Seen(client, line, headers, body, port))
        if fields.get("upgrade") == "websocket" and "/ignored" not in line:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(data)
        writer.write(b"HTTP/1.1 200 OK\r\nserver: echo\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    body = b""
    while fields.get("transfer-encoding") == "chunked" and (size := int((await reader.readline()).split(b";")[0], 16)):
        body += (await reader.readexactly(size + 2))[:-2]
    if fields.get("transfer-encoding") == "chunked":
        await reader.readline()
    return body


class Loop:
    """Loop: an event loop in a thread of its own, in a network namespace."""

    def __init__(self, namespace: str) -> None:
        """Start the thread."""
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._thread.submit(enter, Path("/run/netns", namespace)).result()
        started = threading.Event()
        self._loop.call_soon(started.set)
        self._end = self._thread.submit(self._loop.run_forever)
        started.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the loop; return its result."""

        async def work() -> T:
            return function()

        return self.run(work())

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._end.result()
        self._loop.close()
        self._thread.shutdown()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def status_of(connection: socket.socket, path: str, method: str = "GET", *headers: str, host: str = "h") -> int | None:
    """Send a request over a connection; return the status of its response, None if the connection has ended."""
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", "")
    with suppress(ConnectionError, BadStatusLine):
        connection.sendall("\r\n".join(lines).encode())
        with HTTPResponse(connection, method=method) as response:
            response.begin()
            response.read()
            return response.status
    return None


async def open_slots(proxy: Proxy, openings: Mapping[int, Opening]) -> None:
    """Open slots together, or change the rules of open ones; return when they are in force."""
    proxy.open(openings)
    waiting = set(openings)
    while waiting:
        waiting -= set(await proxy.listening(waiting))
    proxy.prepare_slots()
    await proxy.applied(openings)


class ProxyLab:
    """Proxy lab: the network with a server, and a proxy on the node."""

    def __init__(self, directory: Path) -> None:
        """Make the network, start server and proxy."""
        self.directory = directory
        self.records: list[LoggedRequest] = []
        self.hellos: list[LoggedHello] = []
        self.states: list[bool] = []
        self.network = ProxyNetwork()
        names = self.network.node, self.network.client, self.network.server
        self.node, self.client, self.on_server = map(Loop, names)
        self.server = EchoServer()
        self.on_server.run(self.server.listen(range(SERVER_PORT, SERVER_PORT + SLOTS)))
        self.proxy = self.make_proxy()
        self.node.run(self.proxy.start())

    def make_proxy(self, first_port: int = FIRST_PORT) -> Proxy:
        """Return another proxy, as the next agent makes one."""
        return self.node.call(lambda: Proxy(self.directory, first_port, UID, mark, self._record, self.states.append))

    def _record(self, record: LoggedRequest | LoggedHello) -> None:
        if isinstance(record, LoggedHello):
            self.hellos.append(record)
        else:
            self.records.append(record)

    def open(self, slot: int, rules: RuleSet, protocols: ProxyProtocols = ProxyProtocols.HTTP) -> None:
        """Open a slot, or change the rules of an open one; return when they are in force."""
        self.node.run(open_slots(self.proxy, {slot: Opening(rules, protocols)}))

    def connect(self, slot: int, family: int = 4, timeout: float = 5.0) -> socket.socket:
        """Open a connection of the client to the server's port of a slot."""

        def make() -> socket.socket:
            return socket.create_connection((SERVER[family], SERVER_PORT + slot), timeout)

        return call_in(self.network.client, make)

    def exchange(self, slot: int, data: bytes, family: int = 4) -> bytes:
        """Send bytes over a new connection; return what arrives until the connection ends."""
        with self.connect(slot, family) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def request(
        self, slot: int, method: str = "GET", path: str = "/", *headers: str, host: str = "h", family: int = 4
    ) -> int:
        """Send one request; return the status of its response."""
        lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", "")
        with self.connect(slot, family) as connection:
            connection.sendall("\r\n".join(lines).encode("utf-8", "surrogateescape"))
            with HTTPResponse(connection) as response:
                response.begin()
                return response.status

    def await_state(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds; fail if it does not."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        """End everything."""
        self.node.run(self.proxy.stop())
        self.on_server.run(self.server.close())
        for loop in (self.node, self.client, self.on_server):
            loop.close()
        self.network.remove()
