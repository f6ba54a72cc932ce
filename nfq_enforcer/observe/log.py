"""The flow log: the last flows, kept in memory, and those who follow it as it grows.

A reader that is slow loses flows, and is told how many; nobody waits for a reader. Most flows are never read, so they
may come in packs, which are opened only when somebody reads them, or when what they are called is about to change.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

KEPT = 4095  # as Hubble keeps by default
_BEHIND = 10_000  # flows a follower may be behind


Entry = TypeVar("Entry")


class Follower(Generic[Entry]):
    """One who follows the log."""

    def __init__(self) -> None:
        """Follow from now on."""
        self._waiting: asyncio.Queue[Entry] = asyncio.Queue(_BEHIND)
        self._lost = 0

    def add(self, flow: Entry) -> None:
        """Take a flow, or lose it if too many wait."""
        try:
            self._waiting.put_nowait(flow)
        except asyncio.QueueFull:
            self._lost += 1

    async def next(self) -> Entry:
        """Return the next flow, when there is one."""
        return await self._waiting.get()

    def take_lost(self) -> int:
        """Return how many flows were lost since the last time this was asked."""
        lost, self._lost = self._lost, 0
        return lost


class FlowLog(Generic[Entry]):
    """The last flows of this node."""

    def __init__(self, kept: int = KEPT) -> None:
        """Start empty."""
        self._kept = kept
        self._last: deque[Entry] = deque(maxlen=kept)
        self._packs: deque[tuple[int, Callable[[], Iterable[Entry]]]] = deque()  # younger than those
        self._packed = 0  # flows in packs
        self._followers: set[Follower[Entry]] = set()
        self.seen = 0

    def add(self, flow: Entry) -> None:
        """Enter a flow."""
        self.open()
        self.seen += 1
        self._last.append(flow)
        for follower in self._followers:
            follower.add(flow)

    def add_pack(self, number: int, unpack: Callable[[], Iterable[Entry]]) -> None:
        """Enter so many flows, which ``unpack`` gives if anybody wants them."""
        if self._followers:
            for flow in unpack():
                self.add(flow)
            return
        self.seen += number
        self._packs.append((number, unpack))
        self._packed += number
        while self._packed - self._packs[0][0] >= self._kept:
            self._packed -= self._packs.popleft()[0]

    def open(self) -> None:
        """Open the packs that are kept, so that their flows are called what things are called now."""
        while self._packs:
            self._last.extend(self._packs.popleft()[1]())
        self._packed = 0

    def last(self) -> list[Entry]:
        """Return the flows that are kept, oldest first."""
        self.open()
        return list(self._last)

    @contextmanager
    def follow(self) -> Iterator[Follower[Entry]]:
        """Give a follower for as long as it is wanted."""
        self.open()
        follower: Follower[Entry] = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
