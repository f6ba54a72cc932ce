"""Status of the node's agent."""

import asyncio
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
    WorkersStatus,
    WorkerStatus,
)
from nfq_enforcer.text import utc_time


class StatusHandlers:
    """Status handlers: read the state of the agent's parts."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts
        self._lost = 0  # packets that were queued and received no verdict, so far
        self._repairs, self._uncounted = 0, 0  # a repair resets the kernel's count of queued packets

    async def status(self, _params: Params) -> dict[str, Any]:
        """Return the agent's status."""
        return (await self.read()).to_json()

    async def read(self) -> AgentStatus:
        """Read the status of every part."""
        parts, names, view = self._parts, self._parts.names, self._parts.reconciler.view
        store = await parts.store.status()
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
            store=StoreStatus.from_json(store) if store else None,
            worker=await self._workers_in_sum(),
            workers=[_worker_status(worker) for worker in parts.workers.processes],
            log=LogCounts(parts.log.seen),
            problems=[problem(*pair) for pair in parts.interfaces.check().items()],
            rules=self._rules(),
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

    def _refusal(self) -> Refusal | None:
        refused = self._parts.store.refused
        return Refusal(utc_time(refused[0]), refused[1]) if refused else None

    async def _workers_in_sum(self) -> WorkersStatus:
        workers = self._parts.workers
        queued, verdicts = await asyncio.to_thread(self._parts.rules.queued), workers.verdicts
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


def _worker_status(worker: WorkerProcess) -> WorkerStatus:
    state = worker.state
    return WorkerStatus(
        queues=list(state.queues),
        pid=state.pid,
        restarts=state.restarts,
        failure=state.failure,
        counts=PacketCounts.from_json(state.counters),
    )
