"""Prefix table: the identity of the longest prefix of an address, for a million prefixes, without a dict.

The prefixes of a family cut its addresses into ranges, each with the identity of the longest prefix that covers it. The
table has the first address and the identity of each range in arrays, and finds the range of an address by bisection.
Neighbouring ranges with equal identities are one range. The arrays are cut into parts, so that a worker receives a
table in many small messages.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity

Network = IPv4Network | IPv6Network

PART = 2048  # ranges in a part: 16 KiB for IPv4, which a worker reads in some ten microseconds
_NONE = Identity(0)
_HALF = (1 << 64) - 1


class Part(NamedTuple):
    """Part: some neighbouring ranges of one family."""

    size: int  # bytes of an address: 4 or 16
    first: "array[int]"  # first address of each range; for IPv6 its upper 64 bits
    low: "array[int]"  # for IPv6 the lower 64 bits of the first addresses
    identities: "array[int]"  # 0: no prefix

    def find(self, address: int) -> int:
        """Return the identity of the range that contains an address, which is not before the first range."""
        if self.size == 4:
            return self.identities[bisect_right(self.first, address) - 1]
        high = address >> 64
        begin, end = bisect_left(self.first, high), bisect_right(self.first, high)
        return self.identities[bisect_right(self.low, address & _HALF, begin, end) - 1]


class Prefixes:
    """Prefix table of both families."""

    __slots__ = ("_firsts", "_parts")

    def __init__(self, numbers: Mapping[Network, Identity]) -> None:
        """Take the identities of networks of both families."""
        self._parts: dict[int, list[Part]] = {}
        self._firsts: dict[int, list[int]] = {}  # the first address of each part
        for size in (4, 16):
            for part in _parts(size, _ranges(size, numbers)):
                self.append(part)

    def append(self, part: Part) -> None:
        """Add the part that follows the ones before; nobody may read the table before it is complete."""
        first = part.first[0] if part.size == 4 else part.first[0] << 64 | part.low[0]
        self._parts.setdefault(part.size, []).append(part)
        self._firsts.setdefault(part.size, []).append(first)

    def parts(self) -> Iterator[Part]:
        """Yield the parts in their order."""
        for parts in self._parts.values():
            yield from parts

    def __bool__(self) -> bool:
        """Tell whether the table has any network."""
        return bool(self._parts)

    def lookup(self, address: bytes) -> Identity | None:
        """Return the identity of the longest prefix of the address (4 or 16 bytes), None without a prefix."""
        parts = self._parts.get(len(address))
        if parts is None:
            return None
        number = int.from_bytes(address, "big")
        part = parts[bisect_right(self._firsts[len(address)], number) - 1]
        return Identity(part.find(number)) or None


class _Cover(NamedTuple):
    """Cover: a network that covers the addresses at a point of the sweep."""

    last: int
    identity: Identity


def _ranges(size: int, numbers: Mapping[Network, Identity]) -> Iterator[tuple[int, Identity]]:
    """Yield the first address of each range and its identity, in the order of addresses."""
    bits = 8 * size
    networks = sorted(
        (int(network.network_address), network.prefixlen, identity)
        for network, identity in numbers.items()
        if network.max_prefixlen == bits
    )
    covers = [_Cover((1 << bits) - 1, _NONE)]
    if networks:
        yield 0, _NONE
    for first, length, identity in networks:
        yield from _left(covers, first)
        covers.append(_Cover(first | (1 << (bits - length)) - 1, identity))
        yield first, identity
    yield from _left(covers, 1 << bits)


def _left(covers: list[_Cover], address: int) -> Iterator[tuple[int, Identity]]:
    """Remove the networks that end before an address; yield the ranges behind them."""
    while len(covers) > 1 and covers[-1].last < address:
        last = covers.pop().last
        if last < covers[0].last:
            yield last + 1, covers[-1].identity


def _parts(size: int, ranges: Iterable[tuple[int, Identity]]) -> Iterator[Part]:
    part = _empty(size)
    for first, identity in _merged(ranges):
        if len(part.first) == PART:
            yield part
            part = _empty(size)
        part.first.append(first if size == 4 else first >> 64)
        if size == 16:
            part.low.append(first & _HALF)
        part.identities.append(identity)
    if part.first:
        yield part


def _merged(ranges: Iterable[tuple[int, Identity]]) -> Iterator[tuple[int, Identity]]:
    """Yield the ranges without empty ones, neighbours with equal identities as one."""
    pending: tuple[int, Identity] | None = None
    yielded: Identity | None = None
    for first, identity in ranges:
        if pending is not None and pending[0] != first and pending[1] != yielded:
            yield pending
            yielded = pending[1]
        pending = first, identity
    if pending is not None and pending[1] != yielded:
        yield pending


def _empty(size: int) -> Part:
    return Part(size, array("I" if size == 4 else "Q"), array("Q"), array("I"))


NO_PREFIXES = Prefixes({})
