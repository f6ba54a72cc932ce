"""``nfq-enforcer policy load``: applied documents, and the nodes that enforce them or are behind."""

from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.agent import client
from tests.unit.cli.conftest import Answering, RunProgram
from tests.unit.cli.test_policy import POLICY

APPLIED: dict[str, Any] = {"revision": 7, "documents": ["CiliumNetworkPolicy/default/web"], "endpoints": []}


def node(name: str, *, live: bool = True, enforced: bool = True, **more: Any) -> dict[str, Any]:
    return {"name": name, "live": live, "enforced": enforced, **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def test_documents_are_applied_and_in_force(run: RunProgram, answering: Answering, file: Path) -> None:
    agent = answering(apply=APPLIED)

    done = run("policy", "load", file, "--socket", agent.socket)

    assert done == (0, "CiliumNetworkPolicy/default/web applied\nrevision 7 is in force\n", "")
    assert agent.calls == [{"files": [[str(file), POLICY]], "wait": None}]


def test_without_a_store_there_is_nobody_to_wait_for(run: RunProgram, answering: Answering, file: Path) -> None:
    done = run("policy", "load", file, "--wait", "--socket", answering(apply=APPLIED).socket)

    assert (done.status, done.lines[-1]) == (0, "revision 7 is in force")


def test_all_live_nodes_are_waited_for(run: RunProgram, answering: Answering, file: Path) -> None:
    agent = answering(apply=APPLIED | {"nodes": [node("n1"), node("n2"), node("n3")]})

    done = run("policy", "load", file, "--wait", "--socket", agent.socket)

    assert (done.status, done.lines[1:], done.err) == (0, ["revision 7 is in force on 3 of 3 live nodes"], "")
    assert agent.calls[0]["wait"] == 30


def test_nodes_that_are_not_live_are_named_and_not_waited_for(
    run: RunProgram, answering: Answering, file: Path
) -> None:
    away = [
        node("n3", live=False, enforced=False, last_seen="2026-01-01T00:00:00Z"),
        node("n4", live=False, enforced=False, last_seen=None),
    ]
    agent = answering(apply=APPLIED | {"nodes": [node("n1"), *away, node("n2")]})

    done = run("policy", "load", file, "--wait", "--socket", agent.socket)

    assert (done.status, done.err) == (0, "")
    assert done.lines[1:] == [
        "revision 7 is in force on 2 of 2 live nodes",
        "not waited for: n3 (last seen 2026-01-01T00:00:00Z), n4",
    ]


def test_live_nodes_that_are_behind_are_named_and_the_status_is_3(
    run: RunProgram, answering: Answering, file: Path
) -> None:
    nodes = [node("n1"), node("n2", enforced=False), node("n3", enforced=False)]
    agent = answering(apply=APPLIED | {"nodes": nodes})

    done = run("policy", "load", file, "--wait", "--timeout", "2", "--socket", agent.socket)

    assert (done.status, done.lines[1:]) == (3, ["revision 7 is in force on 1 of 3 live nodes"])
    assert done.err == (
        "nfq-enforcer: revision 7 is not in force after 2 seconds on n2, n3; it may still come to be: "
        "check with 'nfq-enforcer node list'\n"
    )
    assert agent.calls[0]["wait"] == 2


def test_what_makes_no_new_revision_is_told_without_one(run: RunProgram, answering: Answering, file: Path) -> None:
    agent = answering(apply=APPLIED | {"revision": None, "nodes": [node("n1")]})

    done = run("policy", "load", file, "--wait", "--socket", agent.socket)

    assert done.lines[-1] == "what was applied is in force on 1 of 1 live nodes"


def test_the_agent_is_given_the_time_that_waiting_takes(
    run: RunProgram, answering: Answering, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 1e-9)  # ends before any response
    agent = answering(apply=APPLIED | {"nodes": [node("n1")]})

    assert run("policy", "load", file, "--wait", "--timeout", "60", "--socket", agent.socket).status == 0


def test_warnings_of_the_agent_are_printed_and_other_kinds_left_out_there(
    run: RunProgram, answering: Answering, file: Path
) -> None:
    agent = answering(apply=APPLIED | {"warnings": ["a.yaml:1: x: never matches"]})

    done = run("policy", "load", file, "--ignore-other-kinds", "--socket", agent.socket)

    assert (done.status, done.err) == (0, "nfq-enforcer: warning: a.yaml:1: x: never matches\n")
    assert agent.calls == [{"files": [[str(file), POLICY]], "wait": None, "ignore_other_kinds": True}]
