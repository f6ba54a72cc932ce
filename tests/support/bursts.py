"""Bursts: connections from one host of a lab to many ports of another at once.

Each port is an end of its own, so each first connection needs a slot of the proxy.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nfq_enforcer.lab.lab import Lab
from tests.support.http import HttpConnection
from tests.support.labs import policy
from tests.support.proxies import EchoServer, Loop

PATIENCE = 120.0  # s for a connection, whose SYN may be sent several times
_PORTS_OF_ENTRY = 40  # at most, as upstream


def many_ports(ports: range, *rules: dict[str, Any]) -> str:
    """Return a policy for many ports of backends, open to frontends, with these HTTP rules if there are any."""
    parts = [ports[start : start + _PORTS_OF_ENTRY] for start in range(0, len(ports), _PORTS_OF_ENTRY)]
    to_ports = [
        {"ports": [{"port": str(port), "protocol": "TCP"} for port in part]}
        | ({"rules": {"http": list(rules)}} if rules else {})
        for part in parts
    ]
    peers = [{"matchLabels": {"role": "frontend"}}]
    return policy("many-ports", "backend", ingress=[{"fromEndpoints": peers, "toPorts": to_ports}])


@contextmanager
def serving(lab: Lab, host: str, ports: range) -> Iterator[None]:
    """Answer requests on these ports of a host."""
    loop, server = Loop(lab.topology.namespace(host)), EchoServer()
    loop.run(server.listen(ports))
    try:
        yield
    finally:
        loop.run(server.close())
        loop.close()


async def connect(lab: Lab, source: str, target: str, ports: Iterable[int]) -> dict[int, HttpConnection]:
    """Open a connection to each port at once."""

    async def open_to(port: int) -> tuple[int, HttpConnection]:
        return port, await HttpConnection.open(lab, source, target, port=port, timeout=PATIENCE)

    return dict(await asyncio.gather(*map(open_to, ports)))


async def ask(connections: Iterable[HttpConnection], path: str) -> Counter[int]:
    """Send a request over each connection at once; return the number of answers with each status."""
    return Counter(await asyncio.gather(*(connection.ask(path) for connection in connections)))
