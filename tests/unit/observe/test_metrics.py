"""Metrics: values of the agent's status, with Prometheus' conventions for names and units."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.observe.exporter import render
from nfq_enforcer.observe.metric_family import MetricFamily, MetricType
from nfq_enforcer.observe.metrics import families
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
            "nfq_enforcer_drops_total{direction=unknown,reason=POLICY_DENIED}": 5,
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
    assert all(family.help and (family.samples or family.histogram) for family in metrics)
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


HISTOGRAM: dict[str, Any] = {"bounds": [0.1, 1.0], "counts": [2, 1, 3], "sum": 9.5}
TRAFFIC: dict[str, Any] = {
    "drops": [
        {"direction": "ingress", "reason": "POLICY_DENIED", "packets": 5},
        {"direction": "ingress", "reason": "STAMP_UNTRUSTED", "packets": 2},
        {"direction": "unknown", "reason": "STAMP_UNTRUSTED", "packets": 1},
        {"direction": "egress", "reason": "STAMP_NO_ROOM", "packets": 4},
    ],
    "new_flows": [{"direction": "egress", "verdict": "FORWARDED", "flows": 3}],
    **{"stamps_made": 7, "stamps_read": 8, "latency": HISTOGRAM},
}
FULL: dict[str, Any] = STATUS | {
    "store": STORE | {"heartbeat": "2026-01-01T00:00:03Z"},
    "traffic": TRAFFIC,
    "compile_times": HISTOGRAM,
    "change_times": HISTOGRAM,
    "workload_flows": [{"source": "a/x=y", "destination": "world", "verdict": "DROPPED", "events": 3}],
    "health": {
        **{"state": "degraded", "since": "2026-01-01T00:00:02Z"},
        "parts": [
            {"part": part, "state": state, "since": "2026-01-01T00:00:02Z", "message": "m"}
            for part, state in (("rules", "ok"), ("store", "degraded"), ("proxy", "disabled"))
        ],
    },
    "revisions": {"wanted": 8, "workers": 8, "changing": False, "since": None, "failure": None},
    "endpoint_states": {
        **{"ready": 3, "changing": 1, "missing": 2, "refused": 4, "pending": 5, "open_sources": 0, "problems": []},
    },
    "conntrack": {"flows": 24, "max": 1000, "evicted": 6, "kernel_entries": 50, "kernel_max": 2000},
    "queues": [{"kind": "headers", "numbers": 16, "bound": 15, "waiting": 4, "lost": 3}],
    "rules": {
        **{"intact": True, "since": "2026-01-01T00:00:00Z", "missing": None, "error": None},
        **{"repairs": 3, "last_repair": None, "last_missing": None},
    },
    "source_filter": {"drops": {"veth-web": 3}},
    "names": {"names": 2, "addresses": 5, "evicted": 1, "held": 4},
    "http": [{"rule": "shop/users", "code_class": "2xx", "verdict": "FORWARDED", "requests": 3}],
    "tls": [{"rule": "shop/names", "verdict": "DROPPED", "reason": "TLS_REFUSED", "connections": 3}],
    "proxy": {
        **{"running": True, "pid": 4712, "version": "1.40.0", "error": None},
        **{"restarts": 1, "slots": 5, "refused": 0, "unlogged": 2},
    },
    "workers": [{**WORKER, "revision": 8}, {**WORKER, "revision": None}],
}


def test_a_degraded_part_is_named_and_so_is_the_whole() -> None:
    metrics = values(FULL)

    assert {name: value for name, value in metrics.items() if "degraded" in name} == {
        "nfq_enforcer_degraded": 1,
        "nfq_enforcer_part_degraded{part=rules}": 0,
        "nfq_enforcer_part_degraded{part=store}": 1,
        "nfq_enforcer_part_degraded{part=proxy}": 0,
    }


def test_drops_have_a_direction_and_those_for_a_stamp_a_counter_of_their_own() -> None:
    metrics = values(FULL)

    assert {name: value for name, value in metrics.items() if "drops_total{d" in name} == {
        "nfq_enforcer_drops_total{direction=ingress,reason=POLICY_DENIED}": 5,
        "nfq_enforcer_drops_total{direction=ingress,reason=STAMP_UNTRUSTED}": 2,
        "nfq_enforcer_drops_total{direction=unknown,reason=STAMP_UNTRUSTED}": 1,
        "nfq_enforcer_drops_total{direction=egress,reason=STAMP_NO_ROOM}": 4,
    }
    assert metrics["nfq_enforcer_stamps_refused_total{reason=STAMP_UNTRUSTED}"] == 3
    assert metrics["nfq_enforcer_stamps_refused_total{reason=STAMP_MISSING}"] == 0
    assert "nfq_enforcer_stamps_refused_total{reason=STAMP_NO_ROOM}" not in metrics
    assert metrics["nfq_enforcer_new_flows_total{direction=egress,verdict=FORWARDED}"] == 3
    assert (metrics["nfq_enforcer_stamps_made_total"], metrics["nfq_enforcer_stamps_read_total"]) == (7, 8)


def test_revisions_queues_tables_and_endpoints_have_their_figures() -> None:
    assert (
        values(FULL).items()
        >= {
            "nfq_enforcer_policy_revision_wanted": 8,
            "nfq_enforcer_worker_policy_revision{worker=0}": 8,
            "nfq_enforcer_queue_packets{queue=headers}": 4,
            "nfq_enforcer_queue_lost_total{queue=headers}": 3,
            "nfq_enforcer_queues_unbound{queue=headers}": 1,
            "nfq_enforcer_flows_max": 1000,
            "nfq_enforcer_kernel_conntrack_entries": 50,
            "nfq_enforcer_kernel_conntrack_max": 2000,
            "nfq_enforcer_endpoint_states{state=ready}": 3,
            "nfq_enforcer_endpoint_states{state=refused}": 4,
            "nfq_enforcer_store_heartbeat_timestamp_seconds": 1767225603,
            "nfq_enforcer_workload_flows_total{source=a/x=y,destination=world,verdict=DROPPED}": 3,
        }.items()
    )
    assert "nfq_enforcer_worker_policy_revision{worker=1}" not in values(FULL)


def test_histograms_are_read_back_with_cumulative_buckets() -> None:
    (family,) = [family for family in read(FULL) if family.name == "nfq_enforcer_verdict_duration_seconds"]

    (parsed,) = text_string_to_metric_families(render([family]).decode())

    assert parsed.type == "histogram"
    assert {
        (sample.name.removeprefix(family.name), sample.labels.get("le")): sample.value for sample in parsed.samples
    } == {
        ("_bucket", "0.1"): 2,
        ("_bucket", "1.0"): 3,
        ("_bucket", "+Inf"): 6,
        ("_count", None): 6,
        ("_sum", None): 9.5,
    }


def test_the_document_has_each_metric_with_its_labels_and_type() -> None:
    """The table of docs/metrics.md is that of the code, in its order."""
    text = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    documented = [
        (row[0].strip("`"), row[1], frozenset(row[2].replace("`", "").replace(",", " ").split()))
        for row in rows
        if row[0].startswith("`nfq_enforcer_")
    ]

    node = NodeReport("n1", ["10.0.0.1"], True, None, None, "0.1", "per-packet", 2)
    made = [
        (family.name, str(family.sort), frozenset(family.samples[0].labels) if family.samples else frozenset())
        for family in families(AgentStatus.from_json(FULL), [node])
    ]
    assert documented == made
