"""The agent's side of a worker: starts it, feeds it, and starts it again when it dies."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable

from nfq_enforcer.core.enforcer import FlowEvent
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.dataplane.channel import Bound, Decoder, Enforced, Events, Failed, Setup, Stop, encode
from nfq_enforcer.dataplane.counters import Counters
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 18
_PATIENCE = 10.0  # seconds for a worker to bind, to take a snapshot, or to end
_PAUSE = 0.2  # seconds between two attempts to replace a worker


class WorkerProcess:
    """One worker, or the one that has taken its place; counters go on from one to the next."""

    def __init__(self, queue: int, maximum_flows: int, on_events: Callable[[tuple[FlowEvent, ...]], None]) -> None:
        """Say what the worker shall be; nothing is started yet."""
        self.queue = queue
        self.restarts = 0
        self.failure: str | None = None  # why the worker cannot be replaced at the moment
        self._maximum_flows = maximum_flows
        self._on_events = on_events
        self._memory = Counters.create()
        self.counters = Counters(self._memory)
        self._snapshot: Snapshot | None = None
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

    async def start(self, snapshot: Snapshot) -> None:
        """Start the worker and return when its queue is bound; raise NfqError if it cannot be."""
        self._snapshot = snapshot
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    async def enforce(self, snapshot: Snapshot) -> None:
        """Send a snapshot and return when every packet is judged by it; raise NfqError if that takes too long."""
        self._snapshot = snapshot
        self._send(snapshot)
        try:
            async with asyncio.timeout(_PATIENCE), self._progress:
                await self._progress.wait_for(lambda: self._revision >= snapshot.revision)
        except TimeoutError:
            raise NfqError(f"the worker of queue {self.queue} has not taken revision {snapshot.revision}") from None

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
        assert self._snapshot is not None
        snapshot = self._snapshot
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
        self._send(Setup(self.queue, self._maximum_flows, snapshot))
        try:
            async with asyncio.timeout(_PATIENCE):
                await bound
        except TimeoutError:
            self._process.kill()
            raise NfqError(f"the worker of queue {self.queue} did not start within {_PATIENCE:.0f} seconds") from None
        except NfqError:
            await self._process.wait()
            raise
        await self._note(snapshot.revision)
        if self._snapshot is not snapshot:
            self._send(self._snapshot)

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
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def _hang_up(self) -> None:
        if self._reading is not None:
            await self._reading  # what the worker has said before its end still counts
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
