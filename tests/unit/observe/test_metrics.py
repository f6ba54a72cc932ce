"""Metrics: values of the agent's status, with Prometheus' conventions for names and units."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.observe.metrics import MetricFamily, MetricType, families
from nfq_enforcer.observe.status import AgentStatus, NodeReport

WORKER: dict[str, Any] = {
    **{
        "queue": 100,
        "queues": [100],
        "driver": "netfilterqueue",
        "pid": 4711,
        "restarts": 2,
        "failure": None,
        "lost": 4,
        "rate_limited": 9,
    },
    **{
        "accepted": 90,
        "dropped": 5,
        "events_lost": 6,
        "internal_errors": 1,
        "flows": 12,
        "flows_evicted": 3,
        "handed_over": 6,
    },
    **{reason.value: 0 for reason in DropReason},
    "POLICY_DENIED": 5,
}
STATUS: dict[str, Any] = {
    "version": "0.1",
    "node": "n1",
    "addresses": ["10.0.0.1"],
    "cluster_interfaces": ["eth0"],
    "since": "2026-01-01T00:00:00Z",
    "enforcement": "auto",
    "audit": False,
    "fail": "closed",
    "datapath": "per-packet",
    "families": ["IPv4", "IPv6"],
    "revision": 7,
    "compilations": 3,
    "documents": {"policies": 2, "endpoints": 9},
    "refused": None,
    "endpoints": 4,
    "identities": 5,
    "store": None,
    "worker": WORKER,
    "workers": [
        {**WORKER, "queues": [100, 102, 104], "accepted": 60, "dropped": 5, "flows": 8, "restarts": 2},
        {**WORKER, "queues": [101, 103, 105], "accepted": 30, "dropped": 0, "flows": 4, "restarts": 0, "pid": None},
    ],
    "log": {"seen": 15},
}
STORE: dict[str, Any] = {
    "store": "redis://10.0.0.1:6379/0",
    "prefix": "nfqe",
    "connected": True,
    "since": "2026-01-01T00:00:00Z",
    "error": None,
    "server": "redis 7.0.15",
    "schema": 1,
    "position": "1795-0",
    "policy_revision": 8,
    "nodes": 3,
    "identities": 12,
    "endpoints": 7,
    "documents": 4,
    "changes_kept": 120,
    "commands": 1234,
    "resyncs": 2,
    "refused": {"count": 1, "values": [{"key": "endpoints default/x", "reason": "no JSON"}]},
    "pending": [],
    "lag_ms": {"p50": 1.5, "p99": 12.0},
}


def read(status: Mapping[str, Any]) -> list[MetricFamily]:
    return families(AgentStatus.from_json(status))


def values(status: Mapping[str, Any], nodes: Iterable[NodeReport] = ()) -> dict[str, float]:
    """Return every value by its name and labels, in the syntax of a query."""
    return {
        family.name
        + (f"{{{','.join(f'{key}={label}' for key, label in sample.labels.items())}}}" * bool(sample.labels)): (
            sample.value
        )
        for family in families(AgentStatus.from_json(status), nodes)
        for sample in family.samples
    }


def test_the_policy_and_the_endpoints_of_the_node_are_told() -> None:
    assert (
        values(STATUS).items()
        >= {
            "nfq_enforcer_build_info{version=0.1,node=n1}": 1,
            "nfq_enforcer_start_timestamp_seconds": 1767225600,
            "nfq_enforcer_policy_revision": 7,
            "nfq_enforcer_policies": 2,
            "nfq_enforcer_documents_refused": 0,
            "nfq_enforcer_endpoints": 4,
            "nfq_enforcer_identities": 5,
        }.items()
    )


def test_packets_are_told_by_verdict_and_drops_by_reason() -> None:
    assert (
        values(STATUS).items()
        >= {
            "nfq_enforcer_packets_total{verdict=ACCEPT}": 90,
            "nfq_enforcer_packets_total{verdict=DROP}": 5,
            "nfq_enforcer_drops_total{reason=POLICY_DENIED}": 5,
            "nfq_enforcer_packets_lost_total": 4,
            "nfq_enforcer_openings_rate_limited_total": 9,
            "nfq_enforcer_flows": 12,
            "nfq_enforcer_flows_evicted_total": 3,
            "nfq_enforcer_flows_left_to_the_kernel_total": 6,
            "nfq_enforcer_events_lost_total": 6,
            "nfq_enforcer_internal_errors_total": 1,
        }.items()
    )


def test_a_worker_with_a_process_that_does_not_work_is_not_up() -> None:
    stuck = {**WORKER, "stuck": {"since": "2026-01-01T00:00:02Z", "reason": "no heartbeat"}}

    assert values({**STATUS, "workers": [stuck]})["nfq_enforcer_worker_up{worker=0}"] == 0


def test_of_each_worker_is_told_whether_it_is_there_and_how_much_it_has_to_do() -> None:
    metrics = {
        name.removeprefix("nfq_enforcer_worker_"): value for name, value in values(STATUS).items() if "{worker" in name
    }

    assert metrics == {
        "up{worker=0}": 1,
        "up{worker=1}": 0,
        "restarts_total{worker=0}": 2,
        "restarts_total{worker=1}": 0,
        "packets_total{worker=0}": 65,
        "packets_total{worker=1}": 30,
        "flows{worker=0}": 8,
        "flows{worker=1}": 4,
    }


def test_every_reason_is_there_before_it_has_first_been_counted() -> None:
    metrics = [
        sample.labels["reason"] for family in read(STATUS) if "drops" in family.name for sample in family.samples
    ]

    assert metrics == [str(reason) for reason in DropReason]


def test_what_is_out_of_the_ordinary_is_told() -> None:
    refused = {"since": "2026-01-01T00:00:00Z", "error": "a.yaml:1:1: …"}

    assert values(STATUS | {"refused": refused})["nfq_enforcer_documents_refused"] == 1


@pytest.mark.parametrize("status", [STATUS, STATUS | {"store": None}])
def test_without_a_store_nothing_is_told_of_one(status: dict[str, Any]) -> None:
    assert not [name for name in values(status) if "store" in name or "node_live" in name]


def test_a_store_that_is_reached_is_told() -> None:
    metrics = {name: value for name, value in values(STATUS | {"store": STORE}).items() if "_store_" in name}

    assert metrics == {
        "nfq_enforcer_store_connected": 1,
        "nfq_enforcer_store_unreachable_since_timestamp_seconds": 0,
        "nfq_enforcer_store_state_saved": 1,
        "nfq_enforcer_store_commands_total": 1234,
        "nfq_enforcer_store_resyncs_total": 2,
        "nfq_enforcer_store_policy_revision": 8,
        "nfq_enforcer_store_nodes": 3,
        "nfq_enforcer_store_identities": 12,
        "nfq_enforcer_store_endpoints": 7,
        "nfq_enforcer_store_documents": 4,
        "nfq_enforcer_store_changes_kept": 120,
        "nfq_enforcer_store_refused_values": 1,
        "nfq_enforcer_store_lag_seconds{quantile=0.5}": 0.0015,
        "nfq_enforcer_store_lag_seconds{quantile=0.99}": 0.012,
    }


def test_of_a_store_that_is_not_reached_it_is_told_since_when_and_what_is_not_known_is_left_out() -> None:
    store = dict.fromkeys(STORE) | {
        "connected": False,
        "since": "2026-01-01T00:00:01Z",
        "lag_ms": {"p50": None, "p99": 2},
        "unsaved": {"since": "2026-01-01T00:00:01Z", "error": "the disk is full"},
    }

    metrics = {name: value for name, value in values(STATUS | {"store": store}).items() if "_store_" in name}

    assert metrics == {
        "nfq_enforcer_store_connected": 0,
        "nfq_enforcer_store_unreachable_since_timestamp_seconds": 1767225601,
        "nfq_enforcer_store_state_saved": 0,
        "nfq_enforcer_store_lag_seconds{quantile=0.99}": 0.002,
    }


def node(name: str, *, live: bool | None) -> NodeReport:
    return NodeReport(name, ["10.0.0.1"], live, None, None, "0.1", "per-packet", 2)


def test_nodes_are_told_live_or_not() -> None:
    metrics = values(STATUS, (node("n1", live=True), node("n2", live=False), node("n3", live=None)))

    assert "nfq_enforcer_node_live{node=n3}" not in metrics
    assert (metrics["nfq_enforcer_node_live{node=n1}"], metrics["nfq_enforcer_node_live{node=n2}"]) == (1, 0)


def test_what_only_grows_is_a_counter_and_named_so() -> None:
    metrics = read(STATUS | {"store": STORE})

    assert {family.name for family in metrics if family.sort is MetricType.COUNTER} == {
        family.name for family in metrics if family.name.endswith("_total")
    }
    assert all(family.help and family.samples for family in metrics)
    assert len({family.name for family in metrics}) == len(metrics)


@pytest.mark.parametrize("intact", [True, False])
def test_the_state_of_the_rules_is_a_gauge_and_their_repairs_are_counted(intact: bool) -> None:
    rules = {"intact": intact, "since": "2026-01-01T00:00:00Z", "missing": None, "error": None, "repairs": 3}
    rules |= {"last_repair": None, "last_missing": None}

    metrics = values(STATUS | {"rules": rules})

    assert (metrics["nfq_enforcer_rules_intact"], metrics["nfq_enforcer_rules_repairs_total"]) == (intact, 3)


def test_stuck_parts_are_counted() -> None:
    stuck = [{"part": "thread Rules.install", "since": "2026-01-01T00:00:02Z", "reason": "has run for 9 s"}]

    assert values(STATUS)["nfq_enforcer_stuck_parts"] == 0
    assert values({**STATUS, "stuck": stuck})["nfq_enforcer_stuck_parts"] == 1


def test_http_requests_are_counted_by_verdict_class_of_codes_and_documents() -> None:
    http = [
        {"rule": "shop/users", "code_class": "2xx", "verdict": "FORWARDED", "requests": 9},
        {"rule": "shop/users", "code_class": "4xx", "verdict": "DROPPED", "requests": 2},
    ]

    metrics = {name: value for name, value in values(STATUS | {"http": http}).items() if "_http_" in name}

    assert metrics == {
        "nfq_enforcer_http_requests_total{verdict=FORWARDED,code_class=2xx,rule=shop/users}": 9,
        "nfq_enforcer_http_requests_total{verdict=DROPPED,code_class=4xx,rule=shop/users}": 2,
    }
    assert not [name for name in values(STATUS) if "_http_" in name]


def test_the_proxy_is_told_once_it_has_been_needed() -> None:
    proxy = {
        **{"running": True, "pid": 4712, "version": "1.40.0", "error": None},
        **{"restarts": 3, "slots": 5, "refused": 2, "unlogged": 7},
    }

    assert {name: value for name, value in values(STATUS | {"proxy": proxy}).items() if "_proxy_" in name} == {
        "nfq_enforcer_proxy_up": 1,
        "nfq_enforcer_proxy_restarts_total": 3,
        "nfq_enforcer_proxy_slots": 5,
        "nfq_enforcer_proxy_refused_total": 2,
        "nfq_enforcer_proxy_unlogged_total": 7,
    }
    assert values(STATUS | {"proxy": proxy | {"running": False}})["nfq_enforcer_proxy_up"] == 0
    assert not [name for name in values(STATUS) if "_proxy_" in name]


def test_tls_connections_are_counted_by_verdict_reason_and_documents() -> None:
    tls = [{"rule": "shop/names", "verdict": "DROPPED", "reason": "TLS_REFUSED", "connections": 2}]
    metrics = {name: value for name, value in values(STATUS | {"tls": tls}).items() if "_tls_" in name}

    assert metrics == {"nfq_enforcer_tls_connections_total{verdict=DROPPED,reason=TLS_REFUSED,rule=shop/names}": 2}
    assert not [name for name in values(STATUS) if "_tls_" in name]
