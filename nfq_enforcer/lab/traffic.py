"""The process that makes a host's traffic, inside the host's namespace: orders in, outcomes out, a JSON line each.

``host.py`` starts it, from this very text and without site packages, and holds its standard input; it ends when that
does. It imports the standard library only, so that a lab of many hosts starts at once, and needs no file of its own.

Hosts talk to each other in lines. ``?TOKEN`` asks who is there, ``#TOKEN SIZE`` announces that many bytes, and
``=TOKEN …`` answers either: with the host's name, the address that it sees, and its number of the connection; or
with the count and the SHA-256 of what came. Both ends of a connection may ask. UDP knows ``?`` and ``=`` only.
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

LINE_LIMIT = 1 << 20  # a raw packet of 64 KiB, written as hexadecimal digits, fits
_BLOCK = os.urandom(1 << 16)
_ANY = {4: "0.0.0.0", 6: "::"}

# linux/in.h and linux/in6.h; the socket module does not name them
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_IPV6_DONTFRAG = 62


class _PacketInfo(NamedTuple):
    """The control message that names the address a datagram was sent to (ip(7), ipv6(7))."""

    level: int
    option: int
    interface: slice  # where the interface's number stands in it

    def without_interface(self, info: bytes) -> bytes:
        """Keep the address, but leave the way out to the routes."""
        return info[: self.interface.start] + bytes(4) + info[self.interface.stop :]


_PACKET_INFO = {
    4: _PacketInfo(socket.IPPROTO_IP, 8, slice(0, 4)),
    6: _PacketInfo(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, slice(16, 20)),
}

_ECHO = struct.Struct("!BBHHH")
_ICMP = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}  # protocol, request, reply

Result = dict[str, Any]
T = TypeVar("T")


class Conversation:
    """One TCP connection, seen from either end."""

    def __init__(self, number: int, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._name = name
        self._reader = reader
        self._writer = writer
        self._peer = writer.get_extra_info("peername")[0]
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def run(self) -> None:
        """Answer the other side and take its answers, until the connection ends."""
        failure = ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")
        try:
            while line := await self._reader.readline():
                await self._hear(line.decode().split())
        except OSError as error:
            failure = ConnectionResetError(error.errno or errno.ECONNRESET, error.strerror or str(error))
        finally:
            self.close()
            for answer in filter(_is_awaited, self._asked.values()):
                answer.set_exception(failure)

    async def ask(self) -> Result:
        """Ask who is there; return the answer."""
        name, seen_as, number = await self._pose("?")
        return {"answered_by": name, "seen_as": seen_as, "peer_number": int(number)}

    async def send(self, size: int) -> Result:
        """Send this many bytes; return how many came, and whether they are what was sent."""
        digest = hashlib.sha256()
        answer = self._pose("#", str(size))
        for begin in range(0, size, len(_BLOCK)):
            block = _BLOCK[: size - begin]
            digest.update(block)
            self._writer.write(block)
            await self._writer.drain()
        received, digest_there = await answer
        return {"received": int(received), "intact": digest_there == digest.hexdigest()}

    def close(self) -> None:
        """Close the connection; what is in flight may still arrive."""
        self._writer.close()

    async def _hear(self, words: list[str]) -> None:
        kind, token, rest = words[0][0], words[0][1:], words[1:]
        if kind == "?":
            self._writer.write(f"={token} {self._name} {self._peer} {self.number}\n".encode())
        elif kind == "#":
            self._writer.write(f"={token} {await self._swallow(int(rest[0]))}\n".encode())
        elif (answer := self._asked.pop(token, None)) and _is_awaited(answer):
            answer.set_result(rest)

    async def _swallow(self, size: int) -> str:
        digest, left = hashlib.sha256(), size
        while left and (data := await self._reader.read(min(left, 1 << 18))):
            digest.update(data)
            left -= len(data)
        return f"{size - left} {digest.hexdigest()}"

    def _pose(self, kind: str, *words: str) -> "asyncio.Future[list[str]]":
        """Write a question; return its answer, which is to come."""
        token = secrets.token_hex(4)
        answer = self._asked[token] = asyncio.get_running_loop().create_future()
        self._writer.write(" ".join((f"{kind}{token}", *words, "\n")).encode())
        return answer


class DatagramServer:
    """Answers every question from the very address that was asked, as a machine of many addresses must."""

    def __init__(self, name: str, family: int, port: int) -> None:
        self._name = name
        self._packet_info = _PACKET_INFO[family]
        self._socket = _socket(_ANY[family], socket.SOCK_DGRAM)
        if family == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(self._packet_info.level, self._packet_info.option, 1)
        self._socket.bind((_ANY[family], port))
        asyncio.get_running_loop().add_reader(self._socket, self._answer)

    def _answer(self) -> None:
        data, ancillary, _, peer = self._socket.recvmsg(1 << 16, 64)
        if data.startswith(b"?"):
            token = data[1:].split(maxsplit=1)[0].decode()
            source = [(level, kind, self._packet_info.without_interface(info)) for level, kind, info in ancillary]
            with contextlib.suppress(OSError):  # a firewall may say no to what leaves here; the one who asked will see
                self._socket.sendmsg([f"={token} {self._name} {peer[0]}".encode()], source, 0, peer)


class Traffic:
    """What one host does when told to; every method but ``answer`` is an order of this name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = count(1)
        self._conversations: dict[int, Conversation] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._serving: list[object] = []

    async def answer(self, order: Result) -> Result:
        """Carry out one order; an order that makes no sense is answered with an error."""
        number, verb, timeout = order.pop("id"), order.pop("verb"), order.pop("timeout")
        begun = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                result = await self._order(verb)(**order)
            result.setdefault("status", "ok")
        except TimeoutError:
            result = {"status": "timeout"}
        except OSError as error:
            result = {"status": _status(error), "detail": error.strerror or str(error)}
        except (LookupError, TypeError, ValueError) as error:
            result = {"error": f"{verb}: {error!r}"}
        return {"id": number, "elapsed": time.monotonic() - begun, **result}

    def _order(self, verb: str) -> Callable[..., Awaitable[Result]]:
        orders: dict[str, Callable[..., Awaitable[Result]]] = {
            "serve": self.serve,
            "connect": self.connect,
            "hold": self.hold,
            "talk": self.talk,
            "close": self.close,
            "bulk": self.bulk,
            "send_udp": self.send_udp,
            "send_raw": self.send_raw,
            "ping": self.ping,
        }
        return orders[verb]

    async def serve(self, protocol: str, port: int, families: list[int]) -> Result:
        """Listen on a port of all addresses, until the process ends."""
        for family in families:
            if protocol == "TCP":
                self._serving.append(await asyncio.start_server(self._accept, _ANY[family], port, backlog=1024))
            else:
                self._serving.append(DatagramServer(self._name, family, port))
        return {}

    async def connect(self, address: str, port: int) -> Result:
        """Open a connection, ask who is there, close it."""
        conversation = await self._open(address, port)
        try:
            return await conversation.ask()
        finally:
            self._drop(conversation)

    async def hold(self, address: str, port: int) -> Result:
        """Open a connection, ask who is there, and keep it."""
        conversation = await self._open(address, port)
        try:
            return {"number": conversation.number, **await conversation.ask()}
        except BaseException:
            self._drop(conversation)
            raise

    async def talk(self, number: int) -> Result:
        """Ask the other side of a connection that is held, or was accepted."""
        if number not in self._conversations:
            raise ConnectionResetError(errno.ECONNRESET, "the connection is closed")
        return await self._conversations[number].ask()

    async def close(self, number: int) -> Result:
        """Close a connection that is held, or was accepted."""
        if number in self._conversations:
            self._drop(self._conversations[number])
        return {}

    async def bulk(self, address: str, port: int, size: int) -> Result:
        """Send many bytes over a connection of their own."""
        conversation = await self._open(address, port)
        try:
            return await conversation.send(size)
        finally:
            self._drop(conversation)

    async def send_udp(self, address: str, port: int, size: int, dont_fragment: bool) -> Result:
        """Send one datagram that asks who is there; return the answer."""
        token = secrets.token_hex(4)
        with _socket(address, socket.SOCK_DGRAM) as sock:
            _set_fragmentation(sock, dont_fragment)
            words = await _exchange(sock, (address, port), f"?{token} ".encode().ljust(size, b"."), _udp_answer(token))
        return {"answered_by": words[0], "seen_as": words[1]}

    async def ping(self, address: str, size: int) -> Result:
        """Send one ICMP echo request; return when its reply came."""
        family = _family(address)
        protocol, request, reply = _ICMP[family]
        ident = secrets.randbelow(1 << 16)
        packet = _ECHO.pack(request, 0, 0, ident, 1) + _BLOCK[:size]
        if family == 4:  # the kernel fills in the checksum of ICMPv6 alone
            packet = _ECHO.pack(request, 0, _checksum(packet), ident, 1) + _BLOCK[:size]
        with _socket(address, socket.SOCK_RAW, protocol) as sock:
            await _exchange(sock, (address, 0), packet, _echo_reply(family, reply, ident))
        return {"answered_by": address}

    async def send_raw(self, packet: str) -> Result:
        """Send an IP packet as it stands; the kernel sets IPv4's total length and checksum."""
        data = bytes.fromhex(packet)
        family, place = (socket.AF_INET, slice(16, 20)) if data[0] >> 4 == 4 else (socket.AF_INET6, slice(24, 40))
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(data, (socket.inet_ntop(family, data[place]), 0))
        return {}

    async def _open(self, address: str, port: int) -> Conversation:
        return self._begin(*await asyncio.open_connection(address, port))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(reader, writer)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Conversation:
        conversation = Conversation(next(self._numbers), self._name, reader, writer)
        self._conversations[conversation.number] = conversation
        task = asyncio.create_task(self._converse(conversation))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return conversation

    async def _converse(self, conversation: Conversation) -> None:
        await conversation.run()
        self._drop(conversation)

    def _drop(self, conversation: Conversation) -> None:
        conversation.close()
        self._conversations.pop(conversation.number, None)


def _is_awaited(answer: "asyncio.Future[list[str]]") -> bool:
    return not answer.done()  # done: the one who asked has given up


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
    """Send a request over a connected socket; return the first answer that ``parse`` takes."""
    loop = asyncio.get_running_loop()
    sock.connect(peer)  # of a socket without connections: says only where to, and never waits
    await loop.sock_sendall(sock, request)
    while True:
        if (answer := parse(await loop.sock_recv(sock, 1 << 16))) is not None:
            return answer


def _udp_answer(token: str) -> Callable[[bytes], list[str] | None]:
    def parse(data: bytes) -> list[str] | None:
        return data.decode().split()[1:] if data.startswith(f"={token} ".encode()) else None

    return parse


def _echo_reply(family: int, reply: int, ident: int) -> Callable[[bytes], bool | None]:
    def parse(data: bytes) -> bool | None:
        header = (data[0] & 0x0F) * 4 if family == 4 else 0  # only IPv4's raw sockets hand over the IP header
        kind, _, _, theirs, _ = _ECHO.unpack_from(data, header)
        return True if (kind, theirs) == (reply, ident) else None

    return parse


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): big-endian words are added alike by the remainder of 65535."""
    padded = data + b"\0" * (len(data) % 2)
    return 0xFFFF - int.from_bytes(padded, "big") % 0xFFFF


async def _main(name: str) -> None:
    orders = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    traffic = Traffic(name)
    running: set[asyncio.Task[None]] = set()
    while line := await orders.readline():
        task = asyncio.create_task(_answer(traffic, json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
    os._exit(0)  # open connections need no farewell


async def _answer(traffic: Traffic, order: Result) -> None:
    print(json.dumps(await traffic.answer(order)), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
