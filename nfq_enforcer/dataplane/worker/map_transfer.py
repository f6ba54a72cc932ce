"""Transfer of tables to workers: each table travels once, in chunks, and later by number.

A table may have a hundred thousand rows (entries of a policy map, local endpoints, ranges of prefixes), and packets
would wait for a worker that receives all of them at once. So the rows precede the snapshot that needs them, a few
hundred a message. A worker also frees rows that no snapshot needs any more in portions. The maps of several endpoints
may share entries, and endpoints may share maps.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, islice
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.core.tables.policymap import PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, Part, Prefixes
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot, add_behind

_CHUNK = 500  # entries a message: a worker adds them in about a millisecond
_ENDPOINTS = 100  # endpoints a message
_FREED = 2000  # rows at a time

Entries = Mapping[PolicyKey, PolicyEntry]
Endpoints = Mapping[bytes, LocalEndpoint]
Processes = Mapping[int, LocalEndpoint]
_NO_MAP = PolicyMap({}, enforced=False)


class MapChunk(NamedTuple):
    """Agent to worker: a part of the entries with this number."""

    number: int
    entries: tuple[tuple[PolicyKey, PolicyEntry], ...]


class MapHead(NamedTuple):
    """Agent to worker: the policy map with this number, and the number of its entries, which the map lacks."""

    number: int
    entries: int
    policy: PolicyMap


class EndpointRow(NamedTuple):
    """EndpointRow: an endpoint without its maps, their numbers, and its addresses (of a process: its cgroups)."""

    addresses: tuple[bytes | int, ...]
    endpoint: LocalEndpoint
    ingress: int
    egress: int


class EndpointChunk(NamedTuple):
    """Agent to worker: a part of the endpoints with this number."""

    number: int
    rows: tuple[EndpointRow, ...]


class PrefixChunk(NamedTuple):
    """Agent to worker: the next part of the prefix table with this number."""

    number: int
    part: Part


class SnapshotReference(NamedTuple):
    """Agent to worker: a snapshot with empty tables, and the numbers of its tables (-1: an empty table)."""

    snapshot: Snapshot
    endpoints: int = -1
    outside: int = -1
    blocks: int = -1
    processes: int = -1


class MapRemoval(NamedTuple):
    """Agent to worker: no later snapshot refers to these numbers."""

    numbers: tuple[int, ...]


Chunk = MapChunk | MapHead | EndpointChunk | PrefixChunk
_Table = Entries | PolicyMap | Endpoints | Processes | Prefixes


class MapSender:
    """Map sender: the agent's side, with the tables that workers have and their numbers."""

    def __init__(self) -> None:
        """Start with no tables."""
        self._sent: dict[int, tuple[int, _Table]] = {}  # by ``id`` of the table, unique while it is held here
        self._numbers = count()

    def add(self, snapshot: Snapshot) -> Iterator[Chunk]:
        """Assign numbers to new tables; yield their chunks, which must precede the reference to the snapshot."""
        for table in _tables(snapshot):
            if id(table) not in self._sent:
                number = next(self._numbers)
                self._sent[id(table)] = number, table
                yield from self._chunks(number, table)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of all tables in use, for a worker that starts."""
        return chain.from_iterable(self._chunks(number, table) for number, table in self._sent.values())

    def refer(self, snapshot: Snapshot) -> SnapshotReference:
        """Return the reference to a snapshot whose tables have all been added."""
        outside, blocks = snapshot.ipcache.prefixes
        empty = snapshot.with_endpoints({}, {}, snapshot.ipcache.with_prefixes(NO_PREFIXES, NO_PREFIXES), {})
        processes = self._number(snapshot.processes) if snapshot.processes else -1
        tables = self._number(snapshot.endpoints), self._number(outside), self._number(blocks), processes
        return SnapshotReference(empty, *tables)

    def retain(self, snapshot: Snapshot) -> MapRemoval:
        """Forget all tables that this snapshot does not use; return the message that removes them from workers."""
        used = set(map(id, _tables(snapshot)))
        return MapRemoval(tuple(self._sent.pop(unused)[0] for unused in self._sent.keys() - used))

    def _number(self, table: _Table) -> int:
        return self._sent[id(table)][0]

    def _chunks(self, number: int, table: _Table) -> Iterator[Chunk]:
        if isinstance(table, Prefixes):
            return (PrefixChunk(number, part) for part in table.parts())
        if isinstance(table, PolicyMap):
            return iter([MapHead(number, self._number(table.entries), table.with_entries({}))])
        if isinstance(next(iter(table), None), bytes | int):
            rows = portions(self._rows(table), _ENDPOINTS)  # type: ignore[arg-type]
            return (EndpointChunk(number, portion) for portion in rows)
        return (MapChunk(number, portion) for portion in portions(table.items(), _CHUNK))  # type: ignore[arg-type]

    def _rows(self, endpoints: Endpoints | Processes) -> Iterator[EndpointRow]:
        addresses: dict[int, list[bytes | int]] = {}  # by ``id`` of the endpoint
        for address, endpoint in endpoints.items():
            addresses.setdefault(id(endpoint), []).append(address)
        for endpoint in {id(endpoint): endpoint for endpoint in endpoints.values()}.values():
            maps = map(self._number, (endpoint.ingress, endpoint.egress))
            bare = replace(endpoint, ingress=_NO_MAP, egress=_NO_MAP)
            yield EndpointRow(tuple(addresses[id(endpoint)]), bare, *maps)


class MapReceiver:
    """Map receiver: the worker's side, with tables by number."""

    def __init__(self) -> None:
        """Start with no tables."""
        self._entries: dict[int, dict[PolicyKey, PolicyEntry]] = {}
        self._maps: dict[int, PolicyMap] = {}
        self._endpoints: dict[int, dict[Any, LocalEndpoint]] = {}  # by address, or by cgroup
        self._behind: dict[int, dict[str, dict[str, bytes]]] = {}  # the interfaces of the endpoints with this number
        self._prefixes: dict[int, Prefixes] = {}
        self._removed: list[dict[Any, Any]] = []

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        if isinstance(chunk, MapChunk):
            self._entries.setdefault(chunk.number, {}).update(chunk.entries)
        elif isinstance(chunk, MapHead):
            self._maps[chunk.number] = chunk.policy.with_entries(self._entries.setdefault(chunk.entries, {}))
        elif isinstance(chunk, EndpointChunk):
            endpoints = self._endpoints.setdefault(chunk.number, {})
            behind = self._behind.setdefault(chunk.number, {})
            for row in chunk.rows:
                endpoint = replace(row.endpoint, ingress=self._maps[row.ingress], egress=self._maps[row.egress])
                endpoints.update(dict.fromkeys(row.addresses, endpoint))
                if isinstance(address := row.addresses[0], bytes):
                    add_behind(behind, endpoint, address)
        else:
            self._prefixes.setdefault(chunk.number, Prefixes({})).append(chunk.part)

    def resolve(self, reference: SnapshotReference) -> Snapshot:
        """Return the snapshot of a reference, with its tables."""
        prefixes = (self._prefixes.get(number, NO_PREFIXES) for number in (reference.outside, reference.blocks))
        ipcache = reference.snapshot.ipcache.with_prefixes(*prefixes)
        number = reference.endpoints
        processes = self._endpoints.get(reference.processes, {})
        return reference.snapshot.with_endpoints(
            self._endpoints.get(number, {}), self._behind.get(number, {}), ipcache, processes
        )

    def remove(self, removal: MapRemoval) -> None:
        """Remove tables, to be freed later; no snapshot in use may refer to them."""
        for number in removal.numbers:
            self._prefixes.pop(number, None)
            self._maps.pop(number, None)
            tables = (self._entries, self._endpoints, self._behind)
            self._removed += filter(None, (table.pop(number, None) for table in tables))

    def free_some(self) -> None:
        """Free a portion of the removed rows."""
        # Freeing a dict of a hundred thousand rows at once would delay packets.
        if self._removed:
            last = self._removed[-1]
            for _ in range(min(_FREED, len(last))):
                last.popitem()
            if not last:
                self._removed.pop()


def _tables(snapshot: Snapshot) -> Iterator[_Table]:
    """Yield all tables of a snapshot, each after those that it refers to, some of them repeatedly."""
    endpoints = (*snapshot.endpoints.values(), *snapshot.processes.values())
    for endpoint in {id(endpoint): endpoint for endpoint in endpoints}.values():
        for policy in (endpoint.ingress, endpoint.egress):
            yield policy.entries
            yield policy
    yield snapshot.endpoints
    if snapshot.processes:
        yield snapshot.processes
    yield from snapshot.ipcache.prefixes


_Row = TypeVar("_Row")


def portions(rows: Iterable[_Row], size: int) -> Iterator[tuple[_Row, ...]]:
    """Yield the rows in tuples of this size, the last one shorter."""
    remaining = iter(rows)
    while portion := tuple(islice(remaining, size)):
        yield portion
