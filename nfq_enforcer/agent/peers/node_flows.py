"""Flows of one node within a merged stream: read ahead by a task, checked, with the node's name and its end."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from nfq_enforcer.agent.peers.protocol import KEPT_END, NodeRefused
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.flow import HubbleFlow
from nfq_enforcer.observe.nodes import ERROR, UNAVAILABLE, checked, node_status

_log = logging.getLogger(__name__)
_AHEAD = 500  # items that wait for the merge


class NodeFlows:
    """NodeFlows: the items of one node; None after the last one.

    Only the items that wait here are held in memory: a merge that waits for another node slows this one down.
    """

    def __init__(self, node: str, batches: AsyncGenerator[Any, None], *, follow: bool) -> None:
        """Take the node's batches; with ``follow`` their end is reported, because they should have none."""
        self.node = node
        self.items: asyncio.Queue[HubbleFlow | None] = asyncio.Queue(_AHEAD)
        self._batches = batches
        self._follow = follow

    async def run(self) -> None:
        """Read the batches to their end, of which a reason is the last item but None."""
        try:
            whole = await self._read() and not self._follow
            reason = None if whole else (UNAVAILABLE, "its agent has ended the stream")
        except NodeRefused as error:
            reason = (ERROR, str(error))
        except NfqError as error:
            reason = (UNAVAILABLE, str(error))
        except Exception:  # the entry point of a task
            _log.exception("reading the flows of node %s failed", self.node)
            reason = (ERROR, "an internal error of this node's agent; its log has it")
        if reason is not None:
            await self.items.put(node_status(reason[0], self.node, reason[1]))
        await self.items.put(None)

    async def _read(self) -> bool:
        """Read the batches; return whether all kept flows were among them."""
        whole = False
        async with aclosing(self._batches) as batches:
            async for batch in batches:
                for item in batch if isinstance(batch, list) else ():
                    passed = item if item == KEPT_END else checked(item, self.node)
                    whole |= passed is item
                    if passed is not None:
                        await self.items.put(passed)
        return whole
