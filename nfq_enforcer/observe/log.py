"""The flow log: the last flows, kept in memory, and those who follow it as it grows.

A reader that is slow loses flows, and is told how many; nobody waits for a reader.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from nfq_enforcer.observe.flow import Flow

KEPT = 4095  # as Hubble keeps by default
_BEHIND = 10_000  # flows a follower may be behind


class Follower:
    """One who follows the log."""

    def __init__(self) -> None:
        """Follow from now on."""
        self._waiting: asyncio.Queue[Flow] = asyncio.Queue(_BEHIND)
        self.lost = 0

    def add(self, flow: Flow) -> None:
        """Take a flow, or lose it if too many wait."""
        try:
            self._waiting.put_nowait(flow)
        except asyncio.QueueFull:
            self.lost += 1

    async def next(self) -> Flow:
        """Return the next flow, when there is one."""
        return await self._waiting.get()


class FlowLog:
    """The last flows of this node."""

    def __init__(self, kept: int = KEPT) -> None:
        """Start empty."""
        self._last: deque[Flow] = deque(maxlen=kept)
        self._followers: set[Follower] = set()
        self.seen = 0

    def add(self, flow: Flow) -> None:
        """Enter a flow."""
        self.seen += 1
        self._last.append(flow)
        for follower in self._followers:
            follower.add(flow)

    def last(self) -> list[Flow]:
        """Return the flows that are kept, oldest first."""
        return list(self._last)

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """Give a follower for as long as it is wanted."""
        follower = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
