"""Flow log: the kept flows, and new flows as they come."""

from collections.abc import AsyncIterator

from nfq_enforcer.agent.api import Batch, Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import count, flag, time
from nfq_enforcer.observe.flow import render, render_lost
from nfq_enforcer.observe.query import Query, read_filters

_AT_ONCE = 200  # kept flows that are sent at a time


class ObserveHandlers:
    """Observe handlers: stream the flow log."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts

    async def observe(self, params: Params) -> AsyncIterator[Batch]:
        """Yield the kept flows that a query selects, with ``follow`` also new ones.

        ``allow`` and ``deny`` have a list of values for each filter (``observe.filters``), ``first`` and ``last`` limit
        the kept flows, ``since`` and ``until`` (s since the epoch) their times.
        """
        query = Query(
            read_filters(params.get("allow", {}), "allow"),
            read_filters(params.get("deny", {}), "deny"),
            first=count(params, "first"),
            last=count(params, "last"),
            since=time(params, "since"),
            until=time(params, "until"),
        )
        follow = flag(params, "follow")
        with self._parts.log.follow(query.admits) as follower:
            kept = list(query.select(self._parts.log.last(), lambda flow: flow))
            for begin in range(0, len(kept), _AT_ONCE):
                yield Batch(map(render, kept[begin : begin + _AT_ONCE]))
            while follow:
                flows = await follower.next()
                lost = follower.take_lost()
                before = [render_lost(lost, self._parts.settings.name)] if lost else []
                yield Batch((*before, *map(render, flows)))
