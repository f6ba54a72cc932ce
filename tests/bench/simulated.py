"""Nodes that are simulated as far as the store sees them: each writes its endpoints through the real store code.

This module is also the program that does so, in the namespace of the lab that has the store: one JSON object of what
to do in, one of what came of it out.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Any

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import STORE
from nfq_enforcer.store import schema
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.entries import Entries
from nfq_enforcer.store.member import COLLECT, GRACE, HEARTBEAT, LEASE, RETIREMENT
from nfq_enforcer.store.records import EndpointRecord, Kind, NodeRecord, Placed
from nfq_enforcer.store.redis import RedisStore, Request
from nfq_enforcer.store.server import Server

_FIRST_ENDPOINT, _FIRST_NODE = IPv4Address("10.64.0.0"), IPv4Address("10.200.0.1")
_AT_ONCE = 500  # endpoints a step, where many are written at once
_TIMEOUT = 30.0
_INTERPRETERS = 2  # more would only wait for each other on this few cores


@dataclass(frozen=True)
class Simulation:
    """What to simulate."""

    url: str
    nodes: int = 200
    endpoints: int = 10_000
    kinds: int = 1000  # sets of labels that endpoints have at first
    rate: float = 500.0  # starts and stops a second
    duration: float = 60.0
    news: float = 0.0  # share of the starts whose labels nobody has had


def kind(number: int) -> Labels:
    """Return the labels of the kind of this number, as a deployment has them."""
    return Labels.parse(
        {
            "app": f"app-{number}",
            "app.kubernetes.io/part-of": f"system-{number % 50}",
            "role": f"role-{number % 100}",
            "tier": ("front", "middle", "back")[number % 3],
        }
    )


def node_name(number: int) -> str:
    """Return the name of a simulated node."""
    return f"simulated-{number:03}"


def endpoint(number: int, labels: Labels, nodes: int) -> Placed:
    """Return an endpoint of this number; which node it is on and which address it has follows from that."""
    address = (_FIRST_ENDPOINT + number).packed
    called, node = f"endpoint-{number:06}", node_name(number % nodes)
    record = EndpointRecord(
        "default", called, node, Identity(0), (address,), f"veth{number % 1000}", labels, "default", frozenset()
    )
    return _PLACES.placed(record)


_PLACES = Entries("", LabelFilter())  # knows of nothing, so each identity is asked for by its labels


@asynccontextmanager
async def connected(url: str, name: str = "observer") -> AsyncIterator[RedisStore]:
    """Give a connection of the store that has joined, as a node's."""
    address = parse(url)
    server = Server(address)
    clients = [server.client(*address.servers[0], timeout=_TIMEOUT) for _ in range(2)]
    store = RedisStore(*clients, address.prefix)
    try:
        await store.join(name, 0, 0)
        yield store
    finally:
        await store.close()


async def fill(simulation: Simulation) -> dict[str, float]:
    """Register the nodes and start the endpoints, many at once."""
    begun = time.perf_counter()
    async with connected(simulation.url) as store:
        for number in range(simulation.nodes):
            value = schema.encode_node(NodeRecord((_FIRST_NODE + number,), "simulated"))
            await store.write(Request(values=[(Kind.NODE, node_name(number), value)]))
        kinds = [kind(number) for number in range(simulation.kinds)]
        for start in range(0, simulation.endpoints, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, simulation.endpoints))
            placed = [endpoint(one, kinds[one % len(kinds)], simulation.nodes) for one in numbers]
            await store.write(Request(placed))
        return {"commands": store.commands, "seconds": time.perf_counter() - begun}


VERBS = {"fill": fill}


async def simulate(lab: Lab, verb: str, simulation: Simulation) -> dict[str, Any]:
    """Do so in another process, beside the store; return what came of it."""
    argv = [sys.executable, "-m", "tests.bench.simulated", verb, json.dumps(asdict(simulation))]
    command = lab.network.command(STORE, argv)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the simulation ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    """Simulate what the arguments say."""
    verb, what = sys.argv[1:]
    print(json.dumps(asyncio.run(VERBS[verb](Simulation(**json.loads(what))))))


if __name__ == "__main__":
    main()
