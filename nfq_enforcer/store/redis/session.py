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
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from nfq_enforcer.cluster.records import Address, EndpointRecord, Kind, NodeRecord, Placed
from nfq_enforcer.cluster.source import ChangeBatch
from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.store.redis import catch_up, schema
from nfq_enforcer.store.redis.commands import Commands, NotJoined, Request, Written
from nfq_enforcer.store.redis.connection import Connection, ServerInfo, StoreError, check
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, StoreEntry

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
_AT_ONCE = 500  # endpoints written together
_NOT_YET = "not connected yet"

P = ParamSpec("P")
T = TypeVar("T")
Exempt = Callable[[frozenset[tuple[Address, int]]], Awaitable[None]]


class Session:
    """One node's membership, from ``start`` until ``stop``."""

    def __init__(
        self, node: str, record: NodeRecord, server: Connection, state: LastState, relevant: LabelFilter
    ) -> None:
        """Take who this node is and where its store is; nothing is connected yet."""
        self.node = node
        self._registration = schema.encode_node(record)
        self._namesake: StoreEntry | None = None
        self.server = server
        self._state = state
        self.exempt: Exempt | None = None  # is told whom this node must be able to reach, before it connects
        self.entries = Mirror(node, relevant)
        self._pending: dict[str, bytes] = {}  # endpoints started (their value) or stopped (empty) without the store
        self._conflicts: dict[str, str] = {}  # why the store does not take one of these
        self.store: Commands | None = None
        self.info: ServerInfo | None = None
        self.since = time.time()  # connected, or not, since when
        self.error: str | None = _NOT_YET
        self._enforced = 0
        self.offset = 0.0  # how far the server's clock is ahead of this one
        self.lags: deque[float] = deque(maxlen=_SAMPLES)
        self._arrived: float | None = None  # when the first of the changes was written that wait to be taken
        self._own_there = False  # the endpoints of this node are in the store, and stay there if it loses nothing
        self._settled = asyncio.Event()  # not set while getting up to date: what is held is neither old nor new
        self._settled.set()
        self._handed = asyncio.Event()
        self._joined = asyncio.Event()
        self._beat = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._saving = asyncio.Lock()
        self._file = ThreadPoolExecutor(1, "last-state")  # the file is for one thread at a time
        self._loaded = False  # what was saved is known, so more can be
        self._saved_marks: dict[str, str] = {}
        self._unsaved_because: str | None = None
        self._commands = 0

    @property
    def commands(self) -> int:
        """Return how many commands have been sent to the store."""
        return self._commands + (self.store.commands if self.store is not None else 0)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when there is a state to enforce: the store's if it can be had soon, else the last known one."""
        known = await self._with_state(self._state.load)
        self._loaded = True
        if self._state.problem:
            _log.warning("%s", self._state.problem)
        if known is not None:
            for _ in self.entries.recalling(known.entries, known.marks):
                await asyncio.sleep(0)
            self._pending = dict(known.pending)
        self._tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._keep_saved())]
        try:
            async with asyncio.timeout(_FIRST_STATE if known is not None else None):
                await self._joined.wait()
        except TimeoutError:
            _log.warning("no state from the store yet (%s): enforcing the last known one", self.error)
            self._handed.set()

    async def stop(self) -> None:
        """Say goodbye, hang up, and save what is not saved."""
        if self.store is not None:
            with contextlib.suppress(StoreError):
                await self.store.heartbeat(self.node, self._enforced, ago=LIVE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._save()
        await self._with_state(self._state.close)
        self._file.shutdown()

    async def wait(self) -> None:
        """Return when there are changes to be taken."""
        while not (self._handed.is_set() and self._settled.is_set()):
            await self._handed.wait()
            await self._settled.wait()

    def poll(self) -> ChangeBatch:
        """Return the changes since the last time; none while this member is getting up to date."""
        if not self._settled.is_set():
            return ChangeBatch([], self._enforced)
        self._handed.clear()
        arrived, self._arrived = self._arrived, None
        return ChangeBatch(self.entries.take(), self.entries.revision, arrived)

    def acknowledge(self, handed: ChangeBatch) -> None:
        """Note that what was handed over is in force on this node; the store is told soon which policy that is."""
        if handed.changes and handed.written is not None:
            self.lags.append(time.time() - handed.written)
        if handed.revision != self._enforced:
            self._enforced = handed.revision
            self._beat.set()

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
    async def _connected(self) -> AsyncIterator[Commands]:
        if self.exempt is not None:
            await self.exempt(await self.server.resolve())
        host, port = await self.server.locate()
        client = self.server.client(host, port, timeout=_TIMEOUT)
        reader = self.server.client(host, port, timeout=_WAIT + _TIMEOUT)
        store = Commands(client, reader, self.server.address.prefix)
        try:
            self.info = await check(client)
            yield store
        finally:
            self._commands += store.commands
            self.store = None
            self._settled.set()
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
        elif self.error == _NOT_YET:
            _log.warning("the store is unreachable: %s", reason)
        elif reason != self.error:
            _log.warning("the store is still unreachable: %s", reason)
        self.error = reason

    # -- getting up to date -------------------------------------------------------------------------------------------

    async def _synchronise(self, store: Commands) -> None:
        """Join, get up to date, and put right what concerns this node; then hand over."""
        self._settled.clear()
        joined = await store.join(self.node, self.entries.position, self.entries.revision)
        self.offset = joined.now - time.time()
        self._own_there = self._own_there and not catch_up.may_lack_own(self.entries, joined)
        await catch_up.get_up_to_date(self.entries, store, joined, self._untold)
        await self._set_right(store, () if self._own_there else self.entries.own.values())
        self._own_there = True
        await self._tell_pending(store)
        self.store = store
        self._settled.set()
        self._joined.set()
        self._handed.set()

    # -- being up to date ---------------------------------------------------------------------------------------------

    async def _follow(self, store: Commands) -> None:
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

    async def _listen(self, store: Commands) -> None:
        while True:
            published = await store.read(self.entries.position, _WAIT)
            namespaces = dict(self.entries.namespaces)
            for one in published:
                if one.fork and not self.entries.knows(one.id):
                    raise NotJoined("the store has been on another server")
                await catch_up.take(self.entries, one)
            self._look_for_namesakes()
            if published and self.entries.changed:
                self._arrived = self._arrived or (published[0].id >> 32) / 1000 - self.offset
                self._handed.set()
            if namespaces != self.entries.namespaces:
                await self._set_right(store, ())

    def _look_for_namesakes(self) -> None:
        """Say so if another host registers under this node's name: what one of them does undoes the other's."""
        entry = self.entries.entries.get((Kind.NODE, self.node))
        if entry is not None and entry.value != self._registration.encode() and entry != self._namesake:
            _log.error("another agent has registered as node %s, too: each node needs a name of its own", self.node)
            self._namesake = entry

    async def _pulse(self, store: Commands) -> None:
        """Say from time to time that this node lives, and what it enforces; collect garbage if nobody else has."""
        while True:
            self._beat.clear()
            pulse = await store.heartbeat(self.node, self._enforced)
            self.offset = pulse.now - time.time()
            if pulse.fork not in self.entries.forks:
                raise NotJoined("the store has been on another server")
            if not pulse.registered:  # it was not heard of for so long that it was taken for gone
                await self._set_right(store, self.entries.own.values())
            await self._retry_conflicts(store)
            await store.collect(LEASE, GRACE, RETIREMENT, COLLECT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._beat.wait()

    async def _retry_conflicts(self, store: Commands) -> None:
        """Try again what the store did not take: whose address it was may have let go of it."""
        for name in list(self._conflicts):
            if name in self.entries.own:
                await self._enter_or_keep(store, self.entries.placed(self.entries.own[name]))
            else:
                self._conflicts.pop(name, None)
        settled = [name for name in self._pending if name not in self._conflicts]
        if settled and self.store is store:
            for name in settled:
                del self._pending[name]
            await self._keep_pending()

    async def _set_right(self, store: Commands, own: Iterable[EndpointRecord]) -> None:
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
        await self._enter(store, Request(values=[(Kind.NODE, self.node, self._registration)]))

    async def _enter_or_keep(self, store: Commands, one: Placed) -> None:
        """Write an endpoint of this node; one that the store does not take goes on here, and status names it."""
        name = one.record.called
        try:
            await self._enter(store, Request([one]))
        except BadInput as error:
            if self._conflicts.get(name) != str(error):
                _log.error("the store does not take endpoint %s of this node: %s", name, error)
            self._conflicts[name] = str(error)

    async def _tell_pending(self, store: Commands) -> None:
        """Tell the store what was started and stopped here without it; also what is while it is being told."""
        told: set[tuple[str, bytes]] = set()
        while untold := [one for one in self._pending.items() if one not in told]:
            for name, value in untold:
                record = self.entries.own.get(name)
                if value and record is not None:
                    await self._enter_or_keep(store, self.entries.placed(record))
                elif not value:
                    await self._enter(store, Request(gone=[(Kind.ENDPOINT, name)]))
                if self._pending.get(name) == value and name not in self._conflicts:
                    del self._pending[name]
            told.update(untold)
            await self._keep_pending()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, request: Request) -> Written:
        """Write, as soon as there is a store; raise StoreError if there is none for a while."""
        try:
            return await self._write(request)
        except NotJoined:
            self._joined.clear()
            return await self._write(request)  # what is so already is not written again

    async def _write(self, request: Request) -> Written:
        store = await self.reachable()
        try:
            written = await self._enter(store, request)
            if any(schema.is_namespace(key) for key in (*request.gone, *(one[:2] for one in request.values))):
                await self._set_right(store, ())
        except StoreError:
            self._beat.set()  # so that who follows the store finds out, too
            raise
        return written

    async def reachable(self) -> Commands:
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
            self.entries.assume((Kind.ENDPOINT, record.called), StoreEntry(self.entries.position, value))
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

    @property
    def _untold(self) -> dict[str, bytes]:
        """Return the values of those endpoints, empty for one that is gone."""
        refused = (name for name in self._conflicts if name in self.entries.own)
        return {name: self.entries.entries[Kind.ENDPOINT, name].value for name in refused} | self._pending

    async def _keep_pending(self) -> None:
        self._handed.set()
        async with self._saving:
            await self._with_state(self._state.save_pending, list(self._pending.items()))

    async def _enter(self, store: Commands, request: Request) -> Written:
        """Write, and hold what was written as if it had come by in the stream."""
        written = await store.write(request)
        for key in written.missing:
            self.entries.assume(key, None)  # the store has not known it: it was not taken, or has gone meanwhile
        for name in (*(one.record.called for one in request.endpoints), *(name for _, name in request.gone)):
            self._conflicts.pop(name, None)
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
        self.entries.revision = max(self.entries.revision, written.revision)
        if self.entries.changed and self._settled.is_set():
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

    async def _with_state(self, doing: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return what a call about the saved state comes to; one after the other, also if who waits for it gives up."""
        return await asyncio.get_running_loop().run_in_executor(self._file, partial(doing, *arguments, **options))

    async def _save(self) -> None:
        """Save what has changed, together with how far it goes."""
        async with self._saving:
            if not self.entries.whole:
                return
            marks = self.entries.marks
            unsaved = self.entries.take_unsaved()
            replace = unsaved is None or self._state.behind
            if not self._loaded or (marks == self._saved_marks and not unsaved and not replace):
                return
            changed = list((self.entries.entries if unsaved is None or replace else unsaved).items())
            changes = ((*key, entry) for key, entry in changed)  # made in the thread, one by one
            try:
                await self._with_state(self._state.save, changes, marks, replace=replace)
            except NfqError as error:
                if str(error) != self._unsaved_because:
                    _log.error("%s", error)
                self._unsaved_because = str(error)
            else:
                self._saved_marks, self._unsaved_because = marks, None
