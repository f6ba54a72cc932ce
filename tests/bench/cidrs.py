"""A whole agent with 20,000 endpoints and 1,000,000 CIDRs: time until they are in force, memory, traffic meanwhile.

An agent of the lab gets endpoints, and 100 documents of 10,000 prefixes each, of several lengths, in a watched file and
by ``policy load``; then one of the documents changes. A stream between two endpoints runs meanwhile
(``tests.support.stream``).
"""

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.bench.documents import ENDPOINTS, endpoints
from tests.bench.processes import Memory, cpu, memory
from tests.support.labs import FRONT_TO_BACK, PROGRAM, policy, save, start, stop_agents, to_role
from tests.support.prefixes import document, documents
from tests.support.stream import Stream, Summary

DOCUMENTS, ENTRIES = 100, 10_000
_LOADS = 2  # commands that load all documents: one alone would be too long a request
_OPEN = FRONT_TO_BACK + policy("front-out", "frontend", egress=[to_role("backend")])
_OWN = 2  # policies of the stream
_TIMEOUT = 1800.0  # s
_POLL = 0.1  # s between two looks at the status
_QUIET = 5.0  # s
_NEIGHBOUR = "veth-front1"  # the interface of all endpoints

COLUMNS = (
    "",
    "in force after, s",
    "CPU of agent, worker, s",
    "memory (peak) of agent, MiB",
    "of worker, MiB",
    "datagrams lost",
    "connections failed",
    "longest wait: known flow, opening, connection, ms",
    "datagrams over 5 ms",
    "worker without a processor, s",
)


@dataclass(frozen=True)
class Step:
    """Step: the costs of one change, and the traffic meanwhile."""

    name: str
    seconds: float
    cpu: tuple[float, float]  # s, of agent and worker
    memory: tuple[Memory, Memory]
    starved: float  # s in which the worker was runnable and had no processor
    traffic: Summary


def measure(console: Console, number: int = DOCUMENTS, entries: int = ENTRIES) -> list[Step]:
    """Return the steps, and print the name of each that is done."""
    return asyncio.run(_measure(console, number, entries))


async def _measure(console: Console, number: int, entries: int) -> list[Step]:
    steps: list[Step] = []
    async with Lab(memory=True) as lab:
        node = await asyncio.to_thread(start, lab, "n1", documents=_OPEN)
        try:
            with Stream(lab, "front1", "back1") as stream:
                for name, change in _changes(lab, node, number, entries).items():
                    steps.append(await asyncio.to_thread(_observe, name, node, stream, change))
                    console.print(f"  {name}: {steps[-1].seconds:.1f} s")
        finally:
            await asyncio.to_thread(stop_agents, lab)
    return steps


def _changes(lab: Lab, node: LabNode, number: int, entries: int) -> dict[str, Callable[[], None]]:
    ends, many, single = (lab.documents / f"{name}.yaml" for name in ("others", "many", "single"))
    rest, one = documents(number - 1, entries), document(number - 1, entries)
    shorter = one.rpartition("    -")[0]
    return {
        "nothing changes": lambda: time.sleep(_QUIET),
        f"{ENDPOINTS:,} local endpoints saved": lambda: _save(node, {ends: endpoints(ENDPOINTS, _NEIGHBOUR)}, _OWN),
        "files saved": lambda: _save(node, {many: rest, single: one}, _OWN + number),
        "one document loses a CIDR": lambda: _save(node, {single: shorter}, _OWN + number),
        "files emptied": lambda: _save(node, {many: "", single: ""}, _OWN),
        "policy load": lambda: _load(lab, node, number, entries),
    }


def _observe(name: str, node: LabNode, stream: Stream, change: Callable[[], None]) -> Step:
    agent, worker = node.pid, node.status()["worker"]["pid"]
    stream.summary()
    begun, used, waited = time.monotonic(), (cpu(agent), cpu(worker)), _starved(worker)
    change()
    seconds = time.monotonic() - begun
    return Step(
        name,
        seconds,
        (cpu(agent) - used[0], cpu(worker) - used[1]),
        (memory(agent), memory(worker)),
        _starved(worker) - waited,
        stream.summary(),
    )


def _starved(pid: int) -> float:
    """Return the time in which a process was runnable and had no processor (Documentation/scheduler/sched-stats)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def _save(node: LabNode, texts: dict[Path, str], policies: int) -> None:
    """Save files, and return when so many policies are in force."""
    before = node.status()["revision"]
    for file, text in texts.items():
        save(file, text)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        with suppress(NfqError):  # an agent that does not answer in time; a later look finds it
            status = node.status()
            if status["refused"]:
                raise RuntimeError(f"the documents are refused: {status['refused']}")
            if status["documents"]["policies"] == policies and status["revision"] > before and not status["working"]:
                return
        time.sleep(_POLL)
    raise RuntimeError(f"the documents are not in force after {_TIMEOUT:.0f} s")


def _load(lab: Lab, node: LabNode, number: int, entries: int) -> None:
    """Load the documents with several commands, one after the other."""
    for part in range(_LOADS):
        chosen = range(part * number // _LOADS, (part + 1) * number // _LOADS)
        file = lab.network.state / f"part-{part}.yaml"
        file.write_text("".join(document(one, entries) for one in chosen))
        argv = [*PROGRAM, "policy", "load", "--wait", "--socket", str(node.socket), str(file)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def table(steps: list[Step]) -> list[tuple[str, ...]]:
    """Return a row for each step, in the order of ``COLUMNS``."""
    return [
        (
            step.name,
            f"{step.seconds:.1f}",
            ", ".join(f"{used:.1f}" for used in step.cpu),
            *(f"{one.now:.0f} ({one.peak:.0f})" for one in step.memory),
            f"{step.traffic.lost} of {step.traffic.datagrams}",
            f"{step.traffic.failed} of {step.traffic.connections}",
            ", ".join(f"{wait * 1e3:.1f}" for wait in _waits(step.traffic)),
            str(len(step.traffic.slow)),
            f"{step.starved:.2f}",
        )
        for step in steps
    ]


def _waits(traffic: Summary) -> tuple[float, ...]:
    return traffic.longest_known, traffic.longest_opening, traffic.longest_connection
