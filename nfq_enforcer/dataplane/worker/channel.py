"""Messages between the agent and its workers: pickled objects, each with its length before it, on a socket pair.

Both ends are ours and started by the agent, so what comes is trusted. Sending never blocks a worker: what the agent
does not fetch in time is refused, and the sender counts it. What a worker is sent takes effect in the order in which it
was sent.
"""

import pickle
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.ipcache import Peer, PeerChange
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.map_transfer import SnapshotReference

_LENGTH = struct.Struct("!I")
_CHUNK = 1 << 18
_MAX_UNSENT = 1 << 22


class Setup(NamedTuple):
    """Agent to worker, behind the pieces of policy maps: what to be. A later snapshot is a message by itself."""

    driver: str  # as the configuration names it
    queues: QueueNumbers
    next_worker: int | None  # the queue to which an ICMP error goes that concerns no flow of this worker
    fail_open: bool
    maximum_flows: int
    snapshot: SnapshotReference
    peers: Mapping[bytes, Peer]


class Peers(NamedTuple):
    """Agent to worker: these peers have changed."""

    changes: tuple[PeerChange, ...]


class Revision(NamedTuple):
    """Agent to worker: judge known flows again, by the same snapshot under this number, and in this epoch."""

    number: int
    epoch: int | None = None


class Stop(NamedTuple):
    """Agent to worker: answer what waits, then end."""


class Bound(NamedTuple):
    """Worker to agent: the queues are bound, packets are being judged."""

    driver: str  # that was chosen
    queues: QueueNumbers


class Failed(NamedTuple):
    """Worker to agent: the queues cannot be had, for this reason; the worker ends."""

    sentence: str


class Enforced(NamedTuple):
    """Worker to agent: from now on every packet is judged by this revision."""

    revision: int


class Events(NamedTuple):
    """Worker to agent: new flows and drops, oldest first."""

    number: int
    packed: bytes  # see ``pack``


def pack(events: Iterable[FlowEvent]) -> bytes:
    """Return events as bytes, for who may never want to look at them.

    They are taken apart before, because a tuple that has a name takes pickle three times as long as one that has none.
    """
    plain = [(*event[:4], tuple(event.opening), *event[5:]) for event in events]
    return pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)


def unpack(packed: bytes) -> Iterator[FlowEvent]:
    """Yield the events that were packed."""
    for time, verdict, reason, direction, opening, *rest in pickle.loads(packed):
        yield FlowEvent(time, verdict, reason, direction, Opening(*opening), *rest)


def encode(message: object) -> bytes:
    """Return a message as it stands on the wire."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Takes bytes as they come, gives whole messages."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that are whole with these bytes; those that nobody asks for are kept."""
        self._data += data
        while end := self._end():
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield pickle.loads(body)

    @property
    def has_message(self) -> bool:
        """Say whether a message is whole and has not been asked for."""
        return self._end() > 0

    def _end(self) -> int:
        """Return where the first message ends, 0 if it is not whole."""
        if len(self._data) < _LENGTH.size:
            return 0
        end: int = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
        return end if end <= len(self._data) else 0


class WorkerChannel:
    """The worker's end: neither receiving nor sending ever waits."""

    def __init__(self, end: socket.socket) -> None:
        """Take the worker's end of the socket pair."""
        end.setblocking(False)
        self._socket = end
        self._decoder = Decoder()
        self._unsent = bytearray()
        self.closed = False  # the agent is gone

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def has_message(self) -> bool:
        """Say whether a message was received and not yielded; the descriptor is not readable for it any more."""
        return self._decoder.has_message

    def receive(self) -> Iterator[Any]:
        """Yield the messages that are there; who stops asking gets the others next time."""
        yield from self._decoder.feed(b"")
        while not self.closed:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            self.closed = not data
            yield from self._decoder.feed(data)

    def send(self, message: object) -> bool:
        """Send a message as far as there is room now; refuse it (False) while too much is still unsent."""
        if len(self._unsent) > _MAX_UNSENT:
            self.flush()
            if len(self._unsent) > _MAX_UNSENT:
                return False
        self._unsent += encode(message)
        self.flush()
        return True

    def flush(self) -> None:
        """Send what is unsent, as far as there is room."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except ConnectionError:
            self.closed = True
            self._unsent.clear()
