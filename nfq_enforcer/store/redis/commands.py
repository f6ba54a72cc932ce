"""Commands of the store on Redis: each an atomic step at the server, with arguments and answers as Python values.

This module holds no state of the cluster and makes no decisions; ``session`` and ``writer`` do. A connection that fails
raises StoreError. If this node has not joined the server's current run (the server was restarted, replaced or emptied),
a command raises NotJoined. A write whose answer is missing raises Unanswered, because the server may have executed it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nfq_enforcer.cluster.records import EndpointRecord, EndpointRequest, Kind
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.connection import StoreError, Unanswered, may_be_executed, sentence
from nfq_enforcer.store.redis.history import Fork, read_forks
from nfq_enforcer.store.redis.schema import HASHES, Key, SchemaError, StoreEntry
from nfq_enforcer.text import shorten

_SCAN = 2000  # entries in one step of a scan
_LATEST = 4e12  # ms since the epoch: times after the year 2096 are not those of a heartbeat
_READ = 200  # stream entries in one read; each may hold hundreds of changes
_RESTORE_BATCH = 500  # entries in one restore
NO_LABELS: Mapping[Identity, Labels] = {}


class NotJoined(StoreError):
    """This node has not joined the server's current run; after another join the command can be repeated."""


class Interrupted(NotJoined):
    """This node has closed the connection during a command, which the server may have executed."""


class Joined(NamedTuple):
    """Joined: the answer to a join."""

    last: int  # id of the last change
    serial: int  # of the last change
    revision: int  # of the policy
    forks: tuple[Fork, ...]
    registered: bool  # the store still has this node's entry: its lease has not run out
    now: float  # the server's time, in seconds since the epoch


class HeartbeatAnswer(NamedTuple):
    """HeartbeatAnswer: the answer to a heartbeat."""

    registered: bool  # as in Joined
    fork: str  # name of the last fork
    now: float  # the server's time, in seconds since the epoch


@dataclass
class Request:
    """Request: changes to be written together."""

    endpoints: Sequence[EndpointRequest] = ()
    values: Sequence[tuple[Kind, str, str]] = ()  # of nodes and documents: kind, name, value
    deleted: Sequence[Key] = ()
    hosted_by: str = ""  # a node: an endpoint to be deleted stays if it is on another one by now; empty: on any node


class Written(NamedTuple):
    """Written: the answer to a write."""

    id: int | None  # of the change; None: the store held all of it already
    revision: int  # of the policy
    numbers: tuple[Identity, ...]  # of the endpoints, in their order
    new: frozenset[Identity]  # those numbers that no endpoint had before
    missing: tuple[Key, ...]  # keys to be deleted that the store did not have
    left: frozenset[Key] = frozenset()  # endpoints to be deleted that are on another node


class Collected(NamedTuple):
    """Collected: the nodes, and the numbers of identities and endpoints, that a garbage collection has removed."""

    nodes: tuple[str, ...]
    identities: int
    endpoints: int


@dataclass
class StreamEntry:
    """StreamEntry: changes that were written together."""

    id: int
    serial: int
    revision: int | None = None
    changes: list[tuple[Key, int, bytes | None]] = field(default_factory=list)  # key, change id, value; None: deleted
    fork: bool = False  # records a fork
    restored: bool = False  # restored after a loss, not written anew
    collected: bool = False  # removed by a garbage collection
    foreign: str = ""  # reason for which the entry cannot be decoded; empty: it can


class Commands:
    """Commands: one cluster's store, over a connection for commands and a connection for blocking reads."""

    def __init__(self, client: "Redis", reader: "Redis", prefix: str) -> None:
        """Take two open clients, the second for blocking reads, and the prefix of the cluster's keys."""
        self._client = client
        self._reader = reader
        self._prefix = prefix
        self._scripts = {name: client.register_script(_script(name)) for name in _SCRIPTS}
        self._closed = False
        self.sent = 0  # number of commands sent

    async def join(self, node: str, last: int, revision: int) -> Joined:
        """Join with the mirror's last change id and policy revision; raise StoreError for a store of another schema."""
        answer = await self._run("join", node, schema.write_id(last), revision)
        return Joined(
            schema.read_id(answer["last"]),
            answer["serial"],
            answer["revision"],
            read_forks(answer["forks"]),
            answer["registered"],
            answer["now"] / 1000,
        )

    async def scan(self) -> tuple[dict[Key, StoreEntry], dict[Key, str]]:
        """Return all entries, and for each field that is no entry the reason.

        A change written during the scan may be missing; the stream, read on from before the scan, has it.
        """
        entries: dict[Key, StoreEntry] = {}
        bad: dict[Key, str] = {}
        for kind, name in HASHES.items():
            async for field_name, data in self._scan_hash(f"{self._prefix}:{name}"):
                key = kind, field_name.decode("utf-8", "replace")
                try:
                    entries[key] = schema.read_entry(data)
                except SchemaError as error:
                    bad[key] = str(error)
        return entries, bad

    async def _scan_hash(self, name: str) -> AsyncIterator[tuple[bytes, bytes]]:
        cursor = 0
        while True:
            cursor, part = await self._execute(self._client.hscan(name, cursor, count=_SCAN))
            for item in part.items():
                yield item
            if cursor == 0:
                return

    async def read(self, after: int, wait: float | None) -> list[StreamEntry]:
        """Return the stream entries after an id; block up to ``wait`` seconds for the first (None: do not block)."""
        block = None if wait is None else max(1, int(wait * 1000))
        stream = f"{self._prefix}:changes"
        answer = await self._execute(self._reader.xread({stream: schema.write_id(after)}, count=_READ, block=block))
        return [_stream_entry(*item) for item in _items(answer)]

    async def written_since(self, marker: int) -> frozenset[Key] | None:
        """Return the keys written anew since a fork; None if the stream no longer reaches back to it."""
        keys: set[Key] = set()
        part = await self._range(schema.write_id(marker))
        if not part or part[0].id != marker:
            return None
        while part:
            keys.update(key for entry in part if not entry.restored for key, _, _ in entry.changes)
            part = await self._range(f"({schema.write_id(part[-1].id)}")
        return frozenset(keys)

    async def _range(self, start: str) -> list[StreamEntry]:
        part = await self._execute(self._client.xrange(f"{self._prefix}:changes", start, "+", count=_READ))
        return [_stream_entry(*item) for item in part]

    async def write(self, request: Request) -> Written:
        """Write changes, all or nothing; raise BadInput for another endpoint's address or a value that is too large."""
        _check(request)
        answer = await self._run("write", json.dumps(_request(request)))
        return Written(
            schema.read_id(answer["id"]) if "id" in answer else None,
            answer["revision"],
            tuple(map(Identity, answer["numbers"] or ())),
            frozenset(map(Identity, answer["new"] or ())),
            tuple((Kind(kind), name) for kind, name in answer["missing"] or ()),
            frozenset((Kind(kind), name) for kind, name in answer["left"] or ()),
        )

    async def restore(
        self,
        missing: Iterable[tuple[Key, StoreEntry]],
        deleted: Iterable[Key] = (),
        position: int = 0,
        *,
        labels: Mapping[Identity, Labels] = NO_LABELS,
        fork: str = "",
    ) -> frozenset[Key]:
        """Restore missing entries, delete those that were deleted by ``position``; return the keys left as they are.

        An identity is left out if its number or its labels belong to another, an endpoint if one of its addresses does,
        or if its number stands for other labels than ``labels`` gives for it. A newer entry is not deleted. ``fork`` is
        the first fork over which the entries were lost; with it, entries are left out that a node with a later position
        did not restore.
        """
        orders = [order for key, entry in missing if (order := _restore_order(key, entry, labels)) is not None]
        orders += [[*key, schema.write_id(position), None] for key in deleted]
        left: set[Key] = set()
        for start in range(0, len(orders), _RESTORE_BATCH):
            answer = await self._run("restore", json.dumps(orders[start : start + _RESTORE_BATCH]), fork, "")
            left.update((Kind(kind), name) for kind, name in answer["left"] or ())
        return frozenset(left)

    async def note_restored(self, fork: str, position: int) -> None:
        """Record that all lost entries up to this position are restored, for this fork and those after it."""
        await self._run("restore", "[]", fork, schema.write_id(position))

    async def heartbeat(self, node: str, revision: int, *, ago: float = 0.0) -> HeartbeatAnswer:
        """Record that a node lives (or lived, ``ago`` seconds ago) and enforces this revision of the policy."""
        answer = await self._run("heartbeat", node, revision, int(ago * 1000))
        return HeartbeatAnswer(answer["registered"], answer["fork"].partition(" ")[0], answer["now"] / 1000)

    async def collect(self, lease: float, grace: float, retirement: float, interval: float) -> Collected:
        """Remove unused entries; do nothing if a node has done so less than ``interval`` ago. All in seconds."""
        nodes: list[str] = []
        identities = endpoints = 0
        more = True
        while more:
            limits = (str(int(seconds * 1000)) for seconds in (lease, grace, retirement, interval))
            answer = await self._run("collect", *limits)
            nodes += filter(None, answer["nodes"].split(","))
            identities += answer["identities"]
            endpoints += answer["endpoints"]
            more = answer["more"]
        return Collected(tuple(nodes), identities, endpoints)

    async def nodes(self) -> dict[str, tuple[float, int]]:
        """Return each node's time of the last heartbeat, on the server's clock, and the revision that it enforces."""
        seen = await self._execute(self._client.zrange(f"{self._prefix}:seen", 0, -1, withscores=True))
        enforced = await self._execute(self._client.hgetall(f"{self._prefix}:enforced"))
        return {
            name.decode("utf-8", "replace"): (score / 1000, _enforced(enforced.get(name, b"0")))
            for name, score in seen
            if 0 <= score <= _LATEST
        }

    async def changes_kept(self) -> int:
        """Return the number of entries in the stream."""
        return int(await self._execute(self._client.xlen(f"{self._prefix}:changes")))

    async def close(self) -> None:
        """Close both connections, even if the caller is cancelled meanwhile."""
        self._closed = True
        closing = asyncio.gather(*map(_close, (self._client, self._reader)))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _run(self, name: str, *arguments: str | int) -> dict[str, Any]:
        script = self._scripts[name]
        try:
            text = await self._execute(script(args=[self._prefix, schema.VERSION, *arguments]))
        except StoreError as error:
            if name in _WRITES and may_be_executed(error.__cause__):
                raise Unanswered(f"the store has not answered: {error}") from error
            raise
        answer: dict[str, Any] = json.loads(text)
        refused = answer.get("refused")
        if refused == "address":
            raise BadInput("; ".join(f"{ip} already belongs to endpoint {owner}" for ip, owner, _ in answer["taken"]))
        if refused is not None and refused.startswith("schema "):
            version = refused.removeprefix("schema ")
            raise StoreError(
                f"the store under prefix '{self._prefix}' has schema version {version}, and this program understands "
                f"{schema.VERSION}: upgrade this node, or choose another prefix"
            )
        if refused is not None:
            raise NotJoined(_NOT_JOINED[refused])
        return answer

    async def _execute(self, command: Any) -> Any:
        self.sent += 1
        try:
            return await command
        except Exception as error:
            if self._closed:  # during this command; redis-py then raises one of many errors
                raise Interrupted("this node is about to connect to it anew") from None
            if isinstance(error, RedisError | OSError):
                raise StoreError(sentence(error)) from error
            raise


_NOT_JOINED = {
    "empty": "it has been emptied, and this node is about to join it anew",
    "counter": "its serial or revision was written by hand, and this node is about to set it right",
    "run": "it has been restarted or replaced, and this node is about to join it anew",
}
_SCRIPTS = ("join", "write", "restore", "heartbeat", "collect")
_WRITES = ("write", "restore", "collect")


def _script(name: str) -> str:
    folder = files("nfq_enforcer.store.redis") / "lua"
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()


def _request(request: Request) -> dict[str, Any]:
    """Return a request as ``lua/write.lua`` takes it."""
    return {
        "endpoints": [
            {
                "name": endpoint.record.full_name,
                "node": endpoint.record.node,
                "ips": [str(ip_address(address)) for address in endpoint.record.addresses],
                "document": schema.endpoint_document(endpoint.record),
                "labels": str(endpoint.labels),
                "identity": schema.encode_identity(endpoint.labels),
                "preferred": endpoint.preferred,
            }
            for endpoint in request.endpoints
        ],
        "values": list(request.values),
        "deleted": list(request.deleted),
        "hosted_by": request.hosted_by,
    }


def _check(request: Request) -> None:
    """Raise BadInput for a value that the nodes would refuse: one that is too large, or that is not JSON."""
    for one in request.endpoints:
        _check_size(Kind.ENDPOINT, one.record.full_name, schema.encode_endpoint(one.record).encode())
        _check_size(Kind.IDENTITY, one.record.full_name, str(one.labels).encode())
    for kind, name, text in request.values:
        value = text.encode()
        _check_size(kind, name, value)
        try:
            schema.read_json(value)
        except SchemaError as error:
            raise BadInput(f"{kind} {name} cannot be stored: {error}") from None


def _check_size(kind: Kind, name: str, value: bytes) -> None:
    try:
        schema.check_size(kind, value)
    except SchemaError as error:
        raise BadInput(f"{kind} {name} is too large for the store: {error}") from None


def _restore_order(key: Key, entry: StoreEntry, labels: Mapping[Identity, Labels]) -> list[Any] | None:
    """Return an entry as ``lua/restore.lua`` takes it; None for a value that this version cannot decode."""
    kind, name = key
    try:
        record = schema.decode(kind, name, entry.value)
    except SchemaError:
        return None
    more: Any = None
    if isinstance(record, Labels):
        more = str(record)
    elif isinstance(record, EndpointRecord):
        identity_labels = labels.get(record.identity)
        ips = [str(ip_address(address)) for address in record.addresses]
        more = [record.node, record.identity, ips, None if identity_labels is None else str(identity_labels)]
    return [kind, name, schema.write_id(entry.id), entry.value.decode(), more]


def _items(answer: Any) -> Iterable[tuple[bytes, Mapping[bytes, bytes]]]:
    """Yield the ids and fields of an answer to XREAD of one stream, in the shape of RESP2 or of RESP3."""
    for stream in answer.values() if isinstance(answer, Mapping) else [item[1] for item in answer or ()]:
        for part in stream:
            yield from part if isinstance(part, list) else [part]


def _stream_entry(raw_id: bytes, fields: Mapping[bytes, bytes] | None) -> StreamEntry:
    """Return an entry of the stream; a foreign one has no changes, and has a reason if it cannot be decoded."""
    try:
        entry = StreamEntry(schema.read_id(raw_id.decode()), 0)
    except SchemaError as error:
        raise StoreError(f"its stream of changes cannot be followed: {error}") from None
    fields = fields or {}
    try:
        entry.serial = schema.read_count(fields.get(b"serial", b"0"))
        if b"revision" in fields:
            entry.revision = schema.read_count(fields[b"revision"])
        entry.changes = list(_changes(entry.id, fields.get(b"changes", b"[]")))
    except (ValueError, TypeError, SchemaError) as error:
        entry.changes = []
        entry.foreign = shorten(str(error))
    entry.fork, entry.restored, entry.collected = (name in fields for name in (b"fork", b"restored", b"collected"))
    return entry


def _changes(entry_id: int, data: bytes) -> Iterator[tuple[Key, int, bytes | None]]:
    """Yield the changes in a stream entry; raise SchemaError, TypeError or ValueError for what no script writes."""
    if len(data) > schema.MAX_CHANGES:
        raise SchemaError(f"it has {len(data)} bytes; allowed: at most {schema.MAX_CHANGES}")
    for kind, name, value, *own in schema.read_json(data):
        if not isinstance(name, str) or not isinstance(value, str | None):
            raise SchemaError("a change has a kind, a name, and a value or null")
        yield (Kind(kind), name), schema.read_id(own[0]) if own else entry_id, None if value is None else value.encode()


def _enforced(text: bytes) -> int:
    """Return the revision that a node enforces; 0 for a text that no node has written."""
    try:
        return schema.read_count(text)
    except SchemaError:
        return 0


async def _close(client: "Redis") -> None:
    with suppress(RedisError, OSError):
        await client.aclose()
