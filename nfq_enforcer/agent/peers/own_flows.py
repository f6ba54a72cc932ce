"""Flows of this node in batches, for another node or for a merged stream."""

import asyncio
from collections.abc import AsyncGenerator
from operator import attrgetter

from nfq_enforcer.agent.params import Params, count, flag, time
from nfq_enforcer.agent.peers.protocol import ALIVE, BATCH, KEPT_END, Batch
from nfq_enforcer.observe.flow import Logged, render, render_lost
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.observe.query import Query, read_filters


class OwnFlows:
    """OwnFlows: answers requests with the flow log of this node."""

    def __init__(self, node: str, log: FlowLog[Logged]) -> None:
        """Take this node's name and flow log."""
        self._node = node
        self._log = log

    async def batches(self, params: Params) -> AsyncGenerator[Batch, None]:
        """Yield the kept flows that a query selects, in the order of their times, then ``KEPT_END``.

        With ``follow``, new flows come after it, and an empty batch if none has come for ``ALIVE`` seconds.
        """
        query, follow = read_query(params), flag(params, "follow")
        with self._log.follow(query.admits) as follower:
            selected = query.select(self._log.last(), lambda kept: kept)
            kept = sorted(selected, key=attrgetter("wall_time"))
            for start in range(0, len(kept), BATCH):
                yield [render(logged) for logged in kept[start : start + BATCH]]
            yield [KEPT_END]
            while follow:
                new: list[Logged] = []
                try:
                    async with asyncio.timeout(ALIVE):
                        new = await follower.next(BATCH)
                except TimeoutError:
                    pass
                lost = follower.take_lost()
                yield [*([render_lost(lost, self._node)] if lost else []), *map(render, new)]


def read_query(params: Params) -> Query:
    """Return the query of a request; raise BadInput."""
    return Query(
        read_filters(params.get("allow", {}), "allow"),
        read_filters(params.get("deny", {}), "deny"),
        first=count(params, "first"),
        last=count(params, "last"),
        since=time(params, "since"),
        until=time(params, "until"),
    )
