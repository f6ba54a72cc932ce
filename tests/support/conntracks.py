"""Conntrack entries for tests, in the encoding of ctnetlink: nested attributes, in the kernel's order."""

from collections.abc import Iterable
from ipaddress import ip_address
from struct import pack
from typing import NamedTuple

from nfq_enforcer.core.wire.packet import ICMP, ICMPV6

NEW, ERROR, DONE = 0x100, 2, 3
NESTED = 0x8000
CONFIRMED, SEEN_REPLY, ASSURED = 8, 2, 4


class Way(NamedTuple):
    """Way: one direction of a connection, from sender to receiver."""

    src: str
    dst: str
    sport: int = 0  # of an ICMP query: its identifier
    dport: int = 0  # of an ICMP query: its type

    @property
    def back(self) -> "Way":
        return Way(self.dst, self.src, self.dport, self.sport)


def attribute(kind: int, data: bytes) -> bytes:
    return pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def direction(kind: int, proto: int, way: Way, *, turned: bool = False) -> bytes:
    """Return the attribute of a direction (1: original, 2: reply); ``turned`` reverses the order of its parts."""
    src, dst = (ip_address(address).packed for address in way[:2])
    first = 1 if len(src) == 4 else 3
    addresses = nested(1, attribute(first, src), attribute(first + 1, dst))
    if proto in (ICMP, ICMPV6):
        number = 4 if proto == ICMP else 7
        fields = [attribute(number, pack("!H", way.sport)), attribute(number + 1, bytes((way.dport,)))]
        fields.append(attribute(number + 2, b"\0"))
    else:
        fields = [attribute(2, pack("!H", way.sport)), attribute(3, pack("!H", way.dport))]
    fields.insert(0, attribute(1, bytes((proto,))))
    parts = [addresses, nested(2, *(reversed(fields) if turned else fields))]
    return nested(kind, *(reversed(parts) if turned else parts))


def entry(
    proto: int,
    way: Way,
    back: Way | None = None,
    status: int = CONFIRMED | SEEN_REPLY | ASSURED,
    tcp_state: int | None = None,
    timeout: int = 100,
    more: Iterable[bytes] = (),
    turned: bool = False,
) -> bytes:
    """Return the body of a connection's message; ``back`` is the reply direction, if an address is translated."""
    info = [nested(4, nested(1, attribute(1, bytes((tcp_state,)))))] if tcp_state is not None else []
    ways = direction(1, proto, way, turned=turned) + direction(2, proto, back or way.back, turned=turned)
    rest = attribute(3, pack("!I", status)) + attribute(7, pack("!I", timeout))
    return bytes(4) + ways + rest + b"".join((*info, *more))


def message(kind: int, body: bytes) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, 2, 0, 0) + body + bytes(-len(body) % 4)
