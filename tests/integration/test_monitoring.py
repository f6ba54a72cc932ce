"""A real Prometheus scrapes a lab under traffic: no panel of the dashboard is empty, each alert is evaluated."""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import STORE
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    HTTP,
    OTHER_TCP,
    PATIENT,
    Policies,
    from_role,
    policy,
    run_in,
    start_all,
    stop_agents,
    until,
)
from tests.support.metrics import scrape
from tests.support.prometheus import Prometheus, Query, promtool, queries, running

PORT = 9962
INTERVAL, RATES = "1s", "20s"
REQUESTS = from_role("frontend", (HTTP, "TCP"))
REQUESTS["toPorts"][0]["rules"] = {"http": [{"method": "GET", "path": "/userdata/[0-9]+"}]}
POLICY = policy("userdata", "backend", ingress=[REQUESTS, from_role("frontend", (OTHER_TCP, "TCP"))])
# the host n3 is an endpoint itself, and the store's host, on which Prometheus runs, none
SCRAPES = policy(
    "scrapes",
    "monitor",
    ingress=[{"fromEntities": ["world"], "toPorts": [{"ports": [{"port": str(PORT), "protocol": "TCP"}]}]}],
)
SCRAPE = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{PORT}/metrics').read().decode(), end='')"


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab) -> Iterator[Lab]:
    """Run agents that count flows by workload."""
    lab = make_served()
    start_all(lab, metrics={"address": f"0.0.0.0:{PORT}", "flows": 50})
    yield lab
    stop_agents(lab)


@asynccontextmanager
async def traffic(lab: Lab) -> AsyncIterator[None]:
    """Send allowed and refused connections and requests, on one node and between nodes, until the context ends."""
    ended = False
    front, back = lab.host("front1"), lab.host("back1")

    async def send() -> None:
        while not ended:
            for path in ("/userdata/42", "/secret"):
                await front.request(lab.address("back2"), HTTP, "GET", path, PATIENT)
            await front.connect(lab.address("back2"), OTHER_TCP, PATIENT)
            await front.connect(lab.address("back1"), OTHER_TCP, PATIENT)
            await back.connect(lab.address("back2"), HTTP, BRIEF)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        ended = True
        await sending


async def empty(server: Prometheus) -> list[Query]:
    """Return the queries of the dashboard without any number."""
    asked = queries()
    found = await asyncio.to_thread(server.query, *(query.filled(RATES) for query in asked))
    return [
        query
        for query, samples in zip(asked, found, strict=True)
        if all(math.isnan(float(sample["value"][1])) for sample in samples)
    ]


async def test_no_panel_is_empty_and_every_alert_is_evaluated(guarded: Lab, policies: Policies, tmp_path: Path) -> None:
    await policies.apply("userdata", POLICY, SCRAPES)
    targets = [f"{guarded.address(node)}:{PORT}" for node in guarded.nodes]

    with running(guarded, STORE, tmp_path, targets, INTERVAL) as server:
        async with traffic(guarded):
            deadline = time.monotonic() + 6 * PATIENT
            while (missing := await empty(server)) and time.monotonic() < deadline:
                await asyncio.sleep(0.5)
        (loaded,) = server.ask("rules", {})
        (scraped,) = server.ask("targets", {})

    assert missing == []
    rules = [rule for group in loaded["groups"] for rule in group["rules"]]
    assert {one["labels"]["instance"]: one["lastError"] for one in scraped["activeTargets"]} == dict.fromkeys(
        targets, ""
    )
    assert {(rule["name"], rule["health"]) for rule in rules if rule["health"] != "ok"} == set()
    assert len(rules) == 18
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()


async def test_promtool_finds_no_fault_in_the_metrics_of_an_agent(guarded: Lab) -> None:
    text = run_in(guarded, "n1", sys.executable, "-c", SCRAPE)

    checked = promtool("check", "metrics", text=text)

    assert (checked.returncode, checked.stderr) == (0, "")


async def test_stamps_latency_and_workloads_are_counted(guarded: Lab, policies: Policies) -> None:
    await policies.apply("userdata", POLICY)
    before = [scrape(guarded, node) for node in ("n1", "n2")]

    for _ in range(8):
        assert (await guarded.host("front1").connect(guarded.address("back2"), OTHER_TCP, PATIENT)).ok
    await until(lambda: scrape(guarded, "n2")["stamps_read_total"] >= before[1]["stamps_read_total"] + 8)
    after = [scrape(guarded, node) for node in ("n1", "n2")]

    assert after[0]["stamps_made_total"] >= before[0]["stamps_made_total"] + 8
    assert after[1]["new_flows_total FORWARDED"] >= before[1]["new_flows_total FORWARDED"] + 8
    assert 0 < after[1]["verdict_duration_seconds_count"] <= after[1]["packets_total ACCEPT"]
    flows = [flow for flow in guarded.nodes["n2"].status()["workload_flows"] if flow["verdict"] == "FORWARDED"]
    assert {"source": "default/role=frontend", "destination": "default/role=backend"}.items() <= flows[0].items()
