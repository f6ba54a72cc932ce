"""The agent's side of a worker: starts it, feeds it, and starts it again when it dies.

What a worker is told is kept here too, so one that takes another's place begins with all of it. A worker that does not
read what it is sent is stuck: it is killed and replaced before too much waits for it.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from nfq_enforcer.core import ipcache
from nfq_enforcer.core.enforcer import FlowEvent
from nfq_enforcer.core.ipcache import Peer, PeerChange
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.dataplane import drivers
from nfq_enforcer.dataplane.channel import (
    Bound,
    Decoder,
    Enforced,
    Events,
    Failed,
    Peers,
    Revision,
    Setup,
    Stop,
    encode,
)
from nfq_enforcer.dataplane.counters import Counters
from nfq_enforcer.dataplane.nfqueue import Numbers
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 18
_PATIENCE = 10.0  # seconds for a worker to bind, to take a snapshot, or to end
_PAUSE = 0.2  # seconds between two attempts to replace a worker
_PEERS = 500  # changes to a message: the worker takes one in well under a millisecond
_MAX_UNREAD = 64 << 20  # bytes; a million peers at once are half of that


class WorkerProcess:
    """One worker, or the one that has taken its place; counters go on from one to the next."""

    def __init__(
        self,
        queue: int,
        maximum_flows: int,
        on_events: Callable[[tuple[FlowEvent, ...]], None],
        *,
        driver: str = drivers.AUTO,
        fail_open: bool = False,
    ) -> None:
        """Say what the worker shall be, ``queue`` being the first number of its queues; nothing is started yet."""
        self.queue = queue
        self.driver = driver  # from the start on, that which was chosen
        self.queues = Numbers(queue, queue, queue)
        self._fail_open = fail_open
        self.restarts = 0
        self.failure: str | None = None  # why the worker cannot be replaced at the moment
        self._maximum_flows = maximum_flows
        self._on_events = on_events
        self._memory = Counters.create()
        self.counters = Counters(self._memory)
        self._snapshot: Snapshot | None = None
        self._peers: dict[bytes, Peer] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._revision = -1
        self._progress = asyncio.Condition()

    @property
    def pid(self) -> int | None:
        """Return the worker's process id, None while there is no worker."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def peers(self) -> Mapping[bytes, Peer]:
        """Return the peers that the worker has, or is about to have."""
        return self._peers

    async def start(self, snapshot: Snapshot, peers: Mapping[bytes, Peer]) -> None:
        """Start the worker and return when its queues are bound; raise NfqError if it cannot be."""
        self._snapshot, self._peers = snapshot, dict(peers)
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    def change_peers(self, changes: Iterable[PeerChange]) -> None:
        """Send changes of peers; they are in force, at the latest, with the next snapshot or renewal."""
        rest = iter(changes)
        while some := tuple(islice(rest, _PEERS)):
            ipcache.change(self._peers, some)
            self._send(Peers(some))

    async def enforce(self, snapshot: Snapshot) -> None:
        """Send a snapshot and return when every packet is judged by it; raise NfqError if that takes too long."""
        self._snapshot = snapshot
        self._send(snapshot)
        await self._taken(snapshot.revision)

    async def renew(self, revision: int) -> None:
        """Have known flows judged again, by the same snapshot under this revision number.

        Return when they are; raise NfqError if that takes too long.
        """
        assert self._snapshot is not None
        self._snapshot = self._snapshot.renewed(revision)
        self._send(Revision(revision))
        await self._taken(revision)

    async def _taken(self, revision: int) -> None:
        try:
            async with asyncio.timeout(_PATIENCE), self._progress:
                await self._progress.wait_for(lambda: self._revision >= revision)
        except TimeoutError:
            raise NfqError(f"the worker of queue {self.queue} has not taken revision {revision}") from None

    async def stop(self) -> None:
        """Have the worker answer what waits and end; one that does not end is killed."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._send(Stop())
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._hang_up()
        self.counters.close()
        os.close(self._memory)

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "nfq_enforcer.dataplane.worker"),
                *(str(theirs.fileno()), str(self._memory)),
                pass_fds=(theirs.fileno(), self._memory),
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        bound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader, bound))
        assert self._snapshot is not None
        # As things are now: what changes from here on is sent after it.
        self._send(Setup(self.driver, self.queue, self._fail_open, self._maximum_flows, self._snapshot, self._peers))
        try:
            async with asyncio.timeout(_PATIENCE):
                await bound
        except TimeoutError:
            self._process.kill()
            raise NfqError(f"the worker of queue {self.queue} did not start within {_PATIENCE:.0f} seconds") from None
        except NfqError:
            await self._process.wait()
            raise

    async def _read(self, reader: asyncio.StreamReader, bound: "asyncio.Future[None]") -> None:
        decoder = Decoder()
        try:
            while data := await reader.read(_CHUNK):
                for message in decoder.feed(data):
                    await self._hear(message, bound)
        except ConnectionError:
            pass
        if not bound.done():
            bound.set_exception(NfqError(f"the worker of queue {self.queue} ended before it had its queue"))

    async def _hear(self, message: object, bound: "asyncio.Future[None]") -> None:
        if isinstance(message, Events):
            self._on_events(message.events)
        elif isinstance(message, Enforced):
            await self._note(message.revision)
        elif isinstance(message, Bound):
            self.driver, self.queues = message  # one that takes its place is to fit the same rules
            bound.set_result(None)
        elif isinstance(message, Failed):
            bound.set_exception(NfqError(message.sentence))

    async def _note(self, revision: int) -> None:
        async with self._progress:
            self._revision = revision
            self._progress.notify_all()

    async def _watch(self) -> None:
        """Replace the worker whenever it ends."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            self.restarts += 1
            _log.error("the worker of queue %d ended with status %d; starting another", self.queue, status)
            await self._hang_up()
            await self._replace()

    async def _replace(self) -> None:
        while True:
            try:
                await self._spawn()
            except (NfqError, OSError) as error:
                self.failure = str(error)
                _log.error("the worker of queue %d cannot be replaced: %s", self.queue, error)
                await asyncio.sleep(_PAUSE)
            else:
                self.failure = None
                _log.info("queue %d is judged again, by process %s", self.queue, self.pid)
                return

    def _send(self, message: object) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() < _MAX_UNREAD:
            self._writer.write(encode(message))
        elif self._process is not None and self._process.returncode is None:
            _log.error("the worker of queue %d does not read what it is sent; it is killed", self.queue)
            self._process.kill()
            self._writer.transport.abort()

    async def _hang_up(self) -> None:
        if self._reading is not None:
            await self._reading  # what the worker has said before its end still counts
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
