"""A cluster of 100,000 endpoints as one agent of the lab meets it: with nothing known, after a restart, after a gap.

The API is asked all the while: an agent that is getting up to date still has to answer.
"""

import asyncio
import os
import signal
import time
from contextlib import suppress
from statistics import median

from nfq_enforcer.agent import client
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.topology import STORE
from tests.bench.datagrams import Flow, echoed, socket_in
from tests.bench.processes import memory
from tests.bench.simulated import Simulation, simulate
from tests.support.labs import FRONT_TO_BACK, run_in

ENDPOINTS = 100_000
_NODE, _SOURCE, _TARGET = "n1", "front1", "back1"
_KINDS = 1000  # and one less each time that nearly every endpoint shall have changed
_TRIM = ("XTRIM", "nfqe:changes", "MAXLEN", "1")
_PORT = 7000
_LOOK = 0.02
_PATIENCE = 60.0
_SETTLED = 3.0  # seconds after which everything is saved, too

FRESH, AGAIN, GAP = "with nothing known", "from the last known state", "the stream was trimmed under it"
READY = "in force after, s"
BOTH = "memory of agent and worker, most, MiB"
WORKER = "of it the worker's, MiB"
ANSWER = "slowest answer of the API, s"
WAIT = "longest wait of a packet, ms"

Figures = dict[tuple[str, str], list[float]]
"""By (case, measure)."""


async def measure(repetitions: int) -> Figures:
    """Return figures of so many starts from nothing, restarts and gaps."""
    figures: Figures = {}
    async with Lab() as lab:
        lab.store.start()
        await simulate(lab, "fill", Simulation(lab.store.url, endpoints=ENDPOINTS, kinds=_KINDS))
        node = lab.nodes[_NODE]
        for repetition in range(repetitions):
            for file in (lab.network.state / f"{_NODE}-state").glob("*"):
                file.unlink()
            for case in (FRESH, AGAIN):
                _note(figures, case, await _start(node))
                if case is AGAIN:
                    _note(figures, GAP, await _fall_behind(lab, node, _KINDS - 1 - repetition))
                node.stop()
    return figures


def _note(figures: Figures, case: str, measured: dict[str, float]) -> None:
    for name, figure in measured.items():
        figures.setdefault((case, name), []).append(figure)


async def _start(node: LabNode) -> dict[str, float]:
    begun = time.perf_counter()
    node.start()
    asking = asyncio.create_task(_ask(node))
    await asyncio.to_thread(node.wait_until_ready)
    took = time.perf_counter() - begun
    if (count := node.status()["documents"]["endpoints"]) < ENDPOINTS:
        raise RuntimeError(f"ready, and only {count} endpoints are known")
    await asyncio.sleep(_SETTLED)
    return {READY: took, **await _costs(node, asking)}


async def _fall_behind(lab: Lab, node: LabNode, kinds: int) -> dict[str, float]:
    """Have the stream trimmed while the agent sees nothing of it, and packets flow."""
    declared = lab.topology.endpoint_documents(_NODE)
    client.call(node.socket, "apply", files=[("endpoints.yaml", declared), ("policy.yaml", FRONT_TO_BACK)])
    before = node.status()["store"]["resyncs"]
    with echoed(lab, _TARGET, _PORT) as to, socket_in(lab, _SOURCE, str(lab.address(_SOURCE))) as sender:
        flow = Flow(sender, to)
        try:
            os.kill(node.pid, signal.SIGSTOP)
            await simulate(lab, "fill", Simulation(lab.store.url, endpoints=ENDPOINTS, kinds=kinds))
            run_in(lab, STORE, "redis-cli", "-h", str(lab.address(STORE)), *_TRIM)
            begun = time.perf_counter()
        finally:
            os.kill(node.pid, signal.SIGCONT)
        asking = asyncio.create_task(_ask(node))
        try:
            await _resynced(node, before)
            took = time.perf_counter() - begun
            await asyncio.sleep(_SETTLED)
        finally:
            longest = flow.end()
        return {READY: took, WAIT: longest * 1e3, **await _costs(node, asking)}


async def _resynced(node: LabNode, before: int) -> None:
    """Return once the agent has taken all entries anew, and they are in force."""
    deadline, began = time.monotonic() + _PATIENCE, None
    while True:
        status = await asyncio.to_thread(node.status)
        if began is None and status["store"]["resyncs"] > before:
            began = status["revision"]
        if began is not None and status["revision"] > began:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the agent is not up to date after {_PATIENCE:.0f} s: {status['store']}")
        await asyncio.sleep(_LOOK)


async def _ask(node: LabNode) -> float:
    """Ask for the status over and over until told not to; return how long the slowest answer took."""
    slowest = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            begun = time.perf_counter()
            with suppress(NfqError):  # at first there is nobody to answer
                await asyncio.to_thread(node.status)
                slowest = max(slowest, time.perf_counter() - begun)
            await asyncio.sleep(_LOOK)
    return slowest


async def _costs(node: LabNode, asking: "asyncio.Task[float]") -> dict[str, float]:
    asking.cancel()
    agent, worker = memory(node.pid).most, memory(node.status()["worker"]["pid"]).most
    return {BOTH: agent + worker, WORKER: worker, ANSWER: await asking}


def table(figures: Figures) -> list[tuple[str, ...]]:
    """Return rows of a measure and its figures in each case."""
    measures = (READY, BOTH, WORKER, ANSWER, WAIT)
    return [(name, *(_cell(figures.get((case, name))) for case in (FRESH, AGAIN, GAP))) for name in measures]


def _cell(of: list[float] | None) -> str:
    if not of:
        return ""
    digits = 0 if max(of) >= 100 else 2
    return f"{median(of):.{digits}f} ({min(of):.{digits}f} to {max(of):.{digits}f})"
