"""Session of this node with a store on Redis: connect, catch up, follow the stream of changes, send heartbeats.

- Connected, the session reads the stream of changes on from the mirror's position. If changes are missing in between
  (the node was away for long, the stream was trimmed, the server was replaced) it reads all entries anew. The change
  feed is closed during such a catch-up, so the reconciler never gets a partly updated cluster.
- A store that has lost entries gets them back from this node's mirror (``history``).
- Without a store the last known state stays in force, also after a restart of the agent (``last_state``). Endpoints of
  this node with a known identity can start and stop, and are written when the store is back (``pending``).
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from nfq_enforcer.cluster.records import Address, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.cluster.source import ChangeBatch
from nfq_enforcer.errors import NfqError
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.redis import catch_up, schema
from nfq_enforcer.store.redis.change_feed import ChangeFeed
from nfq_enforcer.store.redis.commands import Commands, NotJoined
from nfq_enforcer.store.redis.connection import Connection, ServerInfo, StoreError, check
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.pending import PendingEndpoints
from nfq_enforcer.store.redis.reachability import Reachability
from nfq_enforcer.store.redis.schema import StoreEntry
from nfq_enforcer.store.redis.state_saver import StateSaver
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS, SessionTimings
from nfq_enforcer.store.redis.writer import Writer
from nfq_enforcer.tasks import cancel

_log = logging.getLogger(__name__)
_REGISTRATIONS = 64  # values of this node's entry that count as its own, and not as those of another host

Exempt = Callable[[frozenset[tuple[Address, int]]], Awaitable[None]]


class Session:
    """Session: one node's connection life with the store, from ``start`` until ``stop``."""

    def __init__(
        self,
        node: str,
        record: NodeRecord,
        connection: Connection,
        state: LastState,
        relevant: LabelFilter,
        timings: SessionTimings = DEFAULT_TIMINGS,
        cluster: str = DEFAULT_CLUSTER,
    ) -> None:
        """Take this node's name and record, the connection to the store, and the file of the last known state.

        ``relevant`` are the labels that make an identity, ``cluster`` is the cluster's name. Nothing is connected or
        read yet.
        """
        self.node = node
        self.connection = connection
        self.timings = timings
        self.exempt: Exempt | None = None  # gets the addresses of the store's servers before each attempt to connect
        self.info: ServerInfo | None = None
        self.clock_offset = 0.0  # seconds by which the server's clock is ahead of this node's
        self._record = record
        self._registrations = deque([schema.encode_node(record)], _REGISTRATIONS)  # of this node, the last one current
        self._registered: str | None = None  # the one that the store has
        self._namesake: StoreEntry | None = None  # the last entry of another host under this node's name
        self._own_written = False  # the store has this node's endpoints, and keeps them unless it loses entries
        self._sent = 0  # commands on the connections before the current one
        self._enforcing = True
        self._heartbeat_due = asyncio.Event()
        self.heartbeat: float | None = None  # time of the last one that the store has answered, in s since the epoch
        self._tasks: list[asyncio.Task[None]] = []
        self.mirror = Mirror(node, relevant, cluster)
        self._feed = ChangeFeed(self.mirror)
        self._saver = StateSaver(self.mirror, state, timings.save)
        self.pending = PendingEndpoints(self.mirror, self._saver, self._feed)
        self.reachability = Reachability(connection.address, timings.reconnect)
        self.writer = Writer(
            (Kind.NODE, node, self._registrations[-1]),
            self.mirror,
            self.reachability,
            self.pending,
            self._feed,
            self._heartbeat_due,
        )

    @property
    def commands(self) -> Commands | None:
        """Return the commands of the joined server; None: the store is not reachable."""
        return self.reachability.commands

    @property
    def commands_sent(self) -> int:
        """Return the number of commands sent to the store on all connections."""
        return self._sent + (self.commands.sent if self.commands is not None else 0)

    @property
    def save_failure(self) -> tuple[float, str] | None:
        """Return since when, in s since the epoch, and why the last known state is not saved; None: it is."""
        return self._saver.failure

    @property
    def lags(self) -> deque[float]:
        """Return the last seconds from another node's write to its enforcement here."""
        return self._feed.lags

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when a state can be enforced: the store's if it is reachable soon, else the last known one."""
        saved = await self._saver.load()
        if saved is not None:
            for _ in self.mirror.load_saved(saved.entries, saved.marks):
                await asyncio.sleep(0)
            self.pending.load(saved.pending)
        self._tasks = [asyncio.create_task(self._stay_connected()), asyncio.create_task(self._saver.run())]
        try:
            async with asyncio.timeout(self.timings.first_state if saved is not None else None):
                await self.reachability.joined.wait()
        except TimeoutError:
            _log.warning("no state from the store yet (%s): enforcing the last known one", self.reachability.error)
            self._feed.announce()

    async def stop(self) -> None:
        """Mark this node as not live in the store, disconnect, and save the rest of the state."""
        if self.commands is not None:
            with contextlib.suppress(StoreError):
                await self.commands.heartbeat(self.node, self._enforced, ago=self.timings.live)
        await cancel(*self._tasks)
        await self._saver.close()

    async def wait(self) -> None:
        """Return when changes are available."""
        await self._feed.wait()

    def poll(self) -> ChangeBatch:
        """Return the changes since the last poll; none during a catch-up."""
        return self._feed.poll()

    def acknowledge(self, batch: ChangeBatch) -> None:
        """Record that a batch is enforced; a heartbeat reports another revision to the store at once."""
        if self._feed.acknowledge(batch):
            self._heartbeat_due.set()

    def set_enforcing(self, *, enforcing: bool) -> None:
        """Record whether this node enforces what was acknowledged; otherwise heartbeats report revision 0."""
        self._enforcing = enforcing
        self._heartbeat_due.set()

    def register(self, addresses: tuple[Address, ...]) -> None:
        """Register this node under other addresses with the next heartbeat, which is due at once."""
        self._record = self._record._replace(addresses=addresses)
        self._registrations.append(schema.encode_node(self._record))
        self.writer.registration = Kind.NODE, self.node, self._registrations[-1]
        self._heartbeat_due.set()

    @property
    def _enforced(self) -> int:
        return self._feed.enforced if self._enforcing else 0

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        """Connect, catch up and follow, again after each failure, until cancelled."""
        timings, pause = self.timings, self.timings.first_pause
        while True:
            try:
                async with self._connected() as commands:
                    await self._catch_up(commands)
                    self.reachability.note_connected()
                    pause = timings.first_pause
                    await self._follow(commands)
            except NotJoined as reason:
                _log.info("joining the store again: %s", reason)
                await asyncio.sleep(timings.first_pause)
                continue
            except NfqError as error:
                self.reachability.note_lost(str(error))
            except Exception:  # an internal error must not end the loop that keeps this node up to date
                _log.exception("following the store failed")
                self.reachability.note_lost("an internal error; the log has it")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # the nodes' attempts are spread over time
            pause = min(pause * 2, timings.longest_pause)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Commands]:
        if self.exempt is not None:
            await self.exempt(await self.connection.resolve())
        host, port = await self.connection.locate()
        timeout = self.timings.command_timeout
        client = self.connection.client(host, port, timeout=timeout)
        reader = self.connection.client(host, port, timeout=self.timings.read_wait + timeout)
        commands = Commands(client, reader, self.connection.address.prefix)
        try:
            self.info = await check(client)
            yield commands
        finally:
            self._sent += commands.sent
            self.reachability.set_left()
            self._feed.open()
            await commands.close()

    async def _catch_up(self, commands: Commands) -> None:
        """Join, bring the mirror up to date, write this node's own entries, then open the change feed."""
        self._feed.close()
        joined = await commands.join(self.node, self.mirror.position, self.mirror.revision)
        self.clock_offset = joined.now - time.time()
        self._own_written = self._own_written and not catch_up.may_lack_own_endpoints(self.mirror, joined)
        await catch_up.bring_up_to_date(self.mirror, commands, joined, self.pending.unwritten)
        await self._register(commands, () if self._own_written else self.mirror.own.values())
        self._own_written = True
        await self.writer.write_pending(commands)
        self.reachability.set_joined(commands)
        self._feed.open()
        self._feed.announce()

    async def _register(self, commands: Commands, endpoints: Iterable[EndpointRecord]) -> None:
        registration = self._registrations[-1]
        await self.writer.register(commands, endpoints)
        self._registered = registration

    # -- following ----------------------------------------------------------------------------------------------------

    async def _follow(self, commands: Commands) -> None:
        """Read the stream and send heartbeats until one of both fails; raise its error."""
        tasks = [asyncio.create_task(self._read_stream(commands)), asyncio.create_task(self._send_heartbeats(commands))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()  # repeatedly: redis-py can swallow a cancellation that meets an arriving answer
                await asyncio.wait(tasks, timeout=self.timings.first_pause)
            # Retrieve the errors of both, or asyncio logs the second one with a traceback ("was never retrieved").
            errors = [task.exception() for task in tasks if not task.cancelled()]
        for error in errors:
            if error is not None:
                raise error

    async def _read_stream(self, commands: Commands) -> None:
        while True:
            stream_entries = await commands.read(self.mirror.position, self.timings.read_wait)
            namespaces = dict(self.mirror.namespaces)
            for entry in stream_entries:
                if entry.fork and not self.mirror.has_seen_fork(entry.id):
                    raise NotJoined("the store has been on another server")
                await catch_up.apply(self.mirror, entry)
            self._check_namesake()
            if stream_entries and self.mirror.has_changes:
                self._feed.announce((stream_entries[0].id >> 32) / 1000 - self.clock_offset)
            if namespaces != self.mirror.namespaces:
                await self.writer.register(commands, ())

    def _check_namesake(self) -> None:
        """Log an error if another host has registered under this node's name: the two would undo each other's writes.

        Each entry of another host is logged once.
        """
        entry = self.mirror.entries.get((Kind.NODE, self.node))
        own = map(str.encode, self._registrations)
        if entry is not None and entry.value not in own and entry != self._namesake:
            _log.error("another agent has registered as node %s, too: each node needs a name of its own", self.node)
            self._namesake = entry

    async def _send_heartbeats(self, commands: Commands) -> None:
        """Send a heartbeat at intervals and when one is due; retry conflicts; collect garbage if no node has lately."""
        timings = self.timings
        while True:
            self._heartbeat_due.clear()
            answer = await commands.heartbeat(self.node, self._enforced)
            self.heartbeat = time.time()
            self.clock_offset = answer.now - self.heartbeat
            if answer.fork not in self.mirror.forks:
                raise NotJoined("the store has been on another server")
            if not answer.registered:  # this node's lease has run out, and its entries were removed
                await self._register(commands, self.mirror.own.values())
            elif self._registered != self._registrations[-1]:
                await self._register(commands, ())
            await self.writer.retry_conflicts(commands)
            await commands.collect(timings.lease, timings.grace, timings.retirement, timings.collect)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timings.heartbeat):
                    await self._heartbeat_due.wait()
