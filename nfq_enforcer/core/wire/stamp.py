"""Stamp: the identity of a packet's source, carried in the packet from node to node.

IPv4: option 158 (RFC 4727: experimental, copied to every fragment). IPv6: option 0x1E of a Destination Options header
("skip if unknown"). Both are 8 bytes, 16 if signed::

    type | length | version (4 bits), flags (4 bits) | key id | identity (32 bits) [ | tag (64 bits) ]

A stamp that cannot be trusted is refused with the exact reason. Writing replaces all stamps in the packet. Other
options keep their order and alignment. Transport checksums do not cover options and stay valid.

``write``, ``replace`` and ``strip`` need the complete packet; the caller must not pass a truncated one. A stamp for
many packets is encoded once, as a ``StampTemplate``. Nearly all packets have neither options nor extension headers: the
template is then inserted between two slices, and the header checksum is adjusted by a constant.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity, may_be_stamped
from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.packet import (
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    IPV4_HEADER,
    IPV6_HEADER,
    Packet,
    checksum,
    extensions,
)

VERSION = 1
SIGNED = 0x1  # flag: a tag follows the identity
IPV4_OPTION = 158
IPV6_OPTION = 0x1E

_BODY, _TAG = 8, 8
_MAX_LENGTH = 65535  # limit of the 16-bit length field of either family
_MAX_IPV4_HEADER = 60
_ONLY_OPTION = bytes((IPV4_OPTION, _BODY))  # start of 8 bytes of options that are an unsigned stamp and nothing else


class Stamp(NamedTuple):
    """Stamp: identity, and key and tag of a signed one."""

    identity: Identity
    key_id: int = 0
    tag: bytes = b""  # 8 bytes in a signed stamp, else none


def read(payload: bytes, packet: Packet) -> Stamp | None:
    """Return the packet's stamp, None if it has none; raise PacketError for a malformed or impossible stamp."""
    if not packet.options:
        return None
    if packet.version == 4 and packet.l4_offset == 28 and payload[20:22] == _ONLY_OPTION:
        return _decode(payload[20:28])
    found = list(_stamps(payload, packet))
    if len(found) > 1:
        raise PacketError(DropReason.STAMP_DUPLICATE)
    return _decode(found[0]) if found else None


_IPV4_START = Struct("!BBH6sH8s")  # before the options: version and size, TOS, length, (…), checksum, addresses
_IPV6_START = Struct("!4sHB33s")  # the fixed header: (…), payload length, next header, (…)


@dataclass(frozen=True, slots=True)
class StampTemplate:
    """Stamp template: a stamp encoded for packets of one IP version and transport protocol."""

    version: int
    header: bytes  # the IPv4 option, or the Destination Options header
    growth: int  # bytes by which the template lengthens a packet without options
    sum: int  # the template's addition to the ones'-complement sum of an IPv4 header

    def insert(self, payload: bytes) -> bytes:
        """Return the packet with the stamp; it must be complete, and without options or extension headers."""
        if self.version == 4:
            start, tos, length, rest, checksum, ends = _IPV4_START.unpack_from(payload)
            # RFC 1624: the checksum decreases by the increase of the other header fields.
            checksum = (checksum - self.sum) % 65535
            start, length = start + self.growth // 4, length + self.growth
            return _IPV4_START.pack(start, tos, length, rest, checksum, ends) + self.header + payload[IPV4_HEADER:]
        start, length, _, rest = _IPV6_START.unpack_from(payload)
        start = _IPV6_START.pack(start, length + self.growth, DESTINATION_OPTIONS, rest)
        return start + self.header + payload[IPV6_HEADER:]


@lru_cache(maxsize=4096)
def stamp_template(stamp: Stamp, version: int, proto: int) -> StampTemplate:
    """Return the template of a stamp for packets of this IP version and transport protocol."""
    option = _encode(stamp, version)
    if version == 6:
        header = bytes((proto,)) + _destination_options(option, ())[1:]
        return StampTemplate(6, header, len(header), 0)
    in_words = len(option) // 4 << 8  # increase of the header size field, at its place in the first word
    return StampTemplate(4, option, len(option), (in_words + len(option) + int.from_bytes(option, "big")) % 65535)


def write(payload: bytes, packet: Packet, stamp: Stamp) -> bytes:
    """Return the packet with this stamp and no other; raise PacketError if it has no room."""
    return replace(payload, packet, stamp_template(stamp, packet.version, packet.proto))


def replace(payload: bytes, packet: Packet, template: StampTemplate) -> bytes:
    """Return the packet with this stamp and no other, other options kept; raise PacketError if it has no room."""
    _refuse_truncated(packet)
    return _rebuild(payload, packet, template.header)


def strip(payload: bytes, packet: Packet) -> bytes:
    """Return the packet without any stamp; the same object if it has none."""
    _refuse_truncated(packet)
    if is_stamped(payload, packet):
        return _rebuild(payload, packet, b"")
    return payload


def is_stamped(payload: bytes, packet: Packet) -> bool:
    """Tell whether the packet has a stamp, valid or not; raise PacketError for unreadable options."""
    return packet.options and any(_stamps(payload, packet))


def overhead(version: int, signed: bool = False) -> int:
    """Return the bytes by which a stamp lengthens a packet of this IP version at most."""
    size = _BODY + _TAG if signed else _BODY
    return size if version == 4 else size + 8  # IPv6: with its header, in steps of 8


def _refuse_truncated(packet: Packet) -> None:
    if packet.truncated:
        raise ValueError("a truncated packet cannot be rewritten: its missing bytes would be lost")


def _encode(stamp: Stamp, version: int) -> bytes:
    size = _BODY + len(stamp.tag)
    kind, length = (IPV4_OPTION, size) if version == 4 else (IPV6_OPTION, size - 2)
    flags = SIGNED if stamp.tag else 0
    return bytes((kind, length, VERSION << 4 | flags, stamp.key_id)) + stamp.identity.to_bytes(4, "big") + stamp.tag


def _decode(option: bytes) -> Stamp:
    if len(option) < 3:
        raise PacketError(DropReason.STAMP_MALFORMED)
    if option[2] >> 4 != VERSION:  # checked first: flags and length are defined for this version only
        raise PacketError(DropReason.STAMP_VERSION)
    flags = option[2] & 0x0F
    if flags & ~SIGNED or len(option) != (_BODY + _TAG if flags else _BODY):
        raise PacketError(DropReason.STAMP_MALFORMED)
    identity = int.from_bytes(option[4:8], "big")
    if not may_be_stamped(identity):
        raise PacketError(DropReason.STAMP_IDENTITY)
    return Stamp(Identity(identity), option[3], option[8:])


def _no_ops(size: int) -> bytes:
    return b"\x01" * size


def _pad_n(size: int) -> bytes:
    """Return padding by RFC 8200 section 4.2; Linux drops a packet with more than 7 consecutive bytes of it."""
    return bytes((1, size - 2)) + bytes(size - 2) if size > 1 else bytes(size)


_Option = tuple[int, bytes]  # offset in the header; bytes, with type and length


class _Syntax(NamedTuple):
    """Syntax of the option list of one family."""

    stamp: int
    end: int  # type that ends the list
    single: int  # type of one-byte padding, without a length
    padding: int  # type of padding with a length
    uncounted: int  # bytes of an option that its length field does not count
    align: int
    fill: Callable[[int], bytes]  # padding between options
    tail: Callable[[int], bytes]  # padding after the last option


_NONE = -1  # equals no byte
_SYNTAX = {
    4: _Syntax(IPV4_OPTION, end=0, single=1, padding=_NONE, uncounted=0, align=4, fill=_no_ops, tail=bytes),
    6: _Syntax(IPV6_OPTION, end=_NONE, single=0, padding=1, uncounted=2, align=8, fill=_pad_n, tail=_pad_n),
}


def _options(header: bytes, offset: int, syntax: _Syntax) -> Iterator[_Option]:
    """Yield the options of a header from ``offset`` on, without padding."""
    while offset < len(header) and header[offset] != syntax.end:
        if header[offset] == syntax.single:
            offset += 1
            continue
        size = header[offset + 1] + syntax.uncounted if offset + 1 < len(header) else 0
        if size < 2 or offset + size > len(header):
            raise PacketError(DropReason.INVALID_PACKET)
        if header[offset] != syntax.padding:
            yield offset, header[offset : offset + size]
        offset += size


def _join_options(start: bytes, options: Iterable[_Option], syntax: _Syntax) -> bytes:
    """Return ``start`` and the options, each at its old alignment, padded to a complete header."""
    header = start
    for offset, data in options:
        header += syntax.fill((offset - len(header)) % syntax.align) + data
    return header + syntax.tail(-len(header) % syntax.align)


def _stamps(payload: bytes, packet: Packet) -> Iterator[bytes]:
    """Yield every stamp in the packet, valid or not."""
    syntax = _SYNTAX[packet.version]
    for header, offset in _option_headers(payload, packet):
        for _, option in _options(header, offset, syntax):
            if option[0] == syntax.stamp:
                yield option


def _option_headers(payload: bytes, packet: Packet) -> Iterator[tuple[bytes, int]]:
    """Yield each header that may contain a stamp, with the offset of its options."""
    if packet.version == 4:
        yield payload[: packet.l4_offset], IPV4_HEADER
        return
    for kind, offset, size in extensions(payload, packet.l4_offset):
        if kind == DESTINATION_OPTIONS:
            yield payload[offset : offset + size], 2


def _others(header: bytes, offset: int, syntax: _Syntax) -> list[_Option]:
    return [(at, option) for at, option in _options(header, offset, syntax) if option[0] != syntax.stamp]


def _rebuild(payload: bytes, packet: Packet, stamp: bytes) -> bytes:
    """Return the packet with ``stamp``, the header of a template (empty: none), in place of all its stamps."""
    if packet.version == 4:
        header = _ipv4_header(payload[: packet.l4_offset], packet, stamp)
    else:
        header = _ipv6_headers(payload, packet, stamp)
    return bytes(header) + payload[packet.l4_offset :]


def _ipv4_header(old: bytes, packet: Packet, stamp: bytes) -> bytearray:
    syntax = _SYNTAX[4]
    header = bytearray(_join_options(old[:IPV4_HEADER] + stamp, _others(old, IPV4_HEADER, syntax), syntax))
    # The kernel drops a packet that a verdict makes shorter than its old header (nfqnl_mangle in nfnetlink_queue.c), so
    # options that are stripped from a packet with less data leave padding behind: ends of the option list.
    header += bytes(-(-max(2 * len(old) - packet.length - len(header), 0) // 4) * 4)
    length = packet.length + len(header) - len(old)
    if len(header) > _MAX_IPV4_HEADER or length > _MAX_LENGTH:
        raise PacketError(DropReason.STAMP_NO_ROOM)
    header[0] = 0x40 | len(header) // 4
    header[2:4] = length.to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return header


def _ipv6_headers(payload: bytes, packet: Packet, stamp: bytes) -> bytearray:
    chain = _unstamped_chain(payload, packet)
    if stamp:  # a Hop-by-Hop header has to stay first
        place = 1 if chain and chain[0][0] == HOP_BY_HOP else 0
        chain.insert(place, (DESTINATION_OPTIONS, stamp))
    kinds = [kind for kind, _ in chain] + [packet.proto]
    headers = bytearray(payload[:IPV6_HEADER])
    headers[6] = kinds[0]
    for (_, header), following in zip(chain, kinds[1:], strict=True):
        headers += bytes((following,)) + header[1:]
    length = packet.length + len(headers) - packet.l4_offset - IPV6_HEADER
    if length > _MAX_LENGTH:
        raise PacketError(DropReason.STAMP_NO_ROOM)
    headers[4:6] = length.to_bytes(2, "big")
    return headers


def _unstamped_chain(payload: bytes, packet: Packet) -> list[tuple[int, bytes]]:
    """Return type and bytes of each extension header, without stamps and without headers that only contained stamps."""
    chain = []
    for kind, offset, size in extensions(payload, packet.l4_offset):
        header = payload[offset : offset + size]
        if kind == DESTINATION_OPTIONS:
            header = _unstamped(header)
        if header:
            chain.append((kind, header))
    return chain


def _unstamped(header: bytes) -> bytes:
    """Return a Destination Options header without stamps: unchanged if it has none, empty if it has nothing else."""
    syntax = _SYNTAX[6]
    found = list(_options(header, 2, syntax))
    others = [(at, option) for at, option in found if option[0] != syntax.stamp]
    if len(others) == len(found):
        return header
    return _destination_options(b"", others) if others else b""


def _destination_options(stamp: bytes, others: Iterable[_Option]) -> bytes:
    """Return a Destination Options header; the caller sets its next header."""
    header = _join_options(bytes(2) + stamp, others, _SYNTAX[6])
    return bytes((0, len(header) // 8 - 1)) + header[2:]
