"""Import of open connections by a new worker: none that policy allows is cut, whichever end sends first."""

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.conntrack import FlowState
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.dataplane.queue import ctnetlink
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.traffic_host import HeldConnection
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DRIVERS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    MODES,
    PATIENT,
    PER_PACKET,
    DatapathSettings,
    arrivals,
    await_flow,
    check_logs,
    from_role,
    now,
    policy,
    run_in,
    save,
    start_nodes,
    stop_agents,
    to_role,
    until,
)
from tests.support.namespaces import within
from tests.support.packets import ACK, PSH, tcp

BOTH_WAYS_CLOSED = FRONT_TO_BACK + policy("front-out", "frontend", egress=[to_role("backend")])
DB_TO_BACK = policy("db-to-back", "backend", ingress=[from_role("db")])


SETTINGS = [DatapathSettings(driver, mode=mode) for mode in MODES for driver in DRIVERS]
NODES = ("n1", "n2")  # of front1, which connects to back1 and back2


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    settings: DatapathSettings = request.param
    return settings


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


@pytest.fixture(scope="module")
def lab(shared: Lab, datapath: DatapathSettings) -> Iterator[Lab]:
    """Yield the lab with agents and a policy that allows frontends to connect to backends, and closes frontends.

    Every test ends with agents and policy as it found them.
    """
    start_nodes(shared, NODES, documents=BOTH_WAYS_CLOSED, **datapath.settings)
    yield shared
    stop_agents(shared)


async def kill_workers(lab: Lab, datapath: DatapathSettings) -> None:
    """Kill the worker of every node and wait for its replacement."""
    for name in NODES:
        node = lab.nodes[name]
        victim = node.status()["worker"]["pid"]
        os.kill(victim, signal.SIGKILL)
        await until(partial(_is_replaced, lab, node, victim))


def _is_replaced(lab: Lab, node: LabNode, victim: int) -> bool:
    """Return whether another worker has bound the queues."""
    queues = "cat", "/proc/net/netfilter/nfnetlink_queue"
    return node.status()["worker"]["pid"] not in (None, victim) and run_in(lab, node.name, *queues) != ""


async def restart(lab: Lab, datapath: DatapathSettings) -> None:
    """Stop every agent, which removes its rules, and start it again."""
    stop_agents(lab)
    start_nodes(lab, NODES, documents=BOTH_WAYS_CLOSED, **datapath.settings)


async def crash(lab: Lab, datapath: DatapathSettings) -> None:
    """Kill every agent with its worker, which leaves the rules installed, and start it again."""
    for name in NODES:
        node = lab.nodes[name]
        worker = node.status()["worker"]["pid"]
        node.stop(signal.SIGKILL)
        await until(lambda gone=Path(f"/proc/{worker}"): not gone.exists())
    check_logs(lab)
    start_nodes(lab, NODES, documents=BOTH_WAYS_CLOSED, **datapath.settings)


async def hold(lab: Lab, server: str, family: int = 4) -> HeldConnection:
    connection = await lab.host("front1").hold(lab.address(server, family), HTTP, PATIENT)
    assert connection.opened.ok
    return connection


def port_of(lab: Lab, server: str, since: float) -> int:
    """Return the source port of front1's connection to the server since then."""
    flow = await_flow(lab.nodes["n1"], since, verdict="FORWARDED", destination=str(lab.address(server)))
    port: int = flow["l4"]["TCP"]["source_port"]
    return port


@pytest.mark.parametrize("end", [kill_workers, restart, crash])
async def test_a_server_may_speak_first_when_the_workers_are_new(
    lab: Lab, datapath: DatapathSettings, end: Callable[[Lab, DatapathSettings], Awaitable[None]]
) -> None:
    ways = [(server, family) for server in ("back1", "back2") for family in FAMILIES]
    connections = {way: await hold(lab, *way) for way in ways}
    await end(lab, datapath)

    for (server, _), connection in connections.items():
        assert (await connection.other_end(lab.host(server)).talk(PATIENT)).answered_by == "front1"
        assert (await connection.talk(PATIENT)).answered_by == server
        await connection.close()


async def test_a_connection_that_policy_no_longer_allows_is_not_learned_as_allowed(
    lab: Lab, datapath: DatapathSettings
) -> None:
    connection = await hold(lab, "back2")
    stop_agents(lab)
    begun = now()
    nodes = start_nodes(lab, NODES, documents=DB_TO_BACK, **datapath.settings)

    assert (await connection.other_end(lab.host("back2")).talk(BRIEF)).status == "timeout"
    refused = await_flow(lab.nodes["n2"], begun, verdict="DROPPED", reason="POLICY_DENIED")
    assert (refused["traffic_direction"], refused["is_reply"]) == ("INGRESS", True)
    assert (await connection.talk(BRIEF)).status == "timeout"

    before = [node.status()["revision"] for node in nodes]
    save(lab.documents / "policies.yaml", BOTH_WAYS_CLOSED)
    await until(lambda: all(node.status()["revision"] > old for node, old in zip(nodes, before, strict=True)))
    assert (await connection.talk(PATIENT)).answered_by == "back2"  # after both ends have sent again what was dropped
    await connection.close()


@pytest.mark.parametrize(
    "datapath", [one for one in SETTINGS if one.mode == PER_PACKET], ids=str, indirect=True, scope="module"
)
async def test_forged_packets_of_a_learned_connection_are_refused_and_do_not_cut_it(
    lab: Lab, datapath: DatapathSettings
) -> None:
    begun = now()
    connection = await hold(lab, "back2")
    port, front, back = port_of(lab, "back2", begun), str(lab.address("front1")), str(lab.address("back2"))
    await kill_workers(lab, datapath)
    forgeries = [
        ("n1", "front1", tcp(back, front, HTTP, port, ACK | PSH, b"forged reply"), "STAMP_MISSING"),
        ("n2", "back2", tcp(front, back, port, HTTP, ACK | PSH, b"forged request"), "POLICY_DENIED"),
    ]

    for node, target, packet, reason in forgeries:
        sent = now()
        async with arrivals(lab, target) as capture:
            await lab.host("world").send_raw(packet)
            await_flow(lab.nodes[node], sent, verdict="DROPPED", reason=reason)
        assert not any(b"forged" in arrived.data for arrived in capture.packets())
    assert (await connection.other_end(lab.host("back2")).talk(PATIENT)).answered_by == "front1"
    assert (await connection.talk(PATIENT)).answered_by == "back2"


async def test_what_the_kernel_remembers_is_read_with_its_opener_and_state(
    lab: Lab, datapath: DatapathSettings
) -> None:
    begun = now()
    connection = await hold(lab, "back1")
    port, front, back = port_of(lab, "back1", begun), str(lab.address("front1")), str(lab.address("back1"))

    flows = {flow.key: flow for flow in within(lab, "n1", lambda: list(ctnetlink.dump_flows()))}
    found = flows[parse(tcp(front, back, port, HTTP, ACK)).key]
    assert found.state is FlowState.ESTABLISHED
    assert found.expires_in > 86_400
    await connection.close()
