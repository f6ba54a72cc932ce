"""A glance at a packet: enough to know one of a known flow again, by slices of its header and without an object.

It takes in TCP segments and UDP datagrams that are *plain*: no fragment, no options or extension headers but a stamp
just as ``stamp`` writes one, no SYN that opens a connection, all lengths in order. Of these it says what ``parse`` and
``stamp.read`` say (a property test holds them together); of all others nothing.
"""

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire.packet import DESTINATION_OPTIONS, IPV4_HEADER, IPV6_HEADER, TCP, UDP
from nfq_enforcer.core.wire.stamp import Stamp, stamp_template

_IPV4, _IPV4_STAMPED = 0x45, 0x47  # version and size of the header
_IPV6 = 6
_MORE_OR_OFFSET = 0x3F  # in the first of the two bytes of flags and fragment offset
_SYN, _ACK = 0x02, 0x10

_UNSIGNED = Stamp(Identity(0))
_OPTION = stamp_template(_UNSIGNED, 4, TCP).header[:4]  # all before the identity
_HEADER = stamp_template(_UNSIGNED, 6, TCP).header
_HEADER_START, _HEADER_END = _HEADER[1:6], _HEADER[10:]  # between next header and identity; behind it

FastPacket = tuple[bytes, int | None, int, int, bool]
"""What a glance tells: the flow's key, the number on the stamp (not yet an identity: one that never travels is never a
flow's), the TCP flags (0 of UDP), where the transport header begins, and whether the packet is whole."""


def parse_fast(payload: bytes) -> FastPacket | None:
    """Return what a plain packet shows, None of one that is not plain."""
    size = len(payload)
    if size < IPV4_HEADER:
        return None
    start = payload[0]
    if start == _IPV4:
        claim, key, l4 = None, payload[9:10] + payload[12:24], IPV4_HEADER
    elif start == _IPV4_STAMPED and payload[20:24] == _OPTION:
        key, l4 = payload[9:10] + payload[12:20] + payload[28:32], 28
        claim = int.from_bytes(payload[24:28], "big")
    else:
        return _glance_ipv6(payload, size) if start >> 4 == _IPV6 else None
    fragment = payload[6] & _MORE_OR_OFFSET or payload[7]
    length = payload[2] << 8 | payload[3]
    flags = _flags(payload, key[0], l4, size)
    return None if fragment or size > length or flags is None else (key, claim, flags, l4, size == length)


def _glance_ipv6(payload: bytes, size: int) -> FastPacket | None:
    if payload[6] != DESTINATION_OPTIONS:
        claim, key, l4 = None, payload[6:7] + payload[8:44], IPV6_HEADER
    elif payload[41:46] == _HEADER_START and payload[50:56] == _HEADER_END:
        key, l4 = payload[40:41] + payload[8:40] + payload[56:60], 56
        claim = int.from_bytes(payload[46:50], "big")
    else:
        return None
    length = IPV6_HEADER + (payload[4] << 8 | payload[5])
    flags = _flags(payload, key[0], l4, size)
    return None if size > length or flags is None else (key, claim, flags, l4, size == length)


def _flags(payload: bytes, proto: int, l4: int, size: int) -> int | None:
    """Return the TCP flags (0 of UDP); None where the transport header is not in order, or opens a connection."""
    if proto == TCP and size >= l4 + 20:
        header, flags = payload[l4 + 12] >> 4 << 2, payload[l4 + 13]
        return flags if 20 <= header <= size - l4 and flags & (_SYN | _ACK) != _SYN else None
    return 0 if proto == UDP and size >= l4 + 8 and payload[l4 + 4 : l4 + 6] >= b"\0\x08" else None
