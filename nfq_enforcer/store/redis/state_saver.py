"""Persistence of the mirror: the last known state of the cluster, saved in a thread of its own."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.last_state import LastState, SavedState
from nfq_enforcer.store.redis.mirror import Mirror

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class StateSaver:
    """StateSaver: loads the last known state once, then saves the mirror's changes at intervals."""

    def __init__(self, mirror: Mirror, state: LastState, interval: float) -> None:
        """Take the mirror, its file and the seconds between two saves; nothing is read yet."""
        self._mirror = mirror
        self._state = state
        self._interval = interval
        self._thread = ThreadPoolExecutor(1, "last-state")  # a LastState is for one thread at a time
        self._lock = asyncio.Lock()
        self._loaded = False  # a save before the load would overwrite the state that was to be loaded
        self._saved_marks: dict[str, str] = {}
        self.failure: tuple[float, str] | None = None  # since when, in s since the epoch, and why saves fail

    async def load(self) -> SavedState | None:
        """Return the last known state, None for none; log a damaged file; raise NfqError if it cannot be read."""
        saved = await self._run(self._state.load)
        self._loaded = True
        if self._state.problem:
            _log.warning("%s", self._state.problem)
        return saved

    async def run(self) -> None:
        """Save at intervals until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.save()

    async def save(self) -> None:
        """Save the entries that have changed, together with the mirror's marks; log a failure once."""
        async with self._lock:
            if not self._mirror.complete:
                return
            marks = self._mirror.marks
            unsaved = self._mirror.take_unsaved()
            replace = unsaved is None or self._state.behind
            if not self._loaded or (marks == self._saved_marks and not unsaved and not replace):
                return
            changed = list((self._mirror.entries if unsaved is None or replace else unsaved).items())
            changes = ((*key, entry) for key, entry in changed)  # made in the thread, one by one
            try:
                await self._run(self._state.save, changes, marks, replace=replace)
            except NfqError as error:
                self._note_failure(str(error))
            else:
                if self.failure is not None:
                    _log.info("the last known state of the cluster is saved again")
                self._saved_marks, self.failure = marks, None

    def _note_failure(self, reason: str) -> None:
        """Record why saves fail; log each other reason once."""
        since, logged = self.failure or (time.time(), None)
        if reason != logged:
            _log.error("%s", reason)
        self.failure = since, reason

    async def save_pending(self, pending: Mapping[str, bytes]) -> None:
        """Save the pending endpoints as they are when earlier saves are done, or raise NfqError."""
        async with self._lock:
            await self._run(self._state.save_pending, list(pending.items()))

    async def close(self) -> None:
        """Save the rest, and close file and thread."""
        await self.save()
        await self._run(self._state.close)
        self._thread.shutdown()

    async def _run(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return the result of a call in the thread; calls run one after the other, also if a caller is cancelled.

        The shield is for a call that waits for its turn: with its caller's cancellation its entries would be lost.
        """
        called = asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *arguments, **options))
        return await asyncio.shield(called)
