"""One agent of the lab in a cluster of 100,000 endpoints: first start, restart, and catch-up after a gap.

Meanwhile the API is polled: an agent must reply while it catches up, too.
"""

import asyncio
import time
from contextlib import suppress
from statistics import median

from nfq_enforcer.agent import client
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.topology import STORE
from tests.bench.datagrams import DatagramFlow
from tests.bench.processes import memory
from tests.bench.simulated import Simulation, simulate
from tests.support.labs import FRONT_TO_BACK, run_in
from tests.support.namespaces import echoed, socket_in
from tests.support.processes import stopped

ENDPOINTS = 100_000
_NODE, _SOURCE, _TARGET = "n1", "front1", "back1"
_KINDS = 1000  # one less for each refill, so that the labels of nearly every endpoint change
_TRIM = ("XTRIM", "nfqe:changes", "MAXLEN", "1")
_PORT = 7000
_POLL_INTERVAL = 0.02
_TIMEOUT = 60.0
_SETTLED = 3.0  # seconds after which the last known state is saved, too

FRESH, AGAIN, GAP = "first start", "restart with the last known state", "change stream trimmed"
READY = "in force after, s"
BOTH = "peak memory of agent and worker, MiB"
WORKER = "of it the worker's, MiB"
ANSWER = "slowest reply of the API, s"
WAIT = "longest wait of a packet, ms"

CaseFigures = dict[tuple[str, str], list[float]]
"""By (case, measure)."""


async def measure(repetitions: int) -> CaseFigures:
    """Return figures of so many first starts, restarts and gaps."""
    figures: CaseFigures = {}
    async with Lab() as lab:
        lab.store.start()
        await simulate(lab, "fill", Simulation(lab.store.url, endpoints=ENDPOINTS, kinds=_KINDS))
        node = lab.nodes[_NODE]
        for repetition in range(repetitions):
            for file in (lab.network.state / f"{_NODE}-state").glob("*"):
                file.unlink()
            for case in (FRESH, AGAIN):
                _add(figures, case, await _start(node))
                if case is AGAIN:
                    _add(figures, GAP, await _fall_behind(lab, node, _KINDS - 1 - repetition))
                node.stop()
    return figures


def _add(figures: CaseFigures, case: str, measured: dict[str, float]) -> None:
    for name, figure in measured.items():
        figures.setdefault((case, name), []).append(figure)


async def _start(node: LabNode) -> dict[str, float]:
    begun = time.perf_counter()
    node.start()
    poll = asyncio.create_task(_poll_api(node))
    await asyncio.to_thread(node.wait_until_ready)
    elapsed = time.perf_counter() - begun
    if (count := node.status()["documents"]["endpoints"]) < ENDPOINTS:
        raise RuntimeError(f"the agent is ready with only {count} endpoints")
    await asyncio.sleep(_SETTLED)
    return {READY: elapsed, **await _costs(node, poll)}


async def _fall_behind(lab: Lab, node: LabNode, kinds: int) -> dict[str, float]:
    """Change nearly all endpoints and trim the change stream while the agent is stopped and packets flow."""
    documents = lab.topology.endpoint_documents(_NODE)
    client.call(node.socket, "apply", files=[("endpoints.yaml", documents), ("policy.yaml", FRONT_TO_BACK)])
    before = node.status()["store"]["resyncs"]
    with echoed(lab, _TARGET, _PORT) as to, socket_in(lab, _SOURCE) as sender:
        flow = DatagramFlow(sender, to)
        with stopped(node.pid):
            await simulate(lab, "fill", Simulation(lab.store.url, endpoints=ENDPOINTS, kinds=kinds))
            run_in(lab, STORE, "redis-cli", "-h", str(lab.address(STORE)), *_TRIM)
            begun = time.perf_counter()
        poll = asyncio.create_task(_poll_api(node))
        try:
            await _wait_for_resync(node, before)
            elapsed = time.perf_counter() - begun
            await asyncio.sleep(_SETTLED)
        finally:
            longest = flow.end()
        return {READY: elapsed, WAIT: longest * 1e3, **await _costs(node, poll)}


async def _wait_for_resync(node: LabNode, before: int) -> None:
    """Wait until the agent has read all entries again, and they are in force."""
    deadline, resync_revision = time.monotonic() + _TIMEOUT, None
    while True:
        status = await asyncio.to_thread(node.status)
        if resync_revision is None and status["store"]["resyncs"] > before:
            resync_revision = status["revision"]
        if resync_revision is not None and status["revision"] > resync_revision:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the agent is not up to date after {_TIMEOUT:.0f} s: {status['store']}")
        await asyncio.sleep(_POLL_INTERVAL)


async def _poll_api(node: LabNode) -> float:
    """Request the status repeatedly until cancelled; return the time of the slowest reply in seconds."""
    slowest = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            begun = time.perf_counter()
            with suppress(NfqError):  # the agent does not listen yet
                await asyncio.to_thread(node.status)
                slowest = max(slowest, time.perf_counter() - begun)
            await asyncio.sleep(_POLL_INTERVAL)
    return slowest


async def _costs(node: LabNode, poll: "asyncio.Task[float]") -> dict[str, float]:
    poll.cancel()
    agent, worker = memory(node.pid).peak, memory(node.status()["worker"]["pid"]).peak
    return {BOTH: agent + worker, WORKER: worker, ANSWER: await poll}


def table(figures: CaseFigures) -> list[tuple[str, ...]]:
    """Return rows of a measure's name and its figures in each case."""
    measures = (READY, BOTH, WORKER, ANSWER, WAIT)
    return [(name, *(_cell(figures.get((case, name))) for case in (FRESH, AGAIN, GAP))) for name in measures]


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    digits = 0 if max(values) >= 100 else 2
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
