"""Health of the agent's parts: each fault degrades its part, and the time of a change is kept."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.observe.health import PARTS, RECENT, Facts, History, WorkerFacts
from nfq_enforcer.observe.status import (
    ConntrackStatus,
    EndpointStates,
    HealthStatus,
    PartHealth,
    ProxyStatus,
    QueueStatus,
    Refusal,
    RefusedValue,
    RefusedValues,
    RevisionStatus,
    RulesStatus,
    StoreStatus,
    StuckPart,
    UnsavedState,
    WorkloadSourceStatus,
    WorkloadsStatus,
)
from nfq_enforcer.observe.status import PendingEndpoint as Pending
from nfq_enforcer.text import utc_time

BEGIN, NOW = 1_000_000.0, 1_000_100.0
RULES = RulesStatus(
    *(True, utc_time(BEGIN), None, None),
    repairs=0,
    last_repair=None,
    last_missing=None,
    checked=utc_time(NOW),
)
STORE = StoreStatus("redis://h", connected=True, since=utc_time(BEGIN), pending=[], refused=RefusedValues(0, []))
PROXY = ProxyStatus(True, 7, "1.40.0", None, restarts=0, slots=2, refused=0)
WORKER = WorkerFacts(11, 4, 0, None)
ENDPOINTS = EndpointStates(3, 0, 0, 0, 0, 0, ())
CONNTRACK = ConntrackStatus(10, 1000, 0, 50, 5000)
WELL = Facts(
    now=NOW,
    rules=RULES,
    queues_wanted=50,
    queues_bound=50,
    lost=0,
    workers=[WORKER, WORKER],
    internal_errors=0,
    revision=4,
    revisions=RevisionStatus(4, 4, changing=False, since=None, failure=None),
    working=(),
    refused=None,
    document_problems=(),
    store=STORE,
    endpoints=ENDPOINTS,
    workloads=WorkloadsStatus([WorkloadSourceStatus("docker", 2, None, {})], {}),
    source_problems=(),
    conntrack=CONNTRACK,
    proxy=PROXY,
    stuck=(),
)


def health(facts: Facts = WELL, **changed: Any) -> HealthStatus:
    """Return the health at the first look."""
    return History(BEGIN).update(replace(facts, **changed))


def part(status: HealthStatus, name: str) -> PartHealth:
    return next(one for one in status.parts if one.part == name)


def test_every_part_is_named_once_in_order() -> None:
    assert tuple(one.part for one in health().parts) == PARTS


def test_without_a_fault_every_part_is_ok_since_the_agents_start() -> None:
    status = health()

    assert (status.state, status.since) == ("ok", utc_time(BEGIN))
    assert {one.part: one.state for one in status.parts if one.state != "ok"} == {"keys": "disabled"}
    assert {one.since for one in status.parts} == {utc_time(BEGIN)}
    assert part(status, "rules").message == "as the agent has made them, compared 0 s ago"


AT = utc_time(NOW - 5)
AWAY = WorkloadsStatus([WorkloadSourceStatus("docker", 2, "no socket", {})], {})
BEHIND = [WORKER, replace(WORKER, revision=3)]


@pytest.mark.parametrize(
    ("name", "changed", "message", "since"),
    [
        ("rules", {"rules": replace(RULES, intact=False, since=AT, missing="set x")}, "set x", AT),
        ("rules", {"rules": replace(RULES, intact=False, since=AT, missing="set x", error="busy")}, "busy: set x", AT),
        ("rules", {"rules": replace(RULES, checked=None)}, "not been compared with the kernel yet", None),
        (
            *("rules", {"rules": replace(RULES, checked=utc_time(NOW - 20))}),
            *(f"not been compared with the kernel since {utc_time(NOW - 20)}", utc_time(NOW - 20)),
        ),
        ("queues", {"queues_bound": 49}, "1 of 50 have no worker", None),
        ("workers", {"workers": [WORKER, replace(WORKER, stuck=(NOW - 5, "gone"))]}, "worker 1: gone", AT),
        (
            *("revision", {"revisions": RevisionStatus(5, 4, changing=True, since=AT, failure="no nft")}),
            *("5 is wanted and not in force: no nft", AT),
        ),
        ("revision", {"revision": 0}, "none is in force yet", None),
        ("revision", {"workers": BEHIND}, "4 is wanted: worker 1 has 3", None),
        ("documents", {"refused": Refusal(AT, "a.yaml:1:2: x")}, "refused: a.yaml:1:2: x", AT),
        ("documents", {"document_problems": ["NetworkPolicy a/b is not in force"]}, "NetworkPolicy a/b", None),
        (
            *("documents", {"store": replace(STORE, refused=RefusedValues(1, [RefusedValue("k", "no JSON")]))}),
            *("1 values of the store cannot be read: k: no JSON", None),
        ),
        ("store", {"store": replace(STORE, connected=False, since=AT, error="timeout")}, "unreachable: timeout", AT),
        ("store", {"store": replace(STORE, unsaved=UnsavedState(AT, "disk full"))}, "not saved: disk full", AT),
        ("store", {"store": replace(STORE, pending=[Pending("a/b", "taken")])}, "a/b: taken", None),
        ("endpoints", {"endpoints": replace(ENDPOINTS, problems=["a/b has none"])}, "a/b has none", None),
        ("workloads", {"workloads": AWAY}, "source docker is away: no socket", None),
        ("workloads", {"source_problems": ["pod a/b is no endpoint"]}, "pod a/b is no endpoint", None),
        ("conntrack", {"conntrack": replace(CONNTRACK, flows=900)}, "workers' table is nearly full: 900 of 1000", None),
        ("conntrack", {"conntrack": replace(CONNTRACK, kernel_entries=4500)}, "kernel's table is nearly full", None),
        ("proxy", {"proxy": replace(PROXY, running=False)}, "it does not run", None),
        ("proxy", {"proxy": replace(PROXY, error="no port")}, "no port", None),
        ("proxy", {"proxy": replace(PROXY, version=None)}, "Envoy, process 7, does not respond", None),
        ("agent", {"stuck": [StuckPart("thread x", AT, "has run for 9 s")]}, "thread x: has run for 9 s", AT),
    ],
)
def test_a_fault_degrades_its_part_and_no_other(
    name: str, changed: dict[str, Any], message: str, since: str | None
) -> None:
    status = health(**changed)

    degraded = {one.part for one in status.parts if one.state == "degraded"}
    assert (status.state, degraded) == ("degraded", {name})
    assert message in part(status, name).message
    assert part(status, name).since == (since or utc_time(BEGIN))
    assert status.since == part(status, name).since


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("store", {"store": None}),
        ("proxy", {"proxy": None}),
        ("workloads", {"workloads": None}),
        ("keys", {}),
    ],
)
def test_a_part_that_nothing_needs_is_disabled_and_degrades_nothing(name: str, changed: dict[str, Any]) -> None:
    status = health(**changed)

    assert (part(status, name).state, status.state) == ("disabled", "ok")


@pytest.mark.parametrize(
    ("name", "losing"),
    [
        ("queues", {"lost": 8}),
        ("workers", {"internal_errors": 8}),
        ("conntrack", {"conntrack": replace(CONNTRACK, evicted=8)}),
        ("proxy", {"proxy": replace(PROXY, refused=8)}),
    ],
)
def test_a_loss_degrades_its_part_for_a_minute(name: str, losing: dict[str, Any]) -> None:
    history = History(BEGIN)
    history.update(WELL)

    during = part(history.update(replace(WELL, now=NOW + 1, **losing)), name)
    still = part(history.update(replace(WELL, now=NOW + RECENT, **losing)), name)
    after = part(history.update(replace(WELL, now=NOW + 1 + RECENT, **losing)), name)

    assert [one.state for one in (during, still, after)] == ["degraded", "degraded", "ok"]
    assert "8 " in during.message
    assert (during.since, after.since) == (utc_time(NOW + 1), utc_time(NOW + 1 + RECENT))


def test_losses_before_the_first_look_degrade_nothing() -> None:
    assert part(health(lost=8), "queues").state == "ok"


def test_a_counter_that_begins_anew_is_no_loss() -> None:
    history = History(BEGIN)
    history.update(replace(WELL, lost=8))

    assert part(history.update(replace(WELL, now=NOW + 1, lost=0)), "queues").state == "ok"


def test_a_part_that_stays_degraded_keeps_its_time_also_for_another_reason() -> None:
    history = History(BEGIN)
    history.update(WELL)
    first = replace(WELL, now=NOW + 1, store=replace(STORE, connected=False, since=utc_time(NOW)))
    history.update(first)

    second = replace(WELL, now=NOW + 9, store=replace(STORE, unsaved=UnsavedState(utc_time(NOW + 8), "full")))
    status = history.update(second)

    assert (part(status, "store").message, part(status, "store").since) == (
        "the last known state is not saved: full",
        utc_time(NOW),
    )


def test_a_part_without_a_time_of_its_own_has_the_time_of_the_look() -> None:
    history = History(BEGIN)
    history.update(WELL)

    degraded = history.update(replace(WELL, now=NOW + 3, queues_bound=49))
    well = history.update(replace(WELL, now=NOW + 7))

    assert (degraded.since, part(degraded, "queues").since) == (utc_time(NOW + 3),) * 2
    assert (well.state, well.since, part(well, "queues").since) == ("ok", utc_time(NOW + 7), utc_time(NOW + 7))


def test_a_revision_that_is_being_put_in_force_degrades_nothing() -> None:
    changing = RevisionStatus(5, 4, changing=True, since=None, failure=None)

    status = health(revisions=changing, working=["compiling policy: 3 of 9"])

    assert status.state == "ok"
    assert part(status, "revision").message == "5 is being put in force: compiling policy: 3 of 9"


def test_endpoints_that_others_can_imitate_are_named_and_degrade_nothing() -> None:
    status = health(endpoints=replace(ENDPOINTS, changing=1, pending=2, open_sources=1))

    assert (status.state, part(status, "endpoints").message) == (
        "ok",
        "3 ready, 1 changing, 2 not yet in the store, 1 without an interface, so others can send from their addresses",
    )


def test_of_many_reasons_the_first_are_given_and_the_rest_counted() -> None:
    status = health(source_problems=[f"problem {number}" for number in range(5)])

    assert part(status, "workloads").message == "problem 0; problem 1; problem 2; and 2 more"


def test_the_document_has_each_part_and_each_key() -> None:
    text = (Path(__file__).parents[3] / "docs/status.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]

    assert tuple(row[0].strip("|` ") for row in rows if row[0].strip("|` ") in PARTS and len(row) > 2) == PARTS
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", " ".join(row))}
    records = (HealthStatus, PartHealth, RulesStatus, RevisionStatus, EndpointStates, ConntrackStatus, QueueStatus)
    named = {field.name for record in records for field in fields(record)} - {"parts"}
    assert named - documented == set()
