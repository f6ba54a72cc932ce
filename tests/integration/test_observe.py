"""``observe`` on real traffic: ends of flows with their packets and bytes, filters in the agent, and saved streams."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from nfq_enforcer.agent import client
from nfq_enforcer.core.wire.stamp import overhead
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.hubble_proto import response_class
from tests.support.labs import FAMILIES, HTTP, OTHER_TCP, PATIENT, SINGLE_QUEUE, Policies, from_role, now, policy

DATAPATH_SETTINGS = tuple(one for one in SINGLE_QUEUE if one.mode == "per-packet")
FRONT_TO_BACK = policy("front-to-back", "backend", ingress=[from_role("frontend", (HTTP, "TCP"))])


@pytest.fixture(autouse=True)
def _policy(policies: Policies, runner: asyncio.Runner) -> None:
    runner.run(policies.apply("test", FRONT_TO_BACK))


def await_end(node: LabNode, since: float, **filters: str) -> dict[str, Any]:
    """Return the first end of a flow that a node reports, with these filters."""
    allow = {"type": ["flow-end"], **{name.replace("_", "-"): [value] for name, value in filters.items()}}
    flows = client.stream(node.socket, "observe", PATIENT, allow=allow, since=since, follow=True)
    with contextlib.closing(flows):
        for flow in flows:
            return dict(flow)
    raise AssertionError("the agent ended")


def numbers(flow: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return packets and bytes of both directions."""
    return {side: tuple(map(int, flow["flow_end"][side].values())) for side in ("sent", "received")}  # type: ignore[misc]


@pytest.mark.parametrize("family", FAMILIES)
async def test_both_nodes_report_the_end_of_a_connection_with_the_same_packets(guarded: Lab, family: int) -> None:
    since, address = now(), guarded.address("back2", family)
    connection = await guarded.host("front1").hold(address, HTTP, PATIENT)
    assert (await connection.talk(PATIENT)).ok
    await connection.close()

    ends = [
        await asyncio.to_thread(await_end, guarded.nodes[name], since, to_ip=str(address), protocol="tcp")
        for name in ("n1", "n2")
    ]

    egress, ingress = map(numbers, ends)
    assert [end["traffic_direction"] for end in ends] == ["EGRESS", "INGRESS"]
    assert [end["flow_end"]["cause"] for end in ends] == ["closed", "closed"]
    assert all(0 < int(end["flow_end"]["duration_ns"]) < PATIENT * 1e9 for end in ends)
    assert [end["source"]["pod_name"] for end in ends] == ["front1", "front1"]
    assert egress["sent"][0] == ingress["sent"][0] >= 4
    assert egress["received"][0] == ingress["received"][0] >= 3
    stamp = overhead(4 if family == 4 else 6)  # each node counts packets as they arrive: those of the other one stamped
    assert ingress["sent"][1] == egress["sent"][1] + stamp * egress["sent"][0]
    assert egress["received"][1] == ingress["received"][1] + stamp * egress["received"][0]


async def test_a_connection_that_policy_cuts_has_an_end(guarded: Lab, policies: Policies) -> None:
    since, address = now(), guarded.address("back1")
    connection = await guarded.host("front1").hold(address, HTTP, PATIENT)
    await policies.apply("test", policy("front-to-back", "backend", ingress=[from_role("none")]))
    assert not (await connection.talk(0.5)).ok

    end = await asyncio.to_thread(await_end, guarded.nodes["n1"], since, to_ip=str(address))

    assert end["flow_end"]["cause"] == "cut"
    await connection.close()


@contextlib.contextmanager
def observing(node: LabNode, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command line with options of ``observe``."""
    command = [sys.executable, "-m", "nfq_enforcer.cli", "observe", "--socket", str(node.socket), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


async def test_a_filtered_follower_receives_only_what_it_asked_for(guarded: Lab) -> None:
    node, back, front = guarded.nodes["n2"], guarded.address("back2"), guarded.address("front1")
    filters = ("--to-ip", str(back), "--protocol", "tcp", "--not", "--to-port", str(OTHER_TCP), "--verdict", "DROPPED")
    with observing(node, "-f", "-o", "json", "--last", "0", *filters, "--verdict", "FORWARDED") as process:
        reading = asyncio.create_task(asyncio.to_thread(_lines, process, 2))
        while not reading.done():  # until the command has begun
            assert (await guarded.host("front1").connect(back, HTTP, PATIENT)).ok
            assert not (await guarded.host("front1").connect(back, OTHER_TCP, 0.1)).ok
            assert not (await guarded.host("db3").connect(back, HTTP, 0.1)).ok
        flows = [json.loads(line) for line in await reading]

    assert {flow["verdict"] for flow in flows} <= {"FORWARDED", "DROPPED"}
    assert {flow["l4"]["TCP"]["destination_port"] for flow in flows} == {HTTP}
    assert {flow["IP"]["source"] for flow in flows} <= {str(front), str(guarded.address("db3"))}


def _lines(process: "subprocess.Popen[str]", number: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(number)]


async def test_a_saved_stream_is_hubbles_and_is_read_as_the_agent_is(guarded: Lab, tmp_path: Path) -> None:
    node, back = guarded.nodes["n2"], guarded.address("back2")
    assert (await guarded.host("front1").connect(back, HTTP, PATIENT)).ok
    assert not (await guarded.host("db3").connect(back, HTTP, 0.2)).ok
    assert not (await guarded.host("db3").ping(back, 0.2)).ok
    saved = tmp_path / "flows.json"
    with observing(node, "--all", "-o", "jsonpb") as process:
        assert process.stdout is not None
        saved.write_text(process.stdout.read())

    message, pool = response_class()
    lines = saved.read_text().splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert json_format.Parse(line, message(), ignore_unknown_fields=False, descriptor_pool=pool).flow.uuid
    filters = ("--all", "--from-label", "role=db", "--verdict", "DROPPED", "-o", "json")
    with observing(node, *filters) as live, observing(node, *filters, "--input-file", str(saved)) as offline:
        assert live.stdout is not None
        assert offline.stdout is not None
        known = {json.loads(line)["flow"]["uuid"] for line in lines}
        flows = [json.loads(line) for line in live.stdout]
        assert [flow for flow in flows if flow["uuid"] in known] == [json.loads(line) for line in offline.stdout]
        assert {flow["source"]["pod_name"] for flow in flows} == {"db3"}
