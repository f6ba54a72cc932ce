"""What is in force on this node: takes what the store hands over and brings workers and rules to it, in order.

A step is one revision. Where only peers changed (an endpoint of a known kind has started on another node) the workers
hear of these alone: nothing is compiled, no snapshot is sent, no rule touched. Flows that are open then are held
against the new peers within a second, all at once, however many changes come in it.

Where the kernel passes established flows by itself (``datapath: per-flow``), whatever has flows judged again begins
with a new epoch: the kernel passes nothing more of what was judged before (see ``rules.connmark``). Then peers that
are gone, or are others now, count for open flows before the step is done; only new ones may wait for that second. And
from time to time it is done without a cause, so that each flow shows itself, and each end its stamp.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from nfq_enforcer.cluster.records import Change, NodeRecord
from nfq_enforcer.cluster.replica import Replica, View
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.core.tables.ipcache import PeerChange
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_RENEWAL = 1.0  # seconds for which open flows may go by peers that have changed
_SHOWING = 60.0  # seconds between two times at which flows show themselves that the kernel passes
_PART = 1000  # changes after which others have a turn
_AGAIN = 0.15  # seconds until a step that failed is tried again
_LOOK = 1.0  # seconds until it is looked whether anything has failed


class Reconciler:
    """The cluster as this node enforces it, revision by revision."""

    def __init__(
        self, store: Store, replica: Replica, workers: Workers, rules: Rules, datapath: str = "per-packet"
    ) -> None:
        """Take the parts; nothing is in force yet. ``datapath`` is as the configuration has it."""
        self._store = store
        self._replica = replica
        self._workers = workers
        self._rules = rules
        self._stepping = asyncio.Lock()
        self._number = 1  # of the last revision that was made, in force or not
        self._unfinished = False  # the last step is not in force everywhere
        self._renewing: asyncio.Task[None] | None = None
        self._showing: asyncio.Task[None] | None = None
        self._datapath = datapath
        self._epoch = 1 if datapath == "per-flow" else None
        self.before_change: Callable[[], None] = lambda: None  # called while all is still called what it was
        self.revision = 0  # the last step that is in force everywhere
        self.view = replica.view(self._number)

    async def begin(self) -> None:
        """Put the store's first state in force: first who judges, then the rules that hand packets over."""
        await self._store.wait()
        handed = self._store.poll()
        await self._apply(handed.changes)
        self.view = await asyncio.to_thread(self._replica.view, self._number)
        snapshot = self.view.snapshot.renewed(self._number, self._epoch)
        await self._workers.start(snapshot, self._replica.peers)
        await asyncio.to_thread(self._rules.install, snapshot, self._workers.queues)
        self.revision = self._number
        self._store.acknowledge(handed)
        if self._epoch is not None:
            self._showing = asyncio.create_task(self._show())

    async def follow(self) -> None:
        """Step whenever the store has something to hand over, for ever."""
        while True:
            try:
                async with asyncio.timeout(_AGAIN if self._unfinished else _LOOK):
                    await self._store.wait()
            except TimeoutError:
                if not self._unfinished:
                    continue
            try:
                await self.step()
            except NfqError as error:
                _log.error("revision %d is not in force everywhere, trying again: %s", self._number, error)

    async def step(self) -> None:
        """Put in force what the store hands over; raise NfqError if it is not in force everywhere now."""
        async with self._stepping:
            handed = self._store.poll()
            if handed.changes or self._unfinished:
                self._number += 1
                await self._apply(handed.changes)
                self.view = await asyncio.to_thread(self._replica.view, self._number)
                again, self._unfinished = self._unfinished, True
                await self._put_in_force(self.view, again=again)
                self._unfinished = False
                self.revision = self._number
            self._store.acknowledge(handed)

    async def _apply(self, changes: Sequence[Change]) -> None:
        """Tell the replica; here and not in a thread, because the directory is read here, too."""
        self.before_change()
        for start in range(0, len(changes), _PART):
            self._replica.apply(changes[start : start + _PART])
            await asyncio.sleep(0)
        for _, name, record in changes:
            if isinstance(record, NodeRecord) and record.datapath != self._datapath:
                _log.warning(
                    "node %s has datapath '%s', and this one '%s': what one of them no longer stamps, the other "
                    "refuses; all nodes have to have the same",
                    *(name, record.datapath, self._datapath),
                )

    async def _put_in_force(self, view: View, *, again: bool) -> None:
        moves = self._epoch is not None and any(address in self._workers.peers for address, _ in view.peer_changes)
        self._change_peers(view.peer_changes)
        if not (view.changed or again):
            if moves:
                await self._judge_again(again=False)
            return
        # Packets of endpoints that are gone are taken off the queues before these judge without them, and those of new
        # ones are queued when they are known.
        await asyncio.to_thread(self._rules.release_addresses, view.snapshot)
        async with self._new_epoch(again=again) as epoch:
            await self._workers.enforce(view.snapshot.renewed(self._number, epoch))
        await asyncio.to_thread(self._rules.update, view.snapshot)
        _log.info("revision %d is in force", self._number)

    def _change_peers(self, changes: Iterable[PeerChange]) -> None:
        self._workers.change_peers(changes)
        if changes and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())

    @asynccontextmanager
    async def _new_epoch(self, *, again: bool) -> AsyncIterator[int | None]:
        """Take what the kernel passes by itself back from it, and give what the workers have to hear of meanwhile.

        ``again``: a worker may not have heard of the last epoch, and a mark that it asks for could be taken for one of
        this. So the kernel passes nothing by itself until all have heard.
        """
        if self._epoch is not None:
            self._epoch += 1
            await asyncio.to_thread(self._rules.set_epoch, None if again else self._epoch)
        yield self._epoch
        if self._epoch is not None and again:
            await asyncio.to_thread(self._rules.set_epoch, self._epoch)

    async def _judge_again(self, *, again: bool) -> None:
        """Have open flows judged again, by the same snapshot and the peers that workers have heard of."""
        async with self._new_epoch(again=again) as epoch:
            await self._workers.renew(self._number, epoch)

    async def _renew(self) -> None:
        await asyncio.sleep(_RENEWAL)
        async with self._stepping:
            self._renewing = None
            self._number += 1
            try:
                await self._judge_again(again=self._unfinished)
            except NfqError as error:
                self._unfinished = True
                _log.error("open flows have not been judged again: %s", error)

    async def _show(self) -> None:
        """Have flows show themselves from time to time, for ever."""
        while True:
            await asyncio.sleep(_SHOWING)
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew())

    async def end(self) -> None:
        """Let go of what goes on by itself."""
        tasks = [task for task in (self._showing, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
