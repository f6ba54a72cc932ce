"""Captures of packets for readers of the API: from the workers, and from the kernel's samples of forged sources.

Each capture has a reader. It begins in all workers at once, is renewed while the reader is there, and ends in a worker
by itself if the agent does not renew it. A slow reader loses packets and receives their number.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import count

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.dataplane.worker.packet_reports import PacketFilter, PacketRow, Packets, unpack_rows, wire_length
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.dataplane.worker.reports import pack
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.tasks import cancel

MAX_CAPTURES = 4  # at a time
RATE = 2000  # packets a second, of all workers together
_RENEWAL, _LEASE = 1.0, 5.0  # s
_CONFIRMATION = 5.0  # s for all workers to begin
_BEHIND_BYTES = 4 << 20  # bytes of packets and events that may wait for a reader
_EMPTY = 500  # bytes of a waiting packet besides these


class Capture:
    """Capture: the packets that wait for one reader."""

    def __init__(self, packet_filter: PacketFilter, snaplen: int, workers: Iterable[WorkerProcess]) -> None:
        """Record packets of these workers that the filter admits, of each the first ``snaplen`` bytes."""
        self.filter = packet_filter
        self.snaplen = snaplen
        self.lost = 0  # packets that the filter admits and that no reader receives
        self._waiting: deque[PacketRow] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._unconfirmed = set(workers)  # those that have not begun yet
        self._confirmed = asyncio.Event()

    def confirm(self, worker: WorkerProcess) -> None:
        """Note that the capture has begun in a worker."""
        self._unconfirmed.discard(worker)
        self._confirmed.set()

    async def wait_begun(self) -> None:
        """Return when the capture has begun in all workers that run; raise NfqError if it does not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRMATION):
                while self._waits_for_worker:
                    self._confirmed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_RENEWAL):  # a worker may have ended meanwhile
                            await self._confirmed.wait()
        if self._waits_for_worker:
            raise NfqError("the capture does not begin, because a worker does not answer; 'status' has its state")

    @property
    def _waits_for_worker(self) -> bool:
        return any(worker.pid is not None for worker in self._unconfirmed)

    def add(self, packet: PacketRow) -> None:
        """Add a packet, or count it as lost if too many wait."""
        size = _size(packet)
        if self._bytes + size > _BEHIND_BYTES:
            self.lost += 1
            return
        self._waiting.append(packet)
        self._bytes += size
        self._changed.set()

    async def next(self, timeout: float) -> PacketRow | None:
        """Wait for the next packet, at most ``timeout`` seconds; then return None."""
        if not self._waiting:
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                return None
        packet = self._waiting.popleft()
        self._bytes -= _size(packet)
        return packet


class Captures:
    """Captures: all captures of this agent."""

    def __init__(self, workers: Workers) -> None:
        """Receive the packets of these workers."""
        self._workers = workers
        self._captures: dict[int, Capture] = {}
        self._numbers = count(time.monotonic_ns())  # a successor of this agent continues with other numbers
        workers.on_packets = self._receive

    @asynccontextmanager
    async def begin(self, packet_filter: PacketFilter, snaplen: int) -> AsyncIterator[Capture]:
        """Give a capture that has begun in all workers, until the context ends; raise NfqError if it cannot begin."""
        if len(self._captures) >= MAX_CAPTURES:
            raise NfqError(f"{MAX_CAPTURES} captures run already: end one, or wait until one has ended")
        number = next(self._numbers)
        capture = self._captures[number] = Capture(packet_filter, snaplen, self._workers.processes)
        renewing = asyncio.create_task(self._renew(number, capture))
        try:
            await capture.wait_begun()
            yield capture
        finally:
            del self._captures[number]
            await cancel(renewing)
            self._workers.stop_capture(number)

    def add_sample(self, event: FlowEvent, payload: bytes, interface: int) -> None:
        """Add a packet that the kernel has dropped and of which it has sent a sample."""
        for capture in self._captures.values():
            if capture.filter.admits(event):
                data = payload[: capture.snaplen]
                capture.add(PacketRow(pack((event,)), interface, 0, wire_length(payload), data))

    async def _renew(self, number: int, capture: Capture) -> None:
        while True:
            self._workers.start_capture(number, capture.filter, capture.snaplen, RATE, _LEASE)
            await asyncio.sleep(_RENEWAL)

    def _receive(self, worker: WorkerProcess, report: Packets) -> None:
        """Add the packets of a worker's report to their capture, if it still runs."""
        capture = self._captures.get(report.capture)
        if capture is None:
            return
        capture.confirm(worker)
        capture.lost += report.lost
        for row in unpack_rows(report.packed):
            capture.add(row._replace(data=row.data[: capture.snaplen]))


def _size(packet: PacketRow) -> int:
    return _EMPTY + len(packet.event) + len(packet.data)
