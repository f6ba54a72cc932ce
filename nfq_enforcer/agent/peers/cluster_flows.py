"""Flows of all nodes, merged by time, with a note for each node that is missing, and why.

The kept flows are merged exactly: each node's come sorted, and only the next ones of each are in memory. New flows are
held for a short time (``ReorderWindow``). While a stream is followed, missing nodes are asked again: a node that is
back, or new, joins.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from nfq_enforcer.agent.params import Params, count, flag
from nfq_enforcer.agent.peers.node_flows import NodeFlows
from nfq_enforcer.agent.peers.protocol import KEPT_END, Serve, Transport, new_flows, query_of
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe.flow import HubbleFlow
from nfq_enforcer.observe.nodes import CONNECTED, ReorderWindow, node_status, notice
from nfq_enforcer.observe.status import NodeReport
from nfq_enforcer.observe.text import is_flow
from nfq_enforcer.tasks import Works, cancel

ALONE = "this node is alone: the store 'memory:' joins no other nodes"
_RETRY = 5.0  # s between two requests to a node that is missing
_WAITING = 1000  # new items of all nodes that wait for the reader

Roster = Callable[[], Awaitable[Sequence[NodeReport]]]
Item = Mapping[str, Any]


class ClusterFlows:
    """ClusterFlows: merges the flows of this node and of the others."""

    def __init__(
        self, node: str, own: Serve, roster: Roster, transport: Transport | None, retry: float = _RETRY
    ) -> None:
        """Take this node's name and flows, the nodes of the cluster, and the way to them (None: no other nodes)."""
        self._node = node
        self._own = own
        self._roster = roster
        self._transport = transport
        self._retry = retry

    async def observe(self, params: Params) -> AsyncGenerator[HubbleFlow, None]:
        """Yield the flows of all nodes that a query selects; ``params`` as of the API's method ``observe``."""
        follow, first = flag(params, "follow"), count(params, "first")
        if follow and first is not None:
            raise BadInput("first and follow exclude each other")
        stream = _Stream(self, query_of(params), follow=follow)
        try:
            for sentence in await stream.begin():
                yield notice(sentence)
            async with aclosing(_limited(stream.kept(), first, count(params, "last"))) as kept:
                async for item in kept:
                    yield item
            if follow:
                async for new in stream.new():
                    yield dict(new)
        finally:
            await stream.stop()

    async def others(self) -> tuple[Sequence[NodeReport], list[str]]:
        """Return the other nodes, and sentences that a reader should know about them."""
        if self._transport is None:
            return (), [ALONE]
        try:
            others = [node for node in await self._roster() if node.name != self._node]
        except NfqError as error:
            return (), [f"only this node's flows are shown: {error}"]
        sentence = self._transport.notice
        return others, [sentence] if others and sentence is not None else []

    def flows(self, node: NodeReport | None, params: Params, *, follow: bool) -> NodeFlows:
        """Return the flows of a node, of this one for None; not read yet."""
        if node is None:
            return NodeFlows(self._node, self._own(params), follow=follow)
        assert self._transport is not None  # see ``others``
        return NodeFlows(node.name, self._transport.ask(node, params), follow=follow)

    @property
    def retry(self) -> float:
        """Return the seconds between two requests to a node that is missing."""
        return self._retry


class _Stream:
    """_Stream: one reader's merged flows."""

    def __init__(self, cluster: ClusterFlows, params: Mapping[str, Any], *, follow: bool) -> None:
        self._cluster = cluster
        self._params = params
        self._follow = follow
        self._running: dict[str, NodeFlows] = {}
        self._reasons: dict[str, str] = {}  # of the missing nodes, as reported
        self._new: asyncio.Queue[Item] = asyncio.Queue(_WAITING)
        self._works = Works()

    async def begin(self) -> list[str]:
        """Ask all nodes; return sentences for the reader about them."""
        others, sentences = await self._cluster.others()
        for node in (None, *others):
            self._ask(node, self._params)
        return sentences

    def _ask(self, node: NodeReport | None, params: Params) -> NodeFlows:
        flows = self._cluster.flows(node, params, follow=self._follow)
        self._running[flows.node] = flows
        self._works.start(flows.run())
        return flows

    async def stop(self) -> None:
        """End all requests."""
        await cancel(*self._works.running)

    # -- kept flows ---------------------------------------------------------------------------------------------------

    async def kept(self) -> AsyncGenerator[Item, None]:
        """Yield the kept flows of all nodes by time; notes of nodes as they come."""
        streams = list(self._running.values())
        heads: list[tuple[str, int, Item]] = []
        for place in range(len(streams)):
            for item in await self._advance(streams, place, heads):
                yield item
        while heads:
            _, place, flow = heapq.heappop(heads)
            yield flow
            for item in await self._advance(streams, place, heads):
                yield item

    async def _advance(
        self, streams: Sequence[NodeFlows], place: int, heads: list[tuple[str, int, Item]]
    ) -> list[HubbleFlow]:
        """Put the next kept flow of a node to the heads, if it has one; return the notes that came before it."""
        notes: list[HubbleFlow] = []
        while (item := await streams[place].items.get()) != KEPT_END:
            if item is None:
                del self._running[streams[place].node]
                break
            if is_flow(item):
                heapq.heappush(heads, (item["time"], place, item))
                break
            self._is_news(item)
            notes.append(item)
        return notes

    # -- new flows ----------------------------------------------------------------------------------------------------

    async def new(self) -> AsyncIterator[Item]:
        """Yield the new flows of all nodes by time, held for the window; never return."""
        for flows in self._running.values():
            self._works.start(self._forward(flows))
        self._works.start(self._ask_missing())
        window = ReorderWindow()
        while True:
            for item in await self._next(window.wait(time.monotonic())):
                if is_flow(item):
                    window.add(item, time.monotonic())
                else:
                    yield item
            for flow in window.due(time.monotonic()):
                yield flow

    async def _next(self, patience: float | None) -> list[Item]:
        """Return all items that have come; wait for the first one, but not longer than the patience (s)."""
        items: list[Item] = []
        if self._new.empty():
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    items.append(await self._new.get())
        while not self._new.empty() and len(items) < _WAITING:
            items.append(self._new.get_nowait())
        return items

    async def _forward(self, flows: NodeFlows) -> None:
        while (item := await flows.items.get()) is not None:
            if item == KEPT_END:
                item = node_status(CONNECTED, flows.node, "its new flows are shown from now on")
            if self._is_news(item):
                await self._new.put(item)
        del self._running[flows.node]

    def _is_news(self, item: Item) -> bool:
        """Return whether an item has to be shown: the reason for which a node is missing is shown once."""
        status = item.get("node_status")
        if status is None:
            return True
        node, reason = item["node_name"], status["message"]
        if status["state_change"] == CONNECTED:
            self._reasons.pop(node, None)
            return True
        is_other: bool = self._reasons.get(node) != reason
        self._reasons[node] = reason
        return is_other

    async def _ask_missing(self) -> None:
        """Ask the nodes that are missing, again and again; never return."""
        while True:
            await asyncio.sleep(self._cluster.retry)
            others, _ = await self._cluster.others()
            for node in others:
                if node.name not in self._running:
                    self._works.start(self._forward(self._ask(node, new_flows(self._params))))


async def _limited(
    items: AsyncGenerator[Item, None], first: int | None, last: int | None
) -> AsyncGenerator[HubbleFlow, None]:
    """Yield the first or the last flows, in order; notes as they come."""
    kept: deque[Item] = deque(maxlen=last)
    number = 0
    async with aclosing(items):
        async for item in items:
            if not is_flow(item):
                yield dict(item)
            elif last is not None:
                kept.append(item)
            elif first is None or number < first:
                number += 1
                yield dict(item)
            if first is not None and number >= first:
                break
    for item in kept:
        yield dict(item)
