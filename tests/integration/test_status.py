"""Health of running agents: each fault is named while it lasts, with its true time, also if nobody asked meanwhile."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.labs import PATIENT, PROGRAM, start_all, stop_agents, until

UNASKED = 5.0  # s for which nobody asks for the status; the agent looks every second
DEVICE = "late0"


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Iterator[Lab]:
    """Run an agent on each node, with a store."""
    lab = make_served()
    start_all(lab)
    yield lab
    stop_agents(lab)


async def status(node: LabNode, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run ``nfq-enforcer status`` with these options."""
    argv = [*PROGRAM, "status", *options, "--socket", str(node.socket)]
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False, timeout=60)


def parts(node: LabNode) -> dict[str, dict[str, Any]]:
    """Return the health of each part by its name."""
    return {part["part"]: part for part in node.status()["health"]["parts"]}


def degraded(node: LabNode) -> set[str]:
    return {name for name, part in parts(node).items() if part["state"] == "degraded"}


def seconds(since: str) -> float:
    return datetime.fromisoformat(since).timestamp()


async def test_without_a_fault_no_part_is_degraded(lab: Lab) -> None:
    node = lab.nodes["n1"]

    waited = await status(node, "--wait", "--timeout", str(PATIENT), "--brief")
    shown = await status(node, "-o", "json")

    assert (waited.returncode, waited.stdout) == (0, "OK\n")
    assert shown.returncode == 0
    seen = json.loads(shown.stdout)
    states = {part["part"]: part["state"] for part in seen["health"]["parts"]}
    assert {name for name, state in states.items() if state == "disabled"} == {"proxy", "keys"}
    assert {(queue["kind"], queue["numbers"] == queue["bound"]) for queue in seen["queues"]} == {
        (kind, True) for kind in ("headers", "whole", "segmented", "openings", "excess")
    }
    assert [worker["revision"] for worker in seen["workers"]] == [seen["revisions"]["workers"]]
    assert seen["endpoint_states"]["ready"] == seen["endpoints"] == 2


async def test_a_fault_has_its_time_although_nobody_asked_then(lab: Lab) -> None:
    node = lab.nodes["n1"]
    document = {
        **{"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": {"name": "late"}},
        "spec": {"ips": ["10.31.1.99"], "node": "n1", "interface": DEVICE},
    }

    async def add() -> None:
        argv = [*PROGRAM, "policy", "load", "-", "--socket", str(node.socket)]
        text = json.dumps(document)
        await asyncio.to_thread(subprocess.run, argv, input=text, check=True, timeout=PATIENT, text=True)

    before = time.time()
    await add()
    await until(lambda: f"endpoint default/late is on interface {DEVICE}" in node.log.read_text())
    await asyncio.sleep(UNASKED)  # not a wait for an event: nobody asks in this time
    asked = time.time()
    brief = await status(node, "--brief")

    since = parts(node)["endpoints"]["since"]
    assert before - 1 <= seconds(since) <= asked - UNASKED / 2
    assert (brief.returncode, brief.stdout) == (1, f"degraded: endpoints since {since}\n")

    waiting = asyncio.create_task(status(node, "--wait", "--timeout", str(PATIENT), "--brief"))
    argv = [*PROGRAM, "endpoint", "delete", "late", "--socket", str(node.socket)]
    await asyncio.to_thread(subprocess.run, argv, check=True, timeout=PATIENT)
    assert (await waiting).stdout == "OK\n"
    assert parts(node)["endpoints"]["since"] > since


async def test_a_store_that_is_away_degrades_its_part_of_each_node(lab: Lab) -> None:
    nodes = list(lab.nodes.values())

    lab.store.kill()
    await until(lambda: all(degraded(node) == {"store"} for node in nodes))
    since = [parts(node)["store"]["since"] for node in nodes]
    of_store = [node.status()["store"]["since"] for node in nodes]
    late = await status(nodes[0], "--wait", "--timeout", "0.1", "--brief")
    lab.store.start()
    await until(lambda: all(not degraded(node) for node in nodes))

    assert since == of_store
    assert (late.returncode, late.stdout) == (1, f"degraded: store since {since[0]}\n")


async def test_a_wait_may_begin_before_the_agent(lab: Lab) -> None:
    node = lab.nodes["n3"]
    node.stop()

    waiting = asyncio.create_task(status(node, "--wait", "--timeout", str(PATIENT), "--brief"))
    await until(lambda: waiting.done() or not node.socket.exists())
    node.start()
    node.wait_until_ready()

    assert (await waiting).stdout == "OK\n"
