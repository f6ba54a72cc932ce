"""Status of the node's agent."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from nfq_enforcer import __version__
from nfq_enforcer.agent import health_watch
from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.health_watch import HealthWatch
from nfq_enforcer.core.tables.snapshot import HOST_NAME
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.dataplane.queue.protocol import backlog
from nfq_enforcer.dataplane.rules.iptables import RuleCounts
from nfq_enforcer.dataplane.worker.counters import (
    DIRECTIONS,
    FLOW_VERDICTS,
    LATENCY_BOUNDS,
    UNKNOWN_DIRECTION,
    drops_name,
    flows_name,
    latency_name,
)
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.status import (
    AgentStatus,
    DocumentCounts,
    DropCount,
    FlowVerdictCount,
    HistogramStatus,
    LogCounts,
    NamesStatus,
    PacketCounts,
    SourceFilterStatus,
    StoreStatus,
    StuckPart,
    TrafficStatus,
    WorkersStatus,
    WorkerStatus,
    WorkerStuck,
    WorkStatus,
)
from nfq_enforcer.text import utc_time

_COUNTING = 2.0  # s, for a count in the kernel's rules
T = TypeVar("T")


class _Count(Generic[T]):
    """Count: packets by the kernel's rules, read in a thread."""

    def __init__(self, read: Callable[[], T], initial: T) -> None:
        self.last = initial
        self._read = read
        self._overdue: asyncio.Task[T] | None = None  # a count that has begun and may be stuck

    async def read(self) -> T:
        """Return the present count; the last known one while the rules cannot be read in time."""
        if self._overdue is None or self._overdue.done():
            counting = asyncio.create_task(asyncio.to_thread(self._read))
            await asyncio.wait({counting}, timeout=_COUNTING)
            if counting.done():
                self.last = counting.result()
            else:
                self._overdue = counting
                counting.add_done_callback(lambda late: late.cancelled() or late.exception())
        return self.last


class StatusHandlers:
    """Status handlers: read the state of the agent's parts."""

    def __init__(self, parts: Parts, health: HealthWatch) -> None:
        """Set the parts to read, and the watch over their health."""
        self._parts = parts
        self._health = health
        self._lost = 0  # packets that were queued and received no verdict, so far
        self._repairs, self._uncounted = 0, 0  # a repair resets the kernel's count of queued packets
        self._counts = _Count(parts.rules.counts, RuleCounts(0, 0))
        self._limited_before = 0  # openings dropped by the rules, until the last repair
        self._forged = _Count[dict[str, int]](parts.rules.forged, {})

    async def status(self, _params: Params) -> dict[str, Any]:
        """Return the agent's status."""
        return (await self.read()).to_json()

    async def read(self) -> AgentStatus:
        """Read the status of every part."""
        parts, names, view = self._parts, self._parts.names, self._parts.reconciler.view
        store, forged = await parts.store.status(), await self._count_forged()
        proxy = await parts.slots.status(parts.requests.lost)
        learned = parts.learner.names
        store_status = StoreStatus.from_json(store) if store else None
        return AgentStatus(
            version=__version__,
            node=parts.settings.name,
            addresses=[str(address) for address in parts.replica.settings.addresses],
            cluster_interfaces=sorted(parts.settings.cluster_interfaces),
            since=utc_time(parts.started),
            enforcement=parts.config.enforcement,
            audit=parts.config.audit,
            fail=parts.config.fail,
            datapath=parts.config.datapath,
            families=[f"IPv{family.version}" for family in parts.families],
            revision=parts.reconciler.revision,
            compilations=view.compilations,
            documents=DocumentCounts(sum(policy.has_rules for policy in view.policies), len(names)),
            refused=self._health.refusal(),
            endpoints=len(
                {one.name for one in (*view.snapshot.endpoints.values(), *view.snapshot.processes.values())}
                - {HOST_NAME}
            ),
            identities=len(names.identities) + len(names.cidrs),
            store=store_status,
            worker=await self._workers_in_sum(sum(forged.values())),
            workers=[_worker_status(worker) for worker in parts.workers.processes],
            log=LogCounts(parts.log.seen),
            problems=[*parts.interfaces.problems(), *parts.workloads.problems(), *self._host_problems()],
            rules=self._health.rules(),
            stuck=list(self._stuck_parts(store_status)),
            working=[
                WorkStatus(work.activity, utc_time(work.since), work.done, work.total, str(work))
                for work in parts.work.current()
            ],
            source_filter=SourceFilterStatus(forged),
            http=parts.requests.counts.read(),
            tls=parts.requests.tls_counts.read(),
            proxy=proxy,
            names=NamesStatus(learned.names, learned.addresses, learned.evicted, parts.learner.held),
            workloads=parts.workloads.status(),
            health=self._health.look(proxy),
            revisions=self._health.revisions(),
            endpoint_states=self._health.endpoints(),
            conntrack=self._health.conntrack(),
            queues=self._health.queues(),
            traffic=_traffic(parts.workers.state.counters, sum(forged.values())),
            compile_times=parts.reconciler.compile_times.read(),
            change_times=parts.reconciler.change_times.read(),
            workload_flows=list(parts.workload_flows.read()) if parts.workload_flows else (),
        )

    def _host_problems(self) -> Iterator[str]:
        yield from health_watch.host_problems()
        if reason := self._parts.reconciler.process_problem:
            yield f"process endpoints are not enforced: {reason}"

    def _stuck_parts(self, store: StoreStatus | None) -> Iterator[StuckPart]:
        """Yield the parts that do not work: workers, threads with their child processes, the store."""
        for place, worker in enumerate(self._parts.workers.processes):
            if stuck := worker.state.stuck:
                yield StuckPart(f"worker {place}", utc_time(stuck.since), stuck.reason)
        yield from self._health.stuck_jobs()
        if store and not store.connected and store.since:
            yield StuckPart("store", store.since, store.error or "not connected")

    async def _workers_in_sum(self, forged: int) -> WorkersStatus:
        workers = self._parts.workers
        before = self._counts.last.rate_limited
        queued, limited = await self._counts.read()
        verdicts = workers.verdicts
        state = workers.state
        waiting = backlog(*state.queues)
        with_verdict = verdicts + (waiting.waiting if waiting else 0)
        repairs = self._parts.reconciler.guard.state.repairs
        if repairs != self._repairs:
            self._repairs, self._uncounted = repairs, self._lost + with_verdict - queued
            self._limited_before += before
        self._lost = max(self._lost, queued + self._uncounted - with_verdict)
        return WorkersStatus(
            queue=workers.first_queue,
            queues=list(state.queues),
            driver=workers.driver,
            pid=state.pid,
            restarts=state.restarts,
            failure=state.failure,
            lost=self._lost,
            rate_limited=self._limited_before + limited,
            counts=PacketCounts.from_json(state.counters).with_drops(DropReason.INVALID_SOURCE_IP, forged),
        )

    async def _count_forged(self) -> dict[str, int]:
        with suppress(NfqError):  # the rules guard reports a table that cannot be read
            await self._forged.read()
        return self._forged.last


def _worker_status(worker: WorkerProcess) -> WorkerStatus:
    state = worker.state
    return WorkerStatus(
        queues=list(state.queues),
        pid=state.pid,
        restarts=state.restarts,
        failure=state.failure,
        counts=PacketCounts.from_json(state.counters),
        stuck=WorkerStuck(utc_time(state.stuck.since), state.stuck.reason) if state.stuck else None,
        revision=worker.revision,
    )


def _traffic(counts: Mapping[str, int], forged: int) -> TrafficStatus:
    """Return the counts by direction; packets with a forged source are dropped before their direction is known."""
    drops = [
        DropCount(direction, reason, counts[drops_name(direction, reason)] + (forged if is_forged else 0))
        for reason in DropReason
        for direction in DIRECTIONS
        for is_forged in [reason is DropReason.INVALID_SOURCE_IP and direction == UNKNOWN_DIRECTION]
    ]
    buckets = range(len(LATENCY_BOUNDS) + 1)
    return TrafficStatus(
        drops=[drop for drop in drops if drop.packets or drop.direction != UNKNOWN_DIRECTION],
        new_flows=[
            FlowVerdictCount(direction, verdict, counts[flows_name(direction, verdict)])
            for verdict in FLOW_VERDICTS
            for direction in Direction
        ],
        stamps_made=counts["stamps_made"],
        stamps_read=counts["stamps_read"],
        latency=HistogramStatus(
            LATENCY_BOUNDS, [counts[latency_name(place)] for place in buckets], counts["latency_ns"] / 1e9
        ),
    )
