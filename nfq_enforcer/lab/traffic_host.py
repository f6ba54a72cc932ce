"""A host of the lab as its user sees it: connections, datagrams and pings with an outcome each.

A host's traffic is made by one process there (``traffic.py``, whose text is all that is needed), started with the
first order. Every order has a timeout; orders to one host run side by side. If the process dies, orders fail with a
sentence that says so.
"""

import asyncio
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any, Literal

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab import traffic
from nfq_enforcer.lab.executor import Executor
from nfq_enforcer.lab.topology import Address

Status = Literal["ok", "timeout", "refused", "unreachable", "too-big"]
Protocol = Literal["TCP", "UDP"]

_GRACE = 5.0  # how much longer than its timeout an order may take on a busy machine


@dataclass(frozen=True)
class AttemptResult:
    """What became of an attempt."""

    status: Status
    elapsed: float
    answered_by: str = ""  # the name of the host that answered; of a ping its address
    seen_as: str = ""  # the address that the answering side saw
    detail: str = ""  # the kernel's words for what went wrong
    received: int = 0  # of a bulk transfer: how many bytes came
    intact: bool = False  # of a bulk transfer: whether they are the bytes that were sent

    @property
    def ok(self) -> bool:
        """Say whether the answer came."""
        return self.status == "ok"


class TrafficHost:
    """One host; ``lab.host(name)`` returns it."""

    def __init__(self, machines: Executor, name: str) -> None:
        """Name the host; raise BadInput if there is none of this name."""
        machines.address(name)
        self.name = name
        self._machines = machines
        self._log = machines.state / f"{name}.log"
        self._numbers = count(1)
        self._awaited: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    def address(self, family: int = 4) -> Address:
        """Return its own address of IP version 4 or 6."""
        return self._machines.address(self.name, family)

    async def serve(self, protocol: Protocol, *ports: int, families: tuple[int, ...] = (4, 6)) -> None:
        """Answer on these ports with the host's name and the address seen, as long as the lab lives."""
        for port in ports:
            answer = await self._order("serve", 5.0, protocol=protocol, port=port, families=families)
            if answer["status"] != "ok":
                raise NfqError(f"{self.name} cannot serve {port}/{protocol}: {answer.get('detail', answer['status'])}")

    async def connect(self, address: Address, port: int, timeout: float = 1.0) -> AttemptResult:
        """Open a TCP connection, ask who is there, and close it."""
        return _outcome(await self._order("connect", timeout, address=str(address), port=port))

    async def send_udp(
        self, address: Address, port: int, timeout: float = 1.0, *, size: int = 64, dont_fragment: bool = False
    ) -> AttemptResult:
        """Send one datagram with this many bytes of payload, and await the answer."""
        order = {"address": str(address), "port": port, "size": size, "dont_fragment": dont_fragment}
        return _outcome(await self._order("send_udp", timeout, **order))

    async def ping(self, address: Address, timeout: float = 1.0, *, size: int = 56) -> AttemptResult:
        """Send one ICMP or ICMPv6 echo request, and await the reply."""
        return _outcome(await self._order("ping", timeout, address=str(address), size=size))

    async def bulk(self, address: Address, port: int, size: int, timeout: float = 30.0) -> AttemptResult:
        """Send this many bytes over TCP; the outcome says how many came, and whether they came intact."""
        return _outcome(await self._order("bulk", timeout, address=str(address), port=port, size=size))

    async def send_raw(self, packet: bytes) -> AttemptResult:
        """Send an IP packet as it stands, whatever its source; the kernel sets IPv4's total length and checksum."""
        return _outcome(await self._order("send_raw", 1.0, packet=packet.hex()))

    async def hold(self, address: Address, port: int, timeout: float = 1.0) -> "Connection":
        """Open a TCP connection that stays open; raise NfqError if it cannot be opened."""
        answer = await self._order("hold", timeout, address=str(address), port=port)
        if answer["status"] != "ok":
            raise NfqError(f"{self.name} cannot hold a connection to {address} port {port}: {answer['status']}")
        return Connection(self, answer["number"], answer["peer_number"], _outcome(answer))

    async def talk(self, number: int, timeout: float) -> AttemptResult:
        """Ask the other side of connection ``number``, as ``Connection.talk`` does."""
        return _outcome(await self._order("talk", timeout, number=number))

    async def close(self, number: int) -> None:
        """Close connection ``number``, as ``Connection.close`` does."""
        await self._order("close", 1.0, number=number)

    async def stop(self) -> None:
        """End the host's process; what it served and held is gone."""
        if self._process is None or self._reading is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reading

    async def _order(self, verb: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        number = next(self._numbers)
        answer = self._awaited[number] = asyncio.get_running_loop().create_future()
        order = {"id": number, "verb": verb, "timeout": timeout, **arguments}
        try:
            if self._reading is None or self._reading.done():
                raise self._died()
            process.stdin.write(json.dumps(order).encode() + b"\n")
            result: dict[str, Any] = await asyncio.wait_for(answer, timeout + _GRACE)
        except TimeoutError:
            raise NfqError(f"host {self.name} did not answer the order {verb!r}; see {self._log}") from None
        finally:
            self._awaited.pop(number, None)
        if "error" in result:
            raise NfqError(f"host {self.name} does not understand the order {result['error']}")
        return result

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None:
                self._process = await self._start()
                self._reading = asyncio.create_task(self._read_answers(self._process))
        return self._process

    async def _start(self) -> asyncio.subprocess.Process:
        # Its own session: an interrupt from the keyboard is for the lab's user, who then ends the hosts in order.
        program = [self._machines.python, "-I", "-S", "-c", _program(), self.name]
        try:
            with self._log.open("ab") as log:
                return await asyncio.create_subprocess_exec(
                    *self._machines.command(self.name, program),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    limit=traffic.LINE_LIMIT,
                    start_new_session=True,
                )
        except FileNotFoundError:
            raise NfqError(f"the lab {self._machines.state.name!r} is not up: see `nfq-enforcer lab up`") from None
        except OSError as error:
            raise NfqError(f"host {self.name} cannot start: {error}") from None

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = json.loads(line)
            awaited = self._awaited.get(answer.pop("id"))
            if awaited and not awaited.done():
                awaited.set_result(answer)
        for awaited in self._awaited.values():
            if not awaited.done():
                awaited.set_exception(self._died())

    def _died(self) -> NfqError:
        return NfqError(f"the process of host {self.name} has ended; see {self._log}")


@cache
def _program() -> str:
    return (files("nfq_enforcer.lab") / "traffic.py").read_text()


@dataclass(frozen=True)
class Connection:
    """A TCP connection that is held open, seen from one of its ends."""

    host: TrafficHost
    number: int
    peer_number: int
    opened: AttemptResult

    async def talk(self, timeout: float = 1.0) -> AttemptResult:
        """Send a question from this end, and await the other end's answer."""
        return await self.host.talk(self.number, timeout)

    async def close(self) -> None:
        """Close it from this end."""
        await self.host.close(self.number)

    def other_end(self, server: TrafficHost) -> "Connection":
        """Return the same connection as its server has it, to speak first from there."""
        return Connection(server, self.peer_number, self.number, self.opened)


def _outcome(answer: dict[str, Any]) -> AttemptResult:
    numbers = ("number", "peer_number")
    return AttemptResult(**{key: value for key, value in answer.items() if key not in numbers})
