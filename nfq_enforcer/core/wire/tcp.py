"""TCP segments: the fields that a stream of messages needs, and the segment that answers one (RFC 9293)."""

from typing import NamedTuple

from nfq_enforcer.core.wire import reply
from nfq_enforcer.core.wire.packet import TCP, Packet, checksum

SEQUENCE_SPACE = 1 << 32
_HEADER = 20
URG = 0x20
_FIN_PSH_ACK, _SYN = 0x19, 0x02
_END_OF_OPTIONS, _NO_OPERATION, _MULTIPATH = 0, 1, 30  # kinds of options
_WINDOW = 0xFFFF


class Segment(NamedTuple):
    """Segment: sequence number of the first byte of data, acknowledgement number, and data.

    The data of a ``plain`` one is in the stream as it is: nothing is urgent, or placed by Multipath TCP (RFC 8684).
    """

    seq: int
    ack: int
    data: bytes
    plain: bool = True


def read(payload: bytes, packet: Packet) -> Segment:
    """Return the segment of a complete packet, which ``parse`` has accepted."""
    at = packet.l4_offset
    header = (payload[at + 12] >> 4) * 4
    seq, ack = int.from_bytes(payload[at + 4 : at + 8], "big"), int.from_bytes(payload[at + 8 : at + 12], "big")
    if packet.tcp_flags & _SYN:
        seq = (seq + 1) % SEQUENCE_SPACE  # SYN has the number before the data
    plain = not packet.tcp_flags & URG and not _has_multipath(payload[at + _HEADER : at + header])
    return Segment(seq, ack, payload[at + header : packet.length], plain)


def _has_multipath(options: bytes) -> bool:
    """Return whether the options have one of Multipath TCP, or cannot be read."""
    while options and options[0] != _END_OF_OPTIONS:
        if options[0] == _NO_OPERATION:
            options = options[1:]
        elif options[0] == _MULTIPATH or len(options) < 2 or not 2 <= options[1] <= len(options):
            return True
        else:
            options = options[options[1] :]
    return False


def last_words(packet: Packet, segment: Segment, answer: bytes) -> bytes:
    """Return the IP packet that answers a segment on behalf of its receiver, and ends the receiver's direction."""
    length = _HEADER + len(answer)
    numbers = segment.ack.to_bytes(4, "big") + ((segment.seq + len(segment.data)) % SEQUENCE_SPACE).to_bytes(4, "big")
    start = reply.ports(packet) + numbers + bytes((_HEADER << 2, _FIN_PSH_ACK)) + _WINDOW.to_bytes(2, "big")
    total = checksum(reply.pseudo_header(packet, TCP, length) + start + bytes(4) + answer)
    return reply.build(packet, TCP, start + total.to_bytes(2, "big") + bytes(2) + answer)
