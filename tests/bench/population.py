"""Population of an engine's store: policies for the lab's endpoints and others, and the 5,000 identities they select.

The population is written directly into the store, in the form of loaded documents, so that a run does not wait for the
validation of 10,000 documents. This module is also the program that writes it, next to the store. The program then
sends the heartbeats of the node with the 5,000 endpoints, as long as the lab is up: without them, the store's garbage
collection would delete the endpoints.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from nfq_enforcer.cluster.records import Kind, document_name
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import STORE
from nfq_enforcer.policy.cilium import CiliumNetworkPolicy
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Request
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS
from tests.bench.simulated import Simulation, connected, fill, node_name

IDENTITIES = 5000
FEW, MANY = 10, 10_000
_MEASURED = ("frontend", "backend", "monitor")  # roles of the lab's endpoints in the measured traffic
HOST_ROLES = {"n1": "frontend", "n2": "backend"}  # of nodes that become endpoints themselves, as n3 is in every lab
_ROLES = 100  # of all other endpoints; see ``simulated.kind``
_BATCH = 500
_READY = "ready"


def policies(count: int) -> Iterator[dict[str, Any]]:
    """Return so many policies; three allow the measured traffic, 3 in 100 of the others select the same endpoints."""
    yield _policy(0, "backend", ingress=[{"fromEndpoints": [_role("frontend")]}])
    yield _policy(1, "frontend", egress=[{"toEndpoints": [_role("backend")]}])
    yield _policy(2, "monitor", ingress=[{"fromEntities": ["world"]}])
    for number in range(3, count):
        peers = [_role(f"role-{(number * 7 + place) % _ROLES}") for place in range(2)]
        role = _MEASURED[number % 3] if number % 100 < 3 else f"role-{number % _ROLES}"
        ingress = [{"fromEndpoints": peers, "toPorts": _port(8000 + number % 50)}]
        egress = [{"toEndpoints": peers[:1], "toPorts": _port(9000 + number % 50)}]
        yield _policy(number, role, ingress=ingress, egress=egress)


def _role(name: str) -> dict[str, Any]:
    return {"matchLabels": {"role": name}}


def _port(number: int) -> list[dict[str, Any]]:
    return [{"ports": [{"port": str(number), "protocol": "TCP"}]}]


def _policy(number: int, role: str, **sections: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": f"policy-{number}"},
        "spec": {"endpointSelector": _role(role), **sections},
    }


def host_document(lab: Lab, node: str, role: str) -> str:
    """Return the document that declares a node itself as an endpoint."""
    document = {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": node, "labels": {"role": role}},
        "spec": {"ips": [str(lab.address(node))]},
    }
    return yaml.safe_dump(document)


def populate(lab: Lab, count: int) -> None:
    """Write so many policies into the lab's store, and with more than ``FEW`` of them the identities too."""
    process = subprocess.Popen(
        lab.network.command(STORE, [sys.executable, "-m", "tests.bench.population", lab.store.url, str(count)]),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # ends with the lab
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        if output.readline().strip() != _READY:
            raise RuntimeError(f"the store could not be filled with {count} policies")


async def _write(url: str, count: int) -> None:
    async with connected(url) as store:
        values = [_value(policy) for policy in policies(count)]
        for start in range(0, count, _BATCH):
            await store.write(Request(values=values[start : start + _BATCH]))


def _value(written: dict[str, Any]) -> tuple[Kind, str, str]:
    document = CiliumNetworkPolicy.model_validate(written)
    document.set_origin("population", written)
    return Kind.DOCUMENT, document_name(document), schema.encode_document(document)


async def _heartbeat(url: str) -> None:
    async with connected(url, node_name(0)) as store:
        while True:
            await store.heartbeat(node_name(0), 1)
            await asyncio.sleep(DEFAULT_TIMINGS.heartbeat)


def main() -> None:
    """Write the population given by the arguments; then send heartbeats, if it has the identities."""
    url, count = sys.argv[1], int(sys.argv[2])
    if count > FEW:
        asyncio.run(fill(Simulation(url, nodes=1, endpoints=IDENTITIES, kinds=IDENTITIES)))
    asyncio.run(_write(url, count))
    print(_READY, flush=True)
    os.close(sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if count > FEW:
        asyncio.run(_heartbeat(url))


if __name__ == "__main__":
    main()
