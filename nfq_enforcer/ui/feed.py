"""Feed: the flows of one filter, kept and aggregated, for every reader of the page with that filter.

An agent gets one stream for each filter, however many pages show it. A reader takes the difference between the map now
and the map that it has, whenever it can send: a slow reader gets fewer and larger differences, and costs nobody else
anything. While the agent is away, the feed keeps its flows, tries again, and reports since when.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.service_map import Seen, ServiceMap, read_flow
from nfq_enforcer.tasks import cancel
from nfq_enforcer.text import printable
from nfq_enforcer.ui.agent_link import AgentLink

KEPT = 8_192  # flows of one filter, as JSON: about 10 MB
MAX_FEEDS = 8  # filters at a time
_AGAIN = 1.0  # s until an agent that is away is tried again
_TICK = 5.0  # s between two computations of the rates
_LINGER = 10.0  # s that a feed without readers goes on, so that a page that reloads finds its map

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""Errors of what is no flow."""

Clock = Callable[[], float]


class KeptFlow(NamedTuple):
    """KeptFlow: one flow, and its JSON for those who ask for more."""

    seen: Seen
    text: bytes


class Feed:
    """Feed: follows an agent with one filter."""

    def __init__(self, link: AgentLink, params: Mapping[str, Any], clock: Clock = time.time) -> None:
        """Set the agent, and the parameters of its method ``observe``."""
        self._link, self._params, self._clock = link, params, clock
        self.map = ServiceMap()
        self.kept: deque[KeptFlow] = deque(maxlen=KEPT)
        self.lost = 0  # flows that the agent's log dropped because this process read too slowly
        self.unreadable = 0
        self.node = ""  # that the newest flow comes from
        self.error = "connecting"  # of the agent; empty while its flows arrive
        self.away_since: float | None = clock()
        self.version = 0  # number of changes of the map or of the state
        self._fresh = asyncio.Event()  # set at each change, then replaced
        self._held: frozenset[bytes] = frozenset()  # flows that the agent may send once more, after a reconnection

    async def run(self) -> None:
        """Follow the agent until cancelled; an agent that is away is tried again and again."""
        ticking = asyncio.create_task(self._tick())
        try:
            while True:
                self._held = frozenset(flow.text for flow in self.kept)
                try:
                    await self._follow()
                except NfqError as error:
                    self._set_away(str(error))
                await asyncio.sleep(_AGAIN)
        finally:
            await cancel(ticking)

    async def changed(self, version: int, timeout: float) -> None:
        """Return when something has changed since a version, at once if it has, or after ``timeout`` seconds."""
        if self.version != version:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._fresh.wait()
        except TimeoutError:
            pass

    def between(self, after: float, until: float) -> Iterator[KeptFlow]:
        """Yield the kept flows of a time span, newest first; ``after`` is not part of it."""
        return (flow for flow in reversed(self.kept) if after < flow.seen.time <= until)

    def find(self, uuid: str) -> bytes | None:
        """Return the kept flow with a uuid, as JSON."""
        marked = json.dumps(uuid).encode()
        found = (flow.text for flow in reversed(self.kept) if marked in flow.text)
        return next((text for text in found if json.loads(text).get("uuid") == uuid), None)

    def status(self) -> dict[str, Any]:
        """Return the state of the feed as a JSON object."""
        times = [flow.seen.time for flow in (self.kept[0], self.kept[-1])] if self.kept else []
        return {
            "now": round(self._clock(), 3),
            "node": self.node,
            "agent": {"error": self.error, "away_since": self.away_since},
            "lost": self.lost,
            "unreadable": self.unreadable,
            "forgotten": {"nodes": self.map.forgotten_nodes, "edges": self.map.forgotten_edges},
            "log": {"flows": len(self.kept), "first": min(times, default=None), "last": max(times, default=None)},
        }

    async def _follow(self) -> None:
        flows = self._link.flows(**self._params)
        try:
            async for text in flows:
                if text:
                    self._add(text)
                else:
                    self._set_present()
        finally:
            await flows.aclose()  # type: ignore[attr-defined]

    def _add(self, text: bytes) -> None:
        if text in self._held:
            return
        try:
            flow = json.loads(text)
            if "lost_events" in flow:
                self.lost += int(flow["lost_events"]["num_events_lost"])
                self._signal()
                return
            seen = read_flow(flow)
        except UNREADABLE:
            self.unreadable += 1
            return
        if seen is not None:
            self.node = printable(str(flow.get("node_name", "")))
            self.kept.append(KeptFlow(seen, text))
            self.map.add(seen)
            self._signal()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            before = self.map.change
            self.map.tick(self._clock())
            if self.map.change != before:
                self._signal()

    def _set_present(self) -> None:
        if self.error:
            self.error, self.away_since = "", None
            self._signal()

    def _set_away(self, reason: str) -> None:
        if not self.error or self.error == "connecting":
            self.away_since = self._clock()
        self.error = printable(reason)
        self._signal()

    def _signal(self) -> None:
        self.version += 1
        self._fresh.set()
        self._fresh = asyncio.Event()


class _Shared:
    """Shared feed: with its task, and the number of its readers."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.task = asyncio.create_task(feed.run())
        self.readers = 0
        self.closing: asyncio.TimerHandle | None = None


class Feeds:
    """Feeds: one for each filter that a page shows, at most MAX_FEEDS."""

    def __init__(self, link: AgentLink) -> None:
        """Set the agent of all feeds."""
        self._link = link
        self._feeds: dict[str, _Shared] = {}

    @asynccontextmanager
    async def follow(self, params: Mapping[str, Any]) -> AsyncIterator[Feed]:
        """Give the feed of these parameters, started if no page shows it; raise NfqError beyond MAX_FEEDS."""
        key = json.dumps(params, sort_keys=True)
        shared = self._feeds.get(key) or self._start(key, params)
        shared.readers += 1
        if shared.closing is not None:
            shared.closing.cancel()
        try:
            yield shared.feed
        finally:
            shared.readers -= 1
            if not shared.readers:
                shared.closing = asyncio.get_running_loop().call_later(_LINGER, self._end, key)

    async def stop(self) -> None:
        """End all feeds."""
        feeds, self._feeds = self._feeds, {}
        for shared in feeds.values():
            if shared.closing is not None:
                shared.closing.cancel()
        await cancel(*(shared.task for shared in feeds.values()))

    def _start(self, key: str, params: Mapping[str, Any]) -> _Shared:
        if len(self._feeds) >= MAX_FEEDS:
            self._end(next((other for other, shared in self._feeds.items() if not shared.readers), ""))
        if len(self._feeds) >= MAX_FEEDS:
            raise NfqError(f"too many filters: {MAX_FEEDS} are shown by other pages; close one of them")
        shared = self._feeds[key] = _Shared(Feed(self._link, params))
        return shared

    def _end(self, key: str) -> None:
        shared = self._feeds.pop(key, None)
        if shared is not None:
            shared.task.cancel()
