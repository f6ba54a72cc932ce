"""Odd packets: packets that no ordinary host sends, each with its outcome for one policy.

The policy lets the frontends reach UDP port 5353 and TCP port 80 of the backends, and everybody the port of markers.
Packets are sent as frames, so nothing repairs them on their way to the first node.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, pairwise
from struct import pack
from typing import NamedTuple

from nfq_enforcer.core.wire.packet import ICMPV6, SCTP, TCP, UDP, checksum
from tests.support.packets import ACK, FIN, PSH, RST, SYN, packed

ALLOWED, CLOSED, HTTP, MARKER = 5353, 9999, 80, 7777
STAMP = {4: 158, 6: 0x1E}
_MARKERS = 20_000  # source ports of markers are higher than those of their odd packets
URG, ECE, CWR = 0x20, 0x40, 0x80


class Outcome(StrEnum):
    """Outcome: of a packet at its target, and in the logs of the nodes that it passes."""

    ARRIVES = "arrives"  # behind the last hook, a UDP datagram at its socket; no node logs a drop
    DISCARDED = "discarded"  # behind the last hook, but the target's kernel refuses it; no node logs a drop
    REFUSED = "refused"  # a node logs a drop
    LOST = "lost"  # the kernel of a node drops it before our hooks see it; no node logs a drop
    DIES = "dies"  # refused or lost: it may not arrive


@dataclass(frozen=True)
class Places:
    """Places: the addresses of the machines in one IP family, and the identity of the frontends."""

    family: int
    frontend: int
    front1: str
    back1: str
    front2: str
    back2: str
    n1: str
    n2: str
    world: str


class Header(NamedTuple):
    """Header: the odd fields of an IP header."""

    options: bytes = b""  # IPv4
    chain: tuple[tuple[int, bytes], ...] = ()  # IPv6: type of each extension header, and its bytes without the first
    hops: int = 64
    reserved: bool = False  # IPv4: the reserved flag


class OddPacket(NamedTuple):
    """Odd packet: IP packets or fragments, sent one after another by one machine."""

    name: str
    sender: str
    parts: tuple[bytes, ...]
    token: bytes  # in the data
    outcome: Outcome
    sport: int  # no other odd packet has it
    proto: int

    def __str__(self) -> str:
        return f"{self.name}, from {self.sender}"


_PLAIN = Header()

Body = Callable[[bytes, int], bytes]
"""From a token and a source port to a transport header with data."""


def datagram(port: int = ALLOWED, *, length: int | None = None, data: bytes = b"") -> Body:
    """Make a UDP datagram without a checksum."""
    return lambda token, sport: (
        pack("!HHHH", sport, port, 8 + len(token + data) if length is None else length, 0) + (token + data)
    )


def behind_options(port: int) -> Body:
    """Make a Destination Options header with a UDP datagram behind it."""
    return lambda token, sport: bytes((UDP, 0, 1, 4, 0, 0, 0, 0)) + datagram(port)(token, sport)


def segment(flags: int, port: int = HTTP, *, words: int = 5) -> Body:
    return lambda token, sport: pack("!HHIIBBHHH", sport, port, 1, 1, words << 4, flags, 65535, 0, 0) + token


def message(kind: int, code: int = 0, about: bytes = b"") -> Body:
    """Make an ICMP message, without its checksum; an error is about these bytes."""
    return lambda token, sport: pack("!BBHHH", kind, code, 0, 0 if about else sport, 0) + about + token


_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMPV6: 2, 1: 2}


@dataclass(frozen=True)
class _Maker:
    """Maker: builds odd packets of one family, each with a token and a source port of its own."""

    at: Places
    numbers: Iterator[int]
    run: str

    def marker(self, sender: str, token: bytes, sport: int) -> bytes:
        src, dst = getattr(self.at, sender), self.at.back2
        body = self._summed(src, dst, UDP, datagram(MARKER)(token, sport))
        return self._packet(src, dst, UDP, body, sport, _PLAIN)

    def odd(
        self,
        name: str,
        outcome: Outcome,
        body: Body,
        proto: int = UDP,
        *,
        sender: str = "front1",
        source: str | None = None,
        target: str | None = None,
        change: Callable[[bytes], bytes] = lambda packet: packet,
        cut: Callable[[bytes], list[tuple[int, bool, bytes]]] | None = None,
        summed: bool = True,
        header: Header = _PLAIN,
    ) -> OddPacket:
        number = next(self.numbers)
        token = f"{self.run}{number:06d}.".encode()
        src, dst = source or getattr(self.at, sender), target or self.at.back2
        content = body(token, number)
        if summed and proto in _CHECKSUM_AT and len(content) >= 8:
            content = self._summed(src, dst, proto, content)
        fragments = cut(content) if cut else [(0, False, content)]
        parts = tuple(
            change(self._packet(src, dst, proto, piece, number, header, _Place(place, more) if cut else None))
            for place, more, piece in fragments
        )
        return OddPacket(f"IPv{self.at.family} {name}", sender, parts, token, outcome, number, proto)

    def _summed(self, src: str, dst: str, proto: int, body: bytes) -> bytes:
        pseudo_header = b"" if proto == 1 else packed(src) + packed(dst) + pack("!II", len(body), proto)
        at = _CHECKSUM_AT[proto]
        total = checksum(pseudo_header + body) or (0xFFFF if proto == UDP else 0)
        return body[:at] + total.to_bytes(2, "big") + body[at + 2 :]

    def _packet(
        self, src: str, dst: str, proto: int, body: bytes, number: int, header: Header, place: "_Place | None" = None
    ) -> bytes:
        if self.at.family == 4:
            return _ipv4_packet(packed(src) + packed(dst), proto, body, number & 0xFFFF, header, place)
        return _ipv6_packet(packed(src) + packed(dst), proto, body, number, header, place)


class _Place(NamedTuple):
    """Place of a fragment in its datagram."""

    offset: int
    more: bool


def _ipv4_packet(ends: bytes, proto: int, body: bytes, number: int, header: Header, place: _Place | None) -> bytes:
    flags = 0x8000 if header.reserved else 0
    if place:
        flags |= place.offset // 8 | (0x2000 if place.more else 0)
    size = 20 + len(header.options)
    start = pack("!BBHHHBBH", 0x40 | size // 4, 0, size + len(body), number, flags, header.hops, proto, 0)
    return _with_checksum(start + ends + header.options) + body


def _with_checksum(header: bytes) -> bytes:
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def _ipv6_packet(ends: bytes, proto: int, body: bytes, number: int, header: Header, place: _Place | None) -> bytes:
    headers = list(header.chain)
    if place:
        headers.append((44, pack("!BHI", 0, place.offset | place.more, number)))
    kinds = [kind for kind, _ in headers] + [proto]
    rest = b"".join(bytes((after,)) + extension for (_, extension), after in zip(headers, kinds[1:], strict=True))
    start = pack("!IHBB", 6 << 28, len(rest) + len(body), kinds[0], header.hops)
    return start + ends + rest + body


def stamp(identity: int, *, family: int = 4, version: int = 1, flags: int = 0) -> bytes:
    """Return the option of a stamp."""
    return bytes((STAMP[family], 8 if family == 4 else 6, version << 4 | flags, 0)) + identity.to_bytes(4, "big")


def destination_options(options: bytes = b"", kind: int = 60) -> tuple[int, bytes]:
    """Return an extension header with these options, padded."""
    room = -(len(options) + 2) % 8
    padding = bytes((1, room - 2)) + bytes(room - 2) if room > 1 else bytes(room)
    size = (2 + len(options) + room) // 8 - 1
    return kind, bytes((size,)) + options + padding


def in_pieces(*ends: int) -> Callable[[bytes], list[tuple[int, bool, bytes]]]:
    """Cut a datagram at these offsets."""

    def cut(body: bytes) -> list[tuple[int, bool, bytes]]:
        bounds = [0, *ends, len(body)]
        return [(a, b < len(body), body[a:b]) for a, b in pairwise(bounds)]

    return cut


def only(*pieces: int, at: tuple[int, ...] = (264,)) -> Callable[[bytes], list[tuple[int, bool, bytes]]]:
    """Cut a datagram, and send these pieces of it only, in this order."""
    return lambda body: [in_pieces(*at)(body)[number] for number in pieces]


def repeated(port: int) -> Callable[[bytes], list[tuple[int, bool, bytes]]]:
    """Cut a datagram in two pieces, and repeat the start of the first with another port in between."""

    def cut(body: bytes) -> list[tuple[int, bool, bytes]]:
        first, second = in_pieces(264)(body)
        return [first, (0, True, body[:2] + port.to_bytes(2, "big") + body[4:128]), second]

    return cut


def overlapping(body: bytes) -> list[tuple[int, bool, bytes]]:
    """Cut a datagram in pieces of which two have bytes in common."""
    return [(0, True, body[:264]), (128, True, body[128:400]), (400, False, body[400:])]


def odd_packets(at: Places, first: int, run: str) -> list[OddPacket]:
    """Return all odd packets of a family, with source ports from ``first`` on; ``run`` begins each token."""
    make = _Maker(at, count(first), run)
    family = _ipv4 if at.family == 4 else _ipv6
    return [*_transport(make), *_icmp(make), *_fragments(make), *_sources(make), *_stamps(make), *family(make)]


def marker_ports(odd: OddPacket) -> tuple[int, int]:
    """Return the source ports of the two markers behind an odd packet."""
    return odd.sport + _MARKERS, odd.sport + 2 * _MARKERS


def marker(at: Places, odd: OddPacket, token: bytes, sport: int) -> bytes:
    """Return a marker behind an odd packet."""
    return _Maker(at, count(), "").marker(odd.sender, token, sport)


def _transport(make: _Maker) -> Iterator[OddPacket]:
    odd, arrives, refused = make.odd, Outcome.ARRIVES, Outcome.REFUSED
    zero = arrives if make.at.family == 4 else Outcome.DISCARDED  # RFC 8200 section 8.1
    yield odd("UDP to the allowed port", arrives, datagram())
    yield odd("UDP to a closed port", refused, datagram(CLOSED))
    yield odd("UDP to port 0", refused, datagram(0))
    yield odd("UDP from port 0", arrives, lambda token, _: datagram()(token, 0))
    yield odd("UDP without a checksum", zero, datagram(), summed=False)
    damaged = Outcome.DISCARDED
    yield odd("UDP with a bad checksum", damaged, datagram(data=b"x"), change=lambda p: p[:-1] + b"y")
    yield odd("UDP of length 4", refused, datagram(length=4))
    yield odd("UDP of length 0", refused if make.at.family == 4 else Outcome.DIES, datagram(length=0))
    yield odd("UDP longer than its packet", Outcome.DISCARDED, datagram(length=900))
    yield odd("UDP with half a header", refused, lambda token, sport: datagram()(token, sport)[:4])
    for name, flags in (("SYN", SYN), ("SYN ECE CWR", SYN | ECE | CWR), ("SYN PSH URG", SYN | PSH | URG)):
        yield odd(f"TCP {name} with data", arrives, segment(flags), TCP)
    for flags in (0, SYN, SYN | FIN, SYN | RST, FIN, FIN | PSH | URG, ACK, PSH | ACK, SYN | ACK, RST, 0x3F, 0xFF):
        yield odd(f"TCP flags {flags:#x} to a closed port", refused, segment(flags, 81), TCP)
        yield odd(f"TCP flags {flags:#x}, not allowed", refused, segment(flags), TCP, sender="back1")
    yield odd("TCP with a header of 16 bytes", refused, segment(SYN, words=4), TCP)
    yield odd("TCP with a header beyond its end", refused, segment(SYN, words=15), TCP)
    yield odd("TCP with half a header", refused, lambda token, sport: segment(SYN)(token, sport)[:12], TCP)
    yield odd("SCTP", refused, lambda token, sport: pack("!HHII", sport, ALLOWED, 0, 0) + token, SCTP)
    extensions = (0, 51) if make.at.family == 4 else ()  # in IPv6 these are extension headers
    for proto in (*extensions, 4, 33, 41, 47, 50, 136, 253, 255):
        yield odd(f"protocol {proto} to a backend with rules for ports", refused, datagram(), proto, summed=False)


def _icmp(make: _Maker) -> Iterator[OddPacket]:
    v4, refused = make.at.family == 4, Outcome.REFUSED
    proto, other = (1, ICMPV6) if v4 else (ICMPV6, 1)
    for kind in (
        (0, 4, 5, 8, 9, 10, 13, 15, 17, 18, 30, 40, 42) if v4 else (0, 100, 127, 128, 129, 138, 139, 140, 144, 255)
    ):
        yield make.odd(f"ICMP type {kind}", refused, message(kind), proto)
    yield make.odd("ICMP of the other family", refused, message(8), other)
    yield make.odd("half an ICMP header", refused, lambda *_: b"\x08\0\0" if v4 else b"\x80\0\0", proto)
    errors = ((3, 3), (3, 4), (11, 0), (12, 0)) if v4 else ((1, 4), (2, 0), (3, 0), (4, 1))
    unknown = make.odd("", refused, datagram(), source=make.at.back2, target=make.at.front1).parts[0]
    for kind, code in errors:
        yield make.odd(f"ICMP error {kind}/{code} about no flow", refused, message(kind, code, unknown[:60]), proto)
        yield make.odd(f"ICMP error {kind}/{code} about nothing", refused, message(kind, code), proto)
        cut = unknown[: 20 if v4 else 40]
        yield make.odd(f"ICMP error {kind}/{code} about a header alone", refused, message(kind, code, cut), proto)
    inner = message(errors[0][0], errors[0][1], unknown[:60])(b"", 1)
    nested = unknown[:9] + bytes((proto,)) + unknown[10:20] if v4 else unknown[:6] + bytes((proto,)) + unknown[7:40]
    yield make.odd("ICMP error about an error", refused, message(*errors[0], nested + inner), proto)


def _fragments(make: _Maker) -> Iterator[OddPacket]:
    odd, allowed, closed = make.odd, datagram(data=bytes(600)), datagram(CLOSED, data=bytes(600))
    yield odd("two fragments", Outcome.ARRIVES, allowed, cut=in_pieces(264))
    yield odd("four fragments", Outcome.ARRIVES, allowed, cut=in_pieces(104, 264, 400))
    yield odd("two fragments to a closed port", Outcome.REFUSED, closed, cut=in_pieces(264))
    yield odd("fragments, the last first", Outcome.ARRIVES, allowed, cut=only(1, 0))
    yield odd("fragments to a closed port, the last first", Outcome.REFUSED, closed, cut=only(1, 0))
    yield odd("a tiny first fragment", Outcome.ARRIVES, allowed, cut=in_pieces(8))
    yield odd("a tiny first fragment to a closed port", Outcome.REFUSED, closed, cut=in_pieces(8))
    yield odd("a first fragment alone", Outcome.LOST, allowed, cut=only(0))
    yield odd("a last fragment alone", Outcome.LOST, allowed, cut=only(1))
    yield odd("a gap between fragments", Outcome.LOST, allowed, cut=only(0, 2, at=(104, 264)))
    # The kernel keeps the first piece: it decides, for our hooks and for the target.
    yield odd("a repeated start with a closed port", Outcome.ARRIVES, allowed, cut=repeated(CLOSED))
    yield odd("a repeated start with the allowed port", Outcome.REFUSED, closed, cut=repeated(ALLOWED))
    yield odd("an overlap", Outcome.LOST, allowed, cut=overlapping)
    past_end = [(0, True, bytes(64)), (65528, False, bytes(64))]
    yield odd("fragments past 65,535 bytes", Outcome.LOST, allowed, cut=lambda _: past_end)
    yield odd("TCP in fragments", Outcome.ARRIVES, lambda t, s: segment(SYN)(t, s) + bytes(300), TCP, cut=in_pieces(64))
    neighbour = make.at.front1
    yield odd("fragments of a neighbour", Outcome.DIES, allowed, cut=in_pieces(264), sender="back1", source=neighbour)


def _sources(make: _Maker) -> Iterator[OddPacket]:
    at, v4 = make.at, make.at.family == 4
    nowhere = ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1") if v4 else (
        *("::1", "::", "ff02::1", "fe80::1", "::ffff:10.31.1.10", "2001:db8::1"),
    )  # fmt: skip
    for source in (at.front1, at.front2, at.n1, at.n2, at.world, at.back2, *nowhere):
        yield make.odd(f"UDP from {source}", Outcome.DIES, datagram(), sender="back1", source=source)
    for source in (at.front1, at.front2, at.n1, at.n2, at.back2, *nowhere):
        yield make.odd(f"UDP from {source}, not stamped", Outcome.DIES, datagram(), sender="world", source=source)
    yield make.odd("UDP to itself", Outcome.DIES, datagram(), sender="back1", source=at.back2, target=at.back2)


def _options(make: _Maker, options: bytes) -> Header:
    """Return the header with these options, in a form that the family has."""
    if make.at.family == 4:
        return Header(options + bytes(-len(options) % 4))
    return Header(chain=(destination_options(options),))


def _stamps(make: _Maker) -> Iterator[OddPacket]:
    at, refused, arrives = make.at, Outcome.REFUSED, Outcome.ARRIVES
    family, single = at.family, b"\x01" if at.family == 4 else b"\0"

    def mark(identity: int = at.frontend, version: int = 1, flags: int = 0) -> bytes:
        return stamp(identity, family=family, version=version, flags=flags)

    doubled, behind = mark() + mark(), single * 4 + mark()
    longer = bytes((STAMP[family], 12 if family == 4 else 10)) + mark()[2:] + bytes(4)
    wrong = {
        "doubled": doubled,
        "five times": mark() * 5,
        "of version 2": mark(version=2),
        "with a reserved flag": mark(flags=2),
        "of 12 bytes": longer,
        "of 4 bytes": bytes((STAMP[family], 4 if family == 4 else 2)) + mark()[2:4],
        "with identity 0": mark(0),
        "with identity 1": mark(1),
        "with identity 6": mark(6),
        "with a local identity": mark(1 << 24),
        "with an identity of nobody": mark(4_711),
        "with a flag for a tag, without one": mark(flags=1),
    }
    for name, options in wrong.items():
        yield make.odd(
            f"stamp {name}, on the wire", refused, datagram(), sender="world", header=_options(make, options)
        )
        yield make.odd(f"stamp {name}, of a frontend itself", arrives, datagram(), header=_options(make, options))
    for name, options in {**wrong, "of a frontend": mark(), "behind padding": behind}.items():
        yield make.odd(
            f"stamp {name}, of a backend", refused, datagram(), sender="back1", header=_options(make, options)
        )
    within_another = bytes((0x07, 0x0B, 0x04) if family == 4 else (0x3E, 0x08)) + mark()
    for name, options in {
        "behind the end of the options": bytes(4) + mark(),
        "within another option": within_another,
    }.items():
        if family == 4 or name.startswith("within"):  # IPv6 has no end of the options
            header = _options(make, options)
            yield make.odd(
                f"stamp of a frontend {name}, on the wire", refused, datagram(), sender="world", header=header
            )
            yield make.odd(
                f"stamp of a frontend {name}, of a backend", refused, datagram(), sender="back1", header=header
            )
    yield make.odd(
        "stamp of a frontend in fragments, of a backend",
        refused,
        datagram(data=bytes(600)),
        sender="back1",
        cut=in_pieces(264),
        header=_options(make, mark()),
    )
    # A node believes a stamp on the segment until stamps are signed.
    yield make.odd(
        "stamp of a frontend, on the wire", arrives, datagram(), sender="world", header=_options(make, mark())
    )


def _ipv4(make: _Maker) -> Iterator[OddPacket]:
    odd, arrives, lost, refused = make.odd, Outcome.ARRIVES, Outcome.LOST, Outcome.REFUSED
    back2 = packed(make.at.back2)
    for name, outcome, options in (
        ("four NOPs", arrives, b"\x01" * 4),
        ("record route, with room for the stamp", arrives, b"\x07\x17\x04" + bytes(21)),
        ("record route, without room for the stamp", refused, b"\x07\x27\x04" + bytes(37)),
        ("timestamps, without room for the stamp", refused, b"\x44\x24\x05\x00" + bytes(32)),
        ("router alert", arrives, b"\x94\x04\0\0"),
        ("an unknown option", arrives, b"\x5e\x04\0\0"),
        ("loose source route", lost, b"\x83\x07\x04" + back2 + b"\0"),
        ("strict source route", lost, b"\x89\x07\x04" + back2 + b"\0"),
        ("a used source route", lost, b"\x83\x07\x08" + back2 + b"\0"),
        ("an option of length 0", lost, b"\x5e\0\0\0"),
        ("an option beyond the header", lost, b"\x5e\x0c\0\0"),
    ):
        yield odd(f"with {name}", outcome, datagram(), header=Header(options))
    yield odd("with the reserved flag", arrives, datagram(), header=Header(reserved=True))
    yield odd("with one hop left", lost, datagram(), header=Header(hops=1))
    yield odd("with two hops left", lost, datagram(), header=Header(hops=2))
    yield odd("with bytes behind its end", arrives, datagram(), change=lambda packet: packet + bytes(9))
    yield odd(
        "data as options",
        Outcome.DIES,
        datagram(data=bytes(40)),
        change=lambda p: _with_checksum(b"\x4f" + p[1:10] + bytes(2) + p[12:60]) + p[60:],
    )
    for name, change in _damage(4):
        yield odd(name, lost, datagram(), change=change)
    yield odd("a length that ends in the UDP header", refused, datagram(), change=lambda p: _set_length(p, 24))


def _set_length(packet: bytes, length: int) -> bytes:
    return (
        _with_checksum(packet[:2] + length.to_bytes(2, "big") + packet[4:10] + bytes(2) + packet[12:20]) + packet[20:]
    )


def _damage(family: int) -> list[tuple[str, Callable[[bytes], bytes]]]:
    if family == 6:
        return [
            ("version 5", lambda packet: b"\x50" + packet[1:]),
            ("a length beyond its end", lambda p: p[:4] + (len(p)).to_bytes(2, "big") + p[6:]),
            ("half a header", lambda packet: packet[:20]),
        ]
    return [
        ("version 5", lambda packet: b"\x55" + packet[1:]),
        ("a header of 16 bytes", lambda packet: b"\x44" + packet[1:]),
        ("a bad checksum", lambda packet: packet[:10] + b"\x12\x34" + packet[12:]),
        ("a length beyond its end", lambda packet: _set_length(packet, len(packet) + 50)),
        ("a length below its header", lambda packet: _set_length(packet, 19)),
        ("half a header", lambda packet: packet[:10]),
    ]


def _ipv6(make: _Maker) -> Iterator[OddPacket]:
    odd, arrives, lost, refused, dies = make.odd, Outcome.ARRIVES, Outcome.LOST, Outcome.REFUSED, Outcome.DIES
    options, hop_by_hop = destination_options(), destination_options(kind=0)
    back2 = packed(make.at.back2)
    routing = bytes((2, 0, 1)) + bytes(4) + back2
    for name, outcome, chain in (
        ("Hop-by-Hop Options", arrives, (hop_by_hop,)),
        ("two Destination Options", arrives, (options, options)),
        ("100 Destination Options", arrives, (options,) * 100),
        ("Hop-by-Hop Options in second place", dies, (options, hop_by_hop)),
        ("a used routing header", refused, ((43, bytes((0, 0, 0)) + bytes(4)),)),
        ("a routing header", dies, ((43, routing),)),
        ("an authentication header", Outcome.DISCARDED, ((51, bytes((4,)) + bytes(22)),)),
        ("an atomic fragment", arrives, ((44, pack("!BHI", 0, 0, 7)),)),
        ("two atomic fragment headers", arrives, ((44, pack("!BHI", 0, 0, 7)), (44, pack("!BHI", 0, 0, 9)))),
        ("a Destination Options header beyond its end", refused, ((60, bytes((200,)) + bytes(6)),)),
        ("an unknown Destination Option, discard", Outcome.DISCARDED, (destination_options(b"\x5e\0"),)),
        ("an unknown Destination Option, skip", arrives, (destination_options(b"\x3e\0"),)),
        ("an unknown Hop-by-Hop Option, discard", lost, (destination_options(b"\x5e\0", 0),)),
        ("no next header", refused, ((59, bytes(7)),)),
        ("an unknown extension header", refused, ((253, bytes(7)),)),
    ):
        yield odd(f"with {name}", outcome, datagram(), header=Header(chain=chain))
        if outcome is arrives:
            yield odd(f"with {name}, to a closed port", refused, datagram(CLOSED), header=Header(chain=chain))
    mark = stamp(make.at.frontend, family=6)
    for name, chain in (
        ("behind an atomic fragment header", ((44, pack("!BHI", 0, 0, 8)), destination_options(mark))),
        ("in a second header", (options, destination_options(mark))),
        ("among Hop-by-Hop Options", (destination_options(mark, 0),)),
    ):
        yield odd(
            f"stamp of a frontend {name}, of a backend", refused, datagram(), sender="back1", header=Header(chain=chain)
        )
    among_hops = Header(chain=(destination_options(mark, 0),))
    yield odd("stamp among Hop-by-Hop Options, on the wire", refused, datagram(), sender="world", header=among_hops)
    for port in (ALLOWED, CLOSED):  # RFC 8200 section 4.5: the first fragment has all headers
        yield odd(f"a first fragment without port {port}", dies, behind_options(port), 60, cut=in_pieces(8))
    both = (destination_options(mark), destination_options(mark))
    yield odd("stamps in two headers, on the wire", refused, datagram(), sender="world", header=Header(chain=both))
    yield odd("with one hop left", lost, datagram(), header=Header(hops=1))
    yield odd("with two hops left", lost, datagram(), header=Header(hops=2))
    yield odd("with bytes behind its end", arrives, datagram(), change=lambda packet: packet + bytes(9))
    yield odd("of length 0", dies, datagram(), change=lambda packet: packet[:4] + bytes(2) + packet[6:])
    for name, change in _damage(6):
        yield odd(name, lost, datagram(), change=change)
