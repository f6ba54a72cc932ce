"""UDP datagrams: the data of a packet, and the datagram that answers one."""

from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire import reply as ip_reply
from nfq_enforcer.core.wire.packet import UDP, Packet, checksum

HEADER = 8


def data(payload: bytes, at: int) -> bytes:
    """Return the data of a datagram whose header is at this offset of its packet; raise PacketError if it is longer."""
    end = at + (payload[at + 4] << 8 | payload[at + 5])
    if end > len(payload):
        raise PacketError(DropReason.INVALID_PACKET)
    return payload[at + HEADER : end]


def reply(packet: Packet, answer: bytes) -> bytes:
    """Return the IP packet with a datagram from the packet's destination to its source."""
    length = HEADER + len(answer)
    start = ip_reply.ports(packet) + length.to_bytes(2, "big")
    pseudo_header = ip_reply.pseudo_header(packet, UDP, length)
    total = checksum(pseudo_header + start + bytes(2) + answer) or 0xFFFF  # RFC 768: 0 stands for no checksum
    return ip_reply.build(packet, UDP, start + total.to_bytes(2, "big") + answer)
