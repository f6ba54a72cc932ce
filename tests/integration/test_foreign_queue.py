"""Another program meets the queues of a running agent: in its namespace, with and without CAP_NET_ADMIN.

The kernel gives a queue to one socket: it refuses the bind, the unbind, the settings and the verdicts of any other, of
root too (nfqnl_recv_config, verdict_instance_lookup in net/netfilter/nfnetlink_queue.c). A program with CAP_NET_ADMIN
can only be faster than a worker that replaces another.
"""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    FRONT_TO_BACK,
    PATIENT,
    PROGRAM,
    dropped,
    kill,
    outcomes,
    passes,
    run_in,
    start_all,
    stop_agents,
    until,
)

ROOT, NOBODY = 0, 65534
ATTEMPTS = """
import errno, json, os, socket, struct, sys, time
from nfq_enforcer.dataplane.queue import netlink

user, seconds, *numbers = map(int, sys.argv[1:])
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
connection.settimeout(5)

def answer(message):
    kind_and_flags = struct.unpack_from("=HH", message, 4)
    asked = message[:4] + struct.pack("=HH", kind_and_flags[0], 5) + message[8:]  # NLM_F_REQUEST | NLM_F_ACK
    connection.send(asked)
    return errno.errorcode.get(netlink.read_errno(connection.recv(65536)), "done")

def command(queue, number):
    data = struct.pack("!BxH", number, 2)
    return netlink._message(netlink._CONFIG, queue, netlink.attribute(netlink._COMMAND, data))

last = struct.pack("!I", 0x7fffffff)
end = time.monotonic() + seconds
answers = {}
while not answers or time.monotonic() < end:
    for queue in map(netlink.queue_number, numbers):
        for name, message in {
            "bind": netlink.bind(queue, 10, 0),
            "unbind": command(queue, 2),
            "copy range": netlink.set_copy_range(queue, 0),
            "length": netlink.set_max_length(queue, 1),
            "accept all": netlink.accept_up_to(queue, last),
            "accept": netlink.verdict(queue, struct.pack("!I", 1), netlink.ACCEPT),
        }.items():
            answers.setdefault(name, set()).add(answer(message))
    answers["unbind family"] = {answer(command(netlink.queue_number(0), 4))}
print(json.dumps({name: sorted(found) for name, found in answers.items()}))
"""
"""Tries to take queues from another socket for some seconds; prints the kernel's answers."""
THIEF = """
import os, socket, sys
from nfq_enforcer.dataplane.queue import netlink

connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
print("trying", flush=True)
while True:
    connection.send(netlink.bind(netlink.queue_number(int(sys.argv[1])), 10, 0))
    if not netlink.read_errno(connection.recv(65536)):
        break
print("bound", flush=True)
sys.stdin.read()
"""
"""Binds a queue as soon as nobody else has it, keeps it and returns no verdict, until its input ends."""
ALLOWED = passes(["front1"], ["back1"])
FORBIDDEN = dropped(["back1"], ["front1"])


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Return the module's lab."""
    return make_served(memory=True)


@pytest.fixture
def node(shared: Lab) -> Iterator[LabNode]:
    """Yield n1 with agents on all nodes."""
    start_all(shared, FRONT_TO_BACK)
    yield shared.nodes["n1"]
    stop_agents(shared)


def attempts(lab: Lab, user: int, seconds: int, numbers: list[int]) -> dict[str, list[str]]:
    """Return the kernel's answers to a program of this user in the namespace of n1."""
    output = run_in(lab, "n1", sys.executable, "-c", ATTEMPTS, *map(str, (user, seconds, *numbers)))
    answers: dict[str, list[str]] = json.loads(output)
    return answers


@pytest.mark.parametrize("user", [NOBODY, ROOT], ids=["nobody", "root"])
async def test_no_other_socket_gets_a_queue_or_returns_a_verdict(shared: Lab, node: LabNode, user: int) -> None:
    numbers = node.status()["workers"][0]["queues"]

    answers = attempts(shared, user, 0, numbers)

    refused = [errno.errorcode[errno.EPERM]]
    of_family = answers.pop("unbind family")
    assert of_family == (refused if user == NOBODY else ["done"])  # without effect since Linux 3.8
    assert set(map(tuple, answers.values())) == {tuple(refused)}
    assert await outcomes(shared, ALLOWED | FORBIDDEN) == ALLOWED | FORBIDDEN
    assert [worker["restarts"] for worker in node.status()["workers"]] == [0] * len(node.status()["workers"])


async def test_nobody_accepts_the_packets_that_wait_for_a_stopped_worker(shared: Lab, node: LabNode) -> None:
    """The forbidden packets wait until the worker is replaced, while root accepts all packets without pause."""
    numbers = node.status()["workers"][0]["queues"]
    worker = node.status()["workers"][0]["pid"]
    attacking = asyncio.create_task(asyncio.to_thread(attempts, shared, ROOT, 2, numbers))
    os.kill(worker, signal.SIGSTOP)

    while node.status()["workers"][0]["restarts"] == 0:
        assert await outcomes(shared, FORBIDDEN) == FORBIDDEN

    await attacking
    assert await outcomes(shared, ALLOWED | FORBIDDEN) == ALLOWED | FORBIDDEN


async def test_a_queue_that_is_stolen_from_a_replaced_worker_is_said_and_comes_back(shared: Lab, node: LabNode) -> None:
    worker = node.status()["workers"][0]
    number = worker["queues"][0]
    told = f"queue {number} is taken by another program"

    with thief(shared, number) as bound:
        kill(worker["pid"])
        await asyncio.to_thread(bound)
        await until(lambda: (node.status()["workers"][0]["failure"] or "").startswith(told))
        stuck = node.status()["workers"][0]["stuck"]
        health = {part["part"]: part for part in node.status()["health"]["parts"]}
        shown = status_table(node)
        assert await outcomes(shared, FORBIDDEN) == FORBIDDEN  # the thief returns no verdict
    await until(lambda: node.status()["workers"][0]["stuck"] is None)

    assert stuck is not None and stuck["reason"].startswith(told)
    assert told in shown
    assert told in health["workers"]["message"]
    degraded = {name for name, part in health.items() if part["state"] == "degraded"}
    assert degraded == {"workers", "queues", "revision"}
    assert told in node.log.read_text()
    assert await outcomes(shared, ALLOWED | FORBIDDEN) == ALLOWED | FORBIDDEN


@contextmanager
def thief(lab: Lab, number: int) -> Iterator[Callable[[], None]]:
    """Run a program at n1 that binds the queue when it can; yield the function that waits for that."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.network.in_namespace("n1", [sys.executable, "-c", THIEF, str(number)], **pipes) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "trying\n"

        def bound() -> None:
            assert program.stdout is not None
            assert program.stdout.readline() == "bound\n"

        yield bound


def status_table(node: LabNode) -> str:
    """Return the output of ``nfq-enforcer status`` for a degraded node, in one line."""
    argv = [*PROGRAM, "status", "--socket", str(node.socket)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENT)
    assert shown.returncode == 1
    return " ".join(shown.stdout.split())
