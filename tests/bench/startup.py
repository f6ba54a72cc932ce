"""What the start of an endpoint with known labels costs: commands to the store, and time until its first packet passes.

Endpoints start one after the other on a node of the lab, each with an address of its own, and send at once when the
call returns. On another node nothing is compiled for it, and no snapshot is made.
"""

import json
import time
from statistics import quantiles
from typing import NamedTuple

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.bench.datagrams import echoed, first_answer, socket_in
from tests.support.labs import FRONT_TO_BACK, run_in

_NODE, _OTHER, _HOST = "n1", "n2", "front1"
_TARGETS = {"on one node": "back1", "across nodes": "back2"}
_SUBNET, _FIRST, _ADDRESSES = "10.31.1", 50, 100
_PORT = 7000
_IDLE = 6.0  # seconds for which signs of life are counted alone


class Startup(NamedTuple):
    """What starting endpoints came to on one path; times in ms."""

    path: str
    starts: int
    commands: float  # to the store, for each start, without the node's signs of life
    add: list[float]  # until the call returns
    first: list[float]  # from then until the first packet is answered
    elsewhere: int  # compilations on the other node


async def measure(starts: int) -> list[Startup]:
    """Return figures of so many starts on each path."""
    async with Lab() as lab:
        lab.start_agents()
        await lab.apply("front-to-back", FRONT_TO_BACK)
        run_in(
            lab, _HOST, "ip", "-batch", "-", text="".join(f"address add {one}/32 dev eth0\n" for one in _addresses())
        )
        routes = "".join(f"route add {one}/32 dev veth-{_HOST}\n" for one in _addresses())
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
            with socket_in(lab, _HOST, address) as sender:
                add.append(_start(node, f"start-{number}", address))
                first.append(first_answer(sender, to) * 1e3)
            if number >= _ADDRESSES // 2:  # the address of the oldest is needed again later
                client.call(node.socket, "delete_endpoints", names=[f"default/start-{stopped}"])
                stopped += 1
    sent = _commands(node) - before - noise * (time.monotonic() - begun)
    left = [f"default/start-{number}" for number in range(stopped, starts)]
    client.call(node.socket, "delete_endpoints", names=left)
    return Startup(path, starts, sent / (starts + stopped), add, first, other.status()["compilations"] - compiled)


def _start(node: LabNode, name: str, address: str) -> float:
    """Start an endpoint as ``nfq-enforcer endpoint add`` does; return for how many ms that takes."""
    document = {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": name, "labels": {"role": "frontend"}},
        "spec": {"ips": [address], "interface": f"veth-{_HOST}"},
    }
    begun = time.perf_counter()
    applied = client.call(node.socket, "apply", files=[("endpoint.yaml", json.dumps(document))])
    took = (time.perf_counter() - begun) * 1e3
    if applied["endpoints"][0]["new_identity"]:
        raise RuntimeError("the labels of a frontend should have been known")
    return took


def _noise(node: LabNode) -> float:
    """Return how many commands a second the node gives where nothing changes."""
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
        (f"{one.path}, {one.starts} starts", f"{one.commands:.2f}", _two(one.add), _two(one.first), str(one.elsewhere))
        for one in figures
    ]


def _two(of: list[float]) -> str:
    cuts = quantiles(of, n=100)
    return f"{cuts[49]:.1f} / {cuts[98]:.1f}"
