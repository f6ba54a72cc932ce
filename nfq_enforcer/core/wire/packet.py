"""Packet parser: any bytes give a ``Packet`` that all later code trusts, or a ``PacketError``.

The parser reads headers only, so a payload truncated by the queue is parsed like a complete one, as long as its headers
are complete. A flow key is a slice of the header bytes (protocol, source, destination, ports): no integer is unpacked
and no address object is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from nfq_enforcer.core.verdict import DropReason, PacketError

ICMP, IGMP, TCP, UDP, ICMPV6, SCTP = 1, 2, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS = 0, 43, 44, 51, 60
IPV4_HEADER, IPV6_HEADER = 20, 40  # without options and extension headers

_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_WITH_PORTS = frozenset((TCP, UDP, SCTP))
_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS))
_ADDRESS = {4: 4, 6: 16}
_FOREIGN_ICMP = {4: ICMPV6, 6: ICMP}

_REQUESTS = {4: {8: 0, 13: 14, 15: 16, 17: 18}, 6: {128: 129}}  # ICMP query type: type of its answer
_ANSWERS = {  # both directions
    version: requests | {answer: request for request, answer in requests.items()}
    for version, requests in _REQUESTS.items()
}
_QUERIES = {ICMP: _ANSWERS[4], ICMPV6: _ANSWERS[6]}
_ERRORS = {4: frozenset((3, 11, 12)), 6: frozenset((1, 2, 3, 4))}
_ERROR_HEADER = 8  # bytes of an ICMP error before the quoted packet

_NO_PORTS = bytes(4)
_NOT_A_QUERY = b"\xff\xff"  # in place of a query's type, which is never 255: such a key never equals a query's key

_IPV4 = Struct("!BxHxxHxB")
_BEYOND = 0x10000  # exceeds every length field
_DF, _MORE_OR_OFFSET, _OFFSET = 0x4000, 0x3FFF, 0x1FFF
_IPV6_MORE_OR_OFFSET, _IPV6_OFFSET = 0xFFF9, 0xFFF8


@dataclass(slots=True)
class Packet:
    """Packet: the header fields that conntrack and policy need; made by ``parse`` and ``parse_quoted`` only."""

    version: int  # 4 or 6
    proto: int  # the transport protocol, after all extension headers
    key: bytes  # flow key, from the sender's side
    length: int  # of the complete packet, by its header
    truncated: bool  # the queue copied less than that
    l4_offset: int
    options: bool  # has IPv4 options or an IPv6 Destination Options header, and so possibly a stamp
    df: bool  # must not be fragmented; always set for IPv6, which no router fragments
    tcp_flags: int  # 0 if not TCP
    icmp_type: int  # -1 if not ICMP
    icmp_code: int  # -1 if not ICMP

    @property
    def src(self) -> bytes:
        """Return the source address."""
        return self.key[1 : 1 + _ADDRESS[self.version]]

    @property
    def dst(self) -> bytes:
        """Return the destination address."""
        return self.key[1 + _ADDRESS[self.version] : -4]

    @property
    def sport(self) -> int:
        """Return the source port, 0 if the protocol has none."""
        return int.from_bytes(self.key[-4:-2], "big") if self.proto in _WITH_PORTS else 0

    @property
    def dport(self) -> int:
        """Return the destination port, 0 if the protocol has none."""
        return int.from_bytes(self.key[-2:], "big") if self.proto in _WITH_PORTS else 0

    @property
    def is_bare(self) -> bool:
        """Tell whether the packet has neither options nor extension headers."""
        return self.l4_offset == (IPV4_HEADER if self.version == 4 else IPV6_HEADER)

    @property
    def opens(self) -> bool:
        """Tell whether the packet can only be the first of a flow: a TCP SYN, or an ICMP request."""
        return self.tcp_flags & (_SYN | _ACK) == _SYN or self.icmp_type in _REQUESTS[self.version]

    @property
    def is_syn_ack(self) -> bool:
        """Tell whether the packet is a TCP SYN-ACK."""
        return self.tcp_flags & (_SYN | _ACK) == _SYN | _ACK

    @property
    def is_rst(self) -> bool:
        """Tell whether the packet is a TCP RST."""
        return bool(self.tcp_flags & _RST)

    @property
    def error(self) -> bool:
        """Tell whether the packet is an ICMP error, whose quote ``parse_quoted`` reads. Redirects do not count."""
        return self.icmp_type in _ERRORS[self.version]


_Transport = tuple[bytes, int, int, int]  # the last four bytes of the key, TCP flags, ICMP type and code
_NO_TRANSPORT: _Transport = (_NO_PORTS, 0, -1, -1)


def parse(payload: bytes, *, gso: bool = False) -> Packet:
    """Parse the headers of a packet; raise PacketError for a packet that policy cannot evaluate.

    A ``gso`` packet, which the kernel segments later, may exceed its length field, which is 0 then (BIG TCP). It counts
    as truncated: no queue copies that much.
    """
    version = payload[0] >> 4 if payload else 0
    if version == 4:
        return _parse_ipv4(payload, unsaid=_BEYOND if gso else 0)
    if version == 6:
        return _parse_ipv6(payload, unsaid=_BEYOND if gso else 0)
    raise PacketError(DropReason.INVALID_PACKET)


def parse_quoted(payload: bytes, packet: Packet) -> Packet:
    """Parse the packet that an ICMP error quotes; raise PacketError for an unreadable quote.

    A quote ends anywhere after the first 8 bytes of its transport header (RFC 792), so it has no TCP flags, and its
    length fields are not checked.
    """
    quote = payload[packet.l4_offset + _ERROR_HEADER : packet.length]
    if not packet.error or not quote or quote[0] >> 4 != packet.version:
        raise PacketError(DropReason.INVALID_PACKET)
    return _parse_ipv4(quote, quoted=True) if packet.version == 4 else _parse_ipv6(quote, quoted=True)


def reply_key(key: bytes) -> bytes:
    """Return the key of the replies to packets with this key."""
    proto, middle, ports = key[0], (len(key) - 3) // 2, key[-4:]
    if proto in _WITH_PORTS:
        ports = ports[2:] + ports[:2]
    elif proto in _QUERIES and ports[2:] != _NOT_A_QUERY:
        ports = _query_key(ports[:2], _QUERIES[proto][ports[2]])
    return key[:1] + key[middle:-4] + key[1:middle] + ports


def has_ports(proto: int) -> bool:
    """Tell whether flow keys of this protocol contain ports."""
    return proto in _WITH_PORTS


def flow_key(proto: int, src: bytes, dst: bytes, ports: bytes = _NO_PORTS) -> bytes:
    """Return the key of a flow other than an ICMP query; ``ports``: source and destination, two bytes each, if any."""
    return bytes((proto,)) + src + dst + ports


def query_key(proto: int, src: bytes, dst: bytes, identifier: bytes, icmp_type: int) -> bytes | None:
    """Return the key of an ICMP query's flow, None for a type that is no query."""
    if icmp_type not in _QUERIES.get(proto, ()):
        return None
    return bytes((proto,)) + src + dst + _query_key(identifier, icmp_type)


def read_key(key: bytes) -> tuple[bytes, bytes, int, int, int, int, int]:
    """Return the fields of a flow key: source, destination, protocol, both ports, ICMP type and code.

    The key of a query does not contain its code, which is 0.
    """
    proto, size, first, last = key[0], (len(key) - 5) // 2, key[-4:-2], key[-2:]
    src, dst = key[1 : 1 + size], key[1 + size : -4]
    if proto in _WITH_PORTS:
        return src, dst, proto, int.from_bytes(first, "big"), int.from_bytes(last, "big"), -1, -1
    if proto not in (ICMP, ICMPV6):
        return src, dst, proto, 0, 0, -1, -1
    kind, code = first if last == _NOT_A_QUERY else last
    return src, dst, proto, 0, 0, kind, code


def checksum(data: bytes | bytearray) -> int:
    """Return the Internet checksum (RFC 1071) of data whose own checksum field is zero."""
    # 2**16 is 1 modulo 65535, so the remainder of the whole number is the end-around-carry sum of its 16-bit words.
    return -(int.from_bytes(data, "big") << 8 * (len(data) % 2)) % 65535


def _parse_ipv4(payload: bytes, *, quoted: bool = False, unsaid: int = 0) -> Packet:
    size = len(payload)
    if size < IPV4_HEADER:
        raise PacketError(DropReason.INVALID_PACKET)
    ver_ihl, length, fragment, proto = _IPV4.unpack_from(payload)
    length = length or unsaid
    l4 = (ver_ihl & 0x0F) * 4
    end = size if quoted or size < length else length
    if not IPV4_HEADER <= l4 <= end:
        raise PacketError(DropReason.INVALID_PACKET)
    if fragment & _MORE_OR_OFFSET:  # only the first fragment has the ports
        _check_fragment(fragment & _OFFSET, quoted)
    transport = _quoted_transport if quoted else _transport
    ports, tcp_flags, icmp_type, icmp_code = transport(payload, 4, proto, l4, end)
    key = payload[9:10] + payload[12:20] + ports
    df = fragment & _DF != 0
    return Packet(4, proto, key, length, length > size, l4, l4 > 20, df, tcp_flags, icmp_type, icmp_code)


def _parse_ipv6(payload: bytes, *, quoted: bool = False, unsaid: int = 0) -> Packet:
    size = len(payload)
    if size < IPV6_HEADER:
        raise PacketError(DropReason.INVALID_PACKET)
    length = IPV6_HEADER + (payload[4] << 8 | payload[5] or unsaid)
    end = size if quoted or size < length else length
    proto, l4, options = payload[6], IPV6_HEADER, False
    if proto in _EXTENSIONS:
        proto, l4, options = _walk(payload, end, quoted)
    transport = _quoted_transport if quoted else _transport
    ports, tcp_flags, icmp_type, icmp_code = transport(payload, 6, proto, l4, end)
    key = bytes((proto,)) + payload[8:40] + ports
    return Packet(6, proto, key, length, length > size, l4, options, True, tcp_flags, icmp_type, icmp_code)


def extensions(payload: bytes, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield kind, offset and size of an IPv6 packet's extension headers; raise PacketError if one passes ``end``."""
    kind, offset = payload[6], IPV6_HEADER
    while kind in _EXTENSIONS:
        if offset + 8 > end:
            raise PacketError(DropReason.INVALID_PACKET)
        size = _extension_size(kind, payload[offset + 1])
        misplaced = kind == HOP_BY_HOP and offset != IPV6_HEADER  # RFC 8200 section 4.3
        if misplaced or offset + size > end:
            raise PacketError(DropReason.INVALID_PACKET)
        yield kind, offset, size
        kind, offset = payload[offset], offset + size


def _extension_size(kind: int, length: int) -> int:
    if kind == FRAGMENT:
        return 8
    return (length + 2) * 4 if kind == AH else (length + 1) * 8


def _walk(payload: bytes, end: int, quoted: bool) -> tuple[int, int, bool]:
    """Return the transport protocol, its offset, and whether the packet has a Destination Options header."""
    proto, l4, options = payload[6], IPV6_HEADER, False
    for kind, offset, size in extensions(payload, end):
        if kind == ROUTING and (payload[offset + 2] == 0 or payload[offset + 3]):
            raise PacketError(DropReason.INVALID_PACKET)  # not at its destination yet; RFC 5095 abolishes type 0
        if kind == FRAGMENT:
            fragment = payload[offset + 2] << 8 | payload[offset + 3]
            if fragment & _IPV6_MORE_OR_OFFSET:  # else an atomic fragment (RFC 6946): a complete packet
                _check_fragment(fragment & _IPV6_OFFSET, quoted)
        options = options or kind == DESTINATION_OPTIONS
        proto, l4 = payload[offset], offset + size
    return proto, l4, options


def _check_fragment(offset: int, quoted: bool) -> None:
    """Refuse a fragment; a quoted fragment only if it is not the first, which has the ports."""
    if not quoted:
        raise PacketError(DropReason.FRAG_NOT_SUPPORTED)
    if offset:
        raise PacketError(DropReason.INVALID_PACKET)


def _transport(payload: bytes, version: int, proto: int, l4: int, end: int) -> _Transport:
    """Read the transport header between ``l4`` and ``end``."""
    room = end - l4
    if proto == TCP:
        if room < 20 or not 20 <= (payload[l4 + 12] >> 4) * 4 <= room:
            raise PacketError(DropReason.INVALID_PACKET)
        return payload[l4 : l4 + 4], payload[l4 + 13], -1, -1
    if proto == UDP:
        if room < 8 or payload[l4 + 4 : l4 + 6] < b"\0\x08":
            raise PacketError(DropReason.INVALID_PACKET)
        return payload[l4 : l4 + 4], 0, -1, -1
    if proto == SCTP and room < 12:
        raise PacketError(DropReason.INVALID_PACKET)
    return _quoted_transport(payload, version, proto, l4, end)


def _quoted_transport(payload: bytes, version: int, proto: int, l4: int, end: int) -> _Transport:
    """Read the first 8 bytes of a transport header."""
    if proto in _WITH_PORTS:
        if end - l4 < 8:
            raise PacketError(DropReason.INVALID_PACKET)
        return payload[l4 : l4 + 4], 0, -1, -1
    if proto in (ICMP, ICMPV6):
        return _icmp(payload, version, proto, l4, end)
    return _NO_TRANSPORT


def _icmp(payload: bytes, version: int, proto: int, l4: int, end: int) -> _Transport:
    room = end - l4
    if room < (8 if version == 4 else 4) or proto == _FOREIGN_ICMP[version]:
        raise PacketError(DropReason.INVALID_PACKET)
    icmp_type, icmp_code = payload[l4], payload[l4 + 1]
    is_query = icmp_type in _ANSWERS[version]
    if room < 8 and (is_query or icmp_type in _ERRORS[version]):
        raise PacketError(DropReason.INVALID_PACKET)
    if not is_query:
        return payload[l4 : l4 + 2] + _NOT_A_QUERY, 0, icmp_type, icmp_code
    return _query_key(payload[l4 + 4 : l4 + 6], icmp_type), 0, icmp_type, icmp_code


def _query_key(identifier: bytes, icmp_type: int) -> bytes:
    """Return the last four bytes of a query's key; its type distinguishes a request from its answer."""
    return identifier + bytes((icmp_type, 0))
