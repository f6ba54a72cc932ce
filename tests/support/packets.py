"""Packets for tests, built from bytes: both families, with correct lengths and checksums.

A client's packet goes from ``CLIENT_PORT`` to ``port``, a server's packet from ``port`` to ``CLIENT_PORT``. The sender
is always the first argument.
"""

from collections.abc import Callable
from ipaddress import ip_address
from struct import pack

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP, checksum, parse
from nfq_enforcer.core.wire.stamp import Stamp

Build = Callable[..., bytes]
"""Type of the functions below that need only source and destination."""

CLIENT_PORT = 40_000
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # IP version: type and code
TOO_BIG = {4: (3, 4), 6: (2, 0)}

_DF = 0x4000
_HOPS = 64


def packed(address: str) -> bytes:
    return ip_address(address).packed


def ip(src: str, dst: str, proto: int, body: bytes, *, df: bool = True, options: bytes = b"") -> bytes:
    """Return an IP packet; ``options`` are IPv4 options, or a Destination Options header without its first byte."""
    ends = packed(src) + packed(dst)
    if len(ends) == 8:
        start = pack("!BBHHH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 1, _DF if df else 0)
        header = start + bytes((_HOPS, proto, 0, 0)) + ends + options
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body
    if options:
        proto, body = 60, bytes((proto,)) + options + body
    return pack("!IHBB", 6 << 28, len(body), proto, _HOPS) + ends + body


def _summed(src: str, dst: str, proto: int, body: bytes, at: int) -> bytes:
    """Return the transport segment with its checksum at offset ``at``."""
    ends = packed(src) + packed(dst)
    pseudo_header = b"" if proto == ICMP else ends + pack("!II", len(body), proto)
    return body[:at] + checksum(pseudo_header + body).to_bytes(2, "big") + body[at + 2 :]


def tcp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: int,
    data: bytes = b"",
    *,
    df: bool = True,
    numbers: tuple[int, int] = (1, 1),
    options: bytes = b"",
) -> bytes:
    """Return a segment; ``numbers``: sequence and acknowledgement; ``options``: of 4 bytes, or a multiple."""
    size = 5 + len(options) // 4
    segment = pack("!HHIIBBHHH", sport, dport, *numbers, size << 4, flags, 65535, 0, 0) + options + data
    return ip(src, dst, TCP, _summed(src, dst, TCP, segment, 16), df=df)


def syn(src: str, dst: str, port: int = 80) -> bytes:
    return tcp(src, dst, CLIENT_PORT, port, SYN)


def syn_ack(src: str, dst: str, port: int = 80) -> bytes:
    return tcp(src, dst, port, CLIENT_PORT, SYN | ACK)


def request(src: str, dst: str, port: int = 80, data: bytes = b"GET") -> bytes:
    """Return data from client to server, in an open connection."""
    return tcp(src, dst, CLIENT_PORT, port, PSH | ACK, data)


def response(src: str, dst: str, port: int = 80, data: bytes = b"200") -> bytes:
    """Return data from server to client, in an open connection."""
    return tcp(src, dst, port, CLIENT_PORT, PSH | ACK, data)


def fin(src: str, dst: str, port: int = 80) -> bytes:
    return tcp(src, dst, CLIENT_PORT, port, FIN | ACK)


def rst(src: str, dst: str, port: int = 80) -> bytes:
    return tcp(src, dst, CLIENT_PORT, port, RST)


def server_rst(src: str, dst: str, port: int = 80) -> bytes:
    return tcp(src, dst, port, CLIENT_PORT, RST | ACK)


def server_syn(src: str, dst: str, port: int = 80) -> bytes:
    """Return a SYN from the server's port to the client's: the server opens a connection of its own."""
    return tcp(src, dst, port, CLIENT_PORT, SYN)


def udp(src: str, dst: str, port: int = 53, data: bytes = b"?", *, df: bool = True) -> bytes:
    return datagram(src, dst, CLIENT_PORT, port, data, df=df)


def udp_answer(src: str, dst: str, port: int = 53, data: bytes = b"!", *, df: bool = True) -> bytes:
    return datagram(src, dst, port, CLIENT_PORT, data, df=df)


def datagram(src: str, dst: str, sport: int, dport: int, data: bytes = b"?", *, df: bool = True) -> bytes:
    datagram = pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return ip(src, dst, UDP, _summed(src, dst, UDP, datagram, 6), df=df)


def sctp(src: str, dst: str, port: int = 3868) -> bytes:
    return ip(src, dst, SCTP, pack("!HHII", CLIENT_PORT, port, 0, 0))


_CHECKSUMS = {TCP: 16, UDP: 6, ICMPV6: 2}


def unfinished(payload: bytes) -> bytes:
    """Return the packet before checksum offload: its transport checksum covers the pseudo header only."""
    packet = parse(payload)
    body = len(payload) - packet.l4_offset
    pseudo_header = packet.src + packet.dst + pack("!II", body, packet.proto)
    at = packet.l4_offset + _CHECKSUMS[packet.proto]
    return payload[:at] + (0xFFFF - checksum(pseudo_header)).to_bytes(2, "big") + payload[at + 2 :]


def icmp(src: str, dst: str, kind: int, code: int, rest: bytes) -> bytes:
    """Return an ICMP message of the addresses' family; ``rest`` is the message after its checksum."""
    proto = ICMP if ip_address(src).version == 4 else ICMPV6
    return ip(src, dst, proto, _summed(src, dst, proto, bytes((kind, code, 0, 0)) + rest, 2))


def ping(src: str, dst: str, identifier: int = 7) -> bytes:
    return icmp(src, dst, 8 if ip_address(src).version == 4 else 128, 0, pack("!HH", identifier, 1) + b"abc")


def pong(src: str, dst: str, identifier: int = 7) -> bytes:
    return icmp(src, dst, 0 if ip_address(src).version == 4 else 129, 0, pack("!HH", identifier, 1) + b"abc")


def error(src: str, dst: str, about: bytes, kind: dict[int, tuple[int, int]] = PORT_UNREACHABLE) -> bytes:
    """Return an ICMP error that quotes the start of packet ``about``."""
    return icmp(src, dst, *kind[ip_address(src).version], bytes(4) + about[:128])


def stamped(payload: bytes, identity: int) -> bytes:
    return stamp.write(payload, parse(payload), Stamp(Identity(identity)))


def with_options(payload: bytes, options: bytes) -> bytes:
    """Return the packet with these options before its transport header, in whole words as for ``ip``."""
    packet = parse(payload)
    src, dst = str(ip_address(packet.src)), str(ip_address(packet.dst))
    return ip(src, dst, packet.proto, payload[packet.l4_offset :], df=packet.df, options=options)


def identity_on(payload: bytes | None) -> int | None:
    """Return the identity in a packet's stamp, None without a stamp."""
    assert payload is not None
    packet_stamp = stamp.read(payload, parse(payload))
    return None if packet_stamp is None else packet_stamp.identity


def cut_short(payload: bytes) -> bytes:
    """Return the packet's first 100 bytes, as from a queue with a copy range (truncated payload)."""
    return payload[:100]


# Type, length, version and flags, key id, identity; for IPv6 with the header length before and padding behind.
BAD_STAMPS = {
    "STAMP_MALFORMED": {4: "9e041000", 6: "00 1e021000 0000"},
    "STAMP_DUPLICATE": {4: "9e081000 00001234" * 2, 6: "02" + "1e061000 00001234" * 2 + "010400000000"},
    "STAMP_VERSION": {4: "9e082000 00001234", 6: "01 1e062000 00001234 010400000000"},
    "STAMP_IDENTITY": {4: "9e081000 00000001", 6: "01 1e061000 00000001 010400000000"},
}
LONG = bytes(200)
OPENERS_AND_REPLIES = [(syn, syn_ack), (request, response), (udp, udp_answer), (ping, pong)]
