"""Metrics of the agent as metric families, with Prometheus' conventions for names and units. Pure.

A value that the agent does not know is left out, because a 0 would have a meaning: without a store, the families of the
store are absent.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from nfq_enforcer.observe import traffic_metrics
from nfq_enforcer.observe.health import PartState
from nfq_enforcer.observe.metric_family import MetricFamily, MetricType, Sample, family, histogram, single
from nfq_enforcer.observe.status import (
    AgentStatus,
    EndpointStates,
    HealthStatus,
    HttpRequestCount,
    NamesStatus,
    NodeReport,
    ProxyStatus,
    RulesStatus,
    SourceFilterStatus,
    StoreStatus,
    TlsConnectionCount,
    WorkerStatus,
)


def families(status: AgentStatus, nodes: Iterable[NodeReport] = ()) -> list[MetricFamily]:
    """Return the metric families of an agent's status and of its list of nodes."""
    worker, traffic = status.worker, status.traffic
    metrics = [
        *_policy(status),
        *(_health(status.health) if status.health else ()),
        *(_revisions(status) if status.revisions else ()),
        *(_rules(status.rules) if status.rules else ()),
        *(_endpoint_states(status.endpoint_states) if status.endpoint_states else ()),
        *(_source_filter(status.source_filter) if status.source_filter else ()),
        *(_names(status.names) if status.names else ()),
        *(_proxy(status.proxy) if status.proxy else ()),
        *_http(status.http),
        *_tls(status.tls),
        *traffic_metrics.packets(worker),
        *(traffic_metrics.traffic(traffic) if traffic else traffic_metrics.drops(worker.counts)),
        *traffic_metrics.queues(status.queues),
        *(traffic_metrics.conntrack(status.conntrack) if status.conntrack else ()),
        *traffic_metrics.workload_flows(status.workload_flows),
        *_each_worker(status.workers),
        *(_store(status.store) if status.store else ()),
    ]
    live = [Sample(node.live, {"node": node.name}) for node in nodes if node.live is not None]
    if live:
        metrics.append(family("node_live", "1 for a node whose last heartbeat is recent, 0 for another.", *live))
    return metrics


def _policy(status: AgentStatus) -> Iterator[MetricFamily]:
    build = Sample(1, {"version": status.version, "node": status.node})
    yield family("build_info", "Always 1; the labels are the version and the name of this node.", build)
    yield single(
        "start_timestamp_seconds", "Start time of the agent, in seconds since the epoch.", _epoch_seconds(status.since)
    )
    yield single("policy_revision", "Policy revision that this node enforces.", status.revision)
    yield single("policies", "Policy documents that this node enforces.", status.documents.policies)
    yield single("documents_refused", "1 while changed documents are refused, otherwise 0.", status.refused is not None)
    yield single(
        "stuck_parts", "Parts of the agent that do not work: workers, threads, event loop, store.", len(status.stuck)
    )
    yield single("endpoints", "Endpoints on this node.", status.endpoints)
    yield single("identities", "Identities known on this node, without the reserved ones.", status.identities)


def _health(health: HealthStatus) -> Iterator[MetricFamily]:
    parts = [Sample(part.state == PartState.DEGRADED, {"part": part.part}) for part in health.parts]
    yield single(
        "degraded", "1 while a part of the agent is degraded, otherwise 0.", health.state == PartState.DEGRADED
    )
    yield family("part_degraded", "1 while this part of the agent is degraded, 0 while it is ok or disabled.", *parts)


def _revisions(status: AgentStatus) -> Iterator[MetricFamily]:
    assert status.revisions is not None
    yield single("policy_revision_wanted", "Newest policy revision of this node.", status.revisions.wanted)
    if status.compile_times:
        meaning = "Time to compile policy, of changes that need it."
        yield histogram("policy_compile_duration_seconds", meaning, status.compile_times)
    if status.change_times:
        meaning = "Time to put a change in force: compilation, workers, rules and sets."
        yield histogram("policy_change_duration_seconds", meaning, status.change_times)


def _endpoint_states(states: EndpointStates) -> Iterator[MetricFamily]:
    counts = {
        "ready": states.ready,
        "changing": states.changing,
        "missing": states.missing,
        "refused": states.refused,
        "pending": states.pending,
    }
    meaning = "Endpoints of this node by state; pending ones are ready and not in the store yet."
    yield family("endpoint_states", meaning, *(Sample(count, {"state": name}) for name, count in counts.items()))


def _rules(rules: RulesStatus) -> Iterator[MetricFamily]:
    yield single(
        "rules_intact", "1 while the kernel has all rules and sets of the agent, 0 while it lacks some.", rules.intact
    )
    yield single(
        "rules_repairs_total", "Repairs of rules and sets that another program had changed or removed.", rules.repairs
    )


def _source_filter(sources: SourceFilterStatus) -> Iterator[MetricFamily]:
    drops = [Sample(count, {"interface": interface}) for interface, count in sources.drops.items()]
    if drops:
        meaning = "Packets with a forged source that the kernel has dropped, by interface; a part of drops_total."
        yield family("source_filter_drops_total", meaning, *drops)


def _names(names: NamesStatus) -> Iterator[MetricFamily]:
    yield single("fqdn_names", "Names whose addresses were learned, for each endpoint that asked.", names.names)
    yield single("fqdn_addresses", "Addresses of learned names.", names.addresses)
    yield single("fqdn_evicted_total", "Learned names and addresses that gave way to newer ones.", names.evicted)
    yield single("fqdn_held_total", "DNS answers held until all workers had their addresses.", names.held)


def _proxy(proxy: ProxyStatus) -> Iterator[MetricFamily]:
    yield single("proxy_up", "1 while the proxy runs, 0 while connections that need it are dropped.", proxy.running)
    yield single("proxy_restarts_total", "Starts of the proxy after its end.", proxy.restarts)
    yield single(
        "proxy_slots",
        "Slots of the proxy in use: pairs of ends and ports with HTTP rules or server names.",
        proxy.slots,
    )
    yield single("proxy_unlogged_total", "Requests that did not reach the flow log.", proxy.unlogged)
    yield single("proxy_refused_total", "Connections that found all slots in use.", proxy.refused)


def _http(counts: Sequence[HttpRequestCount]) -> Iterator[MetricFamily]:
    samples = [
        Sample(count.requests, {"verdict": count.verdict, "code_class": count.code_class, "rule": count.rule})
        for count in counts
    ]
    if samples:
        meaning = "HTTP requests at the proxy, by verdict, class of the answer's code, and documents that decided."
        yield family("http_requests_total", meaning, *samples)


def _tls(counts: Sequence[TlsConnectionCount]) -> Iterator[MetricFamily]:
    samples = [
        Sample(count.connections, {"verdict": count.verdict, "reason": count.reason, "rule": count.rule})
        for count in counts
    ]
    if samples:
        meaning = "Connections with server names at the proxy, by verdict, reason, and documents that decided."
        yield family("tls_connections_total", meaning, *samples)


def _each_worker(workers: Sequence[WorkerStatus]) -> Iterator[MetricFamily]:
    """Yield per worker the values that show its absence or a higher load than the others'; the rest exists in sum."""
    values: dict[tuple[str, str], Callable[[WorkerStatus], float]] = {
        ("worker_up", "1 while this worker returns verdicts; 0 while it is stuck or being replaced."): lambda worker: (
            worker.pid is not None and worker.stuck is None
        ),
        ("worker_restarts_total", "Replacements of this worker's process."): lambda worker: worker.restarts,
        ("worker_packets_total", "Packets with a verdict of this worker."): lambda worker: (
            worker.counts.accepted + worker.counts.dropped
        ),
        ("worker_flows", "Open flows of this worker."): lambda worker: worker.counts.flows,
    }
    for (name, meaning), value in values.items():
        samples = (Sample(value(worker), {"worker": str(place)}) for place, worker in enumerate(workers))
        yield family(name, meaning, *samples)
    revisions = [
        Sample(worker.revision, {"worker": str(place)})
        for place, worker in enumerate(workers)
        if worker.revision is not None
    ]
    if revisions:
        yield family("worker_policy_revision", "Policy revision by which this worker decides.", *revisions)


_STORE_VALUES: dict[tuple[str, str], Callable[[StoreStatus], int | None]] = {
    ("store_commands_total", "Commands sent to the store."): lambda store: store.commands,
    ("store_resyncs_total", "Complete reads of the store."): lambda store: store.resyncs,
    ("store_policy_revision", "Newest policy revision in the store."): lambda store: store.policy_revision,
    ("store_nodes", "Nodes in the store."): lambda store: store.nodes,
    ("store_identities", "Identities in the store."): lambda store: store.identities,
    ("store_endpoints", "Endpoints in the store."): lambda store: store.endpoints,
    ("store_documents", "Documents in the store."): lambda store: store.documents,
    ("store_changes_kept", "Changes that the store keeps for nodes that reconnect."): lambda store: store.changes_kept,
}


def _store(store: StoreStatus) -> Iterator[MetricFamily]:
    unreachable = 0 if store.connected or not store.since else _epoch_seconds(store.since)
    yield single("store_connected", "1 while the store is reachable, otherwise 0.", store.connected)
    yield single(
        "store_unreachable_since_timestamp_seconds",
        "Time since which the store is unreachable, in seconds since the epoch; 0 while it is reachable.",
        unreachable,
    )
    for (name, meaning), value in _STORE_VALUES.items():
        if (number := value(store)) is not None:
            yield single(name, meaning, number)
    yield single(
        "store_state_saved", "1 while the last known state is on disk, 0 while saves fail.", store.unsaved is None
    )
    if store.heartbeat:
        meaning = "Time of the last heartbeat that the store has answered, in seconds since the epoch."
        yield single("store_heartbeat_timestamp_seconds", meaning, _epoch_seconds(store.heartbeat))
    if store.refused:
        yield single("store_refused_values", "Values in the store that this node cannot read.", store.refused.count)
    quantiles = {"0.5": store.lag_ms.p50, "0.99": store.lag_ms.p99} if store.lag_ms else {}
    lags = [Sample(ms / 1000, {"quantile": quantile}) for quantile, ms in quantiles.items() if ms is not None]
    if lags:
        meaning = "Time from a change in the store to its enforcement on this node, of the last 1,000 changes."
        yield family("store_lag_seconds", meaning, *lags)._replace(sort=MetricType.SUMMARY)


def _epoch_seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
