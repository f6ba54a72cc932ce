"""A traffic host of the lab: connections, datagrams and pings from one host, with a result each.

One process on the host makes its traffic (``traffic.py``; the host needs only the text of two modules). The first
request starts it. Every request has a timeout, and requests to one host run concurrently. If the process dies, its
requests fail with NfqError.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any, Literal

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab import traffic
from nfq_enforcer.lab.executor import Executor
from nfq_enforcer.lab.topology import IPAddress

Status = Literal["ok", "timeout", "refused", "unreachable", "too-big"]
Protocol = Literal["TCP", "UDP", "DNS"]

_GRACE = 5.0  # seconds that a request may exceed its timeout on a busy machine


@dataclass(frozen=True)
class AttemptResult:
    """AttemptResult: the result of one connection, datagram, ping or bulk transfer."""

    status: Status
    elapsed: float
    answered_by: str = ""  # the name of the replying host; of a ping its address
    seen_as: str = ""  # the source address at the replying host
    detail: str = ""  # the kernel's error message
    received: int = 0  # of a bulk transfer: number of received bytes
    intact: bool = False  # of a bulk transfer: whether the received bytes equal the sent ones
    code: int = 0  # of an HTTP request: the status code, also that of a refusal by a proxy
    calls: tuple[tuple[int, int | None], ...] = ()  # of gRPC calls: HTTP status and gRPC status of each, in order

    @property
    def ok(self) -> bool:
        """Return whether the reply arrived."""
        return self.status == "ok"


class TrafficHost:
    """TrafficHost: makes the traffic of one host; ``lab.host(name)`` returns it."""

    def __init__(self, executor: Executor, name: str) -> None:
        """Keep the host's name; raise BadInput if no machine has this name."""
        executor.address(name)
        self.name = name
        self._executor = executor
        self._log = executor.state / f"{name}.log"
        self._numbers = count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._start_lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    def address(self, family: int = 4) -> IPAddress:
        """Return the host's own address of IP version 4 or 6."""
        return self._executor.address(self.name, family)

    async def serve(self, protocol: Protocol, *ports: int, families: tuple[int, ...] = (4, 6)) -> None:
        """Reply on these ports with the host's name and the client's source address, until the host is stopped."""
        for port in ports:
            result = await self._request("serve", 5.0, protocol=protocol, port=port, families=families)
            if result["status"] != "ok":
                raise NfqError(f"{self.name} cannot serve {port}/{protocol}: {result.get('detail', result['status'])}")

    async def connect(self, address: IPAddress, port: int, timeout: float = 1.0) -> AttemptResult:
        """Open a TCP connection, query the server, and close the connection."""
        return _attempt_result(await self._request("connect", timeout, address=str(address), port=port))

    async def send_udp(
        self, address: IPAddress, port: int, timeout: float = 1.0, *, size: int = 64, dont_fragment: bool = False
    ) -> AttemptResult:
        """Send one datagram with this many bytes of payload, and wait for the reply."""
        arguments = {"address": str(address), "port": port, "size": size, "dont_fragment": dont_fragment}
        return _attempt_result(await self._request("send_udp", timeout, **arguments))

    async def ping(self, address: IPAddress, timeout: float = 1.0, *, size: int = 56) -> AttemptResult:
        """Send one ICMP or ICMPv6 echo request, and wait for the reply."""
        return _attempt_result(await self._request("ping", timeout, address=str(address), size=size))

    async def request(
        self,
        address: IPAddress,
        port: int,
        method: str,
        path: str,
        timeout: float = 1.0,
        *,
        headers: Iterable[tuple[str, str]] = (),
    ) -> AttemptResult:
        """Send one HTTP request over a new connection, with the address as ``Host`` and further headers."""
        host = f"[{address}]" if address.version == 6 else str(address)
        arguments = {"address": str(address), "port": port, "method": method, "path": path}
        lines = [("Host", host), *headers]
        return _attempt_result(await self._request("request", timeout, headers=lines, **arguments))

    async def call(self, address: IPAddress, port: int, methods: Iterable[str], timeout: float = 1.0) -> AttemptResult:
        """Call gRPC methods (``package.Service/Method``) one after another over one new connection."""
        arguments = {"address": str(address), "port": port, "methods": list(methods)}
        return _attempt_result(await self._request("call", timeout, **arguments))

    async def resolve(self, address: IPAddress, name: str, timeout: float = 1.0) -> AttemptResult:
        """Query the DNS server at this address; the result has the answered address (``answered_by``)."""
        return _attempt_result(await self._request("resolve", timeout, address=str(address), name=name))

    async def bulk(self, address: IPAddress, port: int, size: int, timeout: float = 30.0) -> AttemptResult:
        """Send this many bytes over TCP; the result has the number of received bytes and whether they are intact."""
        return _attempt_result(await self._request("bulk", timeout, address=str(address), port=port, size=size))

    async def send_raw(self, packet: bytes) -> AttemptResult:
        """Send an IP packet with any source address; the kernel sets only IPv4's total length and checksum."""
        return _attempt_result(await self._request("send_raw", 1.0, packet=packet.hex()))

    async def hold(self, address: IPAddress, port: int, timeout: float = 1.0) -> "HeldConnection":
        """Open a TCP connection and keep it open; raise NfqError if the attempt fails."""
        result = await self._request("hold", timeout, address=str(address), port=port)
        if result["status"] != "ok":
            raise NfqError(f"{self.name} cannot hold a connection to {address} port {port}: {result['status']}")
        return HeldConnection(self, result["number"], result["peer_number"], _attempt_result(result))

    async def talk(self, number: int, timeout: float) -> AttemptResult:
        """Query the other end of connection ``number``, as ``HeldConnection.talk`` does."""
        return _attempt_result(await self._request("talk", timeout, number=number))

    async def close(self, number: int) -> None:
        """Close connection ``number``, as ``HeldConnection.close`` does."""
        await self._request("close", 1.0, number=number)

    async def stop(self) -> None:
        """Stop the host's process, and with it its servers and connections."""
        if self._process is None or self._reader is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reader

    async def _request(self, verb: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        number = next(self._numbers)
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "verb": verb, "timeout": timeout, **arguments}
        try:
            if self._reader is None or self._reader.done():
                raise self._process_ended()
            process.stdin.write(json.dumps(request).encode() + b"\n")
            result: dict[str, Any] = await asyncio.wait_for(future, timeout + _GRACE)
        except TimeoutError:
            raise NfqError(f"host {self.name} did not answer the request {verb!r}; see {self._log}") from None
        finally:
            self._pending.pop(number, None)
        if "error" in result:
            raise NfqError(f"host {self.name} refuses the request {result['error']}")
        return result

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._start_lock:
            if self._process is None:
                self._process = await self._start()
                self._reader = asyncio.create_task(self._read_results(self._process))
        return self._process

    async def _start(self) -> asyncio.subprocess.Process:
        # In a session of its own: an interrupt from the keyboard reaches the lab's owner, which then stops the hosts.
        program = [self._executor.python, "-I", "-S", "-c", _program(), self.name]
        try:
            with self._log.open("ab") as log:
                return await asyncio.create_subprocess_exec(
                    *self._executor.command(self.name, program),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    limit=traffic.LINE_LIMIT,
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise NfqError(f"the lab {self._executor.state.name!r} is not up: see `nfq-enforcer lab up`") from None
        except OSError as error:
            raise NfqError(f"host {self.name} cannot start: {error}") from None

    async def _read_results(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            result = json.loads(line)
            future = self._pending.get(result.pop("id"))
            if future and not future.done():
                future.set_result(result)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._process_ended())

    def _process_ended(self) -> NfqError:
        return NfqError(f"the process of host {self.name} has ended; see {self._log}")


@cache
def _program() -> str:
    """Return the text of ``traffic.py``, behind lines that make the module that it imports of that module's text."""
    folder = files("nfq_enforcer.lab")
    name, text = "nfq_enforcer.lab.grpc", (folder / "grpc.py").read_text()
    return "\n".join(
        (
            "import sys, types",
            f"sys.modules[{name!r}] = types.ModuleType({name!r})",
            f"exec({text!r}, vars(sys.modules[{name!r}]))",
            (folder / "traffic.py").read_text(),
        )
    )


@dataclass(frozen=True)
class HeldConnection:
    """HeldConnection: an open TCP connection, used from one of its ends."""

    host: TrafficHost
    number: int
    peer_number: int
    opened: AttemptResult

    async def talk(self, timeout: float = 1.0) -> AttemptResult:
        """Send a query from this end, and wait for the other end's reply."""
        return await self.host.talk(self.number, timeout)

    async def close(self) -> None:
        """Close the connection from this end."""
        await self.host.close(self.number)

    def other_end(self, server: TrafficHost) -> "HeldConnection":
        """Return the server's end of the same connection, to send from there first."""
        return HeldConnection(server, self.peer_number, self.number, self.opened)


def _attempt_result(result: dict[str, Any]) -> AttemptResult:
    numbers = ("number", "peer_number")
    calls = tuple(tuple(answer) for answer in result.get("calls", ()))
    return AttemptResult(**{key: value for key, value in result.items() if key not in numbers} | {"calls": calls})
