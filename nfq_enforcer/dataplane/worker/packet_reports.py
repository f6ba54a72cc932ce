"""Captured packets as a worker reports them: the first bytes of each packet, with the event of its drop.

A report has a row for each packet: a head of fixed size, the packed event (see ``reports.pack``), the bytes. It also
has the number of packets that the capture has lost since the report before.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.verdict import DropReason, FlowVerdict

MAX_SNAPLEN = 65535  # bytes; IP packets are not longer, apart from jumbograms

_HEAD = struct.Struct("!IIIII")  # bytes of the event, indexes of both interfaces, length on the wire, bytes captured
_IPV4_LENGTH, _IPV6_LENGTH = struct.Struct("!2xH"), struct.Struct("!4xH")
_IPV6_HEADER = 40


class PacketFilter(NamedTuple):
    """Packet filter: the packets that a capture records."""

    verdicts: frozenset[FlowVerdict] = frozenset({FlowVerdict.DROPPED})
    reasons: frozenset[DropReason] | None = None  # None: all

    def admits(self, event: FlowEvent) -> bool:
        """Return whether to record the packet of this event."""
        return event.verdict in self.verdicts and (self.reasons is None or event.reason in self.reasons)


class PacketRow(NamedTuple):
    """Packet row: one captured packet."""

    event: bytes  # a pack of one event
    indev: int  # index of the interface by which it arrived, 0: none
    outdev: int  # index of the interface by which it would have left, 0: none
    length: int  # bytes of the packet on the wire
    data: bytes  # its first bytes, from the IP header on


class Packets(NamedTuple):
    """Report of captured packets, oldest first; without any, it confirms that the capture has begun."""

    capture: int  # number of the capture
    lost: int  # packets that the capture should have recorded since the report before, and has not
    packed: bytes  # see ``pack_rows``


def pack_rows(rows: Iterable[PacketRow]) -> bytes:
    """Return rows as bytes."""
    return b"".join(
        _HEAD.pack(len(event), indev, outdev, length, len(data)) + event + data
        for event, indev, outdev, length, data in rows
    )


def unpack_rows(packed: bytes) -> Iterator[PacketRow]:
    """Yield the rows; raise ValueError for bytes that are none."""
    offset = 0
    while offset < len(packed):
        if offset + _HEAD.size > len(packed):
            raise ValueError("head of a captured packet")
        event, indev, outdev, length, data = _HEAD.unpack_from(packed, offset)
        middle = offset + _HEAD.size + event
        offset = middle + data
        if offset > len(packed) or data > min(length, MAX_SNAPLEN):
            raise ValueError("length of a captured packet")
        yield PacketRow(packed[middle - event : middle], indev, outdev, length, packed[middle:offset])


def wire_length(payload: bytes) -> int:
    """Return the bytes of a packet on the wire by its IP header, not less than the bytes that are known of it.

    A queue that copies only headers has the first bytes of a packet; an unreadable header counts as not longer.
    """
    if len(payload) >= _IPV6_HEADER and payload[0] >> 4 == 6:
        return max(len(payload), _IPV6_HEADER + int(_IPV6_LENGTH.unpack_from(payload)[0]))
    if len(payload) >= _IPV4_LENGTH.size and payload[0] >> 4 == 4:
        return max(len(payload), int(_IPV4_LENGTH.unpack_from(payload)[0]))
    return len(payload)
