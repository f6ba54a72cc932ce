"""Health of the agent's parts: ok, degraded or disabled, with a reason and the time since which. Pure.

``assess`` derives the state of each part from facts, which the agent reads at an interval, also while nobody asks.
``History`` keeps the time of each change. A part is degraded while it does not do what the configuration wants: policy
is not in force, packets are lost, or changes do not arrive. A choice of the configuration, as an endpoint without an
interface, does not degrade it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.observe.status import (
    ConntrackStatus,
    EndpointStates,
    HealthStatus,
    PartHealth,
    ProxyStatus,
    Refusal,
    RevisionStatus,
    RulesStatus,
    StoreStatus,
    StuckPart,
    WorkloadsStatus,
)
from nfq_enforcer.text import utc_time

RECENT = 60.0  # s for which a part stays degraded after its last loss
_FULL = 0.9  # of a table, from which on it counts as nearly full
_UNCHECKED = 10.0  # s without a comparison of the rules with the kernel; it is due every second
_SHOWN = 3  # reasons in a message
_LATELY = "the last within a minute"

PARTS = (
    *("rules", "queues", "workers", "revision", "documents", "store", "endpoints"),
    *("workloads", "conntrack", "proxy", "keys", "agent"),
)


class PartState(StrEnum):
    """State of a part."""

    OK = "ok"
    DEGRADED = "degraded"
    DISABLED = "disabled"  # by the configuration, or because no policy needs it


class Assessment(NamedTuple):
    """Assessment: the present state of one part."""

    part: str
    state: PartState
    message: str
    since: float | None = None  # s since the epoch, if the part itself knows it; None: the time of the first look


@dataclass(frozen=True)
class WorkerFacts:
    """Facts about one worker."""

    pid: int | None
    revision: int | None
    restarts: int
    stuck: tuple[float, str] | None  # time in s since the epoch, reason


@dataclass(frozen=True)
class Facts:
    """Facts: the state of each part, as the agent reads it at one time."""

    now: float  # s since the epoch
    rules: RulesStatus
    queues_wanted: int
    queues_bound: int
    lost: int  # packets that the kernel dropped because a queue was full, since the agent's start
    workers: Sequence[WorkerFacts]
    internal_errors: int  # packets dropped because of an internal error
    revision: int  # the last one that a reconciliation has completed
    revisions: RevisionStatus
    working: Sequence[str]  # long work that is under way
    refused: Refusal | None  # documents
    document_problems: Sequence[str]  # of the sources of workloads
    store: StoreStatus | None
    endpoints: EndpointStates
    workloads: WorkloadsStatus | None
    source_problems: Sequence[str]  # of the sources of workloads, and of the host
    conntrack: ConntrackStatus
    proxy: ProxyStatus | None
    stuck: Sequence[StuckPart]  # threads, child processes, event loop


def assess(facts: Facts, recent: Mapping[str, int]) -> Iterator[Assessment]:
    """Yield the state of each part, in the order of ``PARTS``; ``recent``: the losses within ``RECENT`` by name."""
    yield _rules(facts)
    yield _queues(facts, recent["lost"])
    yield _workers(facts, recent["internal_errors"])
    yield _revision(facts)
    yield _documents(facts)
    yield _store(facts.store)
    yield _endpoints(facts.endpoints)
    yield _workloads(facts)
    yield _conntrack(facts.conntrack, recent["evicted"])
    yield _proxy(facts.proxy, recent["refused"])
    yield Assessment("keys", PartState.DISABLED, "stamps are not signed")
    yield _agent(facts.stuck)


def _rules(facts: Facts) -> Assessment:
    rules = facts.rules
    if not rules.intact:
        reason = ": ".join(filter(None, (rules.error, rules.missing)))
        return Assessment("rules", PartState.DEGRADED, reason, _seconds(rules.since))
    if rules.checked is None:
        return Assessment("rules", PartState.DEGRADED, "they have not been compared with the kernel yet")
    age = max(0.0, facts.now - _seconds(rules.checked))
    if age >= _UNCHECKED:
        message = f"they have not been compared with the kernel since {rules.checked}"
        return Assessment("rules", PartState.DEGRADED, message, _seconds(rules.checked))
    repairs = f", repaired {rules.repairs} times" if rules.repairs else ""
    return Assessment("rules", PartState.OK, f"as the agent has made them, compared {age:.0f} s ago{repairs}")


def _queues(facts: Facts, lost: int) -> Assessment:
    unbound = facts.queues_wanted - facts.queues_bound
    if unbound:
        return Assessment("queues", PartState.DEGRADED, f"{unbound} of {facts.queues_wanted} have no worker")
    if lost:
        return Assessment("queues", PartState.DEGRADED, f"{lost} packets lost in a full queue, {_LATELY}")
    return Assessment("queues", PartState.OK, f"{facts.queues_bound} bound")


def _workers(facts: Facts, internal_errors: int) -> Assessment:
    stuck = [(place, worker.stuck) for place, worker in enumerate(facts.workers) if worker.stuck is not None]
    if stuck:
        message = _several(f"worker {place}: {reason}" for place, (_, reason) in stuck)
        return Assessment("workers", PartState.DEGRADED, message, min(since for _, (since, _) in stuck))
    if internal_errors:
        message = f"{internal_errors} packets dropped because of an internal error, {_LATELY}"
        return Assessment("workers", PartState.DEGRADED, message)
    restarts = sum(worker.restarts for worker in facts.workers)
    return Assessment("workers", PartState.OK, f"{len(facts.workers)} running, {restarts} restarts")


def _revision(facts: Facts) -> Assessment:
    revisions = facts.revisions
    wanted, running = revisions.wanted, [worker.revision or 0 for worker in facts.workers]
    if revisions.failure is not None:
        message = f"{wanted} is wanted and not in force: {revisions.failure}"
        since = _seconds(revisions.since) if revisions.since else None
        return Assessment("revision", PartState.DEGRADED, message, since)
    if not facts.revision:
        return Assessment("revision", PartState.DEGRADED, "none is in force yet")
    if revisions.changing:
        work = f": {'; '.join(facts.working)}" if facts.working else ""
        return Assessment("revision", PartState.OK, f"{wanted} is being put in force{work}")
    behind = [f"worker {place} has {number}" for place, number in enumerate(running) if number < revisions.workers]
    if behind:
        return Assessment("revision", PartState.DEGRADED, f"{revisions.workers} is wanted: {_several(behind)}")
    return Assessment("revision", PartState.OK, f"{wanted} in force")


def _documents(facts: Facts) -> Assessment:
    if facts.refused is not None:
        message = f"changed documents are refused: {facts.refused.error}"
        return Assessment("documents", PartState.DEGRADED, message, _seconds(facts.refused.since))
    if facts.document_problems:
        return Assessment("documents", PartState.DEGRADED, _several(facts.document_problems))
    if facts.store is not None and facts.store.refused is not None and facts.store.refused.count:
        count = facts.store.refused.count
        first = _several(f"{value.key}: {value.reason}" for value in facts.store.refused.values)
        return Assessment("documents", PartState.DEGRADED, f"{count} values of the store cannot be read: {first}")
    return Assessment("documents", PartState.OK, "none refused")


def _store(store: StoreStatus | None) -> Assessment:
    if store is None:
        return Assessment("store", PartState.DISABLED, "none is shared (store: memory:)")
    if not store.connected:
        message = f"{store.store} is unreachable: {store.error or 'not connected'}"
        return Assessment("store", PartState.DEGRADED, message, _seconds(store.since) if store.since else None)
    if store.unsaved is not None:
        message = f"the last known state is not saved: {store.unsaved.error}"
        return Assessment("store", PartState.DEGRADED, message, _seconds(store.unsaved.since))
    refused = [one for one in store.pending or () if one.reason]
    if refused:
        message = f"it refuses endpoints of this node: {_several(f'{one.endpoint}: {one.reason}' for one in refused)}"
        return Assessment("store", PartState.DEGRADED, message)
    return Assessment("store", PartState.OK, f"{store.store} is connected since {store.since}")


def _endpoints(states: EndpointStates) -> Assessment:
    if states.problems:
        return Assessment("endpoints", PartState.DEGRADED, _several(states.problems))
    others = (("changing", states.changing), ("not yet in the store", states.pending))
    words = [f"{states.ready} ready", *(f"{count} {name}" for name, count in others if count)]
    if states.open_sources:
        words.append(f"{states.open_sources} without an interface, so others can send from their addresses")
    return Assessment("endpoints", PartState.OK, ", ".join(words))


def _workloads(facts: Facts) -> Assessment:
    sources = facts.workloads.sources if facts.workloads is not None else ()
    away = [f"source {source.source} is away: {source.away}" for source in sources if source.away is not None]
    if problems := [*away, *facts.source_problems]:
        return Assessment("workloads", PartState.DEGRADED, _several(problems))
    if not sources:
        return Assessment("workloads", PartState.DISABLED, "the configuration names no source")
    return Assessment("workloads", PartState.OK, ", ".join(f"{one.source}: {one.endpoints}" for one in sources))


def _conntrack(conntrack: ConntrackStatus, evicted: int) -> Assessment:
    if evicted:
        message = f"the table of {conntrack.max} flows is full: {evicted} evicted for new ones, {_LATELY}"
        return Assessment("conntrack", PartState.DEGRADED, message)
    tables = (
        ("the workers' table", conntrack.flows, conntrack.max),
        ("the kernel's table", conntrack.kernel_entries, conntrack.kernel_max),
    )
    full = [
        f"{name} is nearly full: {entries} of {most}"
        for name, entries, most in tables
        if entries is not None and most and entries >= _FULL * most
    ]
    if full:
        return Assessment("conntrack", PartState.DEGRADED, _several(full))
    return Assessment("conntrack", PartState.OK, f"{conntrack.flows} of {conntrack.max} flows")


def _proxy(proxy: ProxyStatus | None, refused: int) -> Assessment:
    if proxy is None:
        return Assessment("proxy", PartState.DISABLED, "no policy needs it")
    if proxy.error or not proxy.running:
        return Assessment("proxy", PartState.DEGRADED, proxy.error or "it does not run")
    if proxy.version is None:
        return Assessment("proxy", PartState.DEGRADED, f"Envoy, process {proxy.pid}, does not respond")
    if refused:
        message = f"{refused} connections found all slots in use, {_LATELY}"
        return Assessment("proxy", PartState.DEGRADED, message)
    return Assessment("proxy", PartState.OK, f"Envoy {proxy.version}, {proxy.slots} slots, {proxy.restarts} restarts")


def _agent(stuck: Sequence[StuckPart]) -> Assessment:
    if stuck:
        message = _several(f"{one.part}: {one.reason}" for one in stuck)
        return Assessment("agent", PartState.DEGRADED, message, min(_seconds(one.since) for one in stuck))
    return Assessment("agent", PartState.OK, "no thread is stuck")


def _several(sentences: Iterable[str]) -> str:
    """Return the first of several sentences in one, with the number of the others."""
    listed = list(sentences)
    more = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    return "; ".join([*listed[:_SHOWN], *more])


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


class _Losses:
    """Losses: a counter's growth within the last ``RECENT`` seconds."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._begin, self._end = 0, 0.0  # the count before the first recent loss, the time until which it is recent

    def update(self, count: int, now: float) -> int:
        """Return the growth since the first recent loss; 0 once ``RECENT`` seconds have passed without one."""
        last = count if self._last is None else self._last
        if now >= self._end:
            self._begin = last
        if count > last:
            self._end = now + RECENT
        self._last = count
        self._begin = min(self._begin, count)  # a counter begins anew with its worker
        return count - self._begin


class History:
    """History: the state of each part at the last look, and the time of its last change."""

    def __init__(self, now: float) -> None:
        """Begin with the agent, at this time in seconds since the epoch."""
        self._begin = now
        self._since: dict[str, tuple[PartState, float]] = {}
        self._overall: tuple[PartState, float] = (PartState.OK, now)
        self._losses = {name: _Losses() for name in ("lost", "internal_errors", "evicted", "refused")}

    def update(self, facts: Facts) -> HealthStatus:
        """Return the health by these facts; the time of the facts never decreases."""
        counts = {
            "lost": facts.lost,
            "internal_errors": facts.internal_errors,
            "evicted": facts.conntrack.evicted,
            "refused": facts.proxy.refused if facts.proxy is not None else 0,
        }
        recent = {name: losses.update(counts[name], facts.now) for name, losses in self._losses.items()}
        parts = [self._part(one, facts.now) for one in assess(facts, recent)]
        degraded = [self._since[part.part][1] for part in parts if part.state == PartState.DEGRADED]
        state = PartState.DEGRADED if degraded else PartState.OK
        if state is not self._overall[0]:
            self._overall = state, min(degraded, default=facts.now)
        return HealthStatus(state, utc_time(self._overall[1]), parts)

    def _part(self, assessed: Assessment, now: float) -> PartHealth:
        """Return the health of a part; a part that stays degraded keeps its time, also for another reason."""
        before = self._since.get(assessed.part)
        if before is None or before[0] is not assessed.state:
            first = self._begin if before is None else now
            before = assessed.state, first if assessed.since is None else assessed.since
            self._since[assessed.part] = before
        return PartHealth(assessed.part, assessed.state, utc_time(before[1]), assessed.message)
