"""This node as a member of a cluster on Redis: it follows the store, writes to it, and does without it for a while.

- Connected, it reads the stream of changes on from where it is. Where something is missing in between (it was away for
  long, the stream was trimmed, the server was replaced) it takes all entries anew, and only when it is up to date again
  are the changes handed over: nobody sees half of it.
- A store that comes back with less than it had is given back what this member knows (``merge``).
- Without a store, everything that is known goes on being so, also after a restart of this program (``laststate``).
  Endpoints of this node whose identity is known can start and stop; the store is told when it is back.

What is written by this member counts here at once, and comes by again in the stream, where it is no news any more.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.store import schema
from nfq_enforcer.store.entries import Entries
from nfq_enforcer.store.laststate import LastState, State
from nfq_enforcer.store.merge import Fork, compare, unseen
from nfq_enforcer.store.records import Address, EndpointRecord, Kind, NodeRecord, Placed
from nfq_enforcer.store.redis import Joined, NotJoined, Published, RedisStore, Request, Written
from nfq_enforcer.store.schema import Entry, Key
from nfq_enforcer.store.server import Server, ServerInfo, StoreError, check
from nfq_enforcer.store.source import Handed

_log = logging.getLogger(__name__)

HEARTBEAT = 5.0  # seconds between two signs of life
LIVE = 15.0  # a node that has not been heard of for so long counts as not live: nobody waits for it
LEASE = 900.0  # and for so long: its endpoints are taken out
GRACE = 900.0  # an identity that no endpoint has had for so long is taken out
RETIREMENT = 86_400.0  # and its number is given to no other labels for so long
COLLECT = 30.0  # seconds between two collections of garbage, whoever does it

_WAIT = 1.0  # seconds that a read waits for changes; then it shows that the server is still there
_TIMEOUT = 2.0  # seconds for the answer to a command
_FIRST_STATE = 3.0  # seconds that a start waits for the store where a last known state would do
_PAUSES = (0.05, 5.0)  # seconds between two attempts to connect: the first, and the longest
_RECONNECTED = 5.0  # seconds that a command waits for a connection that is being renewed
_SAVE = 0.2  # seconds between two savings of the state
_SAMPLES = 1000
_LOOK = 0.05  # seconds between two looks at what other nodes enforce
_AT_ONCE = 500  # endpoints written together
_MANY = 100  # changes after which others have a turn
_NAMED = 20  # refused values that status names

Exempt = Callable[[frozenset[tuple[Address, int]]], Awaitable[None]]


class Member:
    """One node's membership, from ``start`` until ``stop``."""

    def __init__(self, node: str, record: NodeRecord, server: Server, state: LastState, relevant: LabelFilter) -> None:
        """Take who this node is and where its store is; nothing is connected yet."""
        self.node = node
        self._record = record
        self.server = server
        self._state = state
        self.exempt: Exempt | None = None  # is told whom this node must be able to reach, before it connects
        self.entries = Entries(node, relevant)
        self.position = self._serial = self.revision = 0
        self._forks: frozenset[str] = frozenset()
        self._pending: dict[str, bytes] = {}  # endpoints started (their value) or stopped (empty) without the store
        self._conflicts: dict[str, str] = {}  # why the store does not take one of these
        self.store: RedisStore | None = None
        self.info: ServerInfo | None = None
        self.since = time.time()  # connected, or not, since when
        self.error: str | None = "not connected yet"
        self._enforced = 0
        self.offset = 0.0  # how far the server's clock is ahead of this one
        self.lags: deque[float] = deque(maxlen=_SAMPLES)
        self._arrived: float | None = None  # when the first of the changes was written that wait to be taken
        self._settling = False  # getting up to date: what is held is neither what it was nor what it will be
        self._handed = asyncio.Event()
        self._joined = asyncio.Event()
        self._beat = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._saving = asyncio.Lock()
        self._replace_saved = False
        self._saved_marks: dict[str, str] = {}
        self._unsaved_because: str | None = None
        self._commands = 0
        self.resyncs = 0

    @property
    def commands(self) -> int:
        """Return how many commands have been sent to the store."""
        return self._commands + (self.store.commands if self.store is not None else 0)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when there is a state to enforce: the store's if it can be had soon, else the last known one."""
        known = await asyncio.to_thread(self._state.load)
        if self._state.problem:
            _log.warning("%s", self._state.problem)
        if known is not None:
            await self._recall(known)
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._keep_saved())]
        try:
            async with asyncio.timeout(_FIRST_STATE if known is not None else None):
                await self._joined.wait()
        except TimeoutError:
            _log.warning("the store is unreachable (%s): enforcing the last known state", self.error)
            self._handed.set()

    async def stop(self) -> None:
        """Say goodbye, hang up, and save what is not saved."""
        if self.store is not None:
            with contextlib.suppress(StoreError, NotJoined):
                await self.store.heartbeat(self.node, self._enforced, ago=LIVE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._save()
        await asyncio.to_thread(self._state.close)

    async def wait(self) -> None:
        """Return when there are changes to be taken."""
        await self._handed.wait()

    def take(self) -> Handed:
        """Return the changes since the last time; none while this member is getting up to date."""
        self._handed.clear()  # also while settling: who waits would be told over and over, and nobody else have a turn
        if self._settling:
            return Handed([], self._enforced, None)
        arrived, self._arrived = self._arrived, None
        return Handed(self.entries.take(), self.revision, arrived)

    def enforced(self, handed: Handed) -> None:
        """Note that what was handed over is in force on this node; the store is told soon which policy that is."""
        if handed.changes and handed.written is not None:
            self.lags.append(time.time() - handed.written)
        if handed.revision != self._enforced:
            self._enforced = handed.revision
            self._beat.set()

    async def _recall(self, known: State) -> None:
        self._pending = dict(known.pending)
        marks = known.marks
        self.position, self._serial, self.revision = (
            int(marks.get(name, "0")) for name in ("position", "serial", "revision")
        )
        self._forks = frozenset(filter(None, marks.get("forks", "").split(",")))
        await self._replace(known.entries)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Be connected whenever that is possible."""
        pause = _PAUSES[0]
        while True:
            try:
                async with self._connected() as store:
                    await self._synchronise(store)
                    self._note_connected()
                    pause = _PAUSES[0]
                    await self._follow(store)
            except NotJoined as reason:
                _log.info("joining the store again: %s", reason)
                await asyncio.sleep(_PAUSES[0])
                continue
            except NfqError as error:
                self._note_lost(str(error))
            except Exception:  # a bug in here must not end what keeps this node in step
                _log.exception("following the store failed")
                self._note_lost("an internal error; the log has it")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # not all nodes at the same moment
            pause = min(pause * 2, _PAUSES[1])

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[RedisStore]:
        if self.exempt is not None:
            await self.exempt(await self.server.resolve())
        host, port = await self.server.locate()
        client = self.server.client(host, port, timeout=_TIMEOUT)
        reader = self.server.client(host, port, timeout=_WAIT + _TIMEOUT)
        store = RedisStore(client, reader, self.server.address.prefix)
        try:
            self.info = await check(client)
            yield store
        finally:
            self._commands += store.commands
            self.store, self._settling = None, False
            if self.entries.changed:
                self._handed.set()
            self._joined.clear()
            await store.close()

    def _note_connected(self) -> None:
        if self.error is not None:
            _log.info("connected to the store %s", self.server.address.redacted)
            self.since = time.time()
        self.error = None

    def _note_lost(self, reason: str) -> None:
        if self.error is None:
            self.since = time.time()
            _log.warning("the store is unreachable, enforcing the last known state: %s", reason)
        elif reason != self.error:
            _log.warning("the store is still unreachable: %s", reason)
        self.error = reason

    # -- getting up to date -------------------------------------------------------------------------------------------

    async def _synchronise(self, store: RedisStore) -> None:
        """Join, get up to date, and put right what concerns this node; then hand over."""
        self._settling = True
        joined = await store.join(self.node, self.position, self.revision)
        self.offset = joined.now - time.time()
        new = unseen(joined.forks, self._forks)
        stay = bool(new) or not joined.registered  # of this node's endpoints only this node knows whether they are
        if new or not await self._can_resume(store, joined):
            await self._take_all(store, joined, new, own_stay=stay)
        await self._catch_up(store)
        await self._set_right(store, self.entries.own.values() if stay else ())
        self._forks = frozenset(fork.name for fork in joined.forks)
        await self._tell_pending(store)
        self.store, self._settling = store, False
        self._joined.set()
        self._handed.set()

    async def _can_resume(self, store: RedisStore, joined: Joined) -> bool:
        """Say whether nothing is missing between what is known and what the stream has."""
        if not self.position or joined.serial <= self._serial:
            return bool(self.position) and joined.serial == self._serial
        following = await store.read(self.position, None)
        return bool(following) and following[0].serial == self._serial + 1

    async def _take_all(self, store: RedisStore, joined: Joined, new: Sequence[Fork], *, own_stay: bool) -> None:
        """Hold what the store holds, having given back what it has lost."""
        self.resyncs += 1
        theirs, bad = await store.scan()
        # who knows nothing has nothing to give back, and need not read the whole stream
        anew = await store.since(new[0].marker) if new and self.entries.entries else None
        if anew is not None:
            survived = min(fork.survived for fork in new)
            if self.entries.entries and self.position >= survived:
                await self._give_back(store, theirs, survived, anew)
        for name in self.entries.own if own_stay else ():
            key = Kind.ENDPOINT, name
            if key not in theirs and key not in (anew or ()):
                theirs[key] = self.entries.entries[key]
        for name, value in self._pending.items():
            theirs.pop((Kind.ENDPOINT, name), None)
            if value:
                theirs[Kind.ENDPOINT, name] = Entry(self.position, value)
        self.position, self._serial, self.revision = joined.last, joined.serial, joined.revision
        self._replace_saved = True
        await self._replace(theirs)
        for key, reason in bad:
            self.entries.refuse(key, reason)
        for name, value in self._pending.items():  # those, too, that have come up meanwhile
            self.entries.assume((Kind.ENDPOINT, name), Entry(self.position, value) if value else None)

    async def _replace(self, entries: Mapping[Key, Entry]) -> None:
        """Hold these entries, which are saved already or will be as a whole.

        While that lasts, a second for a hundred thousand, the agent answers, and saves nothing.
        """
        parts = self.entries.replacing(entries)
        async with self._saving:
            try:
                for _ in parts:
                    await asyncio.sleep(0)
            finally:
                deque(parts, 0)  # all of it, also where this member is told to stop
                self.entries.take_unsaved()

    async def _give_back(
        self, store: RedisStore, theirs: dict[Key, Entry], survived: int, anew: frozenset[Key]
    ) -> None:
        loss = compare(self.entries.entries, theirs, survived, anew | self.entries.refused.keys())
        if not loss.missing and not loss.gone:
            return
        _log.warning(
            "the store has come back without %d entries that this node knows, and with %d that had gone; it gets them",
            *(len(loss.missing), len(loss.gone)),
        )
        rest = [(key, entry) for key, entry in loss.missing if key[0] is not Kind.ENDPOINT]
        left = await store.restore(rest)
        other = {name for kind, name in left if kind is Kind.IDENTITY}  # numbers that mean something else by now
        endpoints = [
            (key, entry)
            for key, entry in loss.missing
            if key[0] is Kind.ENDPOINT and not (other and str(json.loads(entry.value)["identity"]) in other)
        ]
        left |= await store.restore(endpoints, loss.gone, self.position)
        theirs.update(one for one in (*rest, *endpoints) if one[0] not in left)
        for key in loss.gone:
            theirs.pop(key, None)

    async def _catch_up(self, store: RedisStore) -> None:
        while published := await store.read(self.position, None):
            for one in published:
                await self._take_published(one)

    async def _take_published(self, published: Published) -> None:
        """Take an entry of the stream; raise NotJoined if one before it is missing, or the server is another."""
        if published.foreign or not published.serial:
            reason = published.foreign or "it is nothing of ours"
            _log.warning("an entry of the stream is skipped: %s", reason)
            self.entries.refuse((Kind.DOCUMENT, f"(change {schema.write_id(published.id)})"), reason)
            self.position = published.id
            self._serial += bool(published.serial)
            return
        if published.serial != self._serial + 1:
            raise NotJoined(f"change {self._serial + 1} is missing, the next is {published.serial}")
        self.position, self._serial = published.id, published.serial
        for key, number, value in published.changes:
            if not (published.collected and key[0] is Kind.ENDPOINT and key[1] in self.entries.own):
                self.entries.accept(key, number, value)  # else: who says that they are gone has lost sight of this node
        if published.revision is not None:
            self.revision = max(self.revision, published.revision)
        if len(published.changes) > _MANY:
            await asyncio.sleep(0)

    # -- being up to date ---------------------------------------------------------------------------------------------

    async def _follow(self, store: RedisStore) -> None:
        """Take what comes and give signs of life, until one of both fails; raise what it failed with."""
        tasks = [asyncio.create_task(self._listen(store)), asyncio.create_task(self._pulse(store))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()  # again and again: where an answer comes just then, it can go unheard
                await asyncio.wait(tasks, timeout=_PAUSES[0])
        for task in tasks:
            if not task.cancelled() and (reason := task.exception()) is not None:
                raise reason

    async def _listen(self, store: RedisStore) -> None:
        while True:
            published = await store.read(self.position, _WAIT)
            before = dict(self.entries.namespaces)
            for one in published:
                if one.fork and not self._knows(one):
                    raise NotJoined("the store has been on another server")
                await self._take_published(one)
            if published and self.entries.changed:
                self._arrived = self._arrived or (published[0].id >> 32) / 1000 - self.offset
                self._handed.set()
            if before != self.entries.namespaces:
                await self._set_right(store, ())

    def _knows(self, fork: Published) -> bool:
        return any(name.endswith(f"@{schema.write_id(fork.id)}") for name in self._forks)

    async def _pulse(self, store: RedisStore) -> None:
        """Say from time to time that this node lives, and what it enforces; collect garbage if nobody else has."""
        while True:
            self._beat.clear()
            pulse = await store.heartbeat(self.node, self._enforced)
            self.offset = pulse.now - time.time()
            if pulse.fork not in self._forks:
                raise NotJoined("the store has been on another server")
            if not pulse.registered:  # it was not heard of for so long that it was taken for gone
                await self._set_right(store, self.entries.own.values())
            await store.collect(LEASE, GRACE, RETIREMENT, COLLECT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._beat.wait()

    async def _set_right(self, store: RedisStore, own: Iterable[EndpointRecord]) -> None:
        """Register this node, and of its endpoints these and those whose labels have become others."""
        wrong = {one.called: one for one in own}
        wrong |= {name: one for name, one in self.entries.own.items() if self.entries.is_mislabelled(one)}
        placed = [self.entries.placed(one) for one in wrong.values()]
        for some in (placed[start : start + _AT_ONCE] for start in range(0, len(placed), _AT_ONCE)):
            try:
                await self._enter(store, Request(some))
            except BadInput:
                for one in some:
                    await self._enter_or_keep(store, one)
        # last of all: while it is not registered, the above is tried again
        await self._enter(store, Request(values=[(Kind.NODE, self.node, schema.encode_node(self._record))]))

    async def _enter_or_keep(self, store: RedisStore, one: Placed) -> None:
        """Write an endpoint of this node; one that the store does not take goes on here, and status names it."""
        name = one.record.called
        try:
            await self._enter(store, Request([one]))
            self._conflicts.pop(name, None)
        except BadInput as error:
            if self._conflicts.get(name) != str(error):
                _log.error("the store does not take endpoint %s of this node: %s", name, error)
            self._conflicts[name] = str(error)

    async def _tell_pending(self, store: RedisStore) -> None:
        """Tell the store what was started and stopped here without it."""
        for name, value in list(self._pending.items()):
            record = self.entries.own.get(name)
            if value and record is not None:
                await self._enter_or_keep(store, self.entries.placed(record))
            elif not value:
                await self._enter(store, Request(gone=[(Kind.ENDPOINT, name)]))
            if name not in self._conflicts:
                del self._pending[name]
        await self._keep_pending()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, request: Request) -> Written:
        """Write, as soon as there is a store; raise StoreError if there is none for a while."""
        try:
            return await self._enter(await self.reachable(), request)
        except NotJoined:
            self._joined.clear()
            self._beat.set()  # and who follows the store will find out, too
            return await self._enter(await self.reachable(), request)

    async def reachable(self) -> RedisStore:
        """Return the store, waiting for it if it has just gone; raise StoreError if there is none."""
        if self.error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECTED):
                    await self._joined.wait()
        if self.store is None:
            raise StoreError(self.unreachable)
        return self.store

    @property
    def unreachable(self) -> str:
        """Return the sentence that says since when, and why, there is no store."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"the store {self.server.address.redacted} is unreachable since {since}: {self.error}"

    async def start_alone(self, records: Iterable[EndpointRecord]) -> None:
        """Have endpoints of this node that the store has not been told of yet."""
        for record in records:
            value = schema.encode_endpoint(record).encode()
            self.entries.assume((Kind.ENDPOINT, record.called), Entry(self.position, value))
            self._pending[record.called] = value
        await self._keep_pending()

    async def stop_alone(self, names: Iterable[str]) -> None:
        """Have no more endpoints of this node that the store still has."""
        for name in names:
            self.entries.assume((Kind.ENDPOINT, name), None)
            self._conflicts.pop(name, None)
            self._pending[name] = b""
        await self._keep_pending()

    @property
    def pending(self) -> dict[str, str | None]:
        """Return the endpoints that the store does not know as they are here, and why it does not take them."""
        return {name: self._conflicts.get(name) for name in {**self._pending, **self._conflicts}}

    async def _keep_pending(self) -> None:
        self._handed.set()
        async with self._saving:
            await asyncio.to_thread(self._state.save_pending, list(self._pending.items()))

    async def _enter(self, store: RedisStore, request: Request) -> Written:
        """Write, and hold what was written as if it had come by in the stream."""
        written = await store.write(request)
        if written.id is None:
            return written
        for one, number in zip(request.endpoints, written.numbers, strict=True):
            if number in written.new:
                self._accept((Kind.IDENTITY, str(number)), written.id, schema.encode_identity(one.labels))
            value = schema.encode_endpoint(one.record._replace(identity=number))
            self._accept((Kind.ENDPOINT, one.record.called), written.id, value)
        for kind, name, value in request.values:
            self._accept((kind, name), written.id, value)
        for key in request.gone:
            self.entries.accept(key, written.id, None)
        self.revision = max(self.revision, written.revision)
        if self.entries.changed and not self._settling:
            self._handed.set()
        return written

    def _accept(self, key: Key, number: int, value: str) -> None:
        known = self.entries.entries.get(key)
        if known is None or known.value != value.encode():
            self.entries.accept(key, number, value.encode())

    # -- the last known state -----------------------------------------------------------------------------------------

    async def _keep_saved(self) -> None:
        while True:
            await asyncio.sleep(_SAVE)
            await self._save()

    async def _save(self) -> None:
        """Save what has changed, together with how far it goes."""
        async with self._saving:
            replace, self._replace_saved = self._replace_saved or self._state.behind, False
            marks = {
                "position": str(self.position),
                "serial": str(self._serial),
                "revision": str(self.revision),
                "forks": ",".join(sorted(self._forks)),
            }
            unsaved = self.entries.take_unsaved()
            if not unsaved and not replace and marks == self._saved_marks:
                return
            changed = list((self.entries.entries if replace else unsaved).items())
            changes = ((*key, entry) for key, entry in changed)  # made in the thread, one by one
            try:
                await asyncio.to_thread(self._state.save, changes, marks, replace=replace)
            except NfqError as error:
                if str(error) != self._unsaved_because:
                    _log.error("%s", error)
                self._unsaved_because = str(error)
            else:
                self._saved_marks, self._unsaved_because = marks, None
