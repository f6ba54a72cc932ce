"""Messages between the agent and its workers, each with a length prefix, on a socket pair.

The agent's messages are pickled objects: pickle executes code, but the agent starts the worker's program and has every
privilege that a worker has. A worker's messages are reports, which the agent validates (see ``reports``). Sending never
blocks a worker: beyond a limit of unsent bytes the channel refuses a report, and the worker counts it. A worker applies
messages in the order in which the agent sent them.
"""

import pickle
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, Generic, NamedTuple, TypeVar

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.identities import IdentityChange
from nfq_enforcer.core.tables.ipcache import Peer, PeerChange
from nfq_enforcer.core.tables.names import NameChange
from nfq_enforcer.core.tables.slots import SlotChange
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.map_transfer import SnapshotReference
from nfq_enforcer.dataplane.worker.packet_reports import PacketFilter
from nfq_enforcer.dataplane.worker.reports import MAX_REPORT, InvalidReport, Report, decode_report, encode_report
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS, WorkerTimings

_LENGTH = struct.Struct("!I")
_RECEIVE_BYTES = 1 << 18
_MAX_UNSENT = 1 << 22  # bytes
_MAX_MESSAGE = (1 << 32) - 1  # bytes of a message of the agent: what the length prefix can express
Message = TypeVar("Message")


class Setup(NamedTuple):
    """Agent to worker, after the chunks of policy maps: the configuration and the first snapshot of a new worker."""

    driver: Driver
    queues: QueueNumbers
    next_worker: int | None  # queue of the next worker, for ICMP errors about flows that this worker does not have
    fail_open: bool
    max_flows: int
    snapshot: SnapshotReference
    peers: Mapping[bytes, Peer]
    identities: Set[Identity]
    names: tuple[NameChange, ...] = ()
    alone: bool = True  # the only worker of this node
    min_ttl: float = 0.0  # s for which an address that DNS has named counts at least
    slots: tuple[SlotChange, ...] = ()
    changes_number: int = 0  # of the last NameChanges or SlotChanges that the setup contains
    timings: WorkerTimings = DEFAULT_TIMINGS


class PeerChanges(NamedTuple):
    """Agent to worker: changed peers."""

    changes: tuple[PeerChange, ...]


class IdentityChanges(NamedTuple):
    """Agent to worker: identities that the cluster has from now on, or no longer."""

    changes: tuple[IdentityChange, ...]


class Revision(NamedTuple):
    """Agent to worker: evaluate known flows again, by the same snapshot under this number, and in this epoch."""

    number: int
    epoch: int | None = None


class ImportFlows(NamedTuple):
    """Agent to worker: import flows that the workers of a predecessor have accepted since this worker's start."""


class NameChanges(NamedTuple):
    """Agent to worker: changed names of addresses; the worker answers with Applied of this number."""

    number: int
    changes: tuple[NameChange, ...]


class Release(NamedTuple):
    """Agent to worker: all workers have the addresses of the report NamesLearned of this number."""

    number: int


class SlotChanges(NamedTuple):
    """Agent to worker: changed slots of the proxy; the worker answers with Applied of this number."""

    number: int
    changes: tuple[SlotChange, ...]


class StartCapture(NamedTuple):
    """Agent to worker: record packets from now on, or go on; the worker confirms the start with an empty Packets."""

    number: int  # of the capture
    filter: PacketFilter
    snaplen: int  # bytes of each packet
    rate: int  # packets a second
    lease: float  # s until the worker ends the capture, unless the agent sends this again


class StopCapture(NamedTuple):
    """Agent to worker: end the capture of this number."""

    number: int


class Stop(NamedTuple):
    """Agent to worker: return verdicts for waiting packets, then end."""


def encode(message: object) -> bytes:
    """Return a message of the agent with its length prefix."""
    return _frame(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


class Decoder(Generic[Message]):
    """Decoder: assembles messages from received bytes."""

    def __init__(self, decode: Callable[[bytes], Message], limit: int) -> None:
        """Start with no bytes; a message of more bytes than the limit is invalid."""
        self._data = bytearray()
        self._decode = decode
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes and yield the complete messages; those that the caller does not consume stay for the next call.

        Raise InvalidReport for bytes that are no message; the decoder is of no use then.
        """
        self._data += data
        while end := self._end():
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield self._decode(body)

    @property
    def has_message(self) -> bool:
        """Return whether a complete message waits to be consumed."""
        return self._end() > 0

    def _end(self) -> int:
        """Return the offset behind the first message, 0 if it is incomplete."""
        if len(self._data) < _LENGTH.size:
            return 0
        length: int = _LENGTH.unpack_from(self._data)[0]
        if length > self._limit:
            raise InvalidReport(f"{length} bytes; allowed: at most {self._limit}")
        end = _LENGTH.size + length
        return end if end <= len(self._data) else 0


def message_decoder() -> Decoder[Any]:
    """Return the worker's decoder of the agent's messages."""
    return Decoder(pickle.loads, _MAX_MESSAGE)


def report_decoder() -> Decoder[Report]:
    """Return the agent's decoder of a worker's reports."""
    return Decoder(decode_report, MAX_REPORT)


class WorkerChannel:
    """Worker channel: the worker's end of the socket pair; neither receiving nor sending blocks."""

    def __init__(self, end: socket.socket) -> None:
        """Use this end of the socket pair."""
        end.setblocking(False)
        self._socket = end
        self._decoder = message_decoder()
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

    def send(self, report: Report) -> bool:
        """Send a report as far as the socket has room; refuse it (False) while too many bytes are unsent."""
        if len(self._unsent) > _MAX_UNSENT:
            self.flush()
            if len(self._unsent) > _MAX_UNSENT:
                return False
        # The rest of a report that the socket took in part stays in ``_unsent``, so reports arrive whole or not.
        self._unsent += _frame(encode_report(report))
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
