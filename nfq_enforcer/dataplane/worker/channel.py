"""Messages between the agent and its workers: pickled objects with a length prefix, on a socket pair.

Both ends belong to this program and the agent creates them, so received data is trusted (pickle executes code).
Sending never blocks a worker: beyond a limit of unsent bytes the channel refuses a message, and the worker counts it.
A worker applies messages in the order in which the agent sent them.
"""

import pickle
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.ipcache import Peer, PeerChange
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.map_transfer import SnapshotReference
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS, WorkerTimings

_LENGTH = struct.Struct("!I")
_RECEIVE_BYTES = 1 << 18
_MAX_UNSENT = 1 << 22  # bytes


class Setup(NamedTuple):
    """Agent to worker, after the chunks of policy maps: the configuration and the first snapshot of a new worker."""

    driver: Driver
    queues: QueueNumbers
    next_worker: int | None  # queue of the next worker, for ICMP errors about flows that this worker does not have
    fail_open: bool
    max_flows: int
    snapshot: SnapshotReference
    peers: Mapping[bytes, Peer]
    timings: WorkerTimings = DEFAULT_TIMINGS


class PeerChanges(NamedTuple):
    """Agent to worker: changed peers."""

    changes: tuple[PeerChange, ...]


class Revision(NamedTuple):
    """Agent to worker: evaluate known flows again, by the same snapshot under this number, and in this epoch."""

    number: int
    epoch: int | None = None


class Stop(NamedTuple):
    """Agent to worker: return verdicts for waiting packets, then end."""


class Bound(NamedTuple):
    """Worker to agent: the queues are bound, the worker returns verdicts."""

    driver: Driver  # the one in use, never AUTO
    queues: QueueNumbers


class Failed(NamedTuple):
    """Worker to agent: the queues cannot be bound, for this reason; the worker ends."""

    reason: str


class Enforced(NamedTuple):
    """Worker to agent: from now on this revision decides every packet."""

    revision: int


class Events(NamedTuple):
    """Worker to agent: new flows and drops, oldest first."""

    number: int
    packed: bytes  # see ``pack``


def pack(events: Iterable[FlowEvent]) -> bytes:
    """Return events as bytes, which the agent unpacks only when a client reads them.

    Named tuples become plain ones first, because pickle takes three times as long for a named tuple.
    """
    plain = [(*event[:4], tuple(event.opening), *event[5:]) for event in events]
    return pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)


def unpack(packed: bytes) -> Iterator[FlowEvent]:
    """Yield the packed events."""
    for time, verdict, reason, direction, opening, *rest in pickle.loads(packed):
        yield FlowEvent(time, verdict, reason, direction, Opening(*opening), *rest)


def encode(message: object) -> bytes:
    """Return a message with its length prefix."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Decoder: assembles messages from received bytes."""

    def __init__(self) -> None:
        """Start with no bytes."""
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Add bytes and yield the complete messages; those that the caller does not consume stay for the next call."""
        self._data += data
        while end := self._end():
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield pickle.loads(body)

    @property
    def has_message(self) -> bool:
        """Return whether a complete message waits to be consumed."""
        return self._end() > 0

    def _end(self) -> int:
        """Return the offset behind the first message, 0 if it is incomplete."""
        if len(self._data) < _LENGTH.size:
            return 0
        end: int = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
        return end if end <= len(self._data) else 0


class WorkerChannel:
    """Worker channel: the worker's end of the socket pair; neither receiving nor sending blocks."""

    def __init__(self, end: socket.socket) -> None:
        """Use this end of the socket pair."""
        end.setblocking(False)
        self._socket = end
        self._decoder = Decoder()
        self._unsent = bytearray()
        self.closed = False  # the agent has closed its end, or has ended

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def has_message(self) -> bool:
        """Return whether a received message waits; the descriptor is no longer readable because of it."""
        return self._decoder.has_message

    def receive(self) -> Iterator[Any]:
        """Yield the messages that have arrived; those that the caller does not consume stay for the next call."""
        yield from self._decoder.feed(b"")
        while not self.closed:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            self.closed = not data
            yield from self._decoder.feed(data)

    def send(self, message: object) -> bool:
        """Send a message as far as the socket has room; refuse it (False) while too many bytes are unsent."""
        if len(self._unsent) > _MAX_UNSENT:
            self.flush()
            if len(self._unsent) > _MAX_UNSENT:
                return False
        # The rest of a message that the socket took in part stays in ``_unsent``, so messages arrive whole or not.
        self._unsent += encode(message)
        self.flush()
        return True

    def flush(self) -> None:
        """Send unsent bytes as far as the socket has room."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except ConnectionError:
            self.closed = True
            self._unsent.clear()
