"""The agent's side of a worker: start of the process, messages to it, and its replacement when it dies.

A worker that replaces another starts with the complete current state. A worker without a heartbeat is stuck (see
``liveness``): it is killed and replaced, also while it starts. So is a worker that does not read its messages, before
too many bytes wait for it.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.channel import Release, Stop, encode, report_decoder
from nfq_enforcer.dataplane.worker.counters import Counters
from nfq_enforcer.dataplane.worker.flow_list import FlowList, ListFlows
from nfq_enforcer.dataplane.worker.heartbeat import Heartbeat
from nfq_enforcer.dataplane.worker.packet_reports import Packets
from nfq_enforcer.dataplane.worker.reports import (
    Applied,
    Bound,
    Enforced,
    Events,
    InvalidReport,
    NamesLearned,
    Report,
    SlotWanted,
)
from nfq_enforcer.dataplane.worker.state import Stuck, WorkerState
from nfq_enforcer.dataplane.worker.timings import WorkerTimings
from nfq_enforcer.errors import NfqError
from nfq_enforcer.tasks import cancel

_log = logging.getLogger(__name__)
_RECEIVE_BYTES = 1 << 18
_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # where an interpreter finds its files, if it needs it
_ANSWER = 3.0  # s for the answer to a question


class DetachedWorker(NamedTuple):
    """Detached worker: a worker that goes on without this agent, until its channel closes."""

    pid: int
    channel: int  # descriptor of the agent's end
    queues: tuple[int, ...]


class _Progress:
    """Progress: a number that grows, and the tasks that wait for it."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def reach(self, number: int) -> None:
        self._number = max(self._number, number)
        waiting, self._waiting = self._waiting, []
        for wanted, future in waiting:
            if wanted > self._number:
                self._waiting.append((wanted, future))
            elif not future.done():
                future.set_result(None)

    async def wait(self, number: int) -> None:
        if self._number < number:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((number, future))
            await future


class WorkerProcess:
    """Worker process: one worker and its replacements; counters continue from one to the next."""

    def __init__(
        self,
        queues: QueueNumbers,
        setup: Callable[[], Iterable[bytes]],
        on_events: Callable[[Events], None],
        on_request: Callable[["WorkerProcess", NamesLearned | SlotWanted | Packets], None],
        timings: WorkerTimings,
    ) -> None:
        """Keep the worker's queues and the function that returns the first messages for one; start nothing yet."""
        self.queues = queues  # once started: those that the driver has bound
        self.driver = Driver.AUTO  # once started: the one in use
        self.restarts = 0
        self.failure: str | None = None  # reason why the worker cannot be replaced at the moment
        self._setup = setup
        self._on_events = on_events
        self._on_request = on_request
        self._changes = _Progress()  # of names and slots
        self._timings = timings
        self._memory = Counters.create()
        self.counters = Counters(self._memory)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._heartbeat = Heartbeat(self.counters, timings)
        self._checking: asyncio.Task[None] | None = None
        self._revision = -1  # in force in the worker
        self._revision_changed = asyncio.Condition()
        self._questions: dict[int, asyncio.Future[FlowList]] = {}  # by number, until they are answered
        self._asked = count()

    @property
    def pid(self) -> int | None:
        """Return the worker's process id, None while no process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def revision(self) -> int | None:
        """Return the revision by which the running process decides packets; None before its first one."""
        return self._revision if self.pid is not None and self._heartbeat.bound and self._revision >= 0 else None

    @property
    def state(self) -> WorkerState:
        """Return the state of the worker."""
        running, heartbeat = self.pid is not None, self._heartbeat
        stuck = None
        if not (running and heartbeat.working):
            reason = heartbeat.evidence if running else self.failure or "the process has ended and is being replaced"
            stuck = Stuck(heartbeat.worked, reason)
        return WorkerState(
            tuple(sorted(self.queues.all)), self.pid, self.restarts, self.failure, self.counters.read(), stuck
        )

    async def start(self) -> None:
        """Start the worker and return when its queues are bound; raise NfqError if they cannot be bound."""
        await self._spawn()
        self._watching = asyncio.create_task(self._watch())

    def send(self, message: bytes) -> None:
        """Send an encoded message; without a process do nothing, because the next one starts with the current state."""
        if self._writer is None or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() < self._timings.unread_bytes:
            self._writer.write(message)
        elif self.pid is not None:
            _log.error("the worker of queue %d does not read its messages; killing it", self.queues.headers)
            self._kill()
            self._writer.transport.abort()

    async def wait_enforced(self, revision: int) -> None:
        """Return when this revision decides every packet; raise NfqError if the worker makes no progress towards it.

        A large policy takes longer than any fixed limit. So the limit is for the time in which the worker has read none
        of the messages that wait for it.
        """
        unread = self._unread
        while True:
            try:
                async with asyncio.timeout(self._timings.response), self._revision_changed:
                    await self._revision_changed.wait_for(lambda: self._revision >= revision)
                    return
            except TimeoutError:
                before, unread = unread, self._unread
                if unread >= before:
                    raise NfqError(
                        f"the worker of queue {self.queues.headers} has not put revision {revision} in force"
                    ) from None

    async def wait_applied(self, number: int) -> None:
        """Return when the worker has these changes of names or slots; raise NfqError if that takes too long."""
        try:
            async with asyncio.timeout(self._timings.hold):
                await self._changes.wait(number)
        except TimeoutError:
            raise NfqError(
                f"the worker of queue {self.queues.headers} has not applied changes of names or slots"
            ) from None

    def release(self, number: int) -> None:
        """Have the worker deliver the DNS answer that it holds under this number."""
        self.send(encode(Release(number)))

    @property
    def _unread(self) -> int:
        """Return the bytes of messages that wait for the worker."""
        return self._writer.transport.get_write_buffer_size() if self._writer is not None else 0

    async def list_flows(
        self, sources: frozenset[bytes] | None = None, targets: frozenset[bytes] | None = None
    ) -> FlowList | None:
        """Return the worker's flows of these addresses; None if it does not answer in time."""
        number = next(self._asked)
        answer: asyncio.Future[FlowList] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.send(encode(ListFlows(number, sources, targets)))
        try:
            async with asyncio.timeout(_ANSWER):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._questions.pop(number, None)

    async def stop(self) -> None:
        """Stop the worker after verdicts for waiting packets; kill it if it does not end."""
        await cancel(self._watching)
        if self._process is not None and self._process.returncode is None:
            self.send(encode(Stop()))
            try:
                async with asyncio.timeout(self._timings.response):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._cancel_check()
        await self._close_channel()
        self.counters.close()
        os.close(self._memory)

    async def detach(self) -> DetachedWorker | None:
        """Stop watching the worker, which goes on; return None if no process runs."""
        await cancel(self._watching, self._checking, self._reading)
        self._watching = self._checking = self._reading = None
        if self.pid is None or self._writer is None:
            return None
        channel: int = self._writer.get_extra_info("socket").fileno()
        return DetachedWorker(self.pid, channel, tuple(sorted(self.queues.all)))

    async def _spawn(self) -> None:
        agent_end, worker_end = socket.socketpair()
        with worker_end:
            # -P: the worker has no current directory in sys.path. The descriptors keep their numbers in the child; all
            # others are closed. The environment of the agent may contain the store's password.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "nfq_enforcer.dataplane.worker.worker"),
                *(str(worker_end.fileno()), str(self._memory)),
                pass_fds=(worker_end.fileno(), self._memory),
                start_new_session=True,  # see ``priority``
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
        self._heartbeat.bound = False
        reader, self._writer = await asyncio.open_unix_connection(sock=agent_end)
        bound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._checking = asyncio.create_task(self._check_heartbeat(self._process, bound))
        self._reading = asyncio.create_task(self._read(reader, bound))
        # The setup has the current state. No other task runs between here and the last ``send``, so every later change
        # follows the setup and none is lost.
        for message in self._setup():
            self.send(message)
        try:
            async with asyncio.timeout(self._timings.response):
                await bound
        except TimeoutError:
            await self._discard()
            raise NfqError(
                f"the worker of queue {self.queues.headers} did not start within {self._timings.response:.0f} seconds"
            ) from None
        except NfqError:
            await self._discard()
            raise

    def _kill(self) -> None:
        """Kill the process, if it runs; ``_watch`` replaces it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _discard(self) -> None:
        """End a process that has not bound its queues, and its channel."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._cancel_check()
        await self._close_channel()

    async def _check_heartbeat(self, process: asyncio.subprocess.Process, bound: "asyncio.Future[None]") -> None:
        """Kill the process once it is stuck; ``_watch`` replaces it."""
        evidence = await self._heartbeat.stuck(process.pid)
        if process.returncode is not None:
            return
        _log.error("the worker of queue %d is stuck (%s); killing it", self.queues.headers, evidence)
        process.kill()
        if not bound.done():
            failure = f"the worker of queue {self.queues.headers} is stuck at its start: {evidence}"
            bound.set_exception(NfqError(failure))

    async def _cancel_check(self) -> None:
        await cancel(self._checking)
        self._checking = None

    async def _read(self, reader: asyncio.StreamReader, bound: "asyncio.Future[None]") -> None:
        decoder = report_decoder()
        try:
            while data := await reader.read(_RECEIVE_BYTES):
                for message in decoder.feed(data):
                    await self._handle_message(message, bound)
        except ConnectionError:
            pass
        except InvalidReport as error:
            _log.error("the worker of queue %d sent an invalid report (%s); killing it", self.queues.headers, error)
            self._kill()
        if not bound.done():
            bound.set_exception(NfqError(f"the worker of queue {self.queues.headers} ended before it bound its queue"))

    async def _handle_message(self, message: Report, bound: "asyncio.Future[None]") -> None:
        if isinstance(message, Events):
            self._on_events(message)
        elif isinstance(message, Enforced):
            await self._set_revision(message.revision)
        elif isinstance(message, NamesLearned | SlotWanted | Packets):
            self._on_request(self, message)
        elif isinstance(message, Applied):
            self._changes.reach(message.number)
        elif isinstance(message, FlowList):
            waiting = self._questions.pop(message.request, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, Bound):
            if not message.queues.all <= self.queues.all:
                raise InvalidReport("queues of another worker")
            self.driver, self.queues = message
            self._heartbeat.bound = True
            if not bound.done():
                bound.set_result(None)
        elif not bound.done():
            bound.set_exception(NfqError(message.reason))

    async def _set_revision(self, revision: int) -> None:
        async with self._revision_changed:
            self._revision = revision
            self._revision_changed.notify_all()

    async def _watch(self) -> None:
        """Replace the worker whenever it ends."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            await self._cancel_check()
            self.restarts += 1
            _log.error("the worker of queue %d ended with status %d; starting another", self.queues.headers, status)
            await self._close_channel()
            await self._replace()

    async def _replace(self) -> None:
        while True:
            try:
                await self._spawn()
            except (NfqError, OSError) as error:
                self.failure = str(error)
                _log.error("the worker of queue %d cannot be replaced: %s", self.queues.headers, error)
                await asyncio.sleep(self._timings.restart)
            else:
                self.failure = None
                _log.info("queue %d has a worker again, process %s", self.queues.headers, self.pid)
                return

    async def _close_channel(self) -> None:
        if self._reading is not None:
            await self._reading  # events that the worker sent before its end still count
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
