"""Faults by change: policy flipped under load, the package upgraded, an endpoint moved to another node."""

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from nfq_enforcer.agent import client
from nfq_enforcer.errors import NfqError
from tests.bench.generators import Programs
from tests.bench.places import Place
from tests.faults.fault import Fault
from tests.faults.rows import Counts, Limits
from tests.faults.stage import Stage
from tests.faults.traffic import DATAGRAMS, ECHO
from tests.support.labs import FAMILIES, FRONT_TO_BACK, policy
from tests.support.migration import Json, migrate

_MANY = 2000
_FLIPPING = 8.0  # s
_PAUSE = 0.1  # s between two changes of policy, at least
_PATIENCE = 60.0  # s for a change, on a busy machine
_CONCURRENT = 32  # connections being opened, by a program for each family
# Under both, frontends may use the ports of the traffic, and no other peer may. Parts of one with parts of the other
# would be wrong: the second without its deny rule allows every peer, the first with that deny rule allows nobody.
_BUSY = 7010  # first of the 16 ports of the program that opens connections at a high rate
_PORTS = [
    {
        "ports": [
            {"port": str(ECHO), "endPort": _BUSY + 15, "protocol": "TCP"},
            {"port": str(DATAGRAMS), "protocol": "UDP"},
        ]
    }
]
_FRONTEND = {"matchLabels": {"role": "frontend"}}
_BY_ALLOW = policy("front-to-back", "backend", ingress=[{"fromEndpoints": [_FRONTEND], "toPorts": _PORTS}])
_BY_DENY = policy(
    "front-to-back",
    "backend",
    ingress=[{"fromEntities": ["all"]}],
    ingressDeny=[
        {"fromEntities": ["world", "host", "remote-node"]},
        {"fromEndpoints": [{"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["frontend"]}]}]},
    ],
)


async def _flip(stage: Stage, _: int) -> Counts:
    """Replace the policy by an equivalent one, again and again, while a program in each family opens connections."""
    node, flips = stage.lab.nodes["n1"], 0
    await stage.lab.apply("flip", _BY_ALLOW)
    with TemporaryDirectory() as folder:
        programs, begun = Programs(Path(folder)), time.monotonic()
        opening = [asyncio.create_task(asyncio.to_thread(_open, stage, programs, family)) for family in FAMILIES]
        try:
            while not all(task.done() for task in opening):
                due = time.monotonic() + _PAUSE
                text = _BY_DENY if flips % 2 else _BY_ALLOW
                await asyncio.to_thread(client.call, node.socket, "apply", _PATIENCE, files=[("flip.yaml", text)])
                flips += 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            made = await asyncio.gather(*opening)  # these connections need the policy that the next line replaces
            seconds = time.monotonic() - begun
            await stage.lab.apply("front-to-back", FRONT_TO_BACK)
    counts = Counts()
    for one in made:
        counts.merge(one)
    assert flips > 1, "the policy was not changed under new connections"
    rates = f"{counts.new:,} new connections ({counts.new / seconds:,.0f} a second)"
    counts.figures.append(f"{flips} changes of policy ({flips / seconds:.1f} a second) under {rates}")
    return counts


def _open(stage: Stage, programs: Programs, family: int) -> Counts:
    """Open connections from front1 to back2 while policy changes; the program ends at the first that fails."""
    place = Place("two nodes", "front1", "back2", ("n1", "n2"))
    try:
        made = programs.connections(stage.lab, place, _FLIPPING, _CONCURRENT, _BUSY, family)["connections"]
    except NfqError as error:
        return Counts(new=1, new_failed=1, figures=[str(error)])
    assert made > 0
    return Counts(new=int(made))


async def _upgrade(stage: Stage, number: int) -> None:
    """Replace the package's files by another version, then reload the agent."""
    node = stage.node(number)
    version = f"0.0.{number + 1}"
    await asyncio.to_thread(stage.installations[node.name].install, version)
    await asyncio.to_thread(node.start_anew)
    assert node.status()["version"] == version


async def move(stage: Stage, number: int) -> None:
    """Move back2 to n1, or back to n2, as a live migration does: its sockets stay, its cable and its routes change.

    No node forwards to it between its end on the old node and the enforcement on the new one.
    """
    old, new = ("n1", "n2") if number % 2 else ("n2", "n1")

    async def declare(document: Json) -> None:
        await asyncio.to_thread(stage.declare, new, document)

    await migrate(stage.lab, old, new, declare)


_AWAY = "no node forwards to the endpoint between its two places"
_MOVED = Limits(refuses=True, why=_AWAY)
_MOVED_PER_FLOW = Limits(
    refuses=True,
    cuts=6,
    client_cuts=12,
    why=f"{_AWAY}; of the flows to the endpoint, those whose server sends first afterwards may stand still or end: its "
    "packet opens a flow at the new node, and has the client's node offload the old one again before the client's next "
    "packet, which so bears no stamp. These are the 6 of 40 in which only the server sends; after a gap of some "
    "seconds a few of the 12 TCP connections were cut too, whose server may repeat a packet before the client does",
)
FAULTS = [
    Fault("policy flipped under new connections", _flip, times=3, short_per_flow=1),
    Fault(f"agent upgraded (other files, then reload) under {_MANY:,} more open flows", _upgrade, flows=_MANY),
    Fault(
        "endpoint moved to another node with open connections",
        move,
        _MOVED,
        _MOVED_PER_FLOW,
        short=2,
        short_per_flow=2,
    ),
]
