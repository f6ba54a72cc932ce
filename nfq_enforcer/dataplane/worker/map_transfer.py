"""Transfer of policy maps to workers: the entries of a map travel once, in chunks, and later by number.

A map may have a hundred thousand entries, and packets would wait for a worker that receives all of them at once. So
the entries precede the snapshot that needs them, a few hundred a message. A worker also frees entries that no snapshot
needs any more in portions. The maps of several endpoints may share entries.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, islice
from typing import NamedTuple

from nfq_enforcer.core.tables.policymap import PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot

_CHUNK = 500  # entries a message: a worker adds them in about a millisecond
_FREED = 2000  # entries at a time

Entries = Mapping[PolicyKey, PolicyEntry]


class MapChunk(NamedTuple):
    """Agent to worker: a part of the entries with this number."""

    number: int
    entries: tuple[tuple[PolicyKey, PolicyEntry], ...]


class SnapshotReference(NamedTuple):
    """Agent to worker: a snapshot with empty maps, and the numbers of their entries."""

    snapshot: Snapshot
    numbers: Mapping[bytes, tuple[int, int]]  # by address of a local endpoint: ingress, egress


class MapRemoval(NamedTuple):
    """Agent to worker: no later snapshot refers to these numbers."""

    numbers: tuple[int, ...]


class MapSender:
    """Map sender: the agent's side, with the entries that workers have and their numbers."""

    def __init__(self) -> None:
        """Start with no entries."""
        self._sent: dict[int, tuple[int, Entries]] = {}  # by ``id`` of the entries, unique while they are held here
        self._numbers = count()

    def add(self, snapshot: Snapshot) -> Iterator[MapChunk]:
        """Assign numbers to new entries; yield their chunks, which must precede the reference to the snapshot."""
        for endpoint in snapshot.endpoints.values():
            for entries in (endpoint.ingress.entries, endpoint.egress.entries):
                if id(entries) not in self._sent:
                    number = next(self._numbers)
                    self._sent[id(entries)] = number, entries
                    yield from _chunks(number, entries)

    def chunks(self) -> Iterator[MapChunk]:
        """Yield the chunks of all entries in use, for a worker that starts."""
        return chain.from_iterable(_chunks(number, entries) for number, entries in self._sent.values())

    def refer(self, snapshot: Snapshot) -> SnapshotReference:
        """Return the reference to a snapshot whose entries have all been added."""
        numbers = {
            address: (self._sent[id(endpoint.ingress.entries)][0], self._sent[id(endpoint.egress.entries)][0])
            for address, endpoint in snapshot.endpoints.items()
        }
        empty: Entries = {}
        return SnapshotReference(_with_entries(snapshot, lambda address: (empty, empty)), numbers)

    def retain(self, snapshot: Snapshot) -> MapRemoval:
        """Forget all entries that this snapshot does not use; return the message that removes them from workers."""
        endpoints = snapshot.endpoints.values()
        used = {id(policy.entries) for endpoint in endpoints for policy in (endpoint.ingress, endpoint.egress)}
        return MapRemoval(tuple(self._sent.pop(unused)[0] for unused in self._sent.keys() - used))


class MapReceiver:
    """Map receiver: the worker's side, with entries by number."""

    def __init__(self) -> None:
        """Start with no entries."""
        self._entries: dict[int, dict[PolicyKey, PolicyEntry]] = {}
        self._removed: list[dict[PolicyKey, PolicyEntry]] = []

    def add(self, chunk: MapChunk) -> None:
        """Add a chunk."""
        self._entries.setdefault(chunk.number, {}).update(chunk.entries)

    def resolve(self, reference: SnapshotReference) -> Snapshot:
        """Return the snapshot of a reference, with its entries."""
        empty: Entries = {}

        def entries(address: bytes) -> tuple[Entries, Entries]:
            ingress, egress = reference.numbers[address]
            return self._entries.get(ingress, empty), self._entries.get(egress, empty)

        return _with_entries(reference.snapshot, entries)

    def remove(self, removal: MapRemoval) -> None:
        """Remove entries, to be freed later; no snapshot in use may refer to them."""
        self._removed += filter(None, (self._entries.pop(number, None) for number in removal.numbers))

    def free_some(self) -> None:
        """Free a portion of the removed entries."""
        # Freeing a dict of a hundred thousand entries at once would delay packets.
        if self._removed:
            last = self._removed[-1]
            for _ in range(min(_FREED, len(last))):
                last.popitem()
            if not last:
                self._removed.pop()


def _chunks(number: int, entries: Entries) -> Iterator[MapChunk]:
    remaining = iter(entries.items())
    while chunk := tuple(islice(remaining, _CHUNK)):
        yield MapChunk(number, chunk)


def _with_entries(snapshot: Snapshot, entries: Callable[[bytes], tuple[Entries, Entries]]) -> Snapshot:
    """Return the snapshot with other entries, by address; an endpoint or a map that is shared stays shared."""
    maps: dict[tuple[int, int], PolicyMap] = {}
    endpoints: dict[int, LocalEndpoint] = {}

    def new_map(policy: PolicyMap, new_entries: Entries) -> PolicyMap:
        return maps.setdefault((id(policy), id(new_entries)), policy.with_entries(new_entries))

    def new_endpoint(address: bytes, endpoint: LocalEndpoint) -> LocalEndpoint:
        if id(endpoint) not in endpoints:
            ingress, egress = entries(address)
            endpoints[id(endpoint)] = replace(
                endpoint, ingress=new_map(endpoint.ingress, ingress), egress=new_map(endpoint.egress, egress)
            )
        return endpoints[id(endpoint)]

    return replace(
        snapshot,
        endpoints={address: new_endpoint(address, endpoint) for address, endpoint in snapshot.endpoints.items()},
    )
