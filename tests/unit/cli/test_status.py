"""``nfq-enforcer status``: the agent's status, for people and for programs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.dataplane.worker.counters import Counters
from tests.unit.cli.conftest import Answering, In, RunProgram


def counters(**counted: int) -> dict[str, int]:
    """Return a worker's counts, 0 except for these."""
    memory = Counters.create()
    row = Counters(memory)
    numbers = {str(name): number for name, number in row.read().items()}
    row.close()
    os.close(memory)
    return numbers | counted


def status(worker: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    queues = {"queue": 100, "queues": [100, 101, 102], "driver": "netlink"}
    well = queues | {"pid": 4711, "restarts": 0, "failure": None, "lost": 0, "rate_limited": 0}
    together = well | counters(accepted=90, dropped=3, POLICY_DENIED=3, flows=12) | (worker or {})
    return {
        "version": "0.1",
        "node": "n1",
        "addresses": ["172.16.0.1", "fd00::1"],
        "cluster_interfaces": ["eth0", "eth1"],
        "since": "2026-01-01T00:00:00Z",
        "enforcement": "auto",
        "audit": False,
        "fail": "closed",
        "datapath": "per-packet",
        "families": ["IPv4", "IPv6"],
        "revision": 3,
        "compilations": 2,
        "documents": {"policies": 2, "endpoints": 7},
        "refused": None,
        "endpoints": 4,
        "identities": 5,
        "store": None,
        "worker": together,
        "workers": [together],
        "log": {"seen": 15},
    } | changed


STORE: dict[str, Any] = {
    "store": "redis://[fd00::9]:6379/0",
    "connected": True,
    "since": "2026-01-01T00:00:00Z",
    "error": None,
    "refused": {"count": 0, "values": []},
}


def test_a_part_that_is_stuck_is_named_with_its_reason(run: RunProgram, answering: Answering) -> None:
    reason = "no heartbeat for 0.6 s, process stopped"
    stuck = [{"part": "worker 0", "since": "2026-01-01T00:00:02Z", "reason": reason}]

    done = run("status", "--socket", answering(status=status(stuck=stuck)).socket)

    assert f"stuck: worker 0 since 2026-01-01T00:00:02Z: {reason}" in done.lines


def test_the_status_is_a_table(run: RunProgram, answering: Answering) -> None:
    done = run("status", "--socket", answering(status=status()).socket)

    assert (done.status, done.err) == (0, "")
    assert done.lines == [
        "node n1 (172.16.0.1, fd00::1)",
        "stamps believed on eth0, eth1",
        "enforcement auto; fail closed; datapath per-packet",
        "families IPv4, IPv6",
        "revision 3: 2 policies, 7 endpoints",
        "endpoints here 4",
        "worker queues 100 to 102 (netlink), process 4711, 0 restarts",
        "packets 90 accepted, 3 dropped, 0 lost without a verdict",
        "POLICY_DENIED 3 (no rule allows it)",
        "flows 12 open, 0 evicted",
        "log 15 events, 0 lost",
    ]


def test_where_the_kernel_passes_flows_it_is_said_how_often(run: RunProgram, answering: Answering) -> None:
    seen = status({"handed_over": 7}, datapath="per-flow")

    lines = run("status", "--socket", answering(status=seen).socket).lines

    assert "enforcement auto; fail closed; datapath per-flow" in lines
    assert "flows 12 open, 0 evicted, 7 times left to the kernel" in lines


def test_of_several_workers_each_is_told_behind_what_they_are_together(run: RunProgram, answering: Answering) -> None:
    first = {"queues": [100, 101, 104, 108], "pid": 4711, "restarts": 0, "failure": None} | counters(
        accepted=60, flows=8
    )
    second = {"queues": [102, 103, 105, 109], "pid": None, "restarts": 2, "failure": None} | counters(
        dropped=3, flows=4
    )
    seen = status({"queues": [*range(100, 106), 108, 109], "restarts": 2}, workers=[first, second])

    done = run("status", "--socket", answering(status=seen).socket)

    at = done.lines.index("workers 2, queues 100 to 105, 108 to 109 (netlink), 2 restarts")
    assert done.lines[at + 1 : at + 3] == [
        "queues 100 to 101, 104, 108 process 4711, 60 accepted, 0 dropped, 8 flows, 0 restarts",
        "queues 102 to 103, 105, 109 process None, 0 accepted, 3 dropped, 4 flows, 2 restarts",
    ]


def test_what_is_out_of_the_ordinary_is_told(run: RunProgram, answering: Answering) -> None:
    seen = status(
        {
            "queues": [100],
            "driver": "netfilterqueue",
            "pid": None,
            "restarts": 2,
            "failure": "queue 100 is taken by another program",
            "events_lost": 9,
        },
        addresses=[],
        cluster_interfaces=[],
        audit=True,
    )

    done = run("status", "--socket", answering(status=seen).socket)

    for line in (
        "node n1 (no address)",
        "stamps believed on no interface",
        "enforcement auto, only audited; fail closed; datapath per-packet",
        "worker queue 100 (netfilterqueue), process None, 2 restarts",
        "worker failure queue 100 is taken by another program",
        "log 15 events, 9 lost",
    ):
        assert line in done.lines


def test_refused_documents_are_told_word_for_word_line_by_line(run: RunProgram, answering: Answering) -> None:
    error = (
        'a.yaml:1:2: labels["-a"]: a key is [source:][prefix/]name\nb.yaml:3:4: spec.ips[0]: [/red] is not an address'
    )
    seen = status(refused={"since": "2026-01-01T00:00:00Z", "error": error})

    done = run("status", "--socket", answering(status=seen).socket)

    at = done.lines.index("documents refused since 2026-01-01T00:00:00Z")
    assert done.lines[at + 1 : at + 3] == error.splitlines()


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_that_was_counted_is_told_with_its_sentence(
    reason: DropReason, run: RunProgram, answering: Answering
) -> None:
    seen = status({"POLICY_DENIED": 0, str(reason): 5})

    done = run("status", "--socket", answering(status=seen).socket)

    assert [line for line in done.lines if line.split()[0] in set(DropReason)] == [f"{reason} 5 ({reason.description})"]


def test_the_status_is_to_be_had_for_programs(run: RunProgram, answering: Answering) -> None:
    agent = answering(status=status())

    assert json.loads(run("status", "-o", "json", "--socket", agent.socket).out) == status()
    assert yaml.safe_load(run("status", "-o", "yaml", "--socket", agent.socket).out) == status()


def test_a_store_that_is_reached_is_a_row(run: RunProgram, answering: Answering) -> None:
    done = run("status", "--socket", answering(status=status(store=STORE)).socket)

    assert "store redis://[fd00::9]:6379/0, connected since 2026-01-01T00:00:00Z" in done.lines
    assert "refused" not in done.out


def test_of_a_store_that_is_not_reached_it_is_told_since_when_and_why(run: RunProgram, answering: Answering) -> None:
    away = STORE | {"connected": False, "error": "Connection refused [/red]", "refused": None}

    done = run("status", "--socket", answering(status=status(store=away)).socket)

    assert (
        "store redis://[fd00::9]:6379/0, unreachable since 2026-01-01T00:00:00Z (Connection refused [/red]); "
        "enforcing the last known state"
    ) in done.lines


def test_a_state_that_cannot_be_saved_is_told_since_when_and_why(run: RunProgram, answering: Answering) -> None:
    unsaved = {"since": "2026-01-01T00:00:00Z", "error": "/var/x.state: the disk is full [/red]"}

    done = run("status", "--socket", answering(status=status(store=STORE | {"unsaved": unsaved})).socket)

    assert "state not saved since 2026-01-01T00:00:00Z" in done.lines
    assert "/var/x.state: the disk is full [/red]" in done.out


def test_a_store_that_was_never_reached_has_no_time(run: RunProgram, answering: Answering) -> None:
    away = dict.fromkeys(STORE) | {"store": "redis://h:6379/0", "connected": False}

    done = run("status", "--socket", answering(status=status(store=away)).socket)

    assert "store redis://h:6379/0, unreachable; enforcing the last known state" in done.lines


def test_values_of_the_store_that_were_refused_are_told_each_with_its_reason(
    run: RunProgram, answering: Answering
) -> None:
    values = [{"key": "endpoints default/x", "reason": "no JSON"}, {"key": "nodes n9", "reason": "schema 2"}]
    seen = status(store=STORE | {"refused": {"count": 2, "values": values}})

    done = run("status", "--socket", answering(status=seen).socket)

    at = done.lines.index("store values refused 2")
    assert done.lines[at + 1 : at + 3] == ["endpoints default/x: no JSON", "nodes n9: schema 2"]


def test_without_a_store_there_is_no_row_of_one(run: RunProgram, answering: Answering) -> None:
    assert "store" not in run("status", "--socket", answering(status=status(store=None)).socket).out


def test_a_problem_of_the_node_is_a_line(run: RunProgram, answering: Answering) -> None:
    problem = "endpoint default/web is on interface veth-web, which does not exist on this node"

    done = run("status", "--socket", answering(status=status(problems=[problem])).socket)

    assert f"problems {problem}" in done.lines


RULES = {
    **{"intact": True, "since": "2026-01-01T00:00:00Z", "missing": None, "error": None},
    **{"repairs": 0, "last_repair": None, "last_missing": None},
}


def test_rules_that_are_intact_are_one_row(run: RunProgram, answering: Answering) -> None:
    lines = run("status", "--socket", answering(status=status(rules=RULES)).socket).lines

    assert "rules intact since 2026-01-01T00:00:00Z" in lines
    assert not [line for line in lines if line.startswith("rules repaired")]


def test_rules_that_are_missing_are_shown_with_the_last_repair(run: RunProgram, answering: Answering) -> None:
    rules = RULES | {
        "intact": False,
        "missing": "table inet nfq_enforcer: is missing",
        "error": "nft failed",
        "repairs": 2,
    }
    rules |= {"last_repair": "2026-01-01T00:00:02Z", "last_missing": "set store4 is missing"}

    done = run("status", "--socket", answering(status=status(rules=rules)).socket)

    at = done.lines.index("rules degraded since 2026-01-01T00:00:00Z")
    assert done.status == 0
    assert done.lines[at + 1 : at + 5] == [
        "table inet nfq_enforcer: is missing",
        "nft failed",
        "rules repaired 2 times, last 2026-01-01T00:00:02Z",
        "set store4 is missing",
    ]


def test_long_work_is_shown_with_its_start_and_extent(run: RunProgram, answering: Answering) -> None:
    text = "checking many.yaml, documents: 12,000 of 20,000"
    work = {
        "activity": "checking many.yaml, documents",
        "since": "2026-01-01T00:00:02Z",
        "done": 12000,
        "total": 20000,
        "text": text,
    }

    done = run("status", "--socket", answering(status=status(working=[work])).socket)

    assert f"working since 2026-01-01T00:00:02Z: {text}" in done.lines


PROXY = {
    **{"running": True, "pid": 4712, "version": "1.40.0", "error": None},
    **{"restarts": 1, "slots": 5, "refused": 0, "unlogged": 0},
}


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({}, ["Envoy 1.40.0, process 4712, 5 slots, 1 restarts"]),
        ({"running": False, "pid": None, "error": "Envoy is not installed"}, ["Envoy is not installed"]),
        ({"running": False, "pid": None}, ["does not run"]),
        (
            {"error": "2 updates of rules were rejected", "refused": 3, "unlogged": 4},
            [
                "Envoy 1.40.0, process 4712, 5 slots, 1 restarts",
                "2 updates of rules were rejected",
                "4 requests are not in the flow log",
                "3 connections found all slots in use",
            ],
        ),
    ],
)
def test_the_proxy_is_shown_once_it_has_been_needed(
    changed: dict[str, Any], lines: list[str], run: RunProgram, answering: Answering
) -> None:
    shown = run("status", "--socket", answering(status=status(proxy=PROXY | changed)).socket).out

    assert [line for line in lines if line not in shown] == []


def test_no_proxy_is_shown_before_it_has_been_needed(run: RunProgram, answering: Answering) -> None:
    assert "Envoy" not in run("status", "--socket", answering(status=status()).socket).out


def source(name: str, endpoints: int, away: str | None = None) -> dict[str, Any]:
    return {"source": name, "endpoints": endpoints, "away": away, "details": {}}


def test_sources_of_workloads_are_shown(run: RunProgram, answering: Answering) -> None:
    sources = [source("docker", 1), source("kubernetes", 30, "no answer"), source("podman", 0), source("process", 0)]
    seen = status(workloads={"sources": sources, "refused": {}})

    shown = run("status", "--socket", answering(status=seen).socket).out.split("workloads")[1].split("log")[0]

    assert " ".join(shown.split()) == "docker: 1 endpoint kubernetes: 30 endpoints, away podman: 0 endpoints"


@pytest.mark.parametrize("sources", [[], [source("process", 0)]])
def test_without_workloads_there_is_no_row_of_them(
    run: RunProgram, answering: Answering, sources: list[dict[str, Any]]
) -> None:
    seen = status(workloads={"sources": sources, "refused": {}})

    assert "workloads" not in run("status", "--socket", answering(status=seen).socket).out


PARTS = ("rules", "store", "queues")


def health(**degraded: str) -> dict[str, Any]:
    """Return the health of three parts, of which those named here are degraded with this message since 02."""
    parts = [
        {"part": part, "state": "degraded", "since": "2026-01-01T00:00:02Z", "message": degraded[part]}
        if part in degraded
        else {"part": part, "state": "ok", "since": "2026-01-01T00:00:00Z", "message": "fine"}
        for part in PARTS
    ]
    state, since = ("degraded", "2026-01-01T00:00:02Z") if degraded else ("ok", "2026-01-01T00:00:00Z")
    return {"state": state, "since": since, "parts": parts}


def test_the_health_of_each_part_comes_first(run: RunProgram, answering: Answering) -> None:
    seen = status(health=health(store="it is\nunreachable \x1b[2J"))

    done = run("status", "--socket", answering(status=seen).socket)

    assert done.lines[:5] == [
        "health degraded since 2026-01-01T00:00:02Z",
        "rules ok since 2026-01-01T00:00:00Z: fine",
        "store degraded since 2026-01-01T00:00:02Z: it is",
        r"unreachable \x1b[2J",
        "queues ok since 2026-01-01T00:00:00Z: fine",
    ]


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_the_exit_status_is_1_while_a_part_is_degraded(run: RunProgram, answering: Answering, form: str) -> None:
    agent = answering(status=In([status(health=health(rules="set x")), status(health=health())]))

    assert [run("status", "-o", form, "--socket", agent.socket).status for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("degraded", "line"),
    [
        ((), "OK\n"),
        (("rules", "store"), "degraded: rules since 2026-01-01T00:00:02Z; store since 2026-01-01T00:00:02Z\n"),
    ],
)
def test_a_brief_status_is_one_line(
    run: RunProgram, answering: Answering, degraded: tuple[str, ...], line: str
) -> None:
    seen = status(health=health(**dict.fromkeys(degraded, "two\nlines")))

    done = run("status", "--brief", "--socket", answering(status=seen).socket)

    assert (done.status, done.out) == (int(bool(degraded)), line)


def test_of_an_agent_without_health_no_brief_status_is_made_up(run: RunProgram, answering: Answering) -> None:
    done = run("status", "--brief", "--socket", answering(status=status()).socket)

    assert (done.status, done.out) == (1, "")
    assert "does not report its health" in done.err


def test_a_wait_ends_with_the_first_status_in_which_no_part_is_degraded(
    run: RunProgram, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfq_enforcer.cli.status._POLL", 0.0)
    states = [status(health=health(rules="set x")), status(health=health(rules="set x")), status(health=health())]
    agent = answering(status=In(states))

    done = run("status", "--wait", "--brief", "--socket", agent.socket)

    assert (done.status, done.out, len(agent.calls)) == (0, "OK\n", 3)


def test_a_wait_that_is_over_shows_the_last_status(run: RunProgram, answering: Answering) -> None:
    agent = answering(status=status(health=health(rules="set x")))

    done = run("status", "--wait", "--timeout", "0", "--brief", "--socket", agent.socket)

    assert (done.status, done.out) == (1, "degraded: rules since 2026-01-01T00:00:02Z\n")


def test_a_wait_for_an_agent_that_does_not_come_ends_with_the_reason(run: RunProgram, tmp_path: Path) -> None:
    done = run("status", "--wait", "--timeout", "0", "--socket", tmp_path / "none.sock")

    assert done.status == 1
    assert "no agent is listening" in done.err
