"""``observe --all-nodes`` on real traffic: three nodes in one stream by time, and a line for each missing one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.labs import HTTP, PATIENT

FRONTS = {"front1": "back2", "front2": "back1", "db3": "back2"}  # a client on each node, and its server on another
NODES = {"n1", "n2", "n3"}
Item = dict[str, Any]


async def talk(lab: Lab, patience: float = PATIENT) -> bool:
    """Have a client on each node connect to another node; return whether all could."""
    attempts = (lab.host(client).connect(lab.address(server), HTTP, patience) for client, server in FRONTS.items())
    return all(attempt.ok for attempt in await asyncio.gather(*attempts))


def arguments(node: LabNode, *options: str) -> list[str]:
    """Return the command line of ``observe --all-nodes`` at a node."""
    command = [sys.executable, "-m", "nfq_enforcer.cli", "observe", "--all-nodes", "--socket", str(node.socket)]
    return [*command, "-o", "json", "--protocol", "tcp", "--type", "policy-verdict", *options]


async def observe(node: LabNode, *options: str) -> tuple[list[Item], str]:
    """Run the command; return the items, and the lines on standard error."""
    done = await asyncio.to_thread(
        subprocess.run, arguments(node, *options), capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@contextmanager
def following(node: LabNode, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command, which follows new flows."""
    command = arguments(node, "--follow", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_until(process: "subprocess.Popen[str]", wanted: Any) -> list[Item]:
    """Return the items of a follower, up to and with the first for which the items are all that is wanted."""
    assert process.stdout is not None
    items: list[Item] = []
    for line in process.stdout:
        items.append(json.loads(line))
        if wanted(items):
            return items
    raise AssertionError(f"the command has ended after {len(items)} items")


async def follow(lab: Lab, process: "subprocess.Popen[str]", wanted: Any) -> list[Item]:
    """Make connections until a follower has all that is wanted; return its items."""
    reading = asyncio.create_task(asyncio.to_thread(read_until, process, wanted))
    while not reading.done():
        await talk(lab, 0.2)  # a node without its agent passes nothing
    return await reading


def moment() -> str:
    """Return the time now, as an option has it."""
    return datetime.now(UTC).isoformat()


def flows(items: list[Item]) -> list[Item]:
    return [item for item in items if "verdict" in item]


def nodes(items: list[Item]) -> set[str]:
    return {flow["node_name"] for flow in flows(items)}


def states(items: list[Item]) -> dict[str, tuple[str, str]]:
    """Return state and reason of the nodes that an item reports."""
    found = [item["node_status"] for item in items if "node_status" in item]
    return {status["node_names"][0]: (status["state_change"], status["message"]) for status in found}


async def test_the_flows_of_all_nodes_come_by_time(guarded: Lab) -> None:
    since = moment()
    assert await talk(guarded)

    seen = {name: await observe(guarded.nodes[name], "--since", since) for name in ("n1", "n3")}

    for items, errors in seen.values():
        times = [flow["time"] for flow in flows(items)]
        assert nodes(items) == NODES
        assert times == sorted(times)
        assert states(items) == {}
        assert "anyone with the store's credentials can read them" in errors
    uuids = [{flow["uuid"] for flow in flows(items)} for items, _ in seen.values()]
    assert uuids[0] == uuids[1]


async def test_a_limit_is_one_of_all_nodes_together(guarded: Lab) -> None:
    since = moment()
    assert await talk(guarded)

    whole: list[Item] = []
    while len(whole) < 2 * len(FRONTS):  # until the workers have reported them: each connection on both nodes
        whole = flows((await observe(guarded.nodes["n1"], "--since", since))[0])
    last = flows((await observe(guarded.nodes["n1"], "--since", since, "--last", "3"))[0])
    first = flows((await observe(guarded.nodes["n1"], "--since", since, "--first", "3"))[0])

    assert len(whole) == 2 * len(FRONTS)
    assert [flow["uuid"] for flow in first] == [flow["uuid"] for flow in whole[:3]]
    assert [flow["uuid"] for flow in last] == [flow["uuid"] for flow in whole[-3:]]


async def test_new_flows_of_all_nodes_come_and_a_node_that_is_away_is_missed_and_joins_again(guarded: Lab) -> None:
    with following(guarded.nodes["n1"]) as process:
        await follow(guarded, process, lambda items: nodes(items) == NODES)
        await asyncio.to_thread(guarded.nodes["n3"].stop, signal.SIGKILL)
        missed = await follow(guarded, process, lambda items: "n3" in states(items))
        guarded.nodes["n3"].start()
        guarded.nodes["n3"].wait_until_ready()
        joined = await follow(guarded, process, lambda items: states(items).get("n3", [""])[0] == "NODE_CONNECTED")
        await follow(guarded, process, lambda items: "n3" in nodes(items))

    assert states(missed)["n3"][0] == "NODE_UNAVAILABLE"
    assert "its new flows are shown" in states(joined)["n3"][1]


async def test_a_node_whose_agent_is_stopped_is_missed_with_the_reason(guarded: Lab) -> None:
    guarded.nodes["n2"].stop()

    items, _ = await observe(guarded.nodes["n1"], "--last", "5")
    text = arguments(guarded.nodes["n1"], "--last", "5", "-o", "compact")
    lines = (await asyncio.to_thread(subprocess.check_output, text, text=True, stderr=subprocess.DEVNULL)).splitlines()
    guarded.nodes["n2"].start()
    guarded.nodes["n2"].wait_until_ready()

    assert states(items)["n2"][0] == "NODE_UNAVAILABLE"
    assert states(items)["n2"][1].startswith("its agent does not run, or cannot reach the store: last heartbeat 20")
    assert [line for line in lines if line.startswith("n2: NODE_UNAVAILABLE: its agent does not run")]


async def test_a_node_that_does_not_answer_delays_the_others_for_seconds_only(guarded: Lab) -> None:
    pid = guarded.nodes["n2"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        items, _ = await observe(guarded.nodes["n1"])
    finally:
        os.kill(pid, signal.SIGCONT)

    assert states(items) == {"n2": ("NODE_UNAVAILABLE", "its agent has not answered for 5 seconds")}
    assert {"n1", "n3"} <= nodes(items)
