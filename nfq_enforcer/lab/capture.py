"""Packet captures: tcpdump writes a pcap file, which is read back.

The default place is the segment's bridge device. A frame between two of its ports passes the bridge exactly once, and
every packet between nodes crosses the segment once, packets through the router too, so captured packets can be
counted. Without a shared segment, captures of the inbound packets at each node together record the same packets. If
the sender segments late (GSO), one captured packet may be longer than the MTU; a capture keeps its first 16 KiB.
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
_POLL_INTERVAL = 0.005
_BUFFER_KIB = 65536
_SNAPLEN = 16384  # bytes; each slot of the buffer has this size, so tcpdump's default of 256 KiB leaves few slots

_IP_ETHERTYPES = (b"\x08\x00", b"\x86\xdd")
_ETHERNET = 14
_FILE_HEADER = 24
_RECORD = struct.Struct("=IIII")  # seconds, microseconds, captured length, length; tcpdump writes the host's order
_MARKER_TYPE = "0x88b5"  # IEEE's EtherType for local experiments: no receiver replies to it
_MARKER_HEADER = bytes.fromhex("020000000001 020000000002 88b5")

INBOUND = f"inbound or ether proto {_MARKER_TYPE}"
"""Capture filter: inbound packets of an interface, and the marker frame that ends the capture."""

# Runs a program on the machine of the capture until the program ends or standard input is closed. The closed input
# also arrives over ssh, where a signal would end only the local ssh client.
_RUN_UNTIL_EOF = """
import os, select, subprocess, sys
program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
waiting = select.poll()
waiting.register(os.pidfd_open(program.pid), select.POLLIN)
waiting.register(0, select.POLLIN)
waiting.poll()
program.terminate()
sys.exit(program.wait())
"""

# Runs in the capture's namespace: when this frame is in the file, all packets before it are.
_SEND_MARKER = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind((sys.argv[1], 0))
sock.send(bytes.fromhex(sys.argv[2]))
"""


class CapturedPacket(NamedTuple):
    """CapturedPacket: one IP packet, with its time of capture (Unix time, s) and its bytes from the IP header on."""

    time: float
    data: bytes


class Capture:
    """Capture: tcpdump on one interface; ``async with`` starts it, and ends it after the last packet is in the file."""

    def __init__(
        self,
        executor: Executor,
        machine: str = SEGMENT,
        interface: str = BRIDGE,
        file: Path | None = None,
        pcap_filter: str = "",
    ) -> None:
        """Keep the place of the capture, its local file, and its filter in the syntax of pcap-filter(7)."""
        self.file = file or executor.state / f"{machine}-{interface}-{secrets.token_hex(3)}.pcap"
        self._executor = executor
        self._machine = machine
        self._interface = interface
        self._pcap_filter = pcap_filter
        self._process: asyncio.subprocess.Process | None = None

    def packets(self) -> Iterator[CapturedPacket]:
        """Yield the captured IP packets in order; the packets of an ended capture are complete."""
        return read_packets(self.file)

    async def start(self) -> None:
        """Start tcpdump; return when it captures every later packet."""
        # -U and immediate mode write each packet to the file at once.
        options = ["-n", "-U", "--immediate-mode", "-B", str(_BUFFER_KIB), "-s", str(_SNAPLEN)]
        tcpdump = [self._executor.find("tcpdump"), *options, "-i", self._interface, "-w", "-"]
        wrapper = [self._executor.python, "-I", "-S", "-c", _RUN_UNTIL_EOF]
        with self.file.open("wb") as file:
            self._process = await asyncio.create_subprocess_exec(
                *self._executor.command(self._machine, [*wrapper, *tcpdump, *self._pcap_filter.split()]),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        assert self._process.stderr is not None
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._process.stderr.readuntil(b"listening on")
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            output = getattr(error, "partial", b"") or b"tcpdump printed nothing"
            await self._end()
            where = f"{self._interface} of {self._machine}"
            raise NfqError(f"the capture on {where} did not begin: {output.decode().strip()}") from None

    async def stop(self) -> None:
        """Stop the capture after all earlier packets are in the file; raise NfqError if tcpdump missed packets."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._write_marker()
        except TimeoutError:
            raise NfqError(f"the capture in {self.file} did not end in time; it is not complete") from None
        finally:
            output = await self._end()
        if missed := re.search(r"([1-9]\d*) packets? dropped by kernel", output):
            raise NfqError(f"the capture in {self.file} is not complete: {missed[1]} packets were missed")

    async def _write_marker(self) -> None:
        """Send a marker frame, and wait until it is in the file."""
        marker = _MARKER_HEADER + secrets.token_bytes(46)
        send = [self._executor.python, "-I", "-S", "-c", _SEND_MARKER, self._interface, marker.hex()]
        with self.file.open("rb") as file:
            file.seek(0, os.SEEK_END)
            command = self._executor.command(self._machine, send)
            sender = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
            await sender.wait()
            tail = b""
            while marker not in tail:
                tail += file.read()
                await asyncio.sleep(_POLL_INTERVAL)

    async def _end(self) -> str:
        """Terminate tcpdump; return its standard error."""
        process, self._process = self._process, None
        assert process is not None
        try:
            _, stderr = await asyncio.wait_for(process.communicate(b""), _TIMEOUT)  # closes its standard input
        except TimeoutError:
            process.kill()
            _, stderr = await process.communicate()
        return stderr.decode()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class Captures:
    """Captures: several captures as one, with the packets of all of them in the order of time."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        """Keep captures that are not started yet."""
        self._captures = captures
        self._running = AsyncExitStack()

    def packets(self) -> Iterator[CapturedPacket]:
        """Yield the captured IP packets in order; the packets of ended captures are complete."""
        return merge(*(capture.packets() for capture in self._captures))

    async def __aenter__(self) -> Self:
        """Start all captures; return when they record every later packet."""
        async with AsyncExitStack() as started:
            for capture in self._captures:
                await started.enter_async_context(capture)
            self._running = started.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop all captures."""
        await self._running.__aexit__(kind, error, traceback)


def read_packets(file: Path) -> Iterator[CapturedPacket]:
    """Yield the IP packets of a pcap file of Ethernet frames; skip an incomplete record at the end."""
    data = file.read_bytes()
    offset = _FILE_HEADER
    while offset + _RECORD.size <= len(data):
        seconds, microseconds, size, _ = _RECORD.unpack_from(data, offset)
        frame, offset = offset + _RECORD.size, offset + _RECORD.size + size
        if offset <= len(data) and data[frame + 12 : frame + _ETHERNET] in _IP_ETHERTYPES:
            yield CapturedPacket(seconds + microseconds / 1e6, data[frame + _ETHERNET : offset])
