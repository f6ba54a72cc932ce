"""Health watch: reads the facts about the agent's parts at an interval, also while nobody asks for the status.

So the status can tell since when a part is degraded, to the second. A look reads nothing that costs a process or grows
with the cluster: no counters of rules, no count of the store's entries.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.core.tables.snapshot import HOST_NAME
from nfq_enforcer.dataplane import ipvs
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, read_queues
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.observe.health import Facts, History, WorkerFacts
from nfq_enforcer.observe.status import (
    ConntrackStatus,
    EndpointStates,
    HealthStatus,
    ProxyStatus,
    QueueStatus,
    Refusal,
    RevisionStatus,
    RulesStatus,
    StoreStatus,
    StuckPart,
)
from nfq_enforcer.text import utc_time

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # s between two looks
_PROXY_INTERVAL = 5.0
_KERNEL_TABLE = Path("/proc/sys/net/netfilter")


class HealthWatch:
    """Health watch: the facts about each part, and the history of their states."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts
        self._history = History(parts.started)
        self._queues = _Queues()
        self._proxy: ProxyStatus | None = None  # of the last look at it
        self._proxy_due = 0.0

    async def run(self) -> None:
        """Look at an interval; never return. The reason for which that fails is logged once."""
        failure = ""
        while True:
            try:
                self.look(await self._present_proxy())
                failure = ""
            except OSError as error:  # such as: no descriptor is left
                if failure != (failure := str(error)):
                    _log.error("the health of this node cannot be read: %s", failure)
            except Exception as error:  # the entry point of a task: an internal error must not end the watch
                if failure != (failure := repr(error)):
                    _log.exception("the health of this node cannot be read")
            await asyncio.sleep(_INTERVAL)

    async def _present_proxy(self) -> ProxyStatus | None:
        """Return the status of the proxy, which costs Envoy some milliseconds: not at every look."""
        if time.monotonic() >= self._proxy_due:
            self._proxy_due = time.monotonic() + _PROXY_INTERVAL
            self._proxy = await self._parts.slots.status(self._parts.requests.lost)
        return self._proxy

    def look(self, proxy: ProxyStatus | None) -> HealthStatus:
        """Return the present health of each part."""
        parts = self._parts
        store, queues, conntrack = parts.store.connection(), self.queues(), self.conntrack()
        workers = parts.workers.processes
        return self._history.update(
            Facts(
                now=time.time(),
                rules=self.rules(),
                queues_wanted=sum(queue.numbers for queue in queues),
                queues_bound=sum(queue.bound for queue in queues),
                lost=sum(queue.lost for queue in queues),
                workers=[_facts(worker) for worker in workers],
                internal_errors=sum(worker.counters.read()["internal_errors"] for worker in workers),
                revision=parts.reconciler.revision,
                revisions=self.revisions(),
                working=[str(work) for work in parts.work.current()],
                refused=self.refusal(),
                document_problems=list(parts.workloads.document_problems()),
                store=StoreStatus.from_json(store) if store else None,
                endpoints=self.endpoints(),
                workloads=parts.workloads.status(),
                source_problems=[*parts.workloads.source_problems(), *host_problems()],
                conntrack=conntrack,
                proxy=proxy,
                stuck=list(self.stuck_jobs()),
            )
        )

    def rules(self) -> RulesStatus:
        """Return the state of the rules, as the last comparison with the kernel left it."""
        state = self._parts.reconciler.guard.state
        return RulesStatus(
            intact=state.intact,
            since=utc_time(state.since),
            missing=state.missing,
            error=state.error,
            repairs=state.repairs,
            last_repair=None if state.last_repair is None else utc_time(state.last_repair),
            last_missing=state.last_missing,
            checked=None if state.checked is None else utc_time(state.checked),
        )

    def queues(self) -> list[QueueStatus]:
        """Return the queues of all workers by kind, as the kernel has them."""
        return self._queues.read(self._parts.workers.queues)

    def revisions(self) -> RevisionStatus:
        """Return the newest revision, and the reason for which it is not in force."""
        reconciler = self._parts.reconciler
        since, reason = reconciler.failure or (None, None)
        return RevisionStatus(
            wanted=reconciler.wanted,
            workers=self._parts.workers.revision,
            changing=reconciler.changing,
            since=None if since is None else utc_time(since),
            failure=reason,
        )

    def refusal(self) -> Refusal | None:
        """Return the reason for which changed documents are refused."""
        refused = self._parts.store.refused
        return Refusal(utc_time(refused[0]), refused[1]) if refused else None

    def conntrack(self) -> ConntrackStatus:
        """Return the use of the workers' flow tables, and of the kernel's table."""
        workers = self._parts.workers.processes
        counts = [worker.counters.read() for worker in workers]
        return ConntrackStatus(
            flows=sum(count["flows"] for count in counts),
            max=self._parts.config.conntrack.max,
            evicted=sum(count["flows_evicted"] for count in counts),
            kernel_entries=_kernel_number("nf_conntrack_count"),
            kernel_max=_kernel_number("nf_conntrack_max"),
        )

    def endpoints(self) -> EndpointStates:
        """Return the endpoints of this node by state; their interfaces as of the last check of these."""
        parts = self._parts
        missing, changing = parts.interfaces.missing, parts.workloads.changing()
        snapshot = parts.reconciler.view.snapshot
        local = chain(snapshot.endpoints.values(), snapshot.processes.values())
        names = {one.name for one in local} - {HOST_NAME}
        store = parts.store.connection() or {}
        return EndpointStates(
            ready=len(names - missing.keys() - changing),
            changing=len(changing),
            missing=len(missing),
            refused=len(parts.workloads.registrar.problems),
            pending=len(store.get("pending", ())),
            open_sources=len(parts.interfaces.unnamed),
            problems=[*parts.interfaces.missing_sentences(), *self._not_enforced()],
        )

    def _not_enforced(self) -> Iterator[str]:
        yield from self._parts.workloads.endpoint_problems()
        if reason := self._parts.reconciler.process_problem:
            yield f"process endpoints are not enforced: {reason}"

    def stuck_jobs(self) -> Iterator[StuckPart]:
        """Yield the stuck threads with their child processes, and the event loop."""
        for job in self._parts.watch.stuck():
            yield StuckPart(job.part, utc_time(job.since), job.reason)


def host_problems() -> Iterator[str]:
    """Yield the settings of this host that keep policy from being enforced."""
    if ipvs.has_services():
        yield (
            "this host has services of IPVS (kube-proxy in mode ipvs): packets of its endpoints to them are "
            "dropped (INVALID_SOURCE_IP), because IPVS sends them as the host; the modes iptables and nftables work"
        )


def _facts(worker: WorkerProcess) -> WorkerFacts:
    state = worker.state
    return WorkerFacts(state.pid, worker.revision, state.restarts, state.stuck and (*state.stuck,))


def _kernel_number(name: str) -> int | None:
    try:
        return int((_KERNEL_TABLE / name).read_text())
    except (OSError, ValueError):
        return None


class _Queues:
    """Queues: the kernel's counts by kind; its counts of losses begin anew when a worker binds a queue."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # losses of each queue at the last look
        self._lost: Counter[str] = Counter()  # by kind, since the agent's start

    def read(self, workers: tuple[QueueNumbers, ...]) -> list[QueueStatus]:
        kinds = _kinds(workers)
        try:
            present = {queue.number: queue for queue in read_queues() if queue.number in kinds}
        except FileNotFoundError:
            present = {}
        for number, queue in present.items():
            last = self._last.get(number, 0)
            self._lost[kinds[number]] += queue.lost - last if queue.lost >= last else queue.lost
            self._last[number] = queue.lost
        wanted = Counter(kinds.values())
        bound = Counter(kinds[number] for number in present)
        waiting: Counter[str] = Counter()
        for number, queue in present.items():
            waiting[kinds[number]] += queue.waiting
        return [QueueStatus(kind, wanted[kind], bound[kind], waiting[kind], self._lost[kind]) for kind in wanted]


def _kinds(workers: tuple[QueueNumbers, ...]) -> dict[int, str]:
    """Return the kind of each queue number; the driver netfilterqueue has one kind for known flows, ``headers``."""
    kinds: dict[int, str] = {}
    for queues in workers:
        kinds |= dict.fromkeys((queues.openings,), "openings") | dict.fromkeys((queues.excess,), "excess")
        for place in queues.places():
            for number, kind in zip(reversed(place), ("segmented", "whole", "headers"), strict=True):
                kinds[number] = kind
    return dict(sorted(kinds.items()))
