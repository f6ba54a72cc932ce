"""Transport checksums that the kernel has left unfinished for a device, finished where a packet is rewritten.

As long as a packet goes on as it is, the kernel or the device does this. But it takes the bytes of a verdict as final,
so in a packet that gets others the checksum has to be right: of TCP, UDP and ICMPv6 its field holds the sum of the
pseudo header and lacks the rest (``CHECKSUM_PARTIAL``, include/linux/skbuff.h); of SCTP it is empty.

A TCP packet that the kernel will yet cut into segments (GSO) gets its checksums then.
"""

from nfq_enforcer.core.wire.packet import ICMPV6, SCTP, TCP, UDP, checksum

UNFINISHED, SEGMENTS = 1, 2  # bits of NFQA_SKB_INFO: the checksum is not finished; the packet will be cut (GSO)

_FIELDS = {TCP: 16, UDP: 6, ICMPV6: 2}
_SCTP_FIELD = 8
_CRC32C = 0x82F63B78  # Castagnoli's polynomial, reflected (RFC 9260 appendix A)


def is_left(payload: bytes, key: bytes, l4: int) -> bool:
    """Say whether what is unfinished is the transport checksum of this whole packet, and not that of one inside.

    ``key`` is the flow's, ``l4`` where the transport header begins. In a tunnel's packets the inner checksum is the
    unfinished one; where it is, only the kernel knows.
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
    """Return a whole packet with its checksum finished, where ``is_left`` has said that it is to be."""
    if proto == SCTP:
        at, value = l4 + _SCTP_FIELD, _crc32c(payload[l4:]).to_bytes(4, "little")
    else:
        # Zero would say that there is none (RFC 768); in ones' complement 0xFFFF is the same number.
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
