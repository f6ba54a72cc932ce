"""The agent's side of a worker: starts it, sends it what it is told, and starts it again when it dies.

A worker that takes another's place begins with all that is to be known by then. One that does not read what it is sent
is stuck: it is killed and replaced before too much waits for it.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable

from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.channel import Bound, Decoder, Enforced, Events, Failed, Stop, encode
from nfq_enforcer.dataplane.worker.counters import Counters
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 18
_PATIENCE = 10.0  # seconds for a worker to bind, to take a snapshot, or to end
_PAUSE = 0.2  # seconds between two attempts to replace a worker
_MAX_UNREAD = 64 << 20  # bytes; a million peers at once are half of that


class WorkerProcess:
    """One worker, or the one that has taken its place; counters go on from one to the next."""

    def __init__(
        self, queues: QueueNumbers, setup: Callable[[], Iterable[bytes]], on_events: Callable[[Events], None]
    ) -> None:
        """Take the worker's queues, and whom to ask what one that starts is to be sent; nothing is started yet."""
        self.queues = queues  # from the start on, those that the driver has bound
        self.driver = ""  # from the start on, that which was chosen
        self.restarts = 0
        self.failure: str | None = None  # why the worker cannot be replaced at the moment
        self._setup = setup
        self._on_events = on_events
        self._memory = Counters.create()
        self.counters = Counters(self._memory)
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

    async def start(self) -> None:
        """Start the worker and return when its queues are bound; raise NfqError if it cannot be."""
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    def send(self, message: bytes) -> None:
        """Send an encoded message; one that starts later is not told, but begins with what is so by then."""
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() < _MAX_UNREAD:
            self._writer.write(message)
        elif self._process is not None and self._process.returncode is None:
            _log.error("the worker of queue %d does not read what it is sent; it is killed", self.queues.judged)
            self._process.kill()
            self._writer.transport.abort()

    async def taken(self, revision: int) -> None:
        """Return when every packet is judged by this revision; raise NfqError if that takes too long."""
        try:
            async with asyncio.timeout(_PATIENCE), self._progress:
                await self._progress.wait_for(lambda: self._revision >= revision)
        except TimeoutError:
            raise NfqError(f"the worker of queue {self.queues.judged} has not taken revision {revision}") from None

    async def stop(self) -> None:
        """Have the worker answer what waits and end; one that does not end is killed."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self.send(encode(Stop()))
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
                *(sys.executable, "-P", "-m", "nfq_enforcer.dataplane.worker.worker"),
                *(str(theirs.fileno()), str(self._memory)),
                pass_fds=(theirs.fileno(), self._memory),
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        bound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader, bound))
        for message in self._setup():  # as things are now: what changes from here on is sent after it
            self.send(message)
        try:
            async with asyncio.timeout(_PATIENCE):
                await bound
        except TimeoutError:
            self._process.kill()
            raise NfqError(
                f"the worker of queue {self.queues.judged} did not start within {_PATIENCE:.0f} seconds"
            ) from None
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
            bound.set_exception(NfqError(f"the worker of queue {self.queues.judged} ended before it had its queue"))

    async def _hear(self, message: object, bound: "asyncio.Future[None]") -> None:
        if isinstance(message, Events):
            self._on_events(message)
        elif isinstance(message, Enforced):
            await self._note(message.revision)
        elif isinstance(message, Bound):
            self.driver, self.queues = message
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
            _log.error("the worker of queue %d ended with status %d; starting another", self.queues.judged, status)
            await self._hang_up()
            await self._replace()

    async def _replace(self) -> None:
        while True:
            try:
                await self._spawn()
            except (NfqError, OSError) as error:
                self.failure = str(error)
                _log.error("the worker of queue %d cannot be replaced: %s", self.queues.judged, error)
                await asyncio.sleep(_PAUSE)
            else:
                self.failure = None
                _log.info("queue %d is judged again, by process %s", self.queues.judged, self.pid)
                return

    async def _hang_up(self) -> None:
        if self._reading is not None:
            await self._reading  # what the worker has said before its end still counts
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
