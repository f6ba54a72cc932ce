"""Watch of a daemon's containers: a list, then events, each of which is only a reason to look at one container.

The events are subscribed to before the list is read, so no change between both is lost. A list at an interval finds
the rest: lost events, and bridges that pass their frames to the hooks of IP from now on, or no longer.

A container that starts is an endpoint before its first process runs: Docker assigns its addresses some tenths of a
second earlier. Docker answers questions about it only when it has started, so its labels then come from the list of
containers, its addresses from its networks. Its interface follows at the start.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.simulation import limited_list
from nfq_enforcer.tasks import cancel
from nfq_enforcer.text import printable, shorten
from nfq_enforcer.workloads.containers.container import AnswerError, Container, Summary, inspected, joined, summaries
from nfq_enforcer.workloads.containers.daemon import DaemonError, connected
from nfq_enforcer.workloads.containers.projection import Attached, Projection, project
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import PODMAN

_log = logging.getLogger(__name__)
_ENDED = {"die", "died", "destroy", "remove"}  # the container has no process any more
_CHANGED = {"init", "start", "restart", "rename", "update", "unpause", "connect", "disconnect"}
_AT_ONCE = 16  # looks
_ID_CHARACTERS = 12  # by which the command line of Docker shows a container

ReadAttachments = Callable[[int], Mapping[bytes, Attached]]
"""Returns the attachments of a process's addresses; raises OSError for a process that has ended."""


class DaemonClient(Protocol):
    """Daemon client: the requests that the watch makes (``daemon.Daemon``)."""

    async def running(self) -> Any:
        """Return all active containers."""

    async def summary(self, container: str) -> Any:
        """Return the list of one container."""

    async def inspect(self, container: str) -> Any:
        """Return one container, None if it does not exist."""

    async def network(self, network: str) -> Any:
        """Return one network, None if it does not exist."""

    def events(self, since: float) -> AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]:
        """Give the events from a time on."""


@dataclass(frozen=True)
class WatchTimings:
    """Timings of the watch, in seconds."""

    interval: float = 5.0  # between two lists
    starting: float = 60.0  # longest from the addresses of a container to its start
    changing: float = 3.0  # longest from a change of a container to its endpoint in force
    first_pause: float = 0.2  # until the first attempt to reach the daemon again; doubled by each further failure
    longest_pause: float = 5.0
    overlap: float = 2.0  # events are asked for from this long before the subscription on


@dataclass
class _Known:
    """Known container: the endpoints that were registered for it."""

    container: Container
    projection: Projection
    since: float  # monotonic time of its first addresses

    @property
    def starts(self) -> bool:
        """Tell whether it has addresses but no process yet."""
        return not self.container.process


@dataclass
class _Look:
    """Look at one container that is under way."""

    task: "asyncio.Task[None]"
    again: bool = False  # the container has changed meanwhile


class _Seen(NamedTuple):
    """Seen container: as the daemon describes it, with its attachments in this host's kernel."""

    container: Container
    attachments: Mapping[bytes, Attached] | None  # None: it starts


class ContainerWatch:
    """Container watch: registers the endpoints of the containers of one daemon. It is a ``WorkloadSource``."""

    def __init__(
        self,
        name: str,
        socket: str,
        node: str,
        registrar: Registrar,
        attachments: ReadAttachments,
        runs_proxies: Callable[[], bool] = lambda: False,
        *,
        timings: WatchTimings | None = None,
        connect: Callable[[str], AbstractAsyncContextManager[DaemonClient]] = connected,
    ) -> None:
        """Set the source's name (docker or podman), the daemon's socket, this node, and the parts to use.

        ``runs_proxies`` tells whether processes connect to published ports as the host, to which policy allows that.
        """
        self.name = name
        self._socket = socket
        self._node = node
        self._registrar = registrar
        self._attachments = attachments
        self._runs_proxies = runs_proxies
        self._proxied = False  # as of the last list
        self._timings = timings or WatchTimings()
        self._connect = connect
        self._known: dict[str, _Known] = {}  # by id
        self._looks: dict[str, _Look] = {}
        self._joining: dict[str, set[str]] = {}  # networks of each container that starts
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._complete = False  # a list has been registered
        self._ended: dict[str, float] = {}  # monotonic time of the end of endpoints, for a while
        self._unreadable: dict[str, str] = {}  # sentence by id
        self._failure: DaemonError | None = None  # of a look
        self._broken = asyncio.Event()

    async def run(self) -> None:
        """Register the containers, and each change of them; never return."""
        pause = self._timings.first_pause
        while True:
            begun = time.monotonic()
            try:
                async with self._connect(self._socket) as daemon:
                    await self._session(daemon)
                reason = f"{self._socket}: the daemon has ended the stream of events"
            except DaemonError as error:
                reason = str(error)
            finally:
                await cancel(*(look.task for look in self._looks.values()))
                self._looks.clear()
            self._registrar.note_problem(self.name, printable(reason))
            if time.monotonic() - begun > self._timings.longest_pause:
                pause = self._timings.first_pause
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, self._timings.longest_pause)

    async def _session(self, daemon: DaemonClient) -> None:
        """Follow the daemon until its events end; raise DaemonError."""
        self._broken.clear()
        self._failure = None
        async with daemon.events(time.time() - self._timings.overlap) as events:
            await self._list(daemon)
            self._registrar.note_problem(self.name, None)
            works = [self._follow(daemon, events), self._list_repeatedly(daemon), self._break()]
            tasks = [asyncio.create_task(work) for work in works]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                await cancel(*tasks)

    async def _break(self) -> None:
        await self._broken.wait()
        if self._failure is not None:
            raise self._failure

    async def _follow(self, daemon: DaemonClient, events: AsyncIterator[Mapping[str, Any]]) -> None:
        async for event in events:
            self._on_event(daemon, event)

    def _on_event(self, daemon: DaemonClient, event: Mapping[str, Any]) -> None:
        """Look at the container of an event; one that has ended is removed at once: its address is free by now."""
        actor = event.get("Actor")
        actor = actor if isinstance(actor, Mapping) else {}
        attributes = actor.get("Attributes")
        attributes = attributes if isinstance(attributes, Mapping) else {}
        action, subject = str(event.get("Action", "")), str(actor.get("ID", ""))
        if event.get("Type") == "network":
            container = str(attributes.get("container") or subject)
            if action == "connect":
                self._joining.setdefault(container, set()).add(subject)
            if action in ("connect", "disconnect"):
                self._look(daemon, container)
        elif action in _ENDED:
            self._forget(subject)
            self._look(daemon, subject)
        elif action in _CHANGED:
            self._look(daemon, subject)

    # -- looks at one container ---------------------------------------------------------------------------------------

    def _look(self, daemon: DaemonClient, container: str) -> None:
        """Look at a container in a task of its own; if it changes meanwhile, the task begins again."""
        look = self._looks.get(container)
        if look is None:
            self._looks[container] = _Look(asyncio.create_task(self._look_until_current(daemon, container)))
        else:
            look.again = True

    async def _look_until_current(self, daemon: DaemonClient, container: str) -> None:
        await asyncio.sleep(0)  # the caller registers the look
        look = self._looks[container]
        try:
            while True:
                look.again = False
                async with self._slots:
                    seen = await self._see(daemon, container)
                if not look.again:
                    break
            self._take(container, seen)
        except AnswerError as error:
            self._note_unreadable(container, error)
        except DaemonError as error:
            self._failure = error
            self._broken.set()
        finally:
            del self._looks[container]

    def _note_unreadable(self, container: str, error: AnswerError) -> None:
        """Record that a container cannot be read; its last endpoints stay."""
        problem = f"container {shorten(container, _ID_CHARACTERS)} cannot be read: {error}"
        if self._unreadable.get(container) != problem:
            _log.warning("%s", problem)
        self._unreadable[container] = problem

    async def _see(self, daemon: DaemonClient, container: str) -> _Seen | None:
        """Return a container that is active or starts, None for any other."""
        found = [one for one in self._summaries(await daemon.summary(container)) if one.id == container]
        if not found:
            return None
        summary = found[0]
        joining = self._joining.get(container, set())
        if summary.is_active or (not joining and self._inspects_starting):
            return await self._inspect(daemon, container)
        if not joining:
            return None
        answers = [await daemon.network(network) for network in sorted(joining)]
        named = {str(answer.get("Name")): answer for answer in answers if isinstance(answer, Mapping)}
        starting = joined(summary, named)
        return _Seen(starting, None) if any(network.addresses for network in starting.networks) else None

    @property
    def _inspects_starting(self) -> bool:
        """Tell whether the daemon answers about a container that starts: Podman with its process, Docker waits."""
        return self.name == PODMAN

    async def _inspect(self, daemon: DaemonClient, container: str) -> _Seen | None:
        answer = await daemon.inspect(container)
        return None if answer is None else await self._attached(inspected(answer))

    async def _attached(self, container: Container) -> _Seen | None:
        """Return an active container with its attachments; None if it has no process."""
        if not container.process:
            return None
        try:
            return _Seen(container, await asyncio.to_thread(self._attachments, container.process))
        except OSError:  # it has just ended
            return None

    # -- lists --------------------------------------------------------------------------------------------------------

    async def _list_repeatedly(self, daemon: DaemonClient) -> None:
        while True:
            await asyncio.sleep(self._timings.interval)
            await self._list(daemon)

    async def _list(self, daemon: DaemonClient) -> None:
        """Look at the active containers that are not as before, and at those that are active no more."""
        active = {one.id: one for one in self._summaries(await daemon.running()) if one.is_active}
        self._proxied = await asyncio.to_thread(self._runs_proxies)
        if not self._complete:
            await self._list_first(daemon, active)
            return
        for container, known in list(self._known.items()):
            starts = known.starts and time.monotonic() - known.since < self._timings.starting
            if container not in active and not starts:
                self._joining.pop(container, None)
                self._look(daemon, container)
        for container, summary in active.items():
            before = self._known.get(container)
            seen = None
            if before is not None and summary.describes(before.container):
                seen = await self._attached(before.container)
            if seen is None:
                self._look(daemon, container)
            elif self._known.get(container) is before:
                self._take(container, seen)

    def _summaries(self, answer: Any) -> list[Summary]:
        try:
            return summaries(answer)
        except AnswerError as error:
            raise DaemonError(f"{self._socket}: {error}") from None

    async def _list_first(self, daemon: DaemonClient, active: Iterable[str]) -> None:
        async def inspect(container: str) -> _Seen | None:
            try:
                async with self._slots:
                    return await self._inspect(daemon, container)
            except AnswerError as error:
                self._note_unreadable(container, error)
                return None

        for seen in await asyncio.gather(*map(inspect, sorted(active))):
            if seen is not None:
                self._known[seen.container.id] = _Known(seen.container, self._project(seen), time.monotonic())
        self._registrar.replace(self.name, self._endpoints())
        self._complete = True

    # -- registration -------------------------------------------------------------------------------------------------

    def _take(self, container: str, seen: _Seen | None) -> None:
        """Register the endpoints of a container as it is now; None: it has ended."""
        self._unreadable.pop(container, None)
        if seen is None:
            self._forget(container)
            return
        if seen.container.process:
            self._joining.pop(container, None)
        before, projection = self._known.get(container), self._project(seen)
        since = before.since if before else time.monotonic()
        self._known[container] = _Known(seen.container, projection, since)
        old = {_full_name(one): one for one in before.projection.endpoints} if before else {}
        new = {_full_name(one): one for one in projection.endpoints}
        for name in old.keys() - new.keys():
            self._remove(name)
        for name, endpoint in new.items():
            if old.get(name) != endpoint:
                self._registrar.put(self.name, endpoint)
        for problem in set(projection.problems) - set(before.projection.problems if before else ()):
            _log.warning("%s", problem)

    def _forget(self, container: str) -> None:
        """Remove the endpoints of a container that has ended."""
        self._joining.pop(container, None)
        self._unreadable.pop(container, None)
        known = self._known.pop(container, None)
        for endpoint in known.projection.endpoints if known else ():
            self._remove(_full_name(endpoint))

    def _remove(self, name: str) -> None:
        now = time.monotonic()
        self._ended = {other: at for other, at in self._ended.items() if now - at < self._timings.changing} | {
            name: now
        }
        self._registrar.remove(self.name, name)

    def _project(self, seen: _Seen) -> Projection:
        taken = {
            _full_name(endpoint)
            for other, known in self._known.items()
            if other != seen.container.id
            for endpoint in known.projection.endpoints
        }
        return project(seen.container, self._node, seen.attachments, taken)

    def _endpoints(self) -> Iterator[Endpoint]:
        for known in self._known.values():
            yield from known.projection.endpoints

    # -- status -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the socket, the number of containers with an endpoint, those that change, and sentences."""
        known = self._known.values()
        return {
            "socket": self._socket,
            "containers": sum(bool(one.projection.endpoints) for one in known),
            "changing": list(self.changing()),
            "problems": list(self.problems()),
        }

    def changing(self) -> Iterator[str]:
        """Yield the endpoints with an interface that is not in force yet, or gone already."""
        now = time.monotonic()
        for known in self._known.values():
            if known.starts or now - known.since < self._timings.changing:
                yield from map(_full_name, known.projection.endpoints)
        yield from (name for name, at in self._ended.items() if now - at < self._timings.changing)

    def problems(self) -> Iterator[str]:
        """Yield the reasons for which containers are no endpoints, or policy does not see some of their traffic."""
        projections = [known.projection for known in self._known.values()]
        yield from sorted(problem for one in projections for problem in one.problems)
        yield from sorted(self._unreadable.values())
        publishing = sorted(known.container.name for known in self._known.values() if known.container.published)
        if self._proxied and publishing:
            yield (
                f"containers of this host reach published ports of others ({limited_list(publishing)}) as the host, by "
                "Docker's userland proxy, and policy allows that: set userland-proxy to false in Docker's daemon.json, "
                "or allow_localhost to policy"
            )
        if bridges := sorted({bridge for one in projections for bridge in one.unseen}):
            yield (
                f"no policy applies between containers on one bridge ({limited_list(bridges)}), because their traffic "
                "does not pass the rules of this host: load br_netfilter, and set net.bridge.bridge-nf-call-iptables "
                "and net.bridge.bridge-nf-call-ip6tables to 1"
            )


def _full_name(endpoint: Endpoint) -> str:
    return f"{endpoint.namespace}/{endpoint.name}"
