"""The process that makes a host's traffic, in the host's namespace: requests in, results out, one JSON line each.

``traffic_host.py`` starts it, from the text of this module and of ``grpc.py``, without site packages, and holds its
standard input; the process ends at the end of that input. Both import the standard library only, so that a lab of many
hosts starts quickly and the machine needs no file of the project.

Hosts exchange lines of text. ``?TOKEN`` queries the receiver, ``#TOKEN SIZE`` announces SIZE bytes of data, and
``=TOKEN …`` is the reply to either: to a query, the replying host's name, the source address that it sees, and its
number of the connection; to data, the count and the SHA-256 of the received bytes. Both ends of a connection may
query. UDP uses ``?`` and ``=`` only. A request of HTTP/1.1 in place of a line is answered with status 200 and the same
name and address, and so is each gRPC call of a connection that begins as HTTP/2 does.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.lab.grpc import FIRST_LINE, answer_calls, call_methods

LINE_LIMIT = 1 << 20  # a raw packet of 64 KiB, written as hexadecimal digits, fits
_BLOCK = os.urandom(1 << 16)
_ANY = {4: "0.0.0.0", 6: "::"}

# From linux/in.h and linux/in6.h; the socket module lacks these constants.
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_IPV6_DONTFRAG = 62


class _PacketInfo(NamedTuple):
    """Control message with the destination address of a datagram: IP_PKTINFO, IPV6_PKTINFO (ip(7), ipv6(7))."""

    level: int
    option: int
    interface: slice  # position of the interface index in the message
    destination: slice  # position of the address

    def without_interface(self, info: bytes) -> bytes:
        """Return the message with the address, but without the interface, so that the routes choose one."""
        return info[: self.interface.start] + bytes(4) + info[self.interface.stop :]


_PACKET_INFO = {
    4: _PacketInfo(socket.IPPROTO_IP, 8, slice(0, 4), slice(8, 12)),
    6: _PacketInfo(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, slice(16, 20), slice(0, 16)),
}

_ECHO = struct.Struct("!BBHHH")
_ICMP = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}  # protocol, request, reply

_RECORD = {4: 1, 16: 28}  # bytes of an address: type of its DNS record (A, AAAA)

Result = dict[str, Any]
T = TypeVar("T")


class TrafficEnd:
    """ConnectionEnd: this host's end of one TCP connection, opened or accepted."""

    def __init__(self, number: int, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._name = name
        self._reader = reader
        self._writer = writer
        self._peer = writer.get_extra_info("peername")[0]
        self._pending: dict[str, asyncio.Future[list[str]]] = {}

    async def run(self) -> None:
        """Reply to the other end's queries and receive its replies, until the connection ends."""
        failure = ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")
        try:
            while line := await self._reader.readline():
                await self._handle(line.decode().split())
        except OSError as error:
            failure = ConnectionResetError(error.errno or errno.ECONNRESET, error.strerror or str(error))
        finally:
            self.close()
            for reply in filter(_is_pending, self._pending.values()):
                reply.set_exception(failure)

    async def query(self) -> Result:
        """Query the other end; return its reply."""
        name, seen_as, number = await self._send_query("?")
        return {"answered_by": name, "seen_as": seen_as, "peer_number": int(number)}

    async def send(self, size: int) -> Result:
        """Send this many bytes; return the number of received bytes, and whether they equal the sent ones."""
        digest = hashlib.sha256()
        reply = self._send_query("#", str(size))
        for begin in range(0, size, len(_BLOCK)):
            block = _BLOCK[: size - begin]
            digest.update(block)
            self._writer.write(block)
            await self._writer.drain()
        received, received_digest = await reply
        return {"received": int(received), "intact": received_digest == digest.hexdigest()}

    def close(self) -> None:
        """Close the connection; data in flight may still arrive."""
        self._writer.close()

    async def _handle(self, words: list[str]) -> None:
        kind, token, rest = words[0][0], words[0][1:], words[1:]
        if words == FIRST_LINE.decode().split():
            await answer_calls(self._reader, self._writer, f"{self._name} {self._peer}".encode())
        elif rest and rest[-1].startswith("HTTP/1."):
            await _read_rest(self._reader)
            body = f"{self._name} {self._peer}\n".encode()
            self._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        elif kind == "?":
            self._writer.write(f"={token} {self._name} {self._peer} {self.number}\n".encode())
        elif kind == "#":
            self._writer.write(f"={token} {await self._receive(int(rest[0]))}\n".encode())
        elif (reply := self._pending.pop(token, None)) and _is_pending(reply):
            reply.set_result(rest)

    async def _receive(self, size: int) -> str:
        digest, left = hashlib.sha256(), size
        while left and (data := await self._reader.read(min(left, 1 << 18))):
            digest.update(data)
            left -= len(data)
        return f"{size - left} {digest.hexdigest()}"

    def _send_query(self, kind: str, *words: str) -> "asyncio.Future[list[str]]":
        """Send a query; return the future of its reply."""
        token = secrets.token_hex(4)
        reply = self._pending[token] = asyncio.get_running_loop().create_future()
        self._writer.write(" ".join((f"{kind}{token}", *words, "\n")).encode())
        return reply


class DatagramServer:
    """DatagramServer: replies to every query from its destination address, as a machine with many addresses must."""

    def __init__(self, name: str, family: int, port: int) -> None:
        self._name = name
        self._packet_info = _PACKET_INFO[family]
        self._socket = _socket(_ANY[family], socket.SOCK_DGRAM)
        if family == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(self._packet_info.level, self._packet_info.option, 1)
        self._socket.bind((_ANY[family], port))
        asyncio.get_running_loop().add_reader(self._socket, self._reply)

    def _reply(self) -> None:
        data, ancillary, _, peer = self._socket.recvmsg(1 << 16, 64)
        source = [(level, kind, self._packet_info.without_interface(info)) for level, kind, info in ancillary]
        answer = self._answer(data, peer[0], source[0][2][self._packet_info.destination])
        if answer is not None:
            with contextlib.suppress(OSError):  # a firewall may refuse the reply; the client then times out
                self._socket.sendmsg([answer], source, 0, peer)

    def _answer(self, query: bytes, peer: str, destination: bytes) -> bytes | None:
        """Return the reply to a query from this peer to this address of ours, None for other data."""
        if not query.startswith(b"?"):
            return None
        token = query[1:].split(maxsplit=1)[0].decode()
        return f"={token} {self._name} {peer}".encode()


class NameServer(DatagramServer):
    """NameServer: answers each DNS query with the address that it was sent to, whatever the name (RFC 1035)."""

    def _answer(self, query: bytes, peer: str, destination: bytes) -> bytes | None:
        end = query.find(b"\0", 12) + 5  # of the question: name, type, class
        record = struct.pack("!HHHIH", 0xC00C, _RECORD[len(destination)], 1, 60, len(destination)) + destination
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + query[12:end] + record


class Traffic:
    """Traffic: carries out the requests to one host; every public method but ``handle`` is a request of this name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = count(1)
        self._connections: dict[int, TrafficEnd] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._servers: list[object] = []

    async def handle(self, request: Result) -> Result:
        """Carry out one request and return its result; the result of an invalid request is an error."""
        number, verb, timeout = request.pop("id"), request.pop("verb"), request.pop("timeout")
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                result = await self._method(verb)(**request)
            result.setdefault("status", "ok")
        except TimeoutError:
            result = {"status": "timeout"}
        except OSError as error:
            result = {"status": _status(error), "detail": error.strerror or str(error)}
        except (LookupError, TypeError, ValueError) as error:
            result = {"error": f"{verb}: {error!r}"}
        return {"id": number, "elapsed": time.monotonic() - begun, **result}

    def _method(self, verb: str) -> Callable[..., Awaitable[Result]]:
        methods: dict[str, Callable[..., Awaitable[Result]]] = {
            "serve": self.serve,
            "connect": self.connect,
            "hold": self.hold,
            "talk": self.talk,
            "close": self.close,
            "bulk": self.bulk,
            "send_udp": self.send_udp,
            "send_raw": self.send_raw,
            "request": self.request,
            "call": self.call,
            "resolve": self.resolve,
            "ping": self.ping,
        }
        return methods[verb]

    async def serve(self, protocol: str, port: int, families: list[int]) -> Result:
        """Listen on a port of all addresses, to the end of the process."""
        for family in families:
            if protocol == "TCP":
                self._servers.append(await asyncio.start_server(self._accept, _ANY[family], port, backlog=1024))
            else:
                server = NameServer if protocol == "DNS" else DatagramServer
                self._servers.append(server(self._name, family, port))
        return {}

    async def connect(self, address: str, port: int) -> Result:
        """Open a connection, query the other end, and close the connection."""
        connection = await self._open(address, port)
        try:
            return await connection.query()
        finally:
            self._drop(connection)

    async def hold(self, address: str, port: int) -> Result:
        """Open a connection, query the other end, and keep the connection open."""
        connection = await self._open(address, port)
        try:
            return {"number": connection.number, **await connection.query()}
        except BaseException:
            self._drop(connection)
            raise

    async def talk(self, number: int) -> Result:
        """Query the other end of a held or accepted connection."""
        if number not in self._connections:
            raise ConnectionResetError(errno.ECONNRESET, "the connection is closed")
        return await self._connections[number].query()

    async def close(self, number: int) -> Result:
        """Close a held or accepted connection."""
        if number in self._connections:
            self._drop(self._connections[number])
        return {}

    async def bulk(self, address: str, port: int, size: int) -> Result:
        """Send many bytes over a new connection."""
        connection = await self._open(address, port)
        try:
            return await connection.send(size)
        finally:
            self._drop(connection)

    async def send_udp(self, address: str, port: int, size: int, dont_fragment: bool) -> Result:
        """Send one query as a datagram of this size; return the reply."""
        token = secrets.token_hex(4)
        with _socket(address, socket.SOCK_DGRAM) as sock:
            _set_fragmentation(sock, dont_fragment)
            words = await _exchange(sock, (address, port), f"?{token} ".encode().ljust(size, b"."), _udp_reply(token))
        return {"answered_by": words[0], "seen_as": words[1]}

    async def request(self, address: str, port: int, method: str, path: str, headers: list[list[str]]) -> Result:
        """Send one request of HTTP/1.1 over a new connection; return the status code, and the reply of a server."""
        lines = [f"{method} {path} HTTP/1.1", *(": ".join(header) for header in headers), "", ""]
        reader, writer = await asyncio.open_connection(address, port)
        try:
            writer.write("\r\n".join(lines).encode())
            status = (await reader.readline()).split()
            if not status:
                raise ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")
            body = (await _read_rest(reader)).decode()
        finally:
            writer.close()
        code = int(status[1])
        name, seen_as = body.split() if code == 200 else ("", "")
        return {"code": code, "answered_by": name, "seen_as": seen_as}

    async def call(self, address: str, port: int, methods: list[str]) -> Result:
        """Call gRPC methods one after another over a new connection; return HTTP and gRPC status of each."""
        reader, writer = await asyncio.open_connection(address, port)
        try:
            authority = f"[{address}]" if _family(address) == 6 else address
            answers = await call_methods(reader, writer, authority, methods)
        finally:
            writer.close()
        name, seen_as = next((answer.message.split() for answer in answers if answer.status == 0), ("", ""))
        calls = [(answer.code, answer.status) for answer in answers]
        return {"calls": calls, "answered_by": name, "seen_as": seen_as}

    async def resolve(self, address: str, name: str) -> Result:
        """Send a DNS query for a name's address of the server's family; return the answered address."""
        size = 16 if _family(address) == 6 else 4
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        identifier = secrets.token_bytes(2)
        query = identifier + struct.pack("!HHHHH", 0x100, 1, 0, 0, 0) + labels + b"\0"
        query += struct.pack("!HH", _RECORD[size], 1)
        with _socket(address, socket.SOCK_DGRAM) as sock:
            answer = await _exchange(sock, (address, 53), query, lambda data: (data[:2] == identifier and data) or None)
        refused = answer[3] & 15
        return {"status": "refused"} if refused else {"answered_by": socket.inet_ntop(sock.family, answer[-size:])}

    async def ping(self, address: str, size: int) -> Result:
        """Send one ICMP echo request; return when its reply arrives."""
        family = _family(address)
        protocol, request, reply = _ICMP[family]
        ident = secrets.randbelow(1 << 16)
        packet = _ECHO.pack(request, 0, 0, ident, 1) + _BLOCK[:size]
        if family == 4:  # the kernel computes the checksum of ICMPv6 only
            packet = _ECHO.pack(request, 0, _checksum(packet), ident, 1) + _BLOCK[:size]
        with _socket(address, socket.SOCK_RAW, protocol) as sock:
            await _exchange(sock, (address, 0), packet, _echo_reply(family, reply, ident))
        return {"answered_by": address}

    async def send_raw(self, packet: str) -> Result:
        """Send an IP packet unchanged, except for IPv4's total length and checksum, which the kernel sets."""
        data = bytes.fromhex(packet)
        destination = slice(16, 20) if data[0] >> 4 == 4 else slice(24, 40)
        family = socket.AF_INET if data[0] >> 4 == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(data, (socket.inet_ntop(family, data[destination]), 0))
        return {}

    async def _open(self, address: str, port: int) -> TrafficEnd:
        return self._register(*await asyncio.open_connection(address, port))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._register(reader, writer)

    def _register(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> TrafficEnd:
        connection = TrafficEnd(next(self._numbers), self._name, reader, writer)
        self._connections[connection.number] = connection
        task = asyncio.create_task(self._run(connection))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return connection

    async def _run(self, connection: TrafficEnd) -> None:
        await connection.run()
        self._drop(connection)

    def _drop(self, connection: TrafficEnd) -> None:
        connection.close()
        self._connections.pop(connection.number, None)


async def _read_rest(reader: asyncio.StreamReader) -> bytes:
    """Read the headers and the body of an HTTP message after its first line; return the body."""
    length = 0
    while line := (await reader.readline()).strip():
        name, _, value = line.decode(errors="replace").partition(":")
        length = int(value) if name.lower() == "content-length" else length
    return await reader.readexactly(length)


def _is_pending(reply: "asyncio.Future[list[str]]") -> bool:
    return not reply.done()  # a query that timed out has cancelled its future


def _status(error: OSError) -> str:
    if isinstance(error, ConnectionError):
        return "refused"
    return "too-big" if error.errno == errno.EMSGSIZE else "unreachable"


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _socket(address: str, kind: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if _family(address) == 6 else socket.AF_INET
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    return sock


def _set_fragmentation(sock: socket.socket, dont_fragment: bool) -> None:
    family = 6 if sock.family == socket.AF_INET6 else 4
    sock.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_DO if dont_fragment else _PMTUDISC_DONT)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, dont_fragment)


async def _exchange(
    sock: socket.socket, peer: tuple[str, int], request: bytes, parse: Callable[[bytes], T | None]
) -> T:
    """Send a request over a datagram or raw socket; return the first reply that ``parse`` accepts."""
    loop = asyncio.get_running_loop()
    sock.connect(peer)  # for a datagram or raw socket this only sets the peer, without waiting
    await loop.sock_sendall(sock, request)
    while True:
        if (reply := parse(await loop.sock_recv(sock, 1 << 16))) is not None:
            return reply


def _udp_reply(token: str) -> Callable[[bytes], list[str] | None]:
    def parse(data: bytes) -> list[str] | None:
        return data.decode().split()[1:] if data.startswith(f"={token} ".encode()) else None

    return parse


def _echo_reply(family: int, reply: int, ident: int) -> Callable[[bytes], bool | None]:
    def parse(data: bytes) -> bool | None:
        header = (data[0] & 0x0F) * 4 if family == 4 else 0  # only raw IPv4 sockets receive the IP header
        kind, _, _, identifier, _ = _ECHO.unpack_from(data, header)
        return True if (kind, identifier) == (reply, ident) else None

    return parse


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): the ones' complement sum of words equals the remainder by 65535."""
    padded = data + b"\0" * (len(data) % 2)
    return 0xFFFF - int.from_bytes(padded, "big") % 0xFFFF


async def _main(name: str) -> None:
    requests = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    traffic = Traffic(name)
    running: set[asyncio.Task[None]] = set()
    while line := await requests.readline():
        task = asyncio.create_task(_handle(traffic, json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
    os._exit(0)  # open connections need no orderly shutdown


async def _handle(traffic: Traffic, request: Result) -> None:
    print(json.dumps(await traffic.handle(request)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
