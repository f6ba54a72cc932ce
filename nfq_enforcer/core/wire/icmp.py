"""ICMP errors for datagrams that exceed the MTU with their stamp, and permission to fragment.

A remote sender receives the smaller MTU, as from any router on the path; a datagram of this host loses its DF bit
instead.
"""

from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, Packet, checksum

_ICMP_HEADER = 8
_LONGEST_IPV4 = 576  # RFC 1812 section 4.3.2.3
_LONGEST_IPV6 = 1280  # RFC 4443 section 2.4 (c)
_MIN_MTU = {4: 68, 6: 1280}  # RFC 791 section 3.2, RFC 8200 section 5
_INTERNETWORK_CONTROL = 0xC0  # the precedence of errors, RFC 1812 section 4.3.2.5
_HOPS = 64
_DF = 0x40  # in the first byte of flags and fragment offset


def too_big(payload: bytes, packet: Packet, mtu: int, source: bytes) -> bytes:
    """Return the ICMP error from ``source`` to the packet's sender that announces ``mtu``."""
    if packet.version == 4:
        return _fragmentation_needed(payload, packet, mtu, source)
    return _packet_too_big(payload, packet, mtu, source)


def lower_mtu(payload: bytes, packet: Packet, reduction: int) -> bytes:
    """Return a "fragmentation needed" or "packet too big" error that announces a smaller MTU; other packets unchanged.

    A router announces the MTU of its link to the sender of a stamped packet. That sender has no stamp in its own path
    MTU, so it has to leave room for the stamp that its node adds: otherwise each of its packets exceeds the link again.
    An IPv4 router that announces no MTU (RFC 1191 section 3) is left alone, and no MTU is lowered below the minimum of
    its family.
    """
    at = packet.l4_offset
    if (packet.version, packet.icmp_type, packet.icmp_code) == (4, 3, 4):
        field = slice(at + 6, at + 8)
    elif (packet.version, packet.icmp_type) == (6, 2):
        field = slice(at + 4, at + 8)
    else:
        return payload
    announced = int.from_bytes(payload[field], "big")
    lowered = max(announced - reduction, min(announced, _MIN_MTU[packet.version]))
    if lowered == announced:
        return payload
    # RFC 1624, equation 3: the checksum changes by the difference of the two fields.
    total = 0xFFFF - int.from_bytes(payload[at + 2 : at + 4], "big") - announced % 65535 + lowered % 65535
    rewritten = bytearray(payload)
    rewritten[field] = lowered.to_bytes(field.stop - field.start, "big")
    rewritten[at + 2 : at + 4] = (-total % 65535).to_bytes(2, "big")
    return bytes(rewritten)


def clear_df(payload: bytes, identification: int) -> bytes:
    """Return the IPv4 packet without DF, with this identification if it had none.

    RFC 6864: the identification of a datagram with DF has no meaning, so many senders set it to 0. Without DF, the
    fragments of two such datagrams would be reassembled as one.
    """
    header = bytearray(payload[: (payload[0] & 0x0F) * 4])
    header[6] &= ~_DF
    if header[4:6] == bytes(2):
        header[4:6] = identification.to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + payload[len(header) :]


def _fragmentation_needed(payload: bytes, packet: Packet, mtu: int, source: bytes) -> bytes:
    """Build ICMP type 3, code 4, with the next-hop MTU (RFC 1191 section 4)."""
    quote = payload[: min(packet.length, _LONGEST_IPV4 - IPV4_HEADER - _ICMP_HEADER)]
    message = _summed(b"\x03\x04", mtu, quote, b"")
    length = (IPV4_HEADER + len(message)).to_bytes(2, "big")
    # With DF it needs no identification (RFC 6864), and it fits every link.
    start = bytes((0x45, _INTERNETWORK_CONTROL)) + length + bytes((0, 0, _DF, 0, _HOPS, ICMP))
    addresses = source + packet.src
    header_sum = checksum(start + bytes(2) + addresses).to_bytes(2, "big")
    return start + header_sum + addresses + message


def _packet_too_big(payload: bytes, packet: Packet, mtu: int, source: bytes) -> bytes:
    """Build ICMPv6 type 2 (RFC 4443 section 3.2)."""
    quote = payload[: min(packet.length, _LONGEST_IPV6 - IPV6_HEADER - _ICMP_HEADER)]
    addresses = source + packet.src
    length = _ICMP_HEADER + len(quote)
    pseudo_header = addresses + length.to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6))  # RFC 8200 section 8.1
    message = _summed(b"\x02\x00", mtu, quote, pseudo_header)
    return b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes((ICMPV6, _HOPS)) + addresses + message


def _summed(kind: bytes, mtu: int, quote: bytes, pseudo_header: bytes) -> bytes:
    """Return the message of this type and code, with a checksum that includes the pseudo header."""
    rest = mtu.to_bytes(4, "big") + quote
    return kind + checksum(pseudo_header + kind + bytes(2) + rest).to_bytes(2, "big") + rest
