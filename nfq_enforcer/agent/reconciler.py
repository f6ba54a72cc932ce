"""Reconciler: applies each store revision to the workers and iptables rules, in order.

One reconciliation makes one revision of this node. If only peers changed (an endpoint of a known identity started on
another node), the workers receive the changed peers alone: no policy is compiled, no snapshot is sent, no rule is
touched. Flows that are open then are evaluated against the new peers within a second, all at once, however many changes
occur in it.

With ``datapath: per-flow`` the kernel passes established flows by itself. Every change that must reach open flows
begins a new epoch: the kernel passes no flow that was evaluated before it (see ``epoch``). Peers that were removed or
replaced count for open flows before the reconciliation ends; only new peers may wait for that second. At an interval a
new epoch begins without a change, so that every offloaded flow goes through the queue again and each end proves its
identity by its stamp.

A revision is acknowledged to the store only when the kernel's rules are intact (see ``rules_guard``). While they are
not, and cannot be repaired, the store learns that this node enforces nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from nfq_enforcer.agent import epoch
from nfq_enforcer.agent.rules_guard import RulesGuard
from nfq_enforcer.agent.timings import ReconcilerTimings
from nfq_enforcer.cluster.records import Change, NodeRecord
from nfq_enforcer.cluster.replica import Replica, View
from nfq_enforcer.cluster.source import ChangeBatch, Store
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.tables.ipcache import PeerChange
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)


class Reconciler:
    """Reconciler: keeps workers and rules at the store's state, revision by revision."""

    def __init__(
        self,
        store: Store,
        replica: Replica,
        workers: Workers,
        rules: Rules,
        datapath: Datapath = Datapath.PER_PACKET,
        timings: ReconcilerTimings | None = None,
        guard: RulesGuard | None = None,
        *,
        previous_epoch: int = 0,
    ) -> None:
        """Set the parts; nothing is enforced before ``start``."""
        self._store = store
        self._replica = replica
        self._workers = workers
        self._rules = rules
        self._datapath = datapath
        self._timings = timings or ReconcilerTimings()
        self.guard = guard or RulesGuard(rules)
        self.guard.on_state = self._on_rules_state
        self._guarding: asyncio.Task[None] | None = None
        self._failures = _Failures(self._timings)
        self._epoch = epoch.create(datapath, rules, previous_epoch)
        self._lock = asyncio.Lock()  # one reconciliation or recheck at a time
        self._number = 1  # the newest revision, enforced or not
        self._incomplete = False  # a worker or the rules may not have the newest revision
        self._recheck: asyncio.Task[None] | None = None
        self._offload_recheck: asyncio.Task[None] | None = None
        self.before_change: Callable[[], None] = lambda: None  # called while the names are still those of before
        self.revision = 0  # the newest one that all workers and the rules enforce
        self.view = replica.view(self._number)

    @property
    def epoch(self) -> int:
        """Return the current epoch of offloaded flows, 0 without one."""
        return self._epoch.number or 0

    async def start(self) -> None:
        """Enforce the store's first state: start the workers, then install the rules that queue packets to them."""
        await self._store.wait()
        batch = self._store.poll()
        await self._apply_to_replica(batch.changes)
        self.view = await asyncio.to_thread(self._replica.view, self._number)
        snapshot = self.view.snapshot.with_revision(self._number, self._epoch.number)
        await self._workers.start(snapshot, self._replica.peers)
        await asyncio.to_thread(self._rules.install, snapshot, self._workers.queues)
        while not await self.guard.keep():
            await asyncio.sleep(self._timings.failure_check)
        self._guarding = asyncio.create_task(self.guard.run())
        self._acknowledge(batch)
        if self._datapath is Datapath.PER_FLOW:
            self._offload_recheck = asyncio.create_task(self._recheck_offloaded_flows())

    async def run(self) -> None:
        """Reconcile whenever the store has changes, and retry after a failure; never return."""
        while True:
            try:
                async with asyncio.timeout(self._failures.pause if self._incomplete else self._timings.failure_check):
                    await self._store.wait()
            except TimeoutError:
                if not self._incomplete:
                    continue
            try:
                await self.reconcile()
            except NfqError as error:
                self._failures.add(self._number, str(error))

    async def reconcile(self) -> None:
        """Enforce the store's changes; raise NfqError if a worker or the rules could not take them."""
        async with self._lock:
            batch = self._store.poll()
            if not (batch.changes or self._incomplete):
                await self._require_intact_rules()
                self._store.acknowledge(batch)
                return
            # Changes below refer to chains and sets. If these cannot be repaired, the changes are tried all the same.
            await self.guard.keep()
            self._number += 1
            await self._apply_to_replica(batch.changes)
            self.view = await asyncio.to_thread(self._replica.view, self._number)
            retry, self._incomplete = self._incomplete, True
            await self._apply_to_dataplane(self.view, retry=retry)
            await self._require_intact_rules()
            self._incomplete = False
            self._failures.clear()
            self._acknowledge(batch)

    async def _require_intact_rules(self) -> None:
        """Raise NfqError if the rules are not intact and cannot be repaired; then the reconciliation is retried."""
        if not await self.guard.keep():
            self._incomplete = True
            raise NfqError(f"the rules are not intact: {self.guard.state.error or self.guard.state.missing}")

    def _acknowledge(self, batch: ChangeBatch) -> None:
        self.revision = self._number
        self._store.acknowledge(batch)

    def _on_rules_state(self, intact: bool) -> None:
        self._store.set_enforcing(enforcing=intact)
        if intact:
            self._failures.clear()

    async def _apply_to_replica(self, changes: Sequence[Change]) -> None:
        """Apply changes to the replica; in the event loop, because other tasks read the replica's names there."""
        self.before_change()
        for start in range(0, len(changes), self._timings.batch):
            self._replica.apply(changes[start : start + self._timings.batch])
            await asyncio.sleep(0)
        for _, name, record in changes:
            if isinstance(record, NodeRecord) and record.datapath != self._datapath:
                _log.warning(
                    "node %s has datapath '%s', and this one '%s': per-flow leaves packets without a stamp that "
                    "per-packet drops without one; all nodes need the same datapath",
                    *(name, record.datapath, self._datapath),
                )

    async def _apply_to_dataplane(self, view: View, *, retry: bool) -> None:
        epoch_ends = self._epoch.ends_with(view.peer_changes, self._workers.peers)
        self._change_peers(view.peer_changes)
        if not (view.changed or retry):
            if epoch_ends:
                await self._recheck_flows(hold=False)
            return
        # The sets release removed endpoints before the workers drop them, and queue new endpoints once the workers have
        # them: so no packet meets a worker that does not have its endpoint.
        await asyncio.to_thread(self._rules.release_addresses, view.snapshot)
        async with self._epoch.advance(hold=retry) as number:
            await self._workers.enforce(view.snapshot.with_revision(self._number, number))
        await asyncio.to_thread(self._rules.update, view.snapshot)
        _log.info("revision %d is in force", self._number)

    def _change_peers(self, changes: Sequence[PeerChange]) -> None:
        self._workers.change_peers(changes)
        if changes:
            self._schedule_recheck()

    def _schedule_recheck(self) -> None:
        if self._recheck is None:
            self._recheck = asyncio.create_task(self._recheck_later())

    async def _recheck_later(self) -> None:
        await asyncio.sleep(self._timings.recheck)
        async with self._lock:
            self._recheck = None
            self._number += 1
            try:
                await self._recheck_flows(hold=self._incomplete)
            except NfqError as error:
                self._incomplete = True
                _log.error("open flows were not evaluated again: %s", error)

    async def _recheck_flows(self, *, hold: bool) -> None:
        """Have the workers evaluate open flows again, by the same snapshot and the peers that they have received."""
        async with self._epoch.advance(hold=hold) as number:
            await self._workers.renew(self._number, number)

    async def _recheck_offloaded_flows(self) -> None:
        """Force offloaded flows back through the queue at an interval; never return."""
        while True:
            await asyncio.sleep(self._timings.offload_recheck)
            self._schedule_recheck()

    async def flush_flows(self) -> None:
        """Forget all flows: each packet of one that is open is evaluated again, also if the kernel passed the flow."""
        async with self._lock:
            self._number += 1
            self._workers.flush_flows()
            await self._recheck_flows(hold=self._incomplete)

    async def stop(self) -> None:
        """Cancel the tasks that run in the background."""
        tasks = [task for task in (self._guarding, self._offload_recheck, self._recheck) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Failures:
    """Failures of reconciliations: one log line for each reason, and a pause before the next attempt."""

    def __init__(self, timings: ReconcilerTimings) -> None:
        self._timings = timings
        self._count = 0
        self._reason: str | None = None

    @property
    def pause(self) -> float:
        """Return the time to the next attempt; each failure doubles it."""
        doublings = max(min(self._count, 10) - 1, 0)
        return min(self._timings.retry * (1 << doublings), self._timings.longest_retry)

    def add(self, revision: int, reason: str) -> None:
        """Count a failure, and log its reason if it is not that of the last one."""
        self._count += 1
        if reason != self._reason:
            _log.error("revision %d is not in force everywhere, trying again: %s", revision, reason)
        self._reason = reason

    def clear(self) -> None:
        """Begin anew after a success."""
        self._count, self._reason = 0, None
