"""Replies: the IP packet that answers another on behalf of its receiver."""

from nfq_enforcer.core.wire.packet import Packet, checksum

_HOPS = 64
# With DF an IPv4 packet needs no identification (RFC 6864); a raw socket replaces one of 0.
_IDENTIFICATION_DF = b"\0\1\x40\0"


def ports(packet: Packet) -> bytes:
    """Return source and destination port of the reply."""
    return packet.key[-2:] + packet.key[-4:-2]


def pseudo_header(packet: Packet, proto: int, length: int) -> bytes:
    """Return the pseudo header of a reply with so many bytes of transport: that of IPv4 adds up to the same."""
    return packet.dst + packet.src + length.to_bytes(4, "big") + bytes((0, 0, 0, proto))


def build(packet: Packet, proto: int, body: bytes) -> bytes:
    """Return the IP packet with this transport header and data from the packet's destination to its source."""
    addresses, length = packet.dst + packet.src, len(body)
    if packet.version == 6:
        return b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes((proto, _HOPS)) + addresses + body
    start = b"\x45\0" + (20 + length).to_bytes(2, "big") + _IDENTIFICATION_DF + bytes((_HOPS, proto))
    return start + checksum(start + bytes(2) + addresses).to_bytes(2, "big") + addresses + body
