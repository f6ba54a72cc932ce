"""Status of the node's agent."""

import asyncio
from collections.abc import Iterator
from typing import Any

from nfq_enforcer import __version__
from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.interface_check import problem
from nfq_enforcer.dataplane.queue.protocol import backlog
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.observe.status import (
    AgentStatus,
    DocumentCounts,
    LogCounts,
    PacketCounts,
    Refusal,
    RulesStatus,
    StoreStatus,
    StuckPart,
    WorkersStatus,
    WorkerStatus,
    WorkerStuck,
)
from nfq_enforcer.text import utc_time

_COUNTING = 2.0  # s, for the count of queued packets in the kernel's rules


class StatusHandlers:
    """Status handlers: read the state of the agent's parts."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts
        self._lost = 0  # packets that were queued and received no verdict, so far
        self._repairs, self._uncounted = 0, 0  # a repair resets the kernel's count of queued packets
        self._queued = 0  # packets that the rules have queued, as of the last count
        self._overdue: asyncio.Task[int] | None = None  # a count that has begun and may be stuck

    async def status(self, _params: Params) -> dict[str, Any]:
        """Return the agent's status."""
        return (await self.read()).to_json()

    async def read(self) -> AgentStatus:
        """Read the status of every part."""
        parts, names, view = self._parts, self._parts.names, self._parts.reconciler.view
        store = await parts.store.status()
        store_status = StoreStatus.from_json(store) if store else None
        return AgentStatus(
            version=__version__,
            node=parts.settings.name,
            addresses=[str(address) for address in parts.settings.addresses],
            cluster_interfaces=sorted(parts.settings.cluster_interfaces),
            since=utc_time(parts.started),
            enforcement=parts.config.enforcement,
            audit=parts.config.audit,
            fail=parts.config.fail,
            datapath=parts.config.datapath,
            families=[f"IPv{family.version}" for family in parts.families],
            revision=parts.reconciler.revision,
            compilations=view.compilations,
            documents=DocumentCounts(len(view.policies), len(names)),
            refused=self._refusal(),
            endpoints=len({endpoint.name for endpoint in view.snapshot.endpoints.values()}),
            identities=len(names.identities) + len(names.cidrs),
            store=store_status,
            worker=await self._workers_in_sum(),
            workers=[_worker_status(worker) for worker in parts.workers.processes],
            log=LogCounts(parts.log.seen),
            problems=[problem(*pair) for pair in parts.interfaces.check().items()],
            rules=self._rules(),
            stuck=list(self._stuck_parts(store_status)),
        )

    def _rules(self) -> RulesStatus:
        state = self._parts.reconciler.guard.state
        return RulesStatus(
            intact=state.intact,
            since=utc_time(state.since),
            missing=state.missing,
            error=state.error,
            repairs=state.repairs,
            last_repair=None if state.last_repair is None else utc_time(state.last_repair),
            last_missing=state.last_missing,
        )

    def _stuck_parts(self, store: StoreStatus | None) -> Iterator[StuckPart]:
        """Yield the parts that do not work: workers, threads with their child processes, the store."""
        for place, worker in enumerate(self._parts.workers.processes):
            if stuck := worker.state.stuck:
                yield StuckPart(f"worker {place}", utc_time(stuck.since), stuck.reason)
        for job in self._parts.watch.stuck():
            yield StuckPart(job.part, utc_time(job.since), job.reason)
        if store and not store.connected and store.since:
            yield StuckPart("store", store.since, store.error or "not connected")

    def _refusal(self) -> Refusal | None:
        refused = self._parts.store.refused
        return Refusal(utc_time(refused[0]), refused[1]) if refused else None

    async def _workers_in_sum(self) -> WorkersStatus:
        workers = self._parts.workers
        queued, verdicts = await self._count_queued(), workers.verdicts
        state = workers.state
        waiting = backlog(*state.queues)
        with_verdict = verdicts + (waiting.waiting if waiting else 0)
        repairs = self._parts.reconciler.guard.state.repairs
        if repairs != self._repairs:
            self._repairs, self._uncounted = repairs, self._lost + with_verdict - queued
        self._lost = max(self._lost, queued + self._uncounted - with_verdict)
        return WorkersStatus(
            queue=workers.first_queue,
            queues=list(state.queues),
            driver=workers.driver,
            pid=state.pid,
            restarts=state.restarts,
            failure=state.failure,
            lost=self._lost,
            counts=PacketCounts.from_json(state.counters),
        )

    async def _count_queued(self) -> int:
        """Return the number of queued packets; the last known one while the kernel's rules cannot be read in time."""
        if self._overdue is None or self._overdue.done():
            counting = asyncio.create_task(asyncio.to_thread(self._parts.rules.queued))
            await asyncio.wait({counting}, timeout=_COUNTING)
            if counting.done():
                self._queued = counting.result()
            else:
                self._overdue = counting
                counting.add_done_callback(lambda late: late.cancelled() or late.exception())
        return self._queued


def _worker_status(worker: WorkerProcess) -> WorkerStatus:
    state = worker.state
    return WorkerStatus(
        queues=list(state.queues),
        pid=state.pid,
        restarts=state.restarts,
        failure=state.failure,
        counts=PacketCounts.from_json(state.counters),
        stuck=WorkerStuck(utc_time(state.stuck.since), state.stuck.reason) if state.stuck else None,
    )
