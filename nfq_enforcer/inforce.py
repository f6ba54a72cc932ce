"""What is in force on this node: takes what the store hands over and brings worker and rules to it, in the right order.

A step is one revision. Where only peers changed (an endpoint of a known kind has started on another node) the worker
hears of these alone: nothing is compiled, no snapshot is sent, no rule touched. Flows that are open then are held
against the new peers within a second, all at once, however many changes come in it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence

from nfq_enforcer.core.ipcache import PeerChange
from nfq_enforcer.dataplane.iptables import Rules
from nfq_enforcer.dataplane.pool import WorkerProcess
from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.records import Change
from nfq_enforcer.store.replica import Replica, View
from nfq_enforcer.store.source import Store

_log = logging.getLogger(__name__)
_RENEWAL = 1.0  # seconds for which open flows may go by peers that have changed
_PART = 1000  # changes after which others have a turn
_AGAIN = 0.15  # seconds until a step that failed is tried again


class InForce:
    """The cluster as this node enforces it, revision by revision."""

    def __init__(self, store: Store, replica: Replica, worker: WorkerProcess, rules: Rules) -> None:
        """Take the parts; nothing is in force yet."""
        self._store = store
        self._replica = replica
        self._worker = worker
        self._rules = rules
        self._stepping = asyncio.Lock()
        self._number = 1  # of the last revision that was made, in force or not
        self._unfinished = False  # the last step is not in force everywhere
        self._renewing: asyncio.Task[None] | None = None
        self.revision = 0  # the last step that is in force everywhere
        self.view = replica.view(self._number)

    async def begin(self) -> None:
        """Put the store's first state in force: first who judges, then the rules that hand packets over."""
        await self._store.wait()
        handed = self._store.take()
        await self._apply(handed.changes)
        self.view = await asyncio.to_thread(self._replica.view, self._number)
        await self._worker.start(self.view.snapshot, self._replica.peers)
        await asyncio.to_thread(self._rules.install, self.view.snapshot, self._worker.queues)
        self.revision = self._number
        self._store.enforced(handed)

    async def follow(self) -> None:
        """Step whenever the store has something to hand over, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN if self._unfinished else None):
                    await self._store.wait()
            try:
                await self.step()
            except NfqError as error:
                _log.error("revision %d is not in force everywhere, trying again: %s", self._number, error)

    async def step(self) -> None:
        """Put in force what the store hands over; raise NfqError if it is not in force everywhere now."""
        async with self._stepping:
            handed = self._store.take()
            if handed.changes or self._unfinished:
                self._number += 1
                await self._apply(handed.changes)
                self.view = await asyncio.to_thread(self._replica.view, self._number)
                again, self._unfinished = self._unfinished, True
                await self._put_in_force(self.view, anew=self.view.changed or again)
                self._unfinished = False
                self.revision = self._number
            self._store.enforced(handed)

    async def _apply(self, changes: Sequence[Change]) -> None:
        """Tell the replica; here and not in a thread, because the directory is read here, too."""
        for start in range(0, len(changes), _PART):
            self._replica.apply(changes[start : start + _PART])
            await asyncio.sleep(0)

    async def _put_in_force(self, view: View, *, anew: bool) -> None:
        self._change_peers(view.peer_changes)
        if not anew:
            return
        # Packets of endpoints that are gone are taken off the queue before it judges without these, and those of new
        # ones are queued when it knows them.
        await asyncio.to_thread(self._rules.release, view.snapshot)
        await self._worker.enforce(view.snapshot.renewed(self._number))
        await asyncio.to_thread(self._rules.follow, view.snapshot)
        _log.info("revision %d is in force", self._number)

    def _change_peers(self, changes: Iterable[PeerChange]) -> None:
        self._worker.change_peers(changes)
        if changes and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        await asyncio.sleep(_RENEWAL)
        async with self._stepping:
            self._renewing = None
            self._number += 1
            try:
                await self._worker.renew(self._number)
            except NfqError as error:
                self._unfinished = True
                _log.error("open flows have not been judged again: %s", error)

    async def end(self) -> None:
        """Let go of what goes on by itself."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
