"""Hand-over: the successor's queue numbers, and the predecessor that the environment describes."""

import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from nfq_enforcer.agent import handover
from nfq_enforcer.agent.handover import VARIABLE, Predecessor
from nfq_enforcer.dataplane.worker.process import DetachedWorker


def left(*queues: int) -> Predecessor:
    return Predecessor((DetachedWorker(4711, 9, queues),))


@pytest.mark.parametrize(
    ("predecessor", "workers", "first"),
    [
        (Predecessor(), 2, 100),
        (left(*range(100, 150)), 1, 150),
        (left(*range(100, 116), 148, 149), 1, 150),  # driver netfilterqueue
        (left(*range(150, 200)), 1, 100),  # that of the hand-over before
        (left(*range(150, 200)), 2, 200),  # more workers than before
        (left(*range(149, 199)), 1, 199),
        (left(*range(105, 110)), 1, 110),  # of a version with fewer queues
        (left(*range(500, 550)), 8, 100),
    ],
)
def test_a_successor_uses_queues_that_are_not_taken(predecessor: Predecessor, workers: int, first: int) -> None:
    assert predecessor.first_queue(100, workers) == first


def test_where_no_numbers_are_left_behind_the_binding_reports_it() -> None:
    assert left(*range(65486, 65536)).first_queue(65486, 1) == 65486


def test_without_a_predecessor_the_environment_has_none() -> None:
    assert handover.take({}) == Predecessor()


def test_the_predecessor_is_taken_from_the_environment_and_its_channels_stay_in_the_agent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(ours.fileno(), True)
        data = {"workers": [[4711, ours.fileno(), [100, 101, 102]]], "epoch": 7}
        environment = {VARIABLE: json.dumps(data), "PATH": "/bin"}

        predecessor = handover.take(environment)

        assert predecessor == Predecessor((DetachedWorker(4711, ours.fileno(), (100, 101, 102)),), 7)
        assert environment == {"PATH": "/bin"}
        assert not ours.get_inheritable()


def test_released_workers_end_with_their_channel_and_are_reaped() -> None:
    ours, theirs = socket.socketpair()
    worker = subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
    theirs.close()

    asyncio.run(Predecessor((DetachedWorker(worker.pid, ours.detach(), (100,)),)).release())

    assert not Path(f"/proc/{worker.pid}").exists()
    worker.returncode = 0  # reaped already


def test_a_released_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_END", 0.1)
    ours, theirs = socket.socketpair()
    worker = subprocess.Popen(["sleep", "1000"])
    theirs.close()

    asyncio.run(Predecessor((DetachedWorker(worker.pid, ours.detach(), (100,)),)).release())

    assert not Path(f"/proc/{worker.pid}").exists()
    worker.returncode = 0
