"""The watch: stuck threads and child processes have names, and a heartbeat of the agent proves work."""

import asyncio
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_enforcer.agent.watch import StuckJob, Watch, WatchTimings

PATIENT = 10.0
QUICK = WatchTimings(interval=0.02, idle_job=0.2, hold_back=0.1, blocked_loop=0.7)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket of a service manager that expects heartbeats."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield manager


async def watched(watch: Watch, job: Callable[[], object], release: Callable[[], object]) -> list[StuckJob]:
    """Run a job in a thread until the watch finds it stuck; return the stuck jobs."""
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    working = asyncio.create_task(asyncio.to_thread(job))
    try:
        async with asyncio.timeout(PATIENT):
            while not (stuck := list(watch.stuck())):
                await asyncio.sleep(0.01)
    finally:
        release()
        await working
        assert list(watch.stuck()) == []
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return stuck


def test_a_thread_that_waits_is_stuck_and_has_the_name_of_its_function() -> None:
    lock, begin = threading.Event(), time.time()

    def waits_for_a_lock() -> None:
        lock.wait()

    (stuck,) = asyncio.run(watched(Watch(set, QUICK), waits_for_a_lock, lock.set))

    assert stuck.part.endswith("waits_for_a_lock")
    assert begin - 1 < stuck.since < time.time()


def test_a_child_process_that_waits_is_named_with_its_thread() -> None:
    child = subprocess.Popen(["sleep", "1000"])

    (stuck,) = asyncio.run(watched(Watch(set, QUICK), child.wait, child.kill))

    assert stuck.part == "thread Popen.wait"
    assert f"child processes: sleep (process {child.pid})" in stuck.reason


def test_a_worker_is_no_child_process_of_a_thread() -> None:
    worker = subprocess.Popen(["sleep", "1000"])

    (stuck,) = asyncio.run(watched(Watch(lambda: {worker.pid}, QUICK), worker.wait, worker.kill))

    assert "child processes" not in stuck.reason


def test_a_thread_that_works_is_not_stuck_until_it_is_endless() -> None:
    ended = False

    def loops() -> None:
        while not ended:
            pass

    def end() -> None:
        nonlocal ended
        ended = True

    timings = WatchTimings(interval=0.02, idle_job=30, endless_job=0.5)
    (stuck,) = asyncio.run(watched(Watch(set, timings), loops, end))

    assert stuck.part.endswith("loops")


def test_the_service_manager_receives_heartbeats_while_all_works(manager: socket.socket) -> None:
    async def scenario() -> list[bytes]:
        watching = asyncio.create_task(Watch(set, QUICK).run())
        try:
            return [await asyncio.to_thread(manager.recv, 100) for _ in range(3)]
        finally:
            watching.cancel()

    assert asyncio.run(scenario()) == [b"WATCHDOG=1"] * 3


def test_a_thread_that_is_stuck_for_long_holds_the_heartbeats_back(manager: socket.socket) -> None:
    lock = threading.Event()

    async def scenario() -> bool:
        watch = Watch(set, QUICK)
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        working = asyncio.create_task(asyncio.to_thread(lock.wait))
        try:
            async with asyncio.timeout(PATIENT):
                while not list(watch.stuck()):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(2 * QUICK.hold_back)
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    manager.recv(100)
            await asyncio.sleep(10 * QUICK.interval)
            with pytest.raises(BlockingIOError):
                manager.recv(100)
            lock.set()
            await working
            async with asyncio.timeout(PATIENT):
                return await asyncio.get_running_loop().sock_recv(manager, 100) == b"WATCHDOG=1"
        finally:
            lock.set()
            watching.cancel()

    assert asyncio.run(scenario())


def test_without_a_watchdog_no_heartbeat_is_sent(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")

    async def scenario() -> None:
        watching = asyncio.create_task(Watch(set, QUICK).run())
        await asyncio.sleep(5 * QUICK.interval)
        watching.cancel()

    asyncio.run(scenario())
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_the_place_in_which_the_event_loop_is_blocked_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def blocks() -> None:
        time.sleep(1.0)

    async def scenario() -> list[StuckJob]:
        watch = Watch(set, QUICK)
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(2 * QUICK.interval)
        blocks()
        async with asyncio.timeout(PATIENT):
            while not (stuck := list(watch.stuck())):
                await asyncio.sleep(0.01)
        watching.cancel()
        return stuck

    with caplog.at_level(logging.WARNING):
        (stuck,) = asyncio.run(scenario())

    message, *_ = [record.getMessage() for record in caplog.records]
    assert "the event loop has been blocked for" in message
    assert "blocks (test_watch.py:" in message
    assert stuck.part == "event loop"
    assert stuck.reason.startswith("was blocked for ")
