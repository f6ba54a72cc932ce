"""Metrics of the agent as metric families, with Prometheus' conventions for names and units. Pure.

A value that the agent does not know is left out, because a 0 would have a meaning: without a store, the families of the
store are absent.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.observe.status import (
    AgentStatus,
    HttpRequestCount,
    NamesStatus,
    NodeReport,
    ProxyStatus,
    RulesStatus,
    SourceFilterStatus,
    StoreStatus,
    TlsConnectionCount,
    WorkersStatus,
    WorkerStatus,
)

PREFIX = "nfq_enforcer_"


class MetricType(StrEnum):
    """Type of a metric family: how its values change."""

    GAUGE = "gauge"
    COUNTER = "counter"  # only increases; its name ends in ``_total``


class Sample(NamedTuple):
    """Sample: a value, with the labels that distinguish it within its family."""

    value: float
    labels: Mapping[str, str]


class MetricFamily(NamedTuple):
    """Metric family: the samples of one name."""

    name: str
    help: str
    sort: MetricType
    samples: tuple[Sample, ...]


def families(status: AgentStatus, nodes: Iterable[NodeReport] = ()) -> list[MetricFamily]:
    """Return the metric families of an agent's status and of its list of nodes."""
    metrics = [
        *_policy(status),
        *(_rules(status.rules) if status.rules else ()),
        *(_source_filter(status.source_filter) if status.source_filter else ()),
        *(_names(status.names) if status.names else ()),
        *(_proxy(status.proxy) if status.proxy else ()),
        *_http(status.http),
        *_tls(status.tls),
        *_packets(status.worker),
        *_each_worker(status.workers),
        *(_store(status.store) if status.store else ()),
    ]
    live = [Sample(node.live, {"node": node.name}) for node in nodes if node.live is not None]
    if live:
        metrics.append(_family("node_live", "1 for a node whose last heartbeat is recent, 0 for another.", *live))
    return metrics


def _policy(status: AgentStatus) -> Iterator[MetricFamily]:
    build = Sample(1, {"version": status.version, "node": status.node})
    yield _family("build_info", "Always 1; the labels are the version and the name of this node.", build)
    yield _single(
        "start_timestamp_seconds", "Start time of the agent, in seconds since the epoch.", _epoch_seconds(status.since)
    )
    yield _single("policy_revision", "Policy revision that this node enforces.", status.revision)
    yield _single("policies", "Policy documents that this node enforces.", status.documents.policies)
    yield _single(
        "documents_refused", "1 while changed documents are refused, otherwise 0.", status.refused is not None
    )
    yield _single(
        "stuck_parts", "Parts of the agent that do not work: workers, threads, event loop, store.", len(status.stuck)
    )
    yield _single("endpoints", "Endpoints on this node.", status.endpoints)
    yield _single("identities", "Identities known on this node, without the reserved ones.", status.identities)


def _rules(rules: RulesStatus) -> Iterator[MetricFamily]:
    yield _single(
        "rules_intact", "1 while the kernel has all rules and sets of the agent, 0 while it lacks some.", rules.intact
    )
    yield _single(
        "rules_repairs_total", "Repairs of rules and sets that another program had changed or removed.", rules.repairs
    )


def _source_filter(sources: SourceFilterStatus) -> Iterator[MetricFamily]:
    drops = [Sample(count, {"interface": interface}) for interface, count in sources.drops.items()]
    if drops:
        meaning = "Packets with a forged source that the kernel has dropped, by interface; a part of drops_total."
        yield _family("source_filter_drops_total", meaning, *drops)


def _names(names: NamesStatus) -> Iterator[MetricFamily]:
    yield _single("fqdn_names", "Names whose addresses were learned, for each endpoint that asked.", names.names)
    yield _single("fqdn_addresses", "Addresses of learned names.", names.addresses)
    yield _single("fqdn_evicted_total", "Learned names and addresses that gave way to newer ones.", names.evicted)
    yield _single("fqdn_held_total", "DNS answers held until all workers had their addresses.", names.held)


def _proxy(proxy: ProxyStatus) -> Iterator[MetricFamily]:
    yield _single("proxy_up", "1 while the proxy runs, 0 while connections that need it are dropped.", proxy.running)
    yield _single("proxy_restarts_total", "Starts of the proxy after its end.", proxy.restarts)
    yield _single(
        "proxy_slots",
        "Slots of the proxy in use: pairs of ends and ports with HTTP rules or server names.",
        proxy.slots,
    )
    yield _single("proxy_unlogged_total", "Requests that did not reach the flow log.", proxy.unlogged)
    yield _single("proxy_refused_total", "Connections that found all slots in use.", proxy.refused)


def _http(counts: Sequence[HttpRequestCount]) -> Iterator[MetricFamily]:
    samples = [
        Sample(count.requests, {"verdict": count.verdict, "code_class": count.code_class, "rule": count.rule})
        for count in counts
    ]
    if samples:
        meaning = "HTTP requests at the proxy, by verdict, class of the answer's code, and documents that decided."
        yield _family("http_requests_total", meaning, *samples)


def _tls(counts: Sequence[TlsConnectionCount]) -> Iterator[MetricFamily]:
    samples = [
        Sample(count.connections, {"verdict": count.verdict, "reason": count.reason, "rule": count.rule})
        for count in counts
    ]
    if samples:
        meaning = "Connections with server names at the proxy, by verdict, reason, and documents that decided."
        yield _family("tls_connections_total", meaning, *samples)


def _packets(workers: WorkersStatus) -> Iterator[MetricFamily]:
    counts = workers.counts
    verdicts = {Verdict.ACCEPT: counts.accepted, Verdict.DROP: counts.dropped}
    packets = [Sample(count, {"verdict": verdict.value}) for verdict, count in verdicts.items()]
    drops = [Sample(count, {"reason": reason.value}) for reason, count in counts.drops.items()]
    yield _family("packets_total", "Packets with a verdict, by verdict.", *packets)
    yield _family("drops_total", "Packets dropped, by drop reason.", *drops)
    yield _single("packets_lost_total", "Packets that were queued and received no verdict.", workers.lost)
    yield _single(
        "openings_rate_limited_total", "Openings dropped in the kernel, beyond the budgets.", workers.rate_limited
    )
    yield _single("flows", "Open flows.", counts.flows)
    yield _single("flows_evicted_total", "Flows evicted from a full table for new ones.", counts.flows_evicted)
    yield _single("flows_left_to_the_kernel_total", "Verdicts that offloaded a flow to the kernel.", counts.handed_over)
    yield _single("events_lost_total", "Flow events that did not reach the flow log.", counts.events_lost)
    yield _single("internal_errors_total", "Packets dropped because of an internal error.", counts.internal_errors)


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
        yield _family(name, meaning, *samples)


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
    yield _single("store_connected", "1 while the store is reachable, otherwise 0.", store.connected)
    yield _single(
        "store_unreachable_since_timestamp_seconds",
        "Time since which the store is unreachable, in seconds since the epoch; 0 while it is reachable.",
        unreachable,
    )
    for (name, meaning), value in _STORE_VALUES.items():
        if (number := value(store)) is not None:
            yield _single(name, meaning, number)
    yield _single(
        "store_state_saved", "1 while the last known state is on disk, 0 while saves fail.", store.unsaved is None
    )
    if store.refused:
        yield _single("store_refused_values", "Values in the store that this node cannot read.", store.refused.count)
    quantiles = {"0.5": store.lag_ms.p50, "0.99": store.lag_ms.p99} if store.lag_ms else {}
    lags = [Sample(ms / 1000, {"quantile": quantile}) for quantile, ms in quantiles.items() if ms is not None]
    if lags:
        yield _family("store_lag_seconds", "Time from a change in the store to its enforcement on this node.", *lags)


def _single(name: str, meaning: str, value: float) -> MetricFamily:
    return _family(name, meaning, Sample(value, {}))


def _family(name: str, meaning: str, *samples: Sample) -> MetricFamily:
    return MetricFamily(
        PREFIX + name, meaning, MetricType.COUNTER if name.endswith("_total") else MetricType.GAUGE, samples
    )


def _epoch_seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
