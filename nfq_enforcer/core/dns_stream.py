"""DNS over TCP: the messages in the segments of a connection, each behind its length (RFC 1035 section 4.2.2). Pure.

A verdict is on a segment, so a segment of the client has to consist of whole queries. It begins where the server
expects the next query, or it repeats the bytes that were accepted there: by a segment that overlaps others a client
could make the server read a query that nobody has seen. Resolvers send a query in one segment.

Answers may be of any length. Their segments are accepted in order, so that the client gets the end of an answer when
its worker has seen all of it.

The server's SYN-ACK says where the client's first query begins; it is the server that must not read other bytes.
"""

from collections.abc import Container
from hashlib import blake2b
from typing import NamedTuple

from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.tcp import SEQUENCE_SPACE, Segment

_LENGTH = 2  # bytes
_MAX_REPEATED = 64  # queries that may be repeated, the newest of a connection
_MAX_STREAMS = 32  # of one client, with at most 64 KiB of an answer that is not complete each


class Part(NamedTuple):
    """Part of a stream, as one segment has it: its messages, and the state of the stream behind it."""

    stream: "Stream"
    is_query: bool  # of the client
    messages: tuple[bytes, ...]
    next: int  # sequence number
    rest: bytes = b""  # of an answer that is not complete
    queries: tuple[tuple[int, bytes], ...] = ()  # sequence number and digest of each

    def accept(self) -> None:
        """Advance the stream."""
        self.stream.advance(self)


class Stream:
    """Stream: both directions of one connection."""

    __slots__ = ("_next_answer", "_next_query", "_queries", "_rest", "start")

    def __init__(self, start: int, next_answer: int) -> None:
        """Begin with the sequence numbers of the first byte of the client and of the server."""
        self.start = self._next_query = start
        self._next_answer = next_answer
        self._queries: dict[int, bytes] = {}  # digest by sequence number, the oldest first
        self._rest = b""

    def queries(self, segment: Segment) -> Part:
        """Return the queries of a segment of the client; raise PacketError for one that may not pass."""
        data, at, expected = segment.data, 0, self._next_query
        messages, digests = [], []
        while at < len(data):
            place = (segment.seq + at) % SEQUENCE_SPACE
            end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "big")
            digest = blake2b(data[at:end], digest_size=16).digest()
            if end > len(data) or at + _LENGTH > len(data):
                raise PacketError(DropReason.DNS_SEGMENT)
            if place == expected:
                expected = (segment.seq + end) % SEQUENCE_SPACE
                digests.append((place, digest))
            elif self._queries.get(place) != digest:
                raise PacketError(DropReason.DNS_SEGMENT)
            messages.append(data[at + _LENGTH : end])
            at = end
        return Part(self, True, tuple(messages), expected, queries=tuple(digests))

    def answers(self, segment: Segment) -> Part:
        """Return the answers that a segment of the server completes; raise PacketError if one before it is missing."""
        repeated = (self._next_answer - segment.seq) % SEQUENCE_SPACE
        if repeated >= SEQUENCE_SPACE // 2:
            raise PacketError(DropReason.DNS_SEGMENT)
        data, messages = segment.data[repeated:], []
        received = self._rest + data
        while len(received) >= _LENGTH:
            end = _LENGTH + int.from_bytes(received[:_LENGTH], "big")
            if end > len(received):
                break
            messages.append(received[_LENGTH:end])
            received = received[end:]
        return Part(self, False, tuple(messages), (self._next_answer + len(data)) % SEQUENCE_SPACE, received)

    def advance(self, part: Part) -> None:
        """Advance behind an accepted part."""
        if not part.is_query:
            self._next_answer, self._rest = part.next, part.rest
            return
        self._next_query = part.next
        self._queries.update(part.queries)
        while len(self._queries) > _MAX_REPEATED:
            del self._queries[next(iter(self._queries))]


class Streams:
    """Streams of all connections, by client and flow key; of too many of one client, the oldest is forgotten."""

    def __init__(self) -> None:
        """Start without streams."""
        self._of_clients: dict[bytes, dict[bytes, Stream]] = {}

    def begin(self, client: bytes, flow: bytes, answer: Segment) -> None:
        """Begin the stream of a client's connection by the server's SYN-ACK; one that is repeated changes nothing."""
        streams = self._of_clients.setdefault(client, {})
        known = streams.pop(flow, None)
        streams[flow] = known if known is not None and known.start == answer.ack else Stream(answer.ack, answer.seq)
        if len(streams) > _MAX_STREAMS:
            del streams[next(iter(streams))]

    def find(self, client: bytes, flow: bytes) -> Stream:
        """Return the stream of a connection; raise PacketError if its beginning has not been seen."""
        stream = self._of_clients.get(client, {}).get(flow)
        if stream is None:
            raise PacketError(DropReason.DNS_SEGMENT)
        return stream

    def keep(self, clients: Container[bytes]) -> None:
        """Remove the streams of all other clients."""
        for client in [client for client in self._of_clients if client not in clients]:
            del self._of_clients[client]
