"""Fragments of packets, of both families, each with a source address of its own."""

from collections.abc import Sequence
from ipaddress import ip_address
from struct import pack

from nfq_enforcer.core.wire.packet import parse
from tests.support.packets import ip

_FRAGMENT = 44


def fragments(packet: bytes, sizes: Sequence[int], number: int) -> list[bytes]:
    """Cut a packet into fragments with these bytes of payload, all but the last a multiple of 8, and the rest."""
    parsed = parse(packet)
    body, offset, cut = packet[parsed.l4_offset :], 0, []
    for size in (*sizes, len(packet)):
        part = body[offset : offset + size]
        cut.append(fragment(packet, offset, part, number, more=offset + len(part) < len(body)))
        offset += size
    return cut


def fragment(packet: bytes, offset: int, part: bytes, number: int, *, more: bool) -> bytes:
    """Return one fragment of the packet's datagram, with this part of its payload."""
    parsed = parse(packet)
    src, dst = str(ip_address(parsed.src)), str(ip_address(parsed.dst))
    if parsed.version == 6:
        return ip(src, dst, _FRAGMENT, pack("!BBHI", parsed.proto, 0, offset | more, number) + part)
    whole = ip(src, dst, parsed.proto, part, df=False)
    return whole[:4] + pack("!HH", number & 0xFFFF, more << 13 | offset // 8) + whole[8:10] + b"\0\0" + whole[12:]
