"""Whole agents with and without HTTP rules: a lab for each setting, in which two nodes have an agent.

Clients of guarded requests are at the server's node or at the other one; the server's node checks the rules. Others are
a client outside of the cluster and an endpoint without HTTP rules, at the node that has these rules for another.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import WORLD
from tests.bench.agents import running
from tests.bench.http_load import Client, serving
from tests.support import bursts
from tests.support.bursts import many_ports
from tests.support.labs import HTTP, PER_PACKET, policy

SAME_NODE, ANOTHER_NODE, OTHERS = "client on the same node", "client on another node", "endpoint without HTTP rules"
_NODES = ("n1", "n2")
_SERVERS = ("back1", "back2", "front1")
_PATHS = {SAME_NODE: ("front1", "back1", ("n1",)), ANOTHER_NODE: ("front1", "back2", _NODES)}
_OTHERS = (WORLD, "front1", ("n1",))
_RULES = ({"method": "GET", "path": "/userdata/[0-9]+"},)
_FIRST_PORT = 10_000

_OPEN = policy("front", "frontend", ingress=[{"fromEntities": ["all"]}])


@contextmanager
def clients(mode: str, with_rules: bool) -> Iterator[dict[str, Client]]:
    """Run agents in this mode of the data path; yield the clients by place."""
    documents = _OPEN + many_ports(range(HTTP, HTTP + 1), *(_RULES if with_rules else ()))
    paths = {**_PATHS, OTHERS: _OTHERS} if with_rules else {OTHERS: _OTHERS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(running(documents, *_NODES, datapath=mode))
        for server in _SERVERS:
            stack.enter_context(serving(lab.topology.namespace(server), [HTTP], folder / server))
        yield {
            place: Client(
                lab.topology.namespace(source),
                str(lab.address(target)),
                HTTP,
                tuple(lab.nodes[node].pid for node in nodes),
            )
            for place, (source, target, nodes) in paths.items()
        }


@contextmanager
def with_ports(count: int) -> Iterator[tuple[Lab, range]]:
    """Run an agent with HTTP rules on many ports of a server; yield them."""
    ports = range(_FIRST_PORT, _FIRST_PORT + count)
    with (
        running(_OPEN + many_ports(ports, *_RULES), "n1", datapath=PER_PACKET) as lab,
        bursts.serving(lab, "back1", ports),
    ):
        yield lab, ports
