"""Churn: endpoints of 200 nodes start and stop all the time; what it costs the store, and a node that hosts 50 others.

The 200 nodes are simulated as far as the store sees them (``simulated``); the node under measure is a real agent in the
lab, with its worker, 100 policies and 50 endpoints of its own. Beside it stands what address-based rules would make of
the same churn (``classic``).
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
_NEWS = (0.0, 0.05)
_SETTLED = 2.0
_CLASSIC = 10.0  # seconds for which sets are restored


class Churn(NamedTuple):
    """What a churn came to."""

    simulation: Simulation
    written: dict[str, float]  # what the simulated nodes say
    cpu: list[float]  # of agent, worker and Redis, cores
    memory: list[float]  # of the same at most, MiB
    lag: tuple[float, float]  # p50 and p99 of the last 1,000 steps, ms
    compilations: int
    snapshots: int
    updates: classic.Updates
    restoring: float  # cores


async def measure(duration: float) -> list[Churn]:
    """Return figures of a churn of so many seconds, where all labels are known and where some are new."""
    return [await _churned(duration, news) for news in _NEWS]


async def _churned(duration: float, news: float) -> Churn:
    async with Lab() as lab:
        lab.store.start()
        simulation = Simulation(lab.store.url, rate=_RATE, duration=duration, news=news)
        await simulate(lab, "fill", simulation)
        node = lab.nodes[_NODE]
        node.start()
        await asyncio.to_thread(node.wait_until_ready)
        client.call(node.socket, "apply", timeout=60, files=[("policies.yaml", _policies()), ("own.yaml", _own())])
        await asyncio.sleep(_SETTLED)
        return await _measured(lab, node, simulation)


async def _measured(lab: Lab, node: LabNode, simulation: Simulation) -> Churn:
    status = node.status()
    pids = node.pid, status["worker"]["pid"], lab.store.pid
    before, begun, shown = [cpu(pid) for pid in pids], time.perf_counter(), _snapshots(node)
    written = await simulate(lab, "churn", simulation)
    elapsed = time.perf_counter() - begun
    spent = [(cpu(pid) - had) / elapsed for pid, had in zip(pids, before, strict=True)]
    after = node.status()
    updates = _updates(simulation)
    return Churn(
        simulation,
        written,
        spent,
        [memory(pid).most for pid in pids],
        (after["store"]["lag_ms"]["p50"], after["store"]["lag_ms"]["p99"]),
        after["compilations"] - status["compilations"],
        _snapshots(node) - shown,
        updates,
        classic.restore(_POLICIES, simulation.endpoints, updates.node, _CLASSIC),
    )


def _snapshots(node: LabNode) -> int:
    """Return how many snapshots have been put in force; the log has a line for each."""
    return node.log.read_text().count("is in force")


def _policies() -> str:
    """Return policies, each of which lets one role open connections to another."""
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
    """Return the endpoints of the node under measure, of kinds that other nodes have too."""
    return "\n---\n".join(json.dumps(_endpoint(number)) for number in range(_OWN))


def _endpoint(number: int) -> dict[str, Any]:
    labels = {f"{label.source}:{label.key}".removeprefix("k8s:"): label.value for label in kind(number)}
    return {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": f"own-{number}", "labels": labels},
        "spec": {"ips": [f"10.31.1.{50 + number}"], "interface": "veth-front1"},
    }


def _updates(simulation: Simulation) -> classic.Updates:
    """Return how many entries of sets all starts and stops would change: one for each selector that selects it.

    Each policy has one selector of peers here, by role, so an endpoint is in one set, where that set is needed: on the
    nodes with an endpoint of the role that the policy is about. Each node has 50 endpoints of as many kinds.
    """
    changes = 2 * simulation.rate
    needed = {_peer(number) for number in range(_OWN)}
    share = len(needed) / _POLICIES
    return classic.Updates(changes * share, changes * share * simulation.nodes)


def table(figures: list[Churn]) -> list[tuple[str, str, str]]:
    """Return rows: of what, with identities, with address-based rules."""
    return [row for one in figures for row in _rows(one)]


def _rows(one: Churn) -> list[tuple[str, str, str]]:
    simulation, written, updates = one.simulation, one.written, one.updates
    cores, sizes = [f"{of:.1%}" for of in one.cpu], [f"{of:.0f}" for of in one.memory]
    changes = written["starts"] + written["stops"]
    commands = (written["commands"] - written["signs_of_life"]) / changes
    rate = changes / written["seconds"]
    pace = f"{rate / 2:.0f} starts and as many stops a second for {written['seconds']:.0f} s"
    title = f"{pace}, {simulation.news:.0%} new labels"
    return [
        (f"[bold]{title}[/bold]", "", ""),
        ("store commands for a start or a stop", f"{commands:.2f}", "(as many)"),
        ("write, ms, p50 / p99", f"{written['write_p50'] * 1e3:.1f} / {written['write_p99'] * 1e3:.1f}", ""),
        ("identities allocated", f"{written['allocated']:.0f}", "–"),
        ("small messages to each node, a second", f"{rate:.0f}", f"{rate:.0f}"),
        ("entries of kernel sets changed on a node, a second", "0", f"{updates.node:.0f}"),
        (f"the same on {simulation.nodes} nodes", "0", f"{updates.cluster:,.0f}"),
        ("… what changing them takes on a node, % of a core", "0", f"{one.restoring:.1%}"),
        ("compilations, and snapshots, on the node", f"{one.compilations}, {one.snapshots}", "–"),
        ("agent, and its worker, % of a core", f"{cores[0]}, {cores[1]}", "not measured"),
        ("agent, and its worker, MiB at most", f"{sizes[0]}, {sizes[1]}", "not measured"),
        ("staleness on the node, ms, p50 / p99", f"{one.lag[0]} / {one.lag[1]}", "not measured"),
        ("Redis, % of a core, MiB at most", f"{cores[2]}, {sizes[2]}", ""),
    ]
