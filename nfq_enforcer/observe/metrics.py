"""The agent's figures as metric families, named and with the units that Prometheus knows. Pure.

What the agent does not know is left out, rather than told as a zero that means something: without a store there are no
families of a store.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from nfq_enforcer.core.verdict import DropReason, Verdict

PREFIX = "nfq_enforcer_"

Data = Mapping[str, Any]


class MetricType(StrEnum):
    """How a family's values move."""

    GAUGE = "gauge"
    COUNTER = "counter"  # only upwards; its name ends in ``_total``


class Sample(NamedTuple):
    """A value, and the labels that tell it from its family's others."""

    value: float
    labels: Mapping[str, str]


class MetricFamily(NamedTuple):
    """Values of one name."""

    name: str
    help: str
    sort: MetricType
    samples: tuple[Sample, ...]


def families(status: Data, nodes: Iterable[Data] = ()) -> list[MetricFamily]:
    """Return what an agent's status says, and its list of nodes, as its API gives them."""
    store = status.get("store")
    found = [
        *_of_policy(status),
        *_of_packets(status["worker"]),
        *_of_workers(status["workers"]),
        *(_of_store(store) if store else ()),
    ]
    live = [Sample(node["live"], {"node": node["name"]}) for node in nodes if node["live"] is not None]
    if live:
        found.append(_family("node_live", "1 for each node that has been heard of lately, 0 for others.", *live))
    return found


def _of_policy(status: Data) -> Iterator[MetricFamily]:
    build = Sample(1, {"version": status["version"], "node": status["node"]})
    yield _family("build_info", "Always 1: which version runs on which node.", build)
    yield _single("start_timestamp_seconds", "When the agent started.", _seconds(status["since"]))
    yield _single("policy_revision", "The revision of the policy that is in force on this node.", status["revision"])
    yield _single("policies", "Policy documents in force.", status["documents"]["policies"])
    yield _single("documents_refused", "1 while changed documents are refused.", status["refused"] is not None)
    yield _single("endpoints", "Endpoints that live on this node.", status["endpoints"])
    yield _single("identities", "Identities that this node knows.", status["identities"])


def _of_packets(worker: Data) -> Iterator[MetricFamily]:
    verdicts = {Verdict.ACCEPT: worker["accepted"], Verdict.DROP: worker["dropped"]}
    judged = [Sample(count, {"verdict": verdict.value}) for verdict, count in verdicts.items()]
    dropped = [Sample(worker[reason], {"reason": reason.value}) for reason in DropReason]
    yield _family("packets_total", "Packets judged, by verdict.", *judged)
    yield _family("drops_total", "Packets dropped, by reason.", *dropped)
    yield _single("packets_lost_total", "Packets that were queued and have had no verdict.", worker["lost"])
    yield _single("flows", "Open flows.", worker["flows"])
    yield _single("flows_evicted_total", "Flows given up for new ones, the table being full.", worker["flows_evicted"])
    yield _single("flows_left_to_the_kernel_total", "Verdicts by which it passes a flow.", worker["handed_over"])
    yield _single("events_lost_total", "Events that did not reach the log.", worker["events_lost"])
    yield _single("internal_errors_total", "Packets whose judging failed by a bug.", worker["internal_errors"])


def _of_workers(workers: Sequence[Data]) -> Iterator[MetricFamily]:
    """Tell of each worker what shows that one is away or has more to do than the others; all else is told in sum."""
    figures: dict[tuple[str, str], Callable[[Data], float]] = {
        ("worker_up", "1 while this worker judges packets."): lambda one: one["pid"] is not None,
        ("worker_restarts_total", "Times that this worker has been replaced."): lambda one: one["restarts"],
        ("worker_packets_total", "Packets that this worker has judged."): lambda one: one["accepted"] + one["dropped"],
        ("worker_flows", "Open flows of this worker."): lambda one: one["flows"],
    }
    for (name, meaning), figure in figures.items():
        samples = (Sample(figure(one), {"worker": str(place)}) for place, one in enumerate(workers))
        yield _family(name, meaning, *samples)


_COUNTS = {  # what the store's status counts, and what that means
    "commands": ("store_commands_total", "Commands sent to the store."),
    "resyncs": ("store_resyncs_total", "Times that all of the store was read anew."),
    "policy_revision": ("store_policy_revision", "The newest revision of the policy in the store."),
    "nodes": ("store_nodes", "Nodes in the store."),
    "identities": ("store_identities", "Identities in the store."),
    "endpoints": ("store_endpoints", "Endpoints in the store."),
    "documents": ("store_documents", "Documents in the store."),
    "changes_kept": ("store_changes_kept", "Changes that the store keeps for nodes that were away."),
}


def _of_store(store: Data) -> Iterator[MetricFamily]:
    connected = bool(store["connected"])
    unreachable = 0 if connected or not store.get("since") else _seconds(store["since"])
    yield _single("store_connected", "1 while the store can be reached.", connected)
    yield _single("store_unreachable_since_timestamp_seconds", "Since when it cannot; 0 while it can.", unreachable)
    for key, (name, meaning) in _COUNTS.items():
        if store.get(key) is not None:
            yield _single(name, meaning, store[key])
    if store.get("refused"):
        yield _single("store_refused_values", "Values in the store that are not understood.", store["refused"]["count"])
    lag = store.get("lag_ms") or {}
    quantiles = {"0.5": lag.get("p50"), "0.99": lag.get("p99")}
    known = [Sample(ms / 1000, {"quantile": quantile}) for quantile, ms in quantiles.items() if ms is not None]
    if known:
        yield _family("store_lag_seconds", "From a change in the store to its being in force here.", *known)


def _single(name: str, meaning: str, value: float) -> MetricFamily:
    return _family(name, meaning, Sample(value, {}))


def _family(name: str, meaning: str, *samples: Sample) -> MetricFamily:
    return MetricFamily(
        PREFIX + name, meaning, MetricType.COUNTER if name.endswith("_total") else MetricType.GAUGE, samples
    )


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
