"""Fast path on the wire: recognise and stamp plain packets by slices of their headers, without a ``Packet``.

A *plain* packet is a TCP segment or UDP datagram without fragmentation, without options or extension headers other than
one unsigned stamp exactly as ``stamp`` writes it, not a SYN that opens a connection, and consistent in all lengths. For
a plain packet ``parse_fast`` agrees with ``packet.parse`` and ``stamp.read`` (a property test compares them); for every
other packet it returns None.
"""

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import checksums
from nfq_enforcer.core.wire.packet import DESTINATION_OPTIONS, IPV4_HEADER, IPV6_HEADER, TCP, UDP
from nfq_enforcer.core.wire.skb import CHECKSUM_UNFINISHED, GSO, MAX_PAYLOAD
from nfq_enforcer.core.wire.stamp import Stamp, StampTemplate, stamp_template

_IPV4, _IPV4_STAMPED = 0x45, 0x47  # version and header size
_IPV6 = 6
_MORE_OR_OFFSET = 0x3F  # in the first of the two bytes of flags and fragment offset
_SYN, _ACK = 0x02, 0x10

_UNSIGNED = Stamp(Identity(0))
_OPTION_START = stamp_template(_UNSIGNED, 4, TCP).header[:4]  # the bytes before the identity
_HEADER = stamp_template(_UNSIGNED, 6, TCP).header
_HEADER_START, _HEADER_END = _HEADER[1:6], _HEADER[10:]  # between next header and identity; after the identity

FastPacket = tuple[bytes, int | None, int, int, int]
"""Plain packet: flow key; number on the stamp, None without one (unchecked: a number that no identity may have is in no
flow's origin); TCP flags (0 for UDP); offset of the transport header; length of the complete packet by its header."""


def parse_fast(payload: bytes) -> FastPacket | None:
    """Return the fields of a plain packet, None for every other packet."""
    size = len(payload)
    if size < IPV4_HEADER:
        return None
    start = payload[0]
    if start == _IPV4:
        identity, key, l4 = None, payload[9:10] + payload[12:24], IPV4_HEADER
    elif start == _IPV4_STAMPED and payload[20:24] == _OPTION_START:
        key, l4 = payload[9:10] + payload[12:20] + payload[28:32], 28
        identity = int.from_bytes(payload[24:28], "big")
    else:
        return _parse_ipv6(payload, size) if start >> 4 == _IPV6 else None
    fragment = payload[6] & _MORE_OR_OFFSET or payload[7]
    length = payload[2] << 8 | payload[3]
    flags = _tcp_flags(payload, key[0], l4, size)
    return None if fragment or size > length or flags is None else (key, identity, flags, l4, length)


def _parse_ipv6(payload: bytes, size: int) -> FastPacket | None:
    if payload[6] != DESTINATION_OPTIONS:
        identity, key, l4 = None, payload[6:7] + payload[8:44], IPV6_HEADER
    elif payload[41:46] == _HEADER_START and payload[50:56] == _HEADER_END:
        key, l4 = payload[40:41] + payload[8:40] + payload[56:60], 56
        identity = int.from_bytes(payload[46:50], "big")
    else:
        return None
    length = IPV6_HEADER + (payload[4] << 8 | payload[5])
    flags = _tcp_flags(payload, key[0], l4, size)
    return None if size > length or flags is None else (key, identity, flags, l4, length)


def _tcp_flags(payload: bytes, proto: int, l4: int, size: int) -> int | None:
    """Return the TCP flags (0 for UDP); None for a malformed transport header, or a SYN that opens a connection."""
    if proto == TCP and size >= l4 + 20:
        header, flags = payload[l4 + 12] >> 4 << 2, payload[l4 + 13]
        return flags if 20 <= header <= size - l4 and flags & (_SYN | _ACK) != _SYN else None
    return 0 if proto == UDP and size >= l4 + 8 and payload[l4 + 4 : l4 + 6] >= b"\0\x08" else None


def insert_fast(payload: bytes, fast: FastPacket, template: StampTemplate, mtu: int, skb: int) -> bytes | None:
    """Return a plain packet with this stamp; None for a packet that only the slow path can rewrite.

    ``mtu``: of the interface by which the packet leaves. ``skb``: ``SkbFlags``.
    """
    key, identity, _, l4, length = fast
    if length != len(payload) or identity is not None:
        return None
    if length + template.growth > (MAX_PAYLOAD if skb & GSO else min(mtu, MAX_PAYLOAD)):
        return None
    if skb & (CHECKSUM_UNFINISHED | GSO):
        proto = key[0]
        if not checksums.is_unfinished(payload, key, l4) or (skb & GSO and proto != TCP):
            return None
        if not skb & GSO:
            payload = checksums.finish(payload, proto, l4)
    return template.insert(payload)
