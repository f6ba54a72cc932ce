"""Simulated nodes: each writes its endpoints to the store through the real store code, and has no other part of a node.

This module is also the program that simulates them, in the lab's namespace of the store: its argument is a JSON object
with the parameters, its output a JSON object with the results.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from statistics import quantiles
from typing import Any

from nfq_enforcer.cluster.records import EndpointRecord, EndpointRequest, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import STORE
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Commands, Request, Written
from nfq_enforcer.store.redis.connection import Connection
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS

_FIRST_ENDPOINT, _FIRST_NODE = IPv4Address("10.64.0.0"), IPv4Address("10.200.0.1")
_BATCH = 500  # endpoints in one write of ``fill``
_TIMEOUT = 30.0
_TICK = 0.005  # seconds between two checks for due changes


@dataclass(frozen=True)
class Simulation:
    """Simulation: the parameters of the simulated nodes."""

    url: str
    nodes: int = 200
    endpoints: int = 10_000
    kinds: int = 1000  # different label sets of the endpoints at the start
    rate: float = 500.0  # starts a second, and as many stops
    duration: float = 60.0
    news: float = 0.0  # share of the starts with labels that no endpoint has had before
    clients: int = 50  # of ``allocate``


def kind(number: int) -> Labels:
    """Return the labels of the kind of this number, like those of a deployment."""
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


def endpoint_name(number: int) -> str:
    """Return an endpoint's full name, ``namespace/name``."""
    return f"default/endpoint-{number:06}"


def endpoint(number: int, labels: Labels, nodes: int) -> EndpointRequest:
    """Return the endpoint of this number; the number determines its node and its address."""
    address = (_FIRST_ENDPOINT + number).packed
    namespace, name = endpoint_name(number).split("/")
    node, interface = node_name(number % nodes), f"veth{number % 1000}"
    record = EndpointRecord(namespace, name, node, Identity(0), (address,), interface, labels, "default", frozenset())
    return _PLACES.endpoint_request(record)


_PLACES = Mirror("", LabelFilter())  # empty, so that each request has the labels of its identity


@asynccontextmanager
async def connected(url: str, name: str = "observer") -> AsyncIterator[Commands]:
    """Connect to the store, and join as a node does."""
    address = parse(url)
    server = Connection(address)
    client, reader = (server.client(*address.servers[0], timeout=_TIMEOUT) for _ in range(2))
    store = Commands(client, reader, address.prefix)
    try:
        await store.join(name, 0, 0)
        yield store
    finally:
        await store.close()


async def fill(simulation: Simulation) -> dict[str, float]:
    """Register the nodes and start the endpoints, many in one write."""
    begun = time.perf_counter()
    async with connected(simulation.url) as store:
        for number in range(simulation.nodes):
            value = schema.encode_node(NodeRecord((_FIRST_NODE + number,), "simulated"))
            await store.write(Request(values=[(Kind.NODE, node_name(number), value)]))
        kinds = [kind(number) for number in range(simulation.kinds)]
        for start in range(0, simulation.endpoints, _BATCH):
            numbers = range(start, min(start + _BATCH, simulation.endpoints))
            requests = [endpoint(number, kinds[number % len(kinds)], simulation.nodes) for number in numbers]
            await store.write(Request(requests))
        return {"commands": store.sent, "seconds": time.perf_counter() - begun}


class _Churn:
    """Churn: starts and stops endpoints, each through the connection of its node."""

    def __init__(self, simulation: Simulation, stores: Sequence[Commands]) -> None:
        """Start with the endpoints written by ``fill``."""
        self._simulation = simulation
        self._stores = stores
        self._kinds = [kind(number) for number in range(simulation.kinds)]
        self._random = random.Random(1)
        self._alive = list(range(simulation.endpoints))
        self._next = simulation.endpoints
        self._writing: set[asyncio.Task[None]] = set()
        self.starts = self.stops = self.allocated = 0
        self.took: list[float] = []  # seconds for each write

    async def run(self) -> float:
        """Start and stop endpoints at the given rate for the given duration; return the elapsed seconds."""
        begun, pairs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < self._simulation.duration:
            while pairs < elapsed * self._simulation.rate:
                pairs += 1
                self._begin(self._stop())
                self._begin(self._start())
            await asyncio.sleep(_TICK)
        await asyncio.gather(*self._writing)
        return time.perf_counter() - begun

    def _begin(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(change)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _start(self) -> None:
        number, self._next = self._next, self._next + 1
        new = self._random.random() < self._simulation.news
        labels = kind(number) if new else self._random.choice(self._kinds)
        written = await self._write(number, Request([endpoint(number, labels, self._simulation.nodes)]))
        self._alive.append(number)
        self.starts += 1
        self.allocated += len(written.new)

    async def _stop(self) -> None:
        place = self._random.randrange(len(self._alive))
        self._alive[place], self._alive[-1] = self._alive[-1], self._alive[place]
        number = self._alive.pop()
        await self._write(number, Request(deleted=[(Kind.ENDPOINT, endpoint_name(number))]))
        self.stops += 1

    async def _write(self, number: int, request: Request) -> Written:
        begun = time.perf_counter()
        written = await self._stores[number % len(self._stores)].write(request)
        self.took.append(time.perf_counter() - begun)
        return written


async def churn(simulation: Simulation) -> dict[str, float]:
    """Write the starts and stops of every node, and send its heartbeats as a store session does."""
    async with AsyncExitStack() as stack:
        nodes = [node_name(number) for number in range(simulation.nodes)]
        stores = [await stack.enter_async_context(connected(simulation.url, name)) for name in nodes]
        for store in stores:
            store.sent = 0
        heartbeats = [asyncio.create_task(_heartbeat(store, node)) for store, node in zip(stores, nodes, strict=True)]
        churn_run = _Churn(simulation, stores)
        seconds = await churn_run.run()
        for task in heartbeats:
            task.cancel()
        heartbeat_commands = sum(await asyncio.gather(*heartbeats))
        return {
            "seconds": seconds,
            "starts": churn_run.starts,
            "stops": churn_run.stops,
            "allocated": churn_run.allocated,
            "commands": sum(store.sent for store in stores),
            "heartbeat_commands": heartbeat_commands,
            "write_p50": quantiles(churn_run.took, n=100)[49],
            "write_p99": quantiles(churn_run.took, n=100)[98],
        }


async def _heartbeat(store: Commands, node: str) -> int:
    """Send heartbeats until cancelled; return the number of commands that they took."""
    own, timings = 0, DEFAULT_TIMINGS
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(random.uniform(0, timings.heartbeat))
        while True:
            await store.heartbeat(node, 1)
            await store.collect(timings.lease, timings.grace, timings.retirement, timings.collect)
            own += 2
            await asyncio.sleep(timings.heartbeat)
    return own


async def allocate(simulation: Simulation) -> dict[str, float]:
    """Start all endpoints, one command for each, from concurrent clients; return the seconds and new identities."""
    async with AsyncExitStack() as stack:
        clients = range(simulation.clients)
        stores = [await stack.enter_async_context(connected(simulation.url, node_name(number))) for number in clients]
        kinds = [kind(number) for number in range(simulation.kinds)]
        numbers = range(simulation.endpoints)
        requests = [endpoint(number, kinds[number % len(kinds)], len(stores)) for number in numbers]
        begun = time.perf_counter()
        new = await asyncio.gather(*(_allocate(store, requests[at :: len(stores)]) for at, store in enumerate(stores)))
        return {"seconds": time.perf_counter() - begun, "allocated": sum(new)}


async def _allocate(store: Commands, requests: Sequence[EndpointRequest]) -> int:
    return sum([len((await store.write(Request([request]))).new) for request in requests])


VERBS = {"fill": fill, "churn": churn, "allocate": allocate}


async def simulate(lab: Lab, verb: str, simulation: Simulation) -> dict[str, Any]:
    """Run a simulation in another process, next to the store; return its results."""
    argv = [sys.executable, "-m", "tests.bench.simulated", verb, json.dumps(asdict(simulation))]
    command = lab.network.command(STORE, argv)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the simulation ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    """Run the simulation given by the arguments; print its results."""
    verb, parameters = sys.argv[1:]
    print(json.dumps(asyncio.run(VERBS[verb](Simulation(**json.loads(parameters))))))


if __name__ == "__main__":
    main()
