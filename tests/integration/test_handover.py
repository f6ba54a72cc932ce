"""Hand-over: an agent starts anew without a pause for established flows, and without a moment without policy.

Pauses are measured on a stream in which only the server sends, 100 segments a second, and printed (``pytest -s``).
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    DRIVERS,
    FRONT_TO_BACK,
    HTTP,
    MODES,
    PATIENT,
    dropped,
    outcomes,
    passes,
    run_in,
    start,
    start_nodes,
    stop_agents,
    until,
)

PAUSE = 1.0  # s, bound; the hand-over itself takes none, but the machine may be busy
TICKER = """
import socket, sys, time

listener = socket.create_server(("", 7777))
print("ready", flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
try:
    while True:
        connection.send(b".")
        time.sleep(0.01)
except OSError:
    pass
"""
READER = """
import select, socket, sys, time

with socket.create_connection((sys.argv[1], 7777)) as connection:
    last, gap = time.monotonic(), 0
    print("open", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        if select.select([connection], [], [], 0.1)[0]:
            if not connection.recv(1000):
                break
            now = time.monotonic()
            gap, last = max(gap, now - last), now
    print(max(gap, time.monotonic() - last))
"""


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Return the module's lab."""
    return make_served(memory=True)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Yield the lab without agents; stop the test's agents at the end."""
    yield shared
    stop_agents(shared)


@asynccontextmanager
async def server_first_stream(lab: Lab, client: str, server: str) -> AsyncIterator[list[float]]:
    """Run a stream from the server to the client; after the context the list has its longest pause."""
    ticker = await _piped(lab.network.command(server, [sys.executable, "-c", TICKER]))
    reader = None
    pauses: list[float] = []
    try:
        assert ticker.stdout is not None
        assert await ticker.stdout.readline() == b"ready\n"
        command = lab.network.command(client, [sys.executable, "-c", READER, str(lab.address(server))])
        reader = await _piped(command)
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"open\n"
        yield pauses
        output, _ = await asyncio.wait_for(reader.communicate(b"end\n"), PATIENT)
        pauses.append(float(output))
    finally:
        for process in filter(None, (ticker, reader)):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _piped(command: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


def report(what: str, pause: float) -> None:
    """Print a measured pause."""
    print(f"\n{what}: longest pause {pause * 1000:.0f} ms")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_stream_from_the_server_goes_on(lab: Lab, driver: str, mode: str) -> None:
    nodes = start_nodes(lab, ["n1", "n2"], documents=FRONT_TO_BACK, driver=driver, datapath=mode)
    before = [(node.pid, node.status()["worker"]) for node in nodes]

    async with server_first_stream(lab, "front1", "back2") as pauses:
        await asyncio.sleep(0.5)
        for node in nodes:
            await asyncio.to_thread(node.start_anew)
            await asyncio.sleep(0.5)

    report(f"{driver}, {mode}", pauses[0])
    assert pauses[0] < PAUSE
    for node, (pid, worker) in zip(nodes, before, strict=True):
        assert node.pid == pid
        assert node.status()["worker"]["pid"] != worker["pid"]
        assert node.status()["stuck"] == []
        await until(lambda pid=worker["pid"]: not Path(f"/proc/{pid}").exists())
    expected = passes(["front1"], ["back1", "back2"]) | dropped(["world"], ["back1", "back2"])
    assert await outcomes(lab, expected) == expected


async def test_connections_that_are_opened_meanwhile_go_on_whichever_end_sends_first(lab: Lab) -> None:
    start_nodes(lab, ["n1", "n2"], documents=FRONT_TO_BACK)
    client, server = lab.host("front1"), lab.host("back2")
    ended = asyncio.Event()
    times: list[float] = []

    async def converse() -> None:
        while not ended.is_set():
            begin = time.monotonic()
            connection = await client.hold(lab.address("back2"), HTTP, PATIENT)
            assert (await connection.other_end(server).talk(PATIENT)).ok
            await connection.close()
            times.append(time.monotonic() - begin)

    conversations = [asyncio.create_task(converse()) for _ in range(4)]
    for name in ("n1", "n2"):
        await asyncio.to_thread(lab.nodes[name].start_anew)
    ended.set()
    await asyncio.gather(*conversations)

    report(f"{len(times)} new connections", max(times))


@pytest.fixture(scope="module")
def clustered(make_served: MakeLab) -> Lab:
    """Return a lab with a store."""
    return make_served()


async def test_with_a_store_of_the_cluster_documents_and_streams_stay(clustered: Lab) -> None:
    lab = clustered
    lab.start_agents()
    await lab.apply("policies", FRONT_TO_BACK)

    async with server_first_stream(lab, "front1", "back2") as pauses:
        await asyncio.sleep(0.5)
        for name in ("n1", "n2"):
            await asyncio.to_thread(lab.nodes[name].start_anew)

    report("with a store", pauses[0])
    assert pauses[0] < PAUSE
    expected = passes(["front1"], ["back1", "back2"]) | dropped(["db3"], ["back1", "back2"])
    assert await outcomes(lab, expected) == expected


async def test_an_agent_starts_anew_any_number_of_times(lab: Lab) -> None:
    node, queues = start(lab, "n1", documents=FRONT_TO_BACK, queues=2), list[list[int]]()

    for _ in range(3):
        queues.append(node.status()["worker"]["queues"])
        await asyncio.to_thread(node.start_anew)

    assert queues[0] == queues[2]
    assert not set(queues[0]) & set(queues[1])
    await until(lambda: len(_children(node.pid)) == 2)
    expected = passes(["front1"], ["back1"]) | dropped(["world"], ["back1"])
    assert await outcomes(lab, expected) == expected


async def test_no_forbidden_packet_passes_meanwhile(lab: Lab) -> None:
    start(lab, "n1", documents=FRONT_TO_BACK)
    results: list[str] = []

    async def attempt() -> None:
        while not ended.is_set():
            results.append((await lab.host("world").connect(lab.address("back1"), 80, 0.2)).status)

    ended = asyncio.Event()
    attempts = [asyncio.create_task(attempt()) for _ in range(4)]
    await asyncio.to_thread(lab.nodes["n1"].start_anew)
    await asyncio.to_thread(lab.nodes["n1"].start_anew)
    ended.set()
    await asyncio.gather(*attempts)

    assert len(results) > 8
    assert set(results) == {"timeout"}


async def test_a_configuration_that_is_not_valid_keeps_the_agent(lab: Lab) -> None:
    node = start(lab, "n1", documents=FRONT_TO_BACK)
    worker = node.status()["worker"]["pid"]
    file = node.log.with_name("n1.yaml")
    text = file.read_text()
    file.write_text(text + "nothing: 1\n")
    try:
        os.kill(node.pid, signal.SIGUSR2)
        await until(lambda: "not started anew" in node.log.read_text())
    finally:
        file.write_text(text)

    assert node.status()["worker"]["pid"] == worker


async def test_a_stop_right_after_it_stops_the_agent_and_removes_its_rules(lab: Lab) -> None:
    for delay in (0.0, 0.2, 0.6):
        node = start(lab, "n1", documents=FRONT_TO_BACK)
        worker = node.status()["worker"]["pid"]
        os.kill(node.pid, signal.SIGUSR2)
        await asyncio.sleep(delay)

        await asyncio.to_thread(node.stop)

        assert "NFQE" not in run_in(lab, "n1", "iptables-save")
        await until(lambda pid=worker: not Path(f"/proc/{pid}").exists())


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
