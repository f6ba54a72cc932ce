"""Status objects: their JSON is the API's shape, and a client reads it back."""

import json
from typing import Any

import pytest

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.observe.status import AgentStatus, NodeReport, StoreStatus, WorkerStatus

COUNTS: dict[str, Any] = {
    **{"accepted": 90, "dropped": 5, "events_lost": 6, "internal_errors": 1},
    **{"flows": 12, "flows_evicted": 3, "handed_over": 6},
    **{str(reason): place for place, reason in enumerate(DropReason)},
}
WORKER: dict[str, Any] = {"queues": [100, 101, 102], "pid": None, "restarts": 2, "failure": "no queue", **COUNTS}
STUCK: dict[str, Any] = {"since": "2026-01-01T00:00:02Z", "reason": "no heartbeat for 0.6 s, process stopped"}
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
    "commands": 1234,
    "resyncs": 2,
    "refused": {"count": 1, "values": [{"key": "endpoints default/x", "reason": "no JSON"}]},
    "pending": [{"endpoint": "default/y", "reason": None}],
    "unsaved": {"since": "2026-01-01T00:00:00Z", "error": "the disk is full"},
    "lag_ms": {"p50": 1.5, "p99": None},
    "heartbeat": "2026-01-01T00:00:03Z",
}
STATUS: dict[str, Any] = {
    "version": "0.1",
    "node": "n1",
    "addresses": ["10.0.0.1", "fd00::1"],
    "cluster_interfaces": ["eth0"],
    "since": "2026-01-01T00:00:00Z",
    "enforcement": "auto",
    "audit": False,
    "fail": "closed",
    "datapath": "per-flow",
    "families": ["IPv4", "IPv6"],
    "revision": 7,
    "compilations": 3,
    "documents": {"policies": 2, "endpoints": 9},
    "refused": {"since": "2026-01-01T00:00:01Z", "error": "a.yaml:1:1: …"},
    "endpoints": 4,
    "identities": 5,
    "store": STORE,
    "worker": {
        **{"queue": 100, "queues": [100, 101, 102], "driver": "netlink", "pid": 4711, "restarts": 2, "failure": None},
        **{"lost": 4, "rate_limited": 9, **COUNTS},
    },
    "workers": [WORKER | {"stuck": None, "revision": 7}, WORKER | {"stuck": STUCK, "revision": None}],
    "log": {"seen": 15},
    "problems": ["endpoint default/web is on interface x, which does not exist on this node"],
    "rules": {
        **{"intact": False, "since": "2026-01-01T00:00:02Z", "missing": "set x: is missing", "error": "no nft"},
        **{"repairs": 1, "last_repair": "2026-01-01T00:00:01Z", "last_missing": "chain y is missing"},
        "checked": "2026-01-01T00:00:03Z",
    },
    "stuck": [{"part": "worker 1", **STUCK}],
    "working": [
        {
            **{"activity": "checking a.yaml, documents", "since": "2026-01-01T00:00:03Z", "done": 12, "total": 20},
            "text": "checking a.yaml, documents: 12 of 20",
        }
    ],
    "source_filter": {"drops": {"veth-web": 3}},
    "names": {"names": 2, "addresses": 5, "evicted": 1, "held": 4},
    "http": [{"rule": "shop/users", "code_class": "2xx", "verdict": "FORWARDED", "requests": 3}],
    "tls": [{"rule": "shop/names", "verdict": "DROPPED", "reason": "TLS_REFUSED", "connections": 3}],
    "proxy": {
        **{"running": True, "pid": 4712, "version": "1.40.0", "error": None},
        **{"restarts": 1, "slots": 5, "refused": 0, "unlogged": 2},
    },
    "workloads": {
        "sources": [{"source": "docker", "endpoints": 3, "away": None, "details": {"version": "27.0"}}],
        "refused": {"default/web": "10.0.0.1 already belongs to endpoint default/db"},
    },
    "health": {
        **{"state": "degraded", "since": "2026-01-01T00:00:02Z"},
        "parts": [{"part": "rules", "state": "degraded", "since": "2026-01-01T00:00:02Z", "message": "set x"}],
    },
    "revisions": {"wanted": 8, "workers": 7, "changing": False, "since": "2026-01-01T00:00:02Z", "failure": "set x"},
    "endpoint_states": {
        **{"ready": 3, "changing": 0, "missing": 1, "refused": 0, "pending": 0, "open_sources": 0},
        "problems": ["endpoint default/web is on interface x, which does not exist on this node"],
    },
    "conntrack": {"flows": 24, "max": 262144, "evicted": 6, "kernel_entries": None, "kernel_max": None},
    "queues": [{"kind": "headers", "numbers": 16, "bound": 16, "waiting": 0, "lost": 3}],
    "traffic": {
        "drops": [{"direction": "ingress", "reason": "POLICY_DENIED", "packets": 5}],
        "new_flows": [{"direction": "egress", "verdict": "FORWARDED", "flows": 3}],
        **{"stamps_made": 7, "stamps_read": 8, "latency": {"bounds": [0.001], "counts": [4, 1], "sum": 0.01}},
    },
    "compile_times": {"bounds": [0.1], "counts": [2, 0], "sum": 0.15},
    "change_times": {"bounds": [0.1], "counts": [1, 1], "sum": 0.3},
    "workload_flows": [
        {"source": "default/role=a", "destination": "world", "verdict": "FORWARDED", "events": 3},
    ],
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"refused": None, "store": None, "rules": None, "source_filter": None, "names": None, "proxy": None},
        {"workloads": None},
        {"health": None, "revisions": None, "endpoint_states": None, "conntrack": None, "queues": []},
        {"traffic": None, "compile_times": None, "change_times": None, "workload_flows": []},
    ],
)
def test_the_status_comes_back_as_it_was_sent(changed: dict[str, Any]) -> None:
    sent = json.dumps(STATUS | changed)

    assert json.dumps(AgentStatus.from_json(json.loads(sent)).to_json()) == sent  # the order of the keys too


def test_keys_that_are_not_known_are_ignored() -> None:
    assert WorkerStatus.from_json(WORKER | {"cpu": 3}) == WorkerStatus.from_json(WORKER)


def test_a_missing_key_is_an_error() -> None:
    with pytest.raises(KeyError, match="restarts"):
        WorkerStatus.from_json({key: value for key, value in WORKER.items() if key != "restarts"})


def test_each_drop_is_counted_by_its_reason() -> None:
    assert WorkerStatus.from_json(WORKER).counts.drops[DropReason.INVALID_PACKET] == WORKER["INVALID_PACKET"]


def test_of_a_store_only_its_address_and_its_connection_have_to_be_known() -> None:
    status = StoreStatus.from_json({"store": "redis://h", "connected": False, "refused": None})

    assert (status.store, status.connected, status.refused, status.lag_ms) == ("redis://h", False, None, None)


def test_the_changes_kept_are_read_but_not_part_of_the_status() -> None:
    status = StoreStatus.from_json(STORE | {"changes_kept": 120})

    assert status.changes_kept == 120
    assert status.to_json() == STORE


def test_a_node_comes_back_as_it_was_sent() -> None:
    node = {"name": "n1", "addresses": ["10.0.0.1"], "live": None, "last_seen": None, "revision": 3}
    node |= {"version": "0.1", "datapath": "per-packet", "endpoints": 2}

    assert NodeReport.from_json(node).to_json() == node
