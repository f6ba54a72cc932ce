"""Cost of an endpoint's start with known labels: commands to the store, and the time until its first packet passes.

Endpoints start one after the other on a node of the lab, each with an address of its own, and send as soon as the call
returns. Another node compiles nothing for them and makes no snapshot.
"""

import json
import time
from statistics import quantiles
from typing import NamedTuple

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.bench.datagrams import first_answer
from tests.support.labs import FRONT_TO_BACK, run_in
from tests.support.namespaces import echoed, socket_in

_NODE, _OTHER, _HOST = "n1", "n2", "front1"
_TARGETS = {"on one node": "back1", "across nodes": "back2"}
_SUBNET, _FIRST, _ADDRESSES = "10.31.1", 50, 100
_PORT = 7000
_IDLE = 6.0  # seconds over which only heartbeats are counted


class Startup(NamedTuple):
    """Startup: the figures of endpoint starts on one path; times in ms."""

    path: str
    starts: int
    commands: float  # to the store, for each start or stop, without the node's heartbeats
    add: list[float]  # until the call returns
    first: list[float]  # from the call's return to the reply to the first packet
    elsewhere: int  # compilations on the other node


async def measure(starts: int) -> list[Startup]:
    """Return figures of so many starts on each path."""
    async with Lab() as lab:
        lab.start_agents()
        await lab.apply("front-to-back", FRONT_TO_BACK)
        run_in(
            lab,
            _HOST,
            "ip",
            "-batch",
            "-",
            text="".join(f"address add {address}/32 dev eth0\n" for address in _addresses()),
        )
        routes = "".join(f"route add {address}/32 dev veth-{_HOST}\n" for address in _addresses())
        run_in(lab, _NODE, "ip", "-batch", "-", text=routes)
        return [_path(lab, path, target, starts) for path, target in _TARGETS.items()]


def _path(lab: Lab, path: str, target: str, starts: int) -> Startup:
    node, other = lab.nodes[_NODE], lab.nodes[_OTHER]
    noise = _noise(node)
    compiled, before, begun = other.status()["compilations"], _commands(node), time.monotonic()
    add, first, stopped = [], [], 0
    with echoed(lab, target, _PORT) as to:
        for number in range(starts):
            address = _addresses()[number % _ADDRESSES]
            with socket_in(lab, _HOST, address=address) as sender:
                add.append(_start(node, f"start-{number}", address))
                first.append(first_answer(sender, to) * 1e3)
            if number >= _ADDRESSES // 2:  # a later start uses the oldest endpoint's address again
                client.call(node.socket, "delete_endpoints", names=[f"default/start-{stopped}"])
                stopped += 1
    sent = _commands(node) - before - noise * (time.monotonic() - begun)
    remaining = [f"default/start-{number}" for number in range(stopped, starts)]
    client.call(node.socket, "delete_endpoints", names=remaining)
    return Startup(path, starts, sent / (starts + stopped), add, first, other.status()["compilations"] - compiled)


def _start(node: LabNode, name: str, address: str) -> float:
    """Start an endpoint as ``nfq-enforcer endpoint add`` does; return the elapsed milliseconds."""
    document = {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": name, "labels": {"role": "frontend"}},
        "spec": {"ips": [address], "interface": f"veth-{_HOST}"},
    }
    begun = time.perf_counter()
    reply = client.call(node.socket, "apply", files=[("endpoint.yaml", json.dumps(document))])
    elapsed = (time.perf_counter() - begun) * 1e3
    if reply["endpoints"][0]["new_identity"]:
        raise RuntimeError("the labels of a frontend were not known")
    return elapsed


def _noise(node: LabNode) -> float:
    """Return the rate of the node's store commands a second without any change."""
    before, begun = _commands(node), time.monotonic()
    time.sleep(_IDLE)
    return (_commands(node) - before) / (time.monotonic() - begun)


def _commands(node: LabNode) -> int:
    return int(node.status()["store"]["commands"])


def _addresses() -> list[str]:
    return [f"{_SUBNET}.{_FIRST + number}" for number in range(_ADDRESSES)]


def table(figures: list[Startup]) -> list[tuple[str, str, str, str, str]]:
    """Return rows of path, commands for a start or a stop, both times, and compilations elsewhere."""
    return [
        (
            f"{startup.path}, {startup.starts} starts",
            f"{startup.commands:.2f}",
            _percentiles(startup.add),
            _percentiles(startup.first),
            str(startup.elsewhere),
        )
        for startup in figures
    ]


def _percentiles(times: list[float]) -> str:
    cuts = quantiles(times, n=100)
    return f"{cuts[49]:.1f} / {cuts[98]:.1f}"
