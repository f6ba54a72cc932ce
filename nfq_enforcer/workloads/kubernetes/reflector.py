"""Reflector: mirrors one kind of objects from the API server, by a paged list and then by watches.

Each object is projected to a small value on arrival, and only this value is kept. A watch continues at the version
where the last one ended, so nothing is missed; where the server no longer has that version (410, as a status or as an
event within a stream), the objects are listed again and the differences are found, deletions among them. After faults
of the server, or of the way to it, further attempts follow with growing pauses and jitter: the last state stays
meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nfq_enforcer.workloads.kubernetes.client import ApiClient, ApiError, Gone, Json

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_NOT_FOUND, _GONE = 404, 410


class Name(NamedTuple):
    """Name: namespace and name of an object; the namespace of objects of the whole cluster is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Render as ``namespace/name`` or ``name``."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Sink(Protocol[T_contra]):
    """Sink: receives the objects of a kind, projected."""

    def replace(self, objects: Mapping[Name, T_contra], version: str) -> None:
        """Receive all objects that exist, as of a resourceVersion."""

    def put(self, name: Name, value: T_contra) -> None:
        """Receive a new or changed object."""

    def remove(self, name: Name, version: str) -> None:
        """Receive the deletion of an object, at a resourceVersion."""


class State(StrEnum):
    """State: of a reflector."""

    STARTING = "starting"  # no list is complete yet
    WATCHING = "watching"
    NOT_INSTALLED = "not installed"  # the server does not have the kind (404)
    AWAY = "away"  # the last attempt failed


@dataclass(frozen=True)
class Timings:
    """Timings of a reflector, in seconds, and the size of a page."""

    shortest_watch: float = 240.0  # watches end after a random time between these two: not all nodes come back at once
    longest_watch: float = 480.0
    grace: float = 30.0  # for the end of a watch that the server should have ended
    first_pause: float = 0.25  # after a failure, doubled by each further one
    longest_pause: float = 30.0
    not_installed: float = 60.0  # until a kind that the server does not have is looked for again
    page: int = 500  # objects


@dataclass
class Counts:
    """Counts: events and failures of a reflector so far."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    expired: int = 0  # versions with a history that the server no longer had
    failures: int = 0


@dataclass
class Progress:
    """Progress: the state of a reflector, for the status."""

    state: State = State.STARTING
    since: float = field(default_factory=time.time)  # seconds since the epoch
    error: str | None = None  # of the last attempt, if it failed
    counts: Counts = field(default_factory=Counts)

    def become(self, state: State, error: str | None = None) -> bool:
        """Record a state; return whether state or error differ from before."""
        changed = (state, error) != (self.state, self.error)
        if state is not self.state:
            self.since = time.time()
        self.state, self.error = state, error
        return changed


class Reflector(Generic[T]):
    """Reflector: keeps a sink at the objects of one kind that the API server has."""

    def __init__(
        self,
        client: ApiClient,
        paths: Sequence[str],
        project: Callable[[Json], T],
        sink: Sink[T],
        *,
        field_selector: str = "",
        label_selector: str = "",
        timings: Timings | None = None,
    ) -> None:
        """Take the paths of the collection: several are those of several versions, tried in turn.

        ``project`` returns the value to keep of an object, and raises ValueError for an object that it cannot read.
        """
        self._client = client
        self._paths = tuple(paths)
        self._path = self._paths[0]
        self._project = project
        self._sink = sink
        selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._params = {name: selector for name, selector in selectors.items() if selector}
        self._timings = timings or Timings()
        self._version: str | None = None  # None: the next step is a list
        self._was_gone = False  # the last failure was an expired version
        self.objects: dict[Name, T] = {}
        self.progress = Progress()
        self.synced = asyncio.Event()  # set once a list is complete, or the server does not have the kind
        self.on_change: Callable[[], None] = lambda: None  # called when the state changes

    async def run(self) -> None:
        """List and watch; never return."""
        failures = 0
        while True:
            events = self.progress.counts.events
            try:
                if self._version is None:
                    await self._list()
                await self._watch(self._version)
                failures, self._was_gone = 0, False
                continue
            except Gone as gone:
                self.progress.counts.expired += 1
                self._version = None
                error: ApiError = gone
            except ApiError as failure:
                error = failure
            if self.progress.counts.events > events:
                failures, self._was_gone = 0, False  # it has worked since
            await asyncio.sleep(self._pause_after(error, failures))
            failures += 1

    def _pause_after(self, error: ApiError, failures: int) -> float:
        """Record a failure; return the seconds until the next attempt."""
        repeated, self._was_gone = self._was_gone, isinstance(error, Gone)
        if self._was_gone and not repeated:
            return 0.0  # a list is due, and no failure
        self.progress.counts.failures += 1
        if error.status == _NOT_FOUND:
            return self._on_not_found(error)
        self._become(State.AWAY, str(error))
        if failures >= 2 and error.status:
            # for example 504 "too large resource version", after a restore of etcd: a list is right after any fault
            self._version = None
        pause: float = min(self._timings.longest_pause, self._timings.first_pause * 2.0 ** min(failures, 20))
        return max(min(error.pause, self._timings.longest_pause), pause * random.uniform(0.5, 1))

    def _on_not_found(self, error: ApiError) -> float:
        """Try the path of the next version, or wait: known objects stay, as a server that starts answers so too."""
        self._version = None
        place = self._paths.index(self._path) + 1
        self._path = self._paths[place % len(self._paths)]
        if place < len(self._paths):
            return 0.0
        if self.objects:
            self._become(State.AWAY, f"{error}; the {len(self.objects)} known objects stay in force")
        else:
            self._become(State.NOT_INSTALLED)
            self.synced.set()
        return self._timings.not_installed * random.uniform(0.9, 1.1)

    def _become(self, state: State, error: str | None = None) -> None:
        if self.progress.become(state, error):
            self.on_change()

    async def _list(self) -> None:
        """List all objects, page by page; hand them to the sink as the full state."""
        self.progress.counts.lists += 1
        found: dict[Name, T] = {}
        params = {"limit": str(self._timings.page), **self._params}
        while True:
            page = await self._client.get(self._path, params)
            meta, items = page.get("metadata"), page.get("items")
            if not isinstance(meta, dict) or not isinstance(items or [], list) or not meta.get("resourceVersion"):
                raise ApiError(f"{self._path}: the answer is no list")
            for item in items or ():
                name, value = self._read(item)
                found[name] = value
            if not meta.get("continue"):
                break
            params["continue"] = str(meta["continue"])
        self.objects = found
        self._version = str(meta["resourceVersion"])
        self._sink.replace(found, self._version)
        self.synced.set()
        self._become(State.WATCHING)

    async def _watch(self, version: str | None) -> None:
        """Hand each event to the sink, until the server ends the watch."""
        self.progress.counts.watches += 1
        timings = self._timings
        timeout = random.uniform(timings.shortest_watch, timings.longest_watch)
        params = {
            **{"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": str(version)},
            **{"timeoutSeconds": str(max(1, round(timeout))), **self._params},
        }
        begun, events_before = time.monotonic(), self.progress.counts.events
        async with aclosing(self._client.watch(self._path, params, timeout + timings.grace)) as events:
            async for event in events:
                self._apply(event)
                self._become(State.WATCHING)
        self._become(State.WATCHING)
        useless = self.progress.counts.events == events_before  # a busy server ends watches that it cannot serve
        if useless and time.monotonic() - begun < 1 <= timings.shortest_watch:
            raise ApiError(f"{self._path}: the server has ended a watch at once")

    def _apply(self, event: Json) -> None:
        """Hand one event to the sink; raise Gone or ApiError for the error of a stream."""
        kind, item = event.get("type"), event.get("object")
        if not isinstance(item, dict):
            raise ApiError(f"{self._path}: a watch event without an object")
        if kind == "ERROR":
            raise _stream_error(self._path, item)
        version = (item.get("metadata") or {}).get("resourceVersion")
        if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not version:
            raise ApiError(f"{self._path}: a watch event of the type '{kind}' without a resourceVersion")
        if kind == "BOOKMARK":
            self.progress.counts.bookmarks += 1
        else:
            self.progress.counts.events += 1
            name, value = self._read(item)
            if kind == "DELETED":
                if self.objects.pop(name, None) is not None:
                    self._sink.remove(name, str(version))
            elif name not in self.objects or self.objects[name] != value:
                self.objects[name] = value
                self._sink.put(name, value)
        self._version = str(version)

    def _read(self, item: Any) -> tuple[Name, T]:
        """Return name and value of an object; raise ApiError for one that cannot be read."""
        try:
            meta = item["metadata"]
            return Name(str(meta.get("namespace") or ""), str(meta["name"])), self._project(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ApiError(f"{self._path}: an object cannot be read: {error!r}") from None


def _stream_error(path: str, status: Json) -> ApiError:
    code = status.get("code")
    kind = Gone if code == _GONE else ApiError
    return kind(f"{path}: error {code} in a watch: {status.get('message')}", code if isinstance(code, int) else 0)
