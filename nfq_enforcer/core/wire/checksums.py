"""Transport checksums: complete those that the kernel has left to the device.

For an unchanged packet, the kernel or the device completes the checksum. The kernel takes the bytes of a verdict as
final, so a rewritten packet needs a complete checksum. An unfinished checksum field of TCP, UDP and ICMPv6 holds the
sum of the pseudo header only (``CHECKSUM_PARTIAL``, include/linux/skbuff.h); that of SCTP is zero.

A TCP packet that the kernel segments later (GSO) gets its checksums at that time.
"""

from nfq_enforcer.core.wire.packet import ICMPV6, SCTP, TCP, UDP, checksum

_FIELDS = {TCP: 16, UDP: 6, ICMPV6: 2}
_SCTP_FIELD = 8
_CRC32C = 0x82F63B78  # Castagnoli's polynomial, reflected (RFC 9260 appendix A)


def is_unfinished(payload: bytes, key: bytes, l4: int) -> bool:
    """Tell whether the unfinished checksum is that of this complete packet, not that of an inner packet.

    ``key``: of the flow. ``l4``: offset of the transport header. In a tunnel packet the inner checksum is unfinished,
    at a place that only the kernel has.
    """
    proto = key[0]
    if proto == SCTP:
        return payload[l4 + _SCTP_FIELD : l4 + _SCTP_FIELD + 4] == bytes(4)
    if proto not in _FIELDS:
        return False
    at = l4 + _FIELDS[proto]
    pseudo_header = int.from_bytes(key[1:-4], "big") + proto + len(payload) - l4
    return (pseudo_header - int.from_bytes(payload[at : at + 2], "big")) % 65535 == 0


def finish(payload: bytes, proto: int, l4: int) -> bytes:
    """Return a complete packet with its checksum finished; ``is_unfinished`` must have returned True for it."""
    if proto == SCTP:
        at, value = l4 + _SCTP_FIELD, _crc32c(payload[l4:]).to_bytes(4, "little")
    else:
        # Zero means "no checksum" (RFC 768); 0xFFFF is the same number in ones' complement.
        at, value = l4 + _FIELDS[proto], (checksum(payload[l4:]) or 0xFFFF).to_bytes(2, "big")
    return payload[:at] + value + payload[at + len(value) :]


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CRC32C if value & 1 else 0)
    return value


_CRC_OF_BYTE = tuple(map(_crc_of_byte, range(256)))


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_OF_BYTE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
