"""Flow log: the kept flows, and new flows as they come, of this node or of all."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import flag
from nfq_enforcer.agent.peers.cluster_flows import ClusterFlows
from nfq_enforcer.agent.peers.own_flows import read_query
from nfq_enforcer.observe.flow import HubbleFlow, render, render_lost


class ObserveHandlers:
    """Observe handlers: stream the flow log."""

    def __init__(self, parts: Parts, cluster: ClusterFlows) -> None:
        """Set the parts to read, and the flows of all nodes."""
        self._parts = parts
        self._cluster = cluster

    async def observe(self, params: Params) -> AsyncGenerator[HubbleFlow, None]:
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
            for logged in query.select(self._parts.log.last(), lambda kept: kept):
                yield render(logged)
            while follow:
                logged = await follower.next()
                if lost := follower.take_lost():
                    yield render_lost(lost, self._parts.settings.name)
                yield render(logged)
