"""Liveness: a worker or an agent that has a process id but does no work is replaced, and the status names it.

Gaps are measured with datagrams of one flow every 10 ms, printed (``pytest -s``), and bounded generously: replacement
takes less than 2 s, and a busy machine may double that.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.apart import run_apart
from tests.support.labs import (
    DRIVERS,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    dropped,
    outcomes,
    passes,
    start_all,
    stop_agents,
    until,
)

GAP = 4.0  # s, bound of an interruption
ECHOES = """
import select, socket, sys, time

address, seconds = sys.argv[1], float(sys.argv[2])
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((address, 53))
begin = last = time.monotonic()
gap = number = 0
while (now := time.monotonic()) < begin + seconds:
    number += 1
    probe.send(b"?%d" % number)
    while select.select([probe], [], [], 0.01)[0]:
        probe.recv(100)
        arrived = time.monotonic()
        gap, last = max(gap, arrived - last), arrived
print(max(gap, time.monotonic() - last))
"""
"""Sends queries of one flow every 10 ms and prints the longest time between two replies."""
HUNG = """
import runpy, time
from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.dataplane.worker.channel import Decoder

good, feed = {target}, Decoder.feed
begin = time.monotonic()
def hang(*arguments):
    if good is feed and time.monotonic() < begin + 1:
        return good(*arguments)
    {hang}

{target} = hang
runpy.run_module("nfq_enforcer.dataplane.worker.worker", run_name="__main__", alter_sys=True)
"""
LOOP, BLOCK = "while True: pass", "time.sleep(1000)"
PYTHON = sys.executable
QUEUE = 100
NOTHING = Snapshot(1, {}, Ipcache({}))


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Return the module's lab."""
    return make_served(memory=True)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Yield the lab without agents; stop the test's agents at the end."""
    yield shared
    stop_agents(shared)


def report(what: str, gap: float) -> None:
    """Print a measured gap."""
    print(f"\n{what}: {gap * 1000:.0f} ms")


@asynccontextmanager
async def echoes(lab: Lab, source: str, target: str, seconds: float) -> AsyncIterator[list[float]]:
    """Send queries during the context and for as long as ``seconds`` in all; then the list has the longest gap."""
    command = lab.network.command(source, [sys.executable, "-c", ECHOES, str(lab.address(target)), str(seconds)])
    probe = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    gaps: list[float] = []
    try:
        yield gaps
        output, _ = await asyncio.wait_for(probe.communicate(), seconds + PATIENT)
        gaps.append(float(output))
    finally:
        if probe.returncode is None:
            probe.kill()
            await probe.wait()


class TestStopped:
    """A worker that is stopped (SIGSTOP) has a process id, and returns no verdict."""

    @pytest.mark.parametrize("driver", DRIVERS)
    async def test_it_is_replaced_and_its_flows_continue(self, lab: Lab, driver: str) -> None:
        start_all(lab, FRONT_TO_BACK, driver=driver)
        node = lab.nodes["n1"]
        victim = node.status()["worker"]["pid"]
        connection = await lab.host("front1").hold(lab.address("back2"), HTTP, PATIENT)
        opened = asyncio.create_task(connection.talk(PATIENT))
        assert (await opened).ok

        async with echoes(lab, "front1", "back2", 7.0) as gaps:
            await until(lambda: node.status()["worker"]["accepted"] > 200)
            stopped = time.monotonic()
            os.kill(victim, signal.SIGSTOP)
            talk = asyncio.create_task(connection.talk(PATIENT))
            connect = asyncio.create_task(lab.host("front1").connect(lab.address("back1"), HTTP, PATIENT))
            await until(lambda: node.status()["workers"][0]["stuck"] is not None)
            named = time.monotonic()
            status = node.status()
            await until(lambda: node.status()["workers"][0]["stuck"] is None)
            replaced = time.monotonic()

        report(f"{driver}: named in the status after", named - stopped)
        report(f"{driver}: replaced after", replaced - stopped)
        report(f"{driver}: longest gap of a flow", gaps[0])
        assert replaced - stopped < GAP
        assert gaps[0] < GAP
        assert (await talk).ok
        assert (await connect).ok
        assert (await connection.other_end(lab.host("back2")).talk(PATIENT)).ok
        assert [part["part"] for part in status["stuck"]] == ["worker 0"]
        assert node.status()["stuck"] == []
        worker = node.status()["worker"]
        assert (worker["restarts"], worker["failure"]) == (1, None)
        assert worker["pid"] not in (None, victim)
        assert "is stuck (no heartbeat for" in node.log.read_text()
        expected = dropped(["db3"], ["back1"]) | passes(["front1"], ["back1"])
        assert await outcomes(lab, expected) == expected

    async def test_the_metrics_show_it_until_it_is_replaced(self, lab: Lab) -> None:
        start_all(lab, FRONT_TO_BACK)
        node = lab.nodes["n1"]
        command = lab.network.command("n1", [sys.executable, "-c", SCRAPES, str(PATIENT)])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scraper:
            assert scraper.stdout
            assert scraper.stdout.readline() == "0 1.0\n"

            os.kill(node.status()["worker"]["pid"], signal.SIGSTOP)

            changes, _ = await asyncio.to_thread(scraper.communicate)
        assert changes.splitlines() == ["0 0.0", "0 1.0"]
        assert node.status()["worker"]["restarts"] == 1


SCRAPES = """
import re, sys, time, urllib.request

end, seen = time.monotonic() + float(sys.argv[1]), []
while len(seen) < 3 and time.monotonic() < end:
    page = urllib.request.urlopen("http://127.0.0.1:9962/metrics").read().decode()
    state = re.search(r'worker_up{worker="(\\d+)"} (\\S+)', page).groups()
    if seen[-1:] != [state]:
        seen.append(state)
        print(*state, flush=True)
    time.sleep(0.01)
"""
"""Prints each change of the worker's gauge, up to the third: one process, for it is 0 for less than a process may need
to start on a busy machine."""


class TestHung:
    """A worker hangs at any place: in a verdict, in its messages, at its start."""

    @pytest.fixture
    def program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
        """Start workers by a program that the test may replace; ``good`` is the usual one."""
        program = tmp_path / "python"
        monkeypatch.setattr(sys, "executable", str(program))
        yield program

    @pytest.mark.parametrize(
        ("target", "hang"),
        [
            ("Enforcer.decide", LOOP),
            ("Enforcer.decide", BLOCK),
            ("Conntrack.expire", LOOP),
            ("Decoder.feed", BLOCK),
        ],
    )
    def test_a_worker_that_hangs_is_replaced(self, root: None, program: Path, target: str, hang: str) -> None:
        """It hangs in a verdict, in housekeeping, or in its channel."""

        async def scenario() -> tuple[float, int, str]:
            _write(program, HUNG.format(target=target, hang=hang))
            async with _workers() as workers:
                _write(program, None)
                _queue_datagram()
                return await _replaced(workers)

        gap, restarts, state = run_apart(scenario())

        report(f"{target} with {hang!r}: replaced after", gap)
        assert gap < GAP
        assert (restarts, state) == (1, "running" if hang == LOOP else "sleeping")

    def test_a_first_worker_that_hangs_at_its_start_is_an_error(self, root: None, program: Path) -> None:
        async def scenario() -> None:
            program.write_text("#!/bin/sh\nexec sleep 1000\n")
            program.chmod(0o755)
            async with _workers():
                pass

        with pytest.raises(NfqError, match="is stuck at its start: no heartbeat for"):
            run_apart(scenario())

    def test_a_replacement_that_hangs_at_its_start_is_replaced_too(self, root: None, program: Path) -> None:
        async def scenario() -> tuple[float, str | None]:
            _write(program, None)
            async with _workers() as workers:
                program.write_text("#!/bin/sh\nexec sleep 1000\n")
                begin = time.monotonic()
                os.kill(workers.processes[0].pid or 0, signal.SIGKILL)
                await until(lambda: workers.processes[0].failure is not None)
                failure = workers.processes[0].failure
                _write(program, None)
                await until(lambda: workers.state.stuck is None)
                return time.monotonic() - begin, failure

        gap, failure = run_apart(scenario())

        report("a replacement that hangs at its start: replaced after", gap)
        assert "is stuck at its start: no heartbeat for" in (failure or "")

    def test_a_worker_without_a_processor_is_not_replaced(self, root: None, program: Path) -> None:
        """The worker has the lowest priority on a processor with endless loops, which leave it little of it."""

        async def scenario() -> int:
            _write(program, None)
            async with _workers() as workers, _loops(workers.processes[0].pid or 0):
                await asyncio.sleep(3 * DEFAULT_TIMINGS.heartbeat)
                return workers.restarts

        assert run_apart(scenario()) == 0


def _write(program: Path, code: str | None) -> None:
    """Make the program the interpreter, or one that runs this code in place of the worker's module."""
    draft = program.with_suffix(".draft")
    run = '"$@"' if code is None else f'-P -c \'{code}\' "$4" "$5"'
    draft.write_text(f"#!/bin/sh\nexec {PYTHON} {run}\n")
    draft.chmod(0o755)
    draft.replace(program)


@asynccontextmanager
async def _workers() -> AsyncIterator[Workers]:
    """Run one worker without rules; stop it at the end."""
    workers = Workers(1, QUEUE, 1000, lambda events: None)
    try:
        await workers.start(NOTHING, {}, set())
        yield workers
    finally:
        await workers.stop()


@asynccontextmanager
async def _loops(pid: int) -> AsyncIterator[None]:
    """Run endless loops on one processor, and a process there too, with the lowest priority."""
    processor = str(min(os.sched_getaffinity(0)))
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    os.sched_setaffinity(pid, {int(processor)})
    loops = [await asyncio.create_subprocess_exec("taskset", "-c", processor, PYTHON, "-c", LOOP) for _ in range(3)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            await loop.wait()


def _queue_datagram() -> None:
    """Queue a datagram in this namespace; the rule ends with the namespace."""
    rule = f"-A OUTPUT -p udp --dport 4242 -j NFQUEUE --queue-num {QUEUE}"
    subprocess.run(["iptables", *rule.split()], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", ("127.0.0.1", 4242))


async def _replaced(workers: Workers) -> tuple[float, int, str]:
    """Return after how long a stuck worker was replaced, the number of replacements, and its state while stuck."""
    begin = time.monotonic()
    await until(lambda: workers.state.stuck is not None)
    stuck = workers.state.stuck
    assert stuck is not None
    await until(lambda: workers.restarts > 0 and workers.state.stuck is None)
    return time.monotonic() - begin, workers.restarts, stuck.reason.rpartition("process ")[2]


class TestReports:
    """The agent validates a worker's reports, and replaces a worker that sends anything else."""

    def test_a_worker_that_sends_a_pickle_is_replaced_and_executes_nothing(
        self, root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        program, executed = tmp_path / "python", tmp_path / "executed"
        monkeypatch.setattr(sys, "executable", str(program))

        async def scenario() -> int:
            _write(program, PICKLING.format(executed=executed))
            async with _workers() as workers:
                _write(program, None)
                await until(lambda: workers.restarts > 0 and workers.state.stuck is None)
                return workers.restarts

        assert run_apart(scenario()) == 1
        assert not executed.exists()
        assert "sent an invalid report" in caplog.text


PICKLING = """
import os, pickle, runpy, struct, time
from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.dataplane.worker.channel import WorkerChannel

class Command:
    def __reduce__(self):
        return os.mkdir, ("{executed}",)

body = pickle.dumps(Command())
flush = WorkerChannel.flush
begin = time.monotonic()
def send(channel):
    if time.monotonic() > begin + 1:
        channel._unsent += struct.pack("!I", len(body)) + body
    flush(channel)
WorkerChannel.flush = send
runpy.run_module("nfq_enforcer.dataplane.worker.worker", run_name="__main__", alter_sys=True)
"""
