"""Flow log: the kept flows, and new flows as they come, of this node or of all."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from nfq_enforcer.agent.api import Batch, Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import flag
from nfq_enforcer.agent.peers.cluster_flows import ClusterFlows
from nfq_enforcer.agent.peers.own_flows import read_query
from nfq_enforcer.observe.flow import HubbleFlow, render, render_lost

_AT_ONCE = 200  # kept flows that are sent at a time


class ObserveHandlers:
    """Observe handlers: stream the flow log."""

    def __init__(self, parts: Parts, cluster: ClusterFlows) -> None:
        """Set the parts to read, and the flows of all nodes."""
        self._parts = parts
        self._cluster = cluster

    async def observe(self, params: Params) -> AsyncGenerator[HubbleFlow | Batch, None]:
        """Yield the kept flows that a query selects, with ``follow`` also new ones.

        ``allow`` and ``deny`` have a list of values for each filter (``observe.filters``), ``first`` and ``last`` limit
        the kept flows, ``since`` and ``until`` (s since the epoch) their times. With ``all_nodes``, the flows are those
        of all nodes, and other items are notices and states of nodes (``observe.nodes``).
        """
        query, follow = read_query(params), flag(params, "follow")
        if flag(params, "all_nodes"):
            async with aclosing(self._cluster.observe(params)) as items:
                async for item in items:
                    yield item
            return
        with self._parts.log.follow(query.admits) as follower:
            kept = list(query.select(self._parts.log.last(), lambda flow: flow))
            for begin in range(0, len(kept), _AT_ONCE):
                yield Batch(map(render, kept[begin : begin + _AT_ONCE]))
            while follow:
                flows = await follower.next()
                lost = follower.take_lost()
                before = [render_lost(lost, self._parts.settings.name)] if lost else []
                yield Batch((*before, *map(render, flows)))
