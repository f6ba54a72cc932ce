"""Flow log: the kept flows, and new flows as they come."""

from collections.abc import AsyncIterator

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import count, flag, text
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import VERDICTS, HubbleFlow, render_lost
from nfq_enforcer.text import shorten


class ObserveHandlers:
    """Observe handlers: stream the flow log."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts

    async def observe(self, params: Params) -> AsyncIterator[HubbleFlow]:
        """Yield the kept flows, with ``follow`` also new ones; ``verdict`` filters, ``last`` limits the kept ones."""
        verdict, node = text(params, "verdict") or None, self._parts.settings.name
        if verdict is not None and verdict not in VERDICTS:
            raise BadInput(f"unknown verdict '{shorten(verdict)}'; allowed: {', '.join(VERDICTS)}")
        follow, last = flag(params, "follow"), count(params, "last")
        with self._parts.log.follow() as follower:
            kept = [logged for logged in self._parts.log.last() if verdict in (None, logged.event.verdict)]
            for logged in kept if last is None else kept[max(0, len(kept) - last) :]:
                yield logged.render(node)
            while follow:
                logged = await follower.next()
                if lost := follower.take_lost():
                    yield render_lost(lost)
                if verdict in (None, logged.event.verdict):
                    yield logged.render(node)
