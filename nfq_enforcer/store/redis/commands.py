"""The store on Redis: what can be asked of it, each an atomic step at the server, and each with its meaning in Python.

It keeps nothing and decides nothing; ``member`` does. A connection that fails raises StoreError. A server that this
member has not joined as it runs now (it was restarted or replaced, or was emptied) raises NotJoined.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nfq_enforcer.cluster.records import EndpointRecord, Kind, Placed
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.connection import StoreError, sentence
from nfq_enforcer.store.redis.history import Fork, read_forks
from nfq_enforcer.store.redis.schema import HASHES, Key, SchemaError, StoreEntry

_SCAN = 2000  # entries a step of a scan
_READ = 200  # entries of the stream at once; each may hold hundreds of changes
_GIVEN_BACK = 500  # entries a restoring step
NO_LABELS: Mapping[Identity, Labels] = {}


class NotJoined(StoreError):
    """The server is not, or is no longer, the one that this member has joined; once it has, it can ask again."""


class Joined(NamedTuple):
    """What a member is told when it comes."""

    last: int  # id of the last change
    serial: int  # of the last change
    revision: int  # of the policy
    forks: tuple[Fork, ...]
    registered: bool  # the store still has this member's entry: its lease has not run out
    now: float  # the server's time, in seconds since the epoch


class Pulse(NamedTuple):
    """The answer to a heartbeat."""

    registered: bool
    fork: str  # name of the last one
    now: float


@dataclass
class Request:
    """Changes to be written together."""

    endpoints: Sequence[Placed] = ()
    values: Sequence[tuple[Kind, str, str]] = ()  # of nodes and documents
    gone: Sequence[Key] = ()


class Written(NamedTuple):
    """What writing came to."""

    id: int | None  # of the change; None: all of it was so already
    revision: int  # of the policy
    numbers: tuple[Identity, ...]  # of the endpoints, in their order
    new: frozenset[Identity]  # those of them that nobody had before
    missing: tuple[Key, ...]  # what should have gone and was not there


class Collected(NamedTuple):
    """What garbage collection took out."""

    nodes: tuple[str, ...]
    identities: int
    endpoints: int


@dataclass
class Published:
    """An entry of the stream: changes that were written together."""

    id: int
    serial: int
    revision: int | None = None
    changes: list[tuple[Key, int, bytes | None]] = field(default_factory=list)  # with the id of each; None: gone
    fork: bool = False
    restored: bool = False  # given back after a loss, not written anew
    collected: bool = False
    foreign: str = ""  # why it cannot be read, if it cannot


class Commands:
    """One cluster's store, over one connection for commands and one that waits for changes."""

    def __init__(self, client: "Redis", reader: "Redis", prefix: str) -> None:
        """Take two open clients and the prefix of the cluster's keys."""
        self._client = client
        self._reader = reader
        self._prefix = prefix
        self._scripts = {name: client.register_script(_script(name)) for name in _SCRIPTS}
        self._closed = False
        self.commands = 0

    async def join(self, node: str, last: int, revision: int) -> Joined:
        """Come, or come back, with what this member knows; raise StoreError for a store of another version."""
        said = await self._run("join", node, schema.write_id(last), revision)
        return Joined(
            schema.read_id(said["last"]),
            said["serial"],
            said["revision"],
            read_forks(said["forks"]),
            said["registered"],
            said["now"] / 1000,
        )

    async def scan(self) -> tuple[dict[Key, StoreEntry], dict[Key, str]]:
        """Return every entry there is, and of what is none the reason.

        What is written meanwhile may be among them or not: the stream, read on from before the scan, says.
        """
        found: dict[Key, StoreEntry] = {}
        bad: dict[Key, str] = {}
        for kind, name in HASHES.items():
            async for field_name, data in self._scan_hash(f"{self._prefix}:{name}"):
                key = kind, field_name.decode("utf-8", "replace")
                try:
                    found[key] = schema.read_entry(data)
                except SchemaError as error:
                    bad[key] = str(error)
        return found, bad

    async def _scan_hash(self, name: str) -> AsyncIterator[tuple[bytes, bytes]]:
        cursor = 0
        while True:
            cursor, part = await self._ask(self._client.hscan(name, cursor, count=_SCAN))
            for one in part.items():
                yield one
            if cursor == 0:
                return

    async def read(self, after: int, patience: float | None) -> list[Published]:
        """Return what follows an id in the stream; wait for it up to so many seconds (None: not at all)."""
        block = None if patience is None else max(1, int(patience * 1000))
        stream = f"{self._prefix}:changes"
        answer = await self._ask(self._reader.xread({stream: schema.write_id(after)}, count=_READ, block=block))
        return [_published(*one) for one in _entries(answer)]

    async def since(self, marker: int) -> frozenset[Key] | None:
        """Return what was written anew since a fork; None if the stream no longer reaches back to it."""
        keys: set[Key] = set()
        part = await self._range(schema.write_id(marker))
        if not part or part[0].id != marker:
            return None
        while part:
            keys.update(key for entry in part if not entry.restored for key, _, _ in entry.changes)
            part = await self._range(f"({schema.write_id(part[-1].id)}")
        return frozenset(keys)

    async def _range(self, start: str) -> list[Published]:
        part = await self._ask(self._client.xrange(f"{self._prefix}:changes", start, "+", count=_READ))
        return [_published(*one) for one in part]

    async def write(self, request: Request) -> Written:
        """Write changes, all or nothing; raise BadInput where an address belongs to another endpoint."""
        said = await self._run("write", json.dumps(_request(request)))
        return Written(
            schema.read_id(said["id"]) if "id" in said else None,
            said["revision"],
            tuple(map(Identity, said["numbers"] or ())),
            frozenset(map(Identity, said["new"] or ())),
            tuple((Kind(kind), name) for kind, name in said["missing"] or ()),
        )

    async def restore(
        self,
        missing: Iterable[tuple[Key, StoreEntry]],
        gone: Iterable[Key] = (),
        at: int = 0,
        *,
        labels: Mapping[Identity, Labels] = NO_LABELS,
        fork: str = "",
    ) -> frozenset[Key]:
        """Give back entries, and take away others that had gone by ``at``; return those that could not be given back.

        An identity cannot if its number or its labels have gone to another, an endpoint if one of its addresses has,
        or its number, of which ``labels`` says what it meant; nor is taken away what is newer. With ``fork``, the first
        over which they were lost, those are left out that a member who knew more has not.
        """
        orders = [order for key, entry in missing if (order := _order(key, entry, labels)) is not None]
        orders += [[*key, schema.write_id(at), None] for key in gone]
        left: set[Key] = set()
        for place in range(0, len(orders), _GIVEN_BACK):
            said = await self._run("restore", json.dumps(orders[place : place + _GIVEN_BACK]), fork, "")
            left.update((Kind(kind), name) for kind, name in said["left"] or ())
        return frozenset(left)

    async def note_restored(self, fork: str, position: int) -> None:
        """Note that all is given back that was known at this position, from this fork on."""
        await self._run("restore", "[]", fork, schema.write_id(position))

    async def heartbeat(self, node: str, revision: int, *, ago: float = 0.0) -> Pulse:
        """Say that a node lives (or did, so many seconds ago) and enforces this revision of the policy."""
        said = await self._run("heartbeat", node, revision, int(ago * 1000))
        return Pulse(said["registered"], said["fork"].partition(" ")[0], said["now"] / 1000)

    async def collect(self, lease: float, grace: float, retirement: float, interval: float) -> Collected:
        """Take out what nobody uses; all in seconds; nothing if somebody did so less than ``interval`` ago."""
        nodes: list[str] = []
        identities = endpoints = 0
        more = True
        while more:
            limits = (str(int(seconds * 1000)) for seconds in (lease, grace, retirement, interval))
            said = await self._run("collect", *limits)
            nodes += filter(None, said["nodes"].split(","))
            identities += said["identities"]
            endpoints += said["endpoints"]
            more = said["more"]
        return Collected(tuple(nodes), identities, endpoints)

    async def nodes(self) -> dict[str, tuple[float, int]]:
        """Return when each node was last heard of (the server's time), and which revision it enforces."""
        seen = await self._ask(self._client.zrange(f"{self._prefix}:seen", 0, -1, withscores=True))
        enforced = await self._ask(self._client.hgetall(f"{self._prefix}:enforced"))
        return {name.decode(): (score / 1000, int(enforced.get(name, 0))) for name, score in seen}

    async def kept(self) -> int:
        """Return how many changes the stream still has."""
        return int(await self._ask(self._client.xlen(f"{self._prefix}:changes")))

    async def close(self) -> None:
        """Hang up."""
        self._closed = True
        for client in (self._client, self._reader):
            try:
                await client.aclose()
            except (RedisError, OSError):
                continue

    async def _run(self, name: str, *arguments: str | int) -> dict[str, Any]:
        script = self._scripts[name]
        answer = await self._ask(script(args=[self._prefix, schema.VERSION, *arguments]))
        said: dict[str, Any] = json.loads(answer)
        refused = said.get("refused")
        if refused == "address":
            raise BadInput("; ".join(f"{ip} already belongs to endpoint {owner}" for ip, owner, _ in said["taken"]))
        if refused is not None and refused.startswith("schema "):
            version = refused.removeprefix("schema ")
            raise StoreError(
                f"the store under prefix '{self._prefix}' has schema version {version}, and this program understands "
                f"{schema.VERSION}: upgrade this node, or choose another prefix"
            )
        if refused is not None:
            raise NotJoined(_NOT_JOINED[refused])
        return said

    async def _ask(self, asked: Any) -> Any:
        self.commands += 1
        try:
            return await asked
        except Exception as error:
            if self._closed:  # under a command that waits; redis-py then trips in one way or another
                raise NotJoined("this node is about to connect to it anew") from None
            if isinstance(error, RedisError | OSError):
                raise StoreError(sentence(error)) from error
            raise


_NOT_JOINED = {
    "empty": "it has been emptied, and this node is about to join it anew",
    "run": "it has been restarted or replaced, and this node is about to join it anew",
}
_SCRIPTS = ("join", "write", "restore", "heartbeat", "collect")


def _script(name: str) -> str:
    folder = files("nfq_enforcer.store.redis") / "lua"
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()


def _request(request: Request) -> dict[str, Any]:
    return {
        "endpoints": [
            {
                "name": one.record.called,
                "node": one.record.node,
                "ips": [str(ip_address(address)) for address in one.record.addresses],
                "document": schema.endpoint_document(one.record),
                "labels": str(one.labels),
                "identity": schema.encode_identity(one.labels),
                "preferred": one.preferred,
            }
            for one in request.endpoints
        ],
        "values": list(request.values),
        "gone": list(request.gone),
    }


def _order(key: Key, entry: StoreEntry, labels: Mapping[Identity, Labels]) -> list[Any] | None:
    """Return an entry as ``lua/restore.lua`` takes it."""
    kind, name = key
    try:
        record = schema.decode(kind, name, entry.value)
    except SchemaError:
        return None
    more: Any = None
    if isinstance(record, Labels):
        more = str(record)
    elif isinstance(record, EndpointRecord):
        its = labels.get(record.identity)
        ips = [str(ip_address(address)) for address in record.addresses]
        more = [record.node, record.identity, ips, None if its is None else str(its)]
    return [kind, name, schema.write_id(entry.id), entry.value.decode(), more]


def _entries(answer: Any) -> Iterable[tuple[bytes, Mapping[bytes, bytes]]]:
    """Return the entries of an answer to XREAD about one stream, as either version of the protocol has it."""
    for stream in answer.values() if isinstance(answer, Mapping) else [one[1] for one in answer or ()]:
        for part in stream:
            yield from part if isinstance(part, list) else [part]


def _published(raw_id: bytes, fields: Mapping[bytes, bytes] | None) -> Published:
    """Return an entry of the stream; one that is not of ours says nothing."""
    entry = Published(schema.read_id(raw_id.decode()), 0)
    fields = fields or {}
    try:
        entry.serial = int(fields.get(b"serial", b"0"))
        if b"revision" in fields:
            entry.revision = int(fields[b"revision"])
        for kind, name, value, *own in schema.read_json(fields.get(b"changes", b"[]")):
            change_id = schema.read_id(own[0]) if own else entry.id
            entry.changes.append(((Kind(kind), str(name)), change_id, None if value is None else str(value).encode()))
    except (ValueError, TypeError, SchemaError) as error:
        entry.changes = []
        entry.foreign = str(error)
    entry.fork, entry.restored, entry.collected = (name in fields for name in (b"fork", b"restored", b"collected"))
    return entry
