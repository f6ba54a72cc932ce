"""Packets as they pass the segment, written by tcpdump and read back.

The default place is the segment's bridge device, which sees every frame between two of its ports exactly once (as it
goes from one to the other), and every packet between nodes crosses the segment once, those through the router too:
what is captured there can be counted. Where there is no such place, captures of what comes in at each node see the
same together. Where the sender segments late (GSO), one captured packet may be longer than
the MTU; what of it is beyond 16 KiB is cut off.
"""

import asyncio
import os
import re
import secrets
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from heapq import merge
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.executor import Executor
from nfq_enforcer.lab.topology import BRIDGE, SEGMENT

_TIMEOUT = 10.0
_POLL = 0.005
_BUFFER_KIB = 65536
_LONGEST = 16384  # of a packet; every place in the buffer is as long, so that with tcpdump's own 256 KiB there are few

_IP_ETHERTYPES = (b"\x08\x00", b"\x86\xdd")
_ETHERNET = 14
_FILE_HEADER = 24
_RECORD = struct.Struct("=IIII")  # seconds, microseconds, captured length, length; tcpdump writes the host's order
_MARK_TYPE = "0x88b5"  # an EtherType for local experiments: nobody answers
_MARK_HEADER = bytes.fromhex("020000000001 020000000002 88b5")

INBOUND = f"inbound or ether proto {_MARK_TYPE}"
"""A filter: what comes in at an interface, and what marks the end of the capture."""

# Run where the capture is: a program that ends when it is done, or when this end hangs up, which reaches it where a
# signal would only end what leads to it, too.
_UNTIL_HANG_UP = """
import os, select, subprocess, sys
program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
waiting = select.poll()
waiting.register(os.pidfd_open(program.pid), select.POLLIN)
waiting.register(0, select.POLLIN)
waiting.poll()
program.terminate()
sys.exit(program.wait())
"""

# Run in the capture's namespace: what comes before this frame has been written when the frame has.
_SEND = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind((sys.argv[1], 0))
sock.send(bytes.fromhex(sys.argv[2]))
"""


class CapturedPacket(NamedTuple):
    """One IP packet: when it was seen (Unix time), and its bytes from the IP header on."""

    time: float
    data: bytes


class Capture:
    """A running capture; ``async with`` starts it, and ends it when all that was sent so far is in the file."""

    def __init__(
        self,
        machines: Executor,
        machine: str = SEGMENT,
        interface: str = BRIDGE,
        file: Path | None = None,
        only: str = "",
    ) -> None:
        """Say where to capture, into which file here, and, as pcap-filter(7) says it, only what."""
        self.file = file or machines.state / f"{machine}-{interface}-{secrets.token_hex(3)}.pcap"
        self._machines = machines
        self._machine = machine
        self._interface = interface
        self._only = only
        self._process: asyncio.subprocess.Process | None = None

    def packets(self) -> Iterator[CapturedPacket]:
        """Yield the IP packets seen, in order; a capture that has ended is complete."""
        return read_packets(self.file)

    async def start(self) -> None:
        """Return once every later packet will be seen."""
        # Each packet is in the file at once (-U, immediate mode).
        options = ["-n", "-U", "--immediate-mode", "-B", str(_BUFFER_KIB), "-s", str(_LONGEST)]
        command = [self._machines.find("tcpdump"), *options, "-i", self._interface, "-w", "-", *self._only.split()]
        ending = [self._machines.python, "-I", "-S", "-c", _UNTIL_HANG_UP]
        with self.file.open("wb") as file:
            self._process = await asyncio.create_subprocess_exec(
                *self._machines.command(self._machine, [*ending, *command]),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        assert self._process.stderr is not None
        try:
            async with asyncio.timeout(_TIMEOUT):
                said = await self._process.stderr.readuntil(b"listening on")
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            said = getattr(error, "partial", b"") or b"it says nothing"
            await self._end()
            where = f"{self._interface} of {self._machine}"
            raise NfqError(f"the capture on {where} did not begin: {said.decode().strip()}") from None

    async def stop(self) -> None:
        """End the capture when all that passed before is in the file; raise NfqError if packets were missed."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._reach_mark()
        except TimeoutError:
            raise NfqError(f"the capture in {self.file} did not end in time; it is not complete") from None
        finally:
            said = await self._end()
        if missed := re.search(r"([1-9]\d*) packets? dropped by kernel", said):
            raise NfqError(f"the capture in {self.file} is not complete: {missed[1]} packets were missed")

    async def _reach_mark(self) -> None:
        """Send a frame of our own, and wait until it is in the file."""
        mark = _MARK_HEADER + secrets.token_bytes(46)
        send = [self._machines.python, "-I", "-S", "-c", _SEND, self._interface, mark.hex()]
        with self.file.open("rb") as file:
            file.seek(0, os.SEEK_END)
            command = self._machines.command(self._machine, send)
            sender = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
            await sender.wait()
            seen = b""
            while mark not in seen:
                seen += file.read()
                await asyncio.sleep(_POLL)

    async def _end(self) -> str:
        """End tcpdump; return what it said."""
        process, self._process = self._process, None
        assert process is not None
        try:
            _, said = await asyncio.wait_for(process.communicate(b""), _TIMEOUT)  # nothing: we hang up
        except TimeoutError:
            process.kill()
            _, said = await process.communicate()
        return said.decode()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class Captures:
    """Several captures as one: packets of all of them, in the order of time."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        """Take captures that have not begun."""
        self._captures = captures
        self._running = AsyncExitStack()

    def packets(self) -> Iterator[CapturedPacket]:
        """Yield the IP packets seen, in order; captures that have ended are complete."""
        return merge(*(capture.packets() for capture in self._captures))

    async def __aenter__(self) -> Self:
        """Return once every later packet will be seen."""
        async with AsyncExitStack() as begun:
            for capture in self._captures:
                await begun.enter_async_context(capture)
            self._running = begun.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all of them."""
        await self._running.__aexit__(kind, error, traceback)


def read_packets(file: Path) -> Iterator[CapturedPacket]:
    """Yield the IP packets of a pcap file of Ethernet frames; a record cut off at the end is left out."""
    data = file.read_bytes()
    place = _FILE_HEADER
    while place + _RECORD.size <= len(data):
        seconds, microseconds, size, _ = _RECORD.unpack_from(data, place)
        begin, place = place + _RECORD.size, place + _RECORD.size + size
        if place <= len(data) and data[begin + 12 : begin + _ETHERNET] in _IP_ETHERTYPES:
            yield CapturedPacket(seconds + microseconds / 1e6, data[begin + _ETHERNET : place])
