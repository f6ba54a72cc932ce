"""``nfq-enforcer identity``, ``node`` and ``ipcache``: a node's state of the cluster, for people and for programs."""

import json
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import Answering, Run, RunProgram

IDENTITIES: list[dict[str, Any]] = [
    {"identity": 1, "labels": ["reserved:host"], "endpoints": 0, "reserved": True},
    {"identity": 12339331, "labels": ["k8s:app=[/red]", "k8s:tier"], "endpoints": 3, "reserved": False},
]
NODES: list[dict[str, Any]] = [
    {
        **{"name": "n1", "addresses": ["172.16.0.1", "fd00::1"], "live": True, "last_seen": "2026-01-01T00:00:00Z"},
        **{"revision": 7, "version": "0.1", "endpoints": 2, "datapath": "per-flow"},
    },
    {
        **{"name": "n2", "addresses": [], "live": False, "last_seen": None},
        **{"revision": None, "version": "", "endpoints": 0, "datapath": ""},
    },
    {
        **{"name": "n3", "addresses": [], "live": None, "last_seen": None},
        **{"revision": None, "version": "", "endpoints": 0, "datapath": ""},
    },
]
IPCACHE: list[dict[str, Any]] = [
    {"address": "10.1.0.10", "identity": 300, "node": "n1", "endpoint": "shop/front1", "labels": ["k8s:a", "k8s:b"]},
    {"address": "172.16.0.2", "identity": 6, "node": "n2", "endpoint": None, "labels": ["reserved:remote-node"]},
]
ANSWERS = {"identity": ("identities", IDENTITIES), "node": ("nodes", NODES), "ipcache": ("ipcache", IPCACHE)}


def rows(done: Run) -> list[str]:
    assert (done.status, done.err) == (0, "")
    return [line for line in done.lines if line and not line.startswith("─")]


def test_identities_are_a_table(run: RunProgram, answering: Answering) -> None:
    assert rows(run("identity", "list", "--socket", answering(identities=IDENTITIES).socket)) == [
        "IDENTITY LABELS ENDPOINTS",
        "1 reserved:host 0",
        "12339331 app=[/red],tier 3",
    ]


def test_nodes_are_a_table(run: RunProgram, answering: Answering) -> None:
    assert rows(run("node", "list", "--socket", answering(nodes=NODES).socket)) == [
        "NODE LIVE LAST SEEN REVISION ENDPOINTS ADDRESSES VERSION DATAPATH",
        "n1 yes 2026-01-01T00:00:00Z 7 2 172.16.0.1,fd00::1 0.1 per-flow",
        "n2 no <none> <none> 0 <none> <none> <none>",
        "n3 unknown <none> <none> 0 <none> <none> <none>",
    ]


def test_addresses_are_a_table(run: RunProgram, answering: Answering) -> None:
    assert rows(run("ipcache", "list", "--socket", answering(ipcache=IPCACHE).socket)) == [
        "ADDRESS IDENTITY NODE ENDPOINT LABELS",
        "10.1.0.10 300 n1 shop/front1 a,b",
        "172.16.0.2 6 n2 <none> reserved:remote-node",
    ]


@pytest.mark.parametrize("noun", ANSWERS)
def test_each_list_is_to_be_had_for_programs(noun: str, run: RunProgram, answering: Answering) -> None:
    method, answer = ANSWERS[noun]
    agent = answering(**{method: answer})

    assert json.loads(run(noun, "list", "-o", "json", "--socket", agent.socket).out) == answer
    assert yaml.safe_load(run(noun, "list", "-o", "yaml", "--socket", agent.socket).out) == answer


def test_an_identity_is_to_be_had_by_its_number(run: RunProgram, answering: Answering) -> None:
    agent = answering(identities=IDENTITIES)

    assert yaml.safe_load(run("identity", "get", "12339331", "--socket", agent.socket).out) == IDENTITIES[1]
    assert json.loads(run("identity", "get", "1", "-o", "json", "--socket", agent.socket).out) == IDENTITIES[0]


def test_an_identity_that_is_not_there_is_one_sentence_and_1(run: RunProgram, answering: Answering) -> None:
    assert run("identity", "get", "300", "--socket", answering(identities=IDENTITIES).socket) == (
        1,
        "",
        "nfq-enforcer: there is no identity 300; 'nfq-enforcer identity list' shows those there are\n",
    )


def test_wide_shows_labels_in_full(run: RunProgram, answering: Answering) -> None:
    derived = "k8s:io.kubernetes.pod.namespace=shop"
    identities = [{"identity": 300, "labels": [derived, "k8s:role=web"], "endpoints": 1}]
    agent = answering(identities=identities)

    assert rows(run("identity", "list", "--no-headers", "--socket", agent.socket)) == ["300 role=web 1"]
    assert rows(run("identity", "list", "-o", "wide", "--no-headers", "--socket", agent.socket)) == [
        f"300 {derived},k8s:role=web 1"
    ]
