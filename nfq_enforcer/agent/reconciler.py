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

A reconciliation is a task of its own: it runs to its end, also if its caller stops waiting or disconnects.

A revision is acknowledged to the store only when the kernel's rules are intact (see ``rules_guard``). While they are
not, and cannot be repaired, the store learns that this node enforces nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from nfq_enforcer.agent import epoch
from nfq_enforcer.agent.rules_guard import RulesGuard
from nfq_enforcer.agent.timings import ReconcilerTimings
from nfq_enforcer.cluster.records import Change, NodeRecord
from nfq_enforcer.cluster.replica import Cgroup, NodeSettings, Replica, View
from nfq_enforcer.cluster.source import ChangeBatch, Store
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.tables.ipcache import PeerChange
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.histogram import Histogram
from nfq_enforcer.policy.progress import Progress
from nfq_enforcer.tasks import Works, cancel

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
        self.progress = Progress()
        self.compile_times = Histogram()  # of changes that compiled policy
        self.change_times = Histogram()  # of reconciliations that succeeded
        self._lock = asyncio.Lock()  # one reconciliation or recheck at a time
        self._number = 1  # the newest revision, enforced or not
        self._incomplete = False  # a worker or the rules may not have the newest revision
        self._cgroups: Mapping[str, tuple[Cgroup, ...]] | None = None  # noted since the newest revision
        self._node_changed = False  # the replica has other addresses, labels or cgroups of this node than the revision
        self._works = Works()  # reconciliations and flushes
        self._recheck: asyncio.Task[None] | None = None
        self._offload_recheck: asyncio.Task[None] | None = None
        self.before_change: Callable[[], None] = lambda: None  # called while the names are still those of before
        self.update_proxy: Callable[[], Awaitable[None]] = _no_proxy  # called with a new snapshot in force
        self.process_problem: str | None = None  # reason why process endpoints are not enforced
        self.revision = 0  # the newest one that all workers and the rules enforce
        self.view = replica.view(self._number)

    @property
    def epoch(self) -> int:
        """Return the current epoch of offloaded flows, 0 without one."""
        return self._epoch.number or 0

    @property
    def wanted(self) -> int:
        """Return the newest revision, whether it is enforced or not."""
        return self._number

    @property
    def changing(self) -> bool:
        """Return whether a change of workers or rules is under way."""
        return self._lock.locked()

    @property
    def failure(self) -> tuple[float, str] | None:
        """Return the time since which, and the reason for which, a revision is not in force; None if none has failed.

        The time is in seconds since the epoch.
        """
        return self._failures.current

    async def start(self) -> None:
        """Enforce the store's first state: start the workers, then install the rules that queue packets to them."""
        await self._store.wait()
        batch = self._store.poll()
        await self._apply_to_replica(batch.changes)
        self._replica.identity_changes()  # ``identities`` has them
        await self._compile()
        snapshot = self.view.snapshot.with_revision(self._number, self._epoch.number)
        await self._workers.start(snapshot, self._replica.peers, self._replica.identities)
        self._rules.set_remote_networks(self.view.remote_networks)
        await self._install(snapshot)
        while not await self.guard.keep():
            await asyncio.sleep(self._timings.failure_check)
        self._guarding = asyncio.create_task(self.guard.run())
        self._acknowledge(batch)
        if self._datapath is Datapath.PER_FLOW:
            self._offload_recheck = asyncio.create_task(self._recheck_offloaded_flows())

    async def _install(self, snapshot: Snapshot) -> None:
        """Install the rules; without those of process endpoints if the kernel refuses these."""
        self._rules.set_cgroups(self.view.sockets)
        try:
            await asyncio.to_thread(self._rules.install, snapshot, self._workers.queues)
        except NfqError as error:
            if not self.view.sockets:
                raise
            self._rules.set_cgroups(frozenset())
            await asyncio.to_thread(self._rules.install, snapshot, self._workers.queues)
            self._note_process_problem(error)

    async def run(self) -> None:
        """Reconcile whenever the store has changes, and retry after a failure; never return."""
        while True:
            try:
                async with asyncio.timeout(self._failures.pause if self._incomplete else self._timings.failure_check):
                    await self._store.wait()
            except TimeoutError:
                if not self._incomplete:
                    continue
            await self.try_reconcile()

    async def reconcile(self) -> None:
        """Enforce the store's changes; raise NfqError if a worker or the rules could not take them."""
        await self._works.run(self._reconcile())

    async def _reconcile(self) -> None:
        async with self._lock:
            batch = self._store.poll()
            if self._cgroups is not None:
                self._replica.use_cgroups(self._cgroups)
                self._cgroups, self._node_changed = None, True
            if not (batch.changes or self._incomplete or self._node_changed):
                await self._require_intact_rules()
                self._store.acknowledge(batch)
                return
            self._number += 1
            retry, self._incomplete, self._node_changed = self._incomplete, True, False
            begin = time.monotonic()
            with self.progress.working("applying changes", time.time()):
                await self._enforce(batch, retry=retry)
            self.change_times.observe(time.monotonic() - begin)

    async def use(self, settings: NodeSettings) -> None:
        """Enforce policy with other addresses of this node; after a failure ``run`` goes on trying."""
        async with self._lock:
            self._replica.use(settings)
            self._node_changed = True
        await self.try_reconcile()

    async def use_labels(self, labels: Labels) -> None:
        """Enforce policy with other labels of this node; after a failure ``run`` goes on trying."""
        async with self._lock:
            self._replica.use_labels(labels)
            self._node_changed = True
        await self.try_reconcile()

    async def try_reconcile(self) -> None:
        """Enforce the store's changes, and the cgroups that were noted; after a failure ``run`` goes on trying."""
        try:
            await self.reconcile()
        except NfqError as error:
            self._failures.add(self._number, str(error))

    def note_cgroups(self, cgroups: Mapping[str, tuple[Cgroup, ...]]) -> None:
        """Enforce policy on the sockets of these cgroups from the next reconciliation on."""
        self._cgroups = cgroups

    async def _enforce(self, batch: ChangeBatch, *, retry: bool) -> None:
        await self._apply_to_replica(batch.changes)
        self._change_identities()
        self.progress.stage("compiling policy")
        await self._compile()
        # The view has each change of a peer once: it is sent before anything that takes time or can fail.
        epoch_ends = self._epoch.ends_with(self.view.peer_changes, self._workers.peers)
        self._change_peers(self.view.peer_changes)
        # Changes below refer to chains and sets. If these cannot be repaired, the changes are tried all the same.
        await self.guard.keep()
        await self._apply_to_dataplane(self.view, epoch_ends=epoch_ends, retry=retry)
        await self._require_intact_rules()
        self._incomplete = False
        self._failures.clear()
        self._acknowledge(batch)

    async def _compile(self) -> None:
        begin, before = time.monotonic(), self.view.compilations
        self.view = await asyncio.to_thread(self._replica.view, self._number)
        if self.view.compilations != before:
            self.compile_times.observe(time.monotonic() - begin)

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

    async def _apply_to_dataplane(self, view: View, *, epoch_ends: bool, retry: bool) -> None:
        if view.remote_networks != self._rules.remote_networks:
            await asyncio.to_thread(self._rules.set_remote_networks, view.remote_networks)
        await self._set_cgroups(self._rules.cgroups | view.sockets)  # unknown to the workers: their packets are dropped
        if not (view.changed or retry):
            await self._set_cgroups(view.sockets)
            if epoch_ends:
                await self._recheck_flows(hold=False)
            return
        # The sets release removed endpoints before the workers drop them, and queue new endpoints once the workers have
        # them: so no packet meets a worker that does not have its endpoint.
        await asyncio.to_thread(self._rules.release_addresses, view.snapshot)
        self.progress.stage("sending policy to the workers")
        async with self._epoch.advance(hold=retry) as number:
            await self._workers.enforce(view.snapshot.with_revision(self._number, number))
            self.progress.stage("updating rules and sets")
            await asyncio.to_thread(self._rules.update, view.snapshot)
            await self._set_cgroups(view.sockets)
        self.progress.stage("updating the rules of the proxy")
        await self.update_proxy()
        _log.info("revision %d is in force", self._number)

    async def _set_cgroups(self, cgroups: frozenset[Cgroup]) -> None:
        """Have the kernel classify packets by sockets of these cgroups.

        A kernel that cannot do so has no process endpoints; everything else is enforced all the same.
        """
        if cgroups == self._rules.cgroups:
            return
        try:
            await asyncio.to_thread(self._rules.set_cgroups, cgroups)
        except NfqError as error:
            self._note_process_problem(error)
        else:
            self.process_problem = None

    def _note_process_problem(self, error: NfqError) -> None:
        if self.process_problem is None:
            _log.error("process endpoints are not enforced: %s", error)
        self.process_problem = str(error)

    def enforces_process(self, cgroup: int) -> bool:
        """Return whether policy is enforced on the sockets of a cgroup."""
        return cgroup in self.view.snapshot.processes and self.view.sockets == self._rules.cgroups

    def _change_peers(self, changes: Sequence[PeerChange]) -> None:
        self._workers.change_peers(changes)
        if changes:
            self._schedule_recheck()

    def _change_identities(self) -> None:
        """Send the cluster's identities before anything is compiled: a packet of a new one may arrive at any time."""
        changes = self._replica.identity_changes()
        self._workers.change_identities(changes)
        if any(not known for _, known in changes):
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
        await self._works.run(self._flush_flows())

    async def _flush_flows(self) -> None:
        async with self._lock:
            self._number += 1
            self._workers.flush_flows()
            await self._recheck_flows(hold=self._incomplete)

    async def stop(self) -> None:
        """Cancel the tasks that run in the background."""
        await cancel(*self._works.running, self._guarding, self._offload_recheck, self._recheck)


async def _no_proxy() -> None:
    """Update nothing: no proxy has slots."""


class _Failures:
    """Failures of reconciliations: one log line for each reason, and a pause before the next attempt."""

    def __init__(self, timings: ReconcilerTimings) -> None:
        self._timings = timings
        self._count = 0
        self._since = 0.0  # s since the epoch: the first failure after a success
        self._reason: str | None = None

    @property
    def current(self) -> tuple[float, str] | None:
        """Return the time of the first failure since the last success, and the reason of the last one."""
        return (self._since, self._reason) if self._reason is not None else None

    @property
    def pause(self) -> float:
        """Return the time to the next attempt; each failure doubles it."""
        doublings = max(min(self._count, 10) - 1, 0)
        return min(self._timings.retry * (1 << doublings), self._timings.longest_retry)

    def add(self, revision: int, reason: str) -> None:
        """Count a failure, and log its reason if it is not that of the last one."""
        if not self._count:
            self._since = time.time()
        self._count += 1
        if reason != self._reason:
            _log.error("revision %d is not in force everywhere, trying again: %s", revision, reason)
        self._reason = reason

    def clear(self) -> None:
        """Begin anew after a success."""
        self._count, self._reason = 0, None
