"""Hand-over of the mirror's changes to the reconciler, except during a catch-up."""

import asyncio
import time
from collections import deque

from nfq_enforcer.cluster.source import ChangeBatch
from nfq_enforcer.store.redis.mirror import Mirror

_SAMPLES = 1000


class ChangeFeed:
    """ChangeFeed: announces the mirror's changes, and hands each over once.

    During a catch-up the mirror is partly old and partly new, so the feed is closed then.
    """

    def __init__(self, mirror: Mirror) -> None:
        """Start open, with nothing announced."""
        self._mirror = mirror
        self._open = asyncio.Event()  # not set during a catch-up
        self._open.set()
        self._announced = asyncio.Event()
        self._first_written: float | None = None  # when the first of the waiting changes was written, on this clock
        self.enforced = 0  # the revision of the policy that this node enforces
        self.lags: deque[float] = deque(maxlen=_SAMPLES)  # seconds from a write elsewhere to its enforcement here

    def close(self) -> None:
        """Hand nothing over until ``open``."""
        self._open.clear()

    def open(self) -> None:
        """Hand changes over again."""
        self._open.set()

    def announce(self, written: float | None = None) -> None:
        """Wake the reconciler for changes; ``written``: the time, on this node's clock, of another node's write."""
        self._first_written = self._first_written or written
        self._announced.set()

    def announce_own(self) -> None:
        """Wake the reconciler for changes that this node has written, unless a catch-up will do so at its end."""
        if self._mirror.has_changes and self._open.is_set():
            self._announced.set()

    async def wait(self) -> None:
        """Return when changes are available."""
        while not (self._announced.is_set() and self._open.is_set()):
            await self._announced.wait()
            await self._open.wait()

    def poll(self) -> ChangeBatch:
        """Return the changes since the last poll; none during a catch-up."""
        if not self._open.is_set():
            return ChangeBatch([], self.enforced)
        self._announced.clear()
        written, self._first_written = self._first_written, None
        return ChangeBatch(self._mirror.take_changes(), self._mirror.revision, written)

    def acknowledge(self, batch: ChangeBatch) -> bool:
        """Record that a batch is enforced on this node; return whether the enforced revision is another one now."""
        if batch.changes and batch.written is not None:
            self.lags.append(time.time() - batch.written)
        changed = batch.revision != self.enforced
        self.enforced = batch.revision
        return changed
