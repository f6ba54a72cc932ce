"""Churn: endpoints of 200 nodes start and stop continuously; its cost to the store, and to a node with 50 others.

The 200 nodes are simulated by their writes to the store (``simulated``); the measured node is a real agent in the lab,
with its worker, 100 policies and 50 endpoints of its own. Its figures are compared with the cost of the same churn
under address-based rules (``classic``).
"""

import asyncio
import json
import time
from typing import Any, NamedTuple

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.bench import classic
from tests.bench.processes import cpu, memory
from tests.bench.simulated import Simulation, kind, simulate

_NODE = "n1"
_POLICIES, _OWN = 100, 50
_RATE = 500.0  # starts a second, and as many stops
_NEW_SHARES = (0.0, 0.05)  # of the starts: those with new labels
_SETTLED = 2.0
_CLASSIC = 10.0  # seconds of set updates by ipset restore


class Churn(NamedTuple):
    """Churn: the figures of one churn."""

    simulation: Simulation
    written: dict[str, float]  # result of the simulated nodes
    cpu: list[float]  # of agent, worker and Redis, in cores
    memory: list[float]  # peak of agent, worker and Redis, MiB
    lag: tuple[float, float]  # p50 and p99 of the last 1,000 steps, ms
    compilations: int
    snapshots: int
    updates: classic.SetUpdates
    restore_cpu: float  # cores


async def measure(duration: float) -> list[Churn]:
    """Return figures of churns of so many seconds: one with known labels only, one with some new labels."""
    return [await _churn(duration, news) for news in _NEW_SHARES]


async def _churn(duration: float, news: float) -> Churn:
    async with Lab() as lab:
        lab.store.start()
        simulation = Simulation(lab.store.url, rate=_RATE, duration=duration, news=news)
        await simulate(lab, "fill", simulation)
        node = lab.nodes[_NODE]
        node.start()
        await asyncio.to_thread(node.wait_until_ready)
        client.call(node.socket, "apply", timeout=60, files=[("policies.yaml", _policies()), ("own.yaml", _own())])
        await asyncio.sleep(_SETTLED)
        return await _measure_churn(lab, node, simulation)


async def _measure_churn(lab: Lab, node: LabNode, simulation: Simulation) -> Churn:
    status = node.status()
    pids = node.pid, status["worker"]["pid"], lab.store.pid
    before, begun, snapshots_before = [cpu(pid) for pid in pids], time.perf_counter(), _snapshots(node)
    written = await simulate(lab, "churn", simulation)
    elapsed = time.perf_counter() - begun
    spent = [(cpu(pid) - start) / elapsed for pid, start in zip(pids, before, strict=True)]
    after = node.status()
    updates = _updates(simulation)
    return Churn(
        simulation,
        written,
        spent,
        [memory(pid).peak for pid in pids],
        (after["store"]["lag_ms"]["p50"], after["store"]["lag_ms"]["p99"]),
        after["compilations"] - status["compilations"],
        _snapshots(node) - snapshots_before,
        updates,
        classic.restore(_POLICIES, simulation.endpoints, updates.node, _CLASSIC),
    )


def _snapshots(node: LabNode) -> int:
    """Return the number of enforced snapshots; the agent's log has a line for each."""
    return node.log.read_text().count("is in force")


def _policies() -> str:
    """Return policy documents; each allows connections from one role to another."""
    return "\n---\n".join(json.dumps(_policy(number)) for number in range(_POLICIES))


def _policy(number: int) -> dict[str, Any]:
    role, peer = f"role-{number}", f"role-{_peer(number)}"
    ports = [{"ports": [{"port": "8080", "protocol": "TCP"}]}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": f"policy-{number}"},
        "spec": {
            "endpointSelector": {"matchLabels": {"role": role}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"role": peer}}], "toPorts": ports}],
        },
    }


def _peer(number: int) -> int:
    return (number + 1) % _POLICIES


def _own() -> str:
    """Return the endpoint documents of the measured node; other nodes have endpoints with the same labels."""
    return "\n---\n".join(json.dumps(_endpoint(number)) for number in range(_OWN))


def _endpoint(number: int) -> dict[str, Any]:
    labels = {f"{label.source}:{label.key}".removeprefix("k8s:"): label.value for label in kind(number)}
    return {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": f"own-{number}", "labels": labels},
        "spec": {"ips": [f"10.31.1.{50 + number}"], "interface": "veth-front1"},
    }


def _updates(simulation: Simulation) -> classic.SetUpdates:
    """Return the set entries that all starts and stops would change: one for each selector of the endpoint.

    Each policy here has one peer selector, by role, so an endpoint is in one set. A node needs that set if it has an
    endpoint of the role that the policy selects. Each node has 50 endpoints, all of different kinds.
    """
    changes = 2 * simulation.rate
    needed = {_peer(number) for number in range(_OWN)}
    share = len(needed) / _POLICIES
    return classic.SetUpdates(changes * share, changes * share * simulation.nodes)


def table(figures: list[Churn]) -> list[tuple[str, str, str]]:
    """Return rows: the figure's name, its value with identities, its value with address-based rules."""
    return [row for churn in figures for row in _rows(churn)]


def _rows(churn: Churn) -> list[tuple[str, str, str]]:
    simulation, written, updates = churn.simulation, churn.written, churn.updates
    cores, sizes = [f"{value:.1%}" for value in churn.cpu], [f"{value:.0f}" for value in churn.memory]
    changes = written["starts"] + written["stops"]
    commands = (written["commands"] - written["heartbeat_commands"]) / changes
    rate = changes / written["seconds"]
    pace = f"{rate / 2:.0f} starts and as many stops a second for {written['seconds']:.0f} s"
    title = f"{pace}, {simulation.news:.0%} new labels"
    return [
        (f"[bold]{title}[/bold]", "", ""),
        ("store commands for each start or stop", f"{commands:.2f}", "(the same)"),
        ("write, ms, p50 / p99", f"{written['write_p50'] * 1e3:.1f} / {written['write_p99'] * 1e3:.1f}", ""),
        ("identities allocated", f"{written['allocated']:.0f}", "–"),
        ("small messages to each node, a second", f"{rate:.0f}", f"{rate:.0f}"),
        ("entries of kernel sets changed on a node, a second", "0", f"{updates.node:.0f}"),
        (f"the same on {simulation.nodes} nodes", "0", f"{updates.cluster:,.0f}"),
        ("… CPU of these changes on a node, % of a core", "0", f"{churn.restore_cpu:.1%}"),
        ("compilations, and snapshots, on the node", f"{churn.compilations}, {churn.snapshots}", "–"),
        ("agent, and its worker, % of a core", f"{cores[0]}, {cores[1]}", "not measured"),
        ("agent, and its worker, MiB peak", f"{sizes[0]}, {sizes[1]}", "not measured"),
        ("staleness on the node, ms, p50 / p99", f"{churn.lag[0]} / {churn.lag[1]}", "not measured"),
        ("Redis, % of a core, MiB peak", f"{cores[2]}, {sizes[2]}", ""),
    ]
