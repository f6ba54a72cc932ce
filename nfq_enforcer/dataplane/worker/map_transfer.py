"""Policy maps on their way to workers: the entries of each are sent once, in pieces, and named by a number after that.

A map may have a hundred thousand entries, and packets would wait for a worker that takes all of these at once. So they
go ahead of the snapshot that needs them, a few hundred to a message. What no snapshot needs any more is let go in
pieces, too. Maps of several endpoints may be over the same entries.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, islice
from typing import NamedTuple

from nfq_enforcer.core.tables.policymap import PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot

_PIECE = 500  # entries to a message: a worker takes one in about a millisecond
_LET_GO = 2000  # entries at a time

Entries = Mapping[PolicyKey, PolicyEntry]


class MapChunk(NamedTuple):
    """Agent to worker: part of the entries that have this number."""

    number: int
    entries: tuple[tuple[PolicyKey, PolicyEntry], ...]


class SnapshotReference(NamedTuple):
    """Agent to worker: a snapshot whose maps are empty, and the numbers of their entries."""

    snapshot: Snapshot
    numbers: Mapping[bytes, tuple[int, int]]  # by address of a local endpoint: ingress, egress


class MapRemoval(NamedTuple):
    """Agent to worker: no snapshot will name these numbers again."""

    numbers: tuple[int, ...]


class MapSender:
    """The agent's side: which entries workers have, and by which numbers they know them."""

    def __init__(self) -> None:
        """Start with none."""
        self._known: dict[int, tuple[int, Entries]] = {}  # by the entries' ``id``, which is theirs while held here
        self._numbers = count()

    def add(self, snapshot: Snapshot) -> Iterator[MapChunk]:
        """Give the entries that are new a number; yield what workers have to have before these can be named."""
        for endpoint in snapshot.endpoints.values():
            for entries in (endpoint.ingress.entries, endpoint.egress.entries):
                if id(entries) not in self._known:
                    number = next(self._numbers)
                    self._known[id(entries)] = number, entries
                    yield from _pieces(number, entries)

    def pieces(self) -> Iterator[MapChunk]:
        """Yield all that has a number, for a worker that starts."""
        return chain.from_iterable(_pieces(number, entries) for number, entries in self._known.values())

    def name(self, snapshot: Snapshot) -> SnapshotReference:
        """Return a snapshot by the numbers of its entries, all of which have been added."""
        numbers = {
            address: (self._known[id(one.ingress.entries)][0], self._known[id(one.egress.entries)][0])
            for address, one in snapshot.endpoints.items()
        }
        none: Entries = {}
        return SnapshotReference(_refilled(snapshot, lambda address: (none, none)), numbers)

    def keep(self, snapshot: Snapshot) -> MapRemoval:
        """Forget what this snapshot does not need."""
        used = snapshot.endpoints.values()
        needed = {id(policy.entries) for one in used for policy in (one.ingress, one.egress)}
        return MapRemoval(tuple(self._known.pop(one)[0] for one in self._known.keys() - needed))


class MapReceiver:
    """The worker's side: entries by number."""

    def __init__(self) -> None:
        """Start with none."""
        self._entries: dict[int, dict[PolicyKey, PolicyEntry]] = {}
        self._leaving: list[dict[PolicyKey, PolicyEntry]] = []

    def add(self, piece: MapChunk) -> None:
        """Take a piece."""
        self._entries.setdefault(piece.number, {}).update(piece.entries)

    def fill(self, named: SnapshotReference) -> Snapshot:
        """Return the snapshot, over its entries."""
        none: Entries = {}

        def entries(address: bytes) -> tuple[Entries, Entries]:
            ingress, egress = named.numbers[address]
            return self._entries.get(ingress, none), self._entries.get(egress, none)

        return _refilled(named.snapshot, entries)

    def forget(self, forgotten: MapRemoval) -> None:
        """Have entries go when there is time; nothing may look at them any more."""
        self._leaving += filter(None, (self._entries.pop(number, None) for number in forgotten.numbers))

    def let_go(self) -> None:
        """Let some of them go."""
        if self._leaving:
            last = self._leaving[-1]
            for _ in range(min(_LET_GO, len(last))):
                last.popitem()
            if not last:
                self._leaving.pop()


def _pieces(number: int, entries: Entries) -> Iterator[MapChunk]:
    rest = iter(entries.items())
    while some := tuple(islice(rest, _PIECE)):
        yield MapChunk(number, some)


def _refilled(snapshot: Snapshot, entries: Callable[[bytes], tuple[Entries, Entries]]) -> Snapshot:
    """Return the snapshot over other entries, by address; what is one endpoint, or one map, stays one."""
    maps: dict[tuple[int, int], PolicyMap] = {}
    endpoints: dict[int, LocalEndpoint] = {}

    def over(policy: PolicyMap, other: Entries) -> PolicyMap:
        return maps.setdefault((id(policy), id(other)), policy.over(other))

    def changed(address: bytes, one: LocalEndpoint) -> LocalEndpoint:
        if id(one) not in endpoints:
            ingress, egress = entries(address)
            endpoints[id(one)] = replace(one, ingress=over(one.ingress, ingress), egress=over(one.egress, egress))
        return endpoints[id(one)]

    return replace(snapshot, endpoints={address: changed(address, one) for address, one in snapshot.endpoints.items()})
