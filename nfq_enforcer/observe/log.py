"""Flow log: the last flows, kept in memory, and the followers that receive new flows.

A slow follower loses flows and receives their number; the log never waits for a follower. Most flows are never read, so
the workers' flows may be added packed: a pack is unpacked only when a reader needs it, or when names are about to
change.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

KEPT = 4095  # flows, as in Hubble by default
_AT_ONCE = 200  # flows that a follower takes at a time
_BEHIND = 10_000  # flows that may wait for one follower


LogEntry = TypeVar("LogEntry")


class Follower(Generic[LogEntry]):
    """Follower: receives the flows that are added to the log after it."""

    def __init__(self, admits: Callable[[LogEntry], bool]) -> None:
        """Begin with the next flow that the predicate ``admits``."""
        self._admits = admits
        self._waiting: asyncio.Queue[LogEntry] = asyncio.Queue(_BEHIND)
        self._lost = 0

    def add(self, flow: LogEntry) -> None:
        """Add a flow if it is admitted, or count it as lost if too many wait."""
        if not self._admits(flow):
            return
        try:
            self._waiting.put_nowait(flow)
        except asyncio.QueueFull:
            self._lost += 1

    async def next(self, at_most: int = _AT_ONCE) -> list[LogEntry]:
        """Wait for the next flow, and return it with those that have come until then."""
        flows = [await self._waiting.get()]
        while len(flows) < at_most and not self._waiting.empty():
            flows.append(self._waiting.get_nowait())
        return flows

    def take_lost(self) -> int:
        """Return the number of flows lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost


class FlowLog(Generic[LogEntry]):
    """Flow log: the last flows of this node."""

    def __init__(self, kept: int = KEPT) -> None:
        """Begin with an empty log that keeps so many flows."""
        self._kept = kept
        self._last: deque[LogEntry] = deque(maxlen=kept)
        self._packs: deque[tuple[int, Callable[[], Iterable[LogEntry]]]] = deque()  # newer than ``_last``
        self._packed = 0  # flows in ``_packs``
        self._followers: set[Follower[LogEntry]] = set()
        self.seen = 0  # flows added so far

    def add(self, flow: LogEntry) -> None:
        """Add a flow."""
        self.open()
        self.seen += 1
        self._last.append(flow)
        for follower in self._followers:
            follower.add(flow)

    def add_pack(self, number: int, unpack: Callable[[], Iterable[LogEntry]]) -> None:
        """Add a number of flows; ``unpack`` gives them when a reader needs them."""
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
        """Unpack all packs, so that their flows get the current names."""
        while self._packs:
            self._last.extend(self._packs.popleft()[1]())
        self._packed = 0

    def last(self) -> list[LogEntry]:
        """Return the kept flows, oldest first."""
        self.open()
        return list(self._last)

    @contextmanager
    def follow(self, admits: Callable[[LogEntry], bool] = lambda flow: True) -> Iterator[Follower[LogEntry]]:
        """Give a follower of the flows that the predicate ``admits``, until the context ends."""
        self.open()
        follower = Follower(admits)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
