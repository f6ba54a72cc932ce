"""Stage: a lab of three nodes with policy, and traffic of every kind on it while faults are injected.

Allowed: frontends to backends, on one node and between nodes, in both families. Forbidden: everything else that the
hosts attempt, among it the reverse direction of the allowed flows, and a backend that forges a frontend's stamp.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from nfq_enforcer.agent import client
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.topology import NODES, STORE
from tests.faults.disks import small_disks
from tests.faults.installation import Installation
from tests.faults.rows import Counts
from tests.faults.traffic import DATAGRAMS, ECHO, STREAM, TICK
from tests.support.clocks import Clocks
from tests.support.labs import FAMILIES, FRONT_TO_BACK, from_role, identities, policy
from tests.support.packets import udp

SERVERS = ("back1", "back2", "front1", "front2")
ALLOWED = {"front1": ("back2", "back1"), "front2": ("back1", "back2"), "front3": ("back2",)}
FORBIDDEN = {
    "db3": ("back1", "back2", "front1"),
    "world": ("back1", "back2", "front2"),
    "back1": ("back2", "front2", "front1"),
    "back2": ("back1", "front1", "front2"),
    "front1": ("front2",),
}
FORGERS = {"back1": "back2", "back2": "back1"}
SERVER_FIRST = 10  # of the allowed flows: those in which only the server sends
SLOW_BETWEEN_NODES = 8  # of the allowed flows: TCP connections between nodes, with a packet every 0.2 s
HOSTS = tuple(dict.fromkeys((*SERVERS, *ALLOWED, *FORBIDDEN)))
_PROGRAM = Path(__file__).with_name("traffic.py")
LOOK = 0.1  # s between two looks at a node's status, which costs processor time
_BRIEF_PATIENCE = 15.0  # s
_ANSWER = 300.0  # s for a host to carry out a command: thousands of flows take a while on a busy machine
Json = dict[str, Any]


class Host:
    """Host: the traffic program of one host."""

    def __init__(self, lab: Lab, name: str) -> None:
        """Set the host; nothing runs yet."""
        self._lab = lab
        self.name = name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, plan: Json) -> None:
        """Start the program with its servers."""
        command = self._lab.network.command(self.name, [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(plan)])
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24)
        await self.ask("start")

    async def ask(self, command: str, **parameters: Any) -> Json:
        """Carry out a command; return its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **parameters}).encode() + b"\n")
        async with asyncio.timeout(_ANSWER):
            line = await self._process.stdout.readline()
        assert line, f"the traffic program of {self.name} has ended"
        answer: Json = json.loads(line)
        return answer

    async def stop(self) -> None:
        """End the program."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()


class Stage:
    """Stage: the lab, its agents, and its hosts with their traffic."""

    def __init__(self, lab: Lab, settings: Mapping[str, Any]) -> None:
        """Set the lab, which is up, and the agents' settings; nothing runs yet."""
        self.lab = lab
        self.settings = dict(settings)
        self.hosts = {name: Host(lab, name) for name in HOSTS}
        namespaces = {name: Path("/run/netns", lab.topology.namespace(name)) for name in (*NODES, STORE)}
        self.clocks = Clocks(lab.network.state / "clocks", namespaces)
        self.installations = {name: Installation(lab.network.state / f"{name}-python") for name in lab.nodes}
        self._mounts = contextlib.ExitStack()

    async def start(self) -> None:
        """Start agents with the policy, servers and traffic programs."""
        self._mounts.enter_context(small_disks(self.lab))
        for name, node in self.lab.nodes.items():
            node.python = str(self.installations[name].python)
        with self.clocks.inherited():
            await asyncio.to_thread(self.lab.start_agents, **self.settings)
        await self.lab.apply("front-to-back", FRONT_TO_BACK)
        await asyncio.gather(*(host.start(self._plan(name)) for name, host in self.hosts.items()))

    async def stop(self) -> None:
        """End the traffic programs and the agents."""
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))
        for node in self.lab.nodes.values():
            await asyncio.to_thread(node.stop)
        self._mounts.close()

    def node(self, number: int) -> LabNode:
        """Return the node for a fault: n2 and n1 in turn, the receiver and the sender of most of the traffic."""
        return self.lab.nodes["n1" if number % 2 else "n2"]

    async def restart_agent(self, node: LabNode) -> None:
        """Start an agent that has ended, and wait until it enforces."""
        with self.clocks.inherited():
            await asyncio.to_thread(node.start, **self.settings)
        await asyncio.to_thread(node.wait_until_ready)

    async def change_policy(self, name: str) -> None:
        """Load one more policy, which changes nothing for the traffic."""
        await self.lab.apply(name, policy(name, "nobody", ingress=[from_role("nobody")]))

    def declare(self, node: str, *documents: Json) -> None:
        """Declare endpoints through the agent of a node."""
        text = yaml.safe_dump_all(documents)
        client.call(self.lab.nodes[node].socket, "apply", files=[("declared.yaml", text)])

    @asynccontextmanager
    async def counted(
        self, rate: float, forbidden_rate: float, more: Sequence[Json] = (), *, may_cut: bool = False
    ) -> AsyncIterator[Counts]:
        """Run traffic, and count it while the context lasts and until it is over.

        The rates are of all hosts together, in 1/s. ``more`` are flows that front1 opens besides.
        ``may_cut``: flows may end, and are not waited for as long as others.
        """
        patience = {"patience": _BRIEF_PATIENCE} if may_cut else {}
        rates = {"rate": rate / len(ALLOWED), "forbidden_rate": forbidden_rate / len(FORBIDDEN)}
        counts = Counts()
        begun = await asyncio.gather(
            *(host.ask("begin", **rates, more=more if host.name == "front1" else []) for host in self.hosts.values())
        )
        assert not (closed := sum(one["unopened"] for one in begun)), f"{closed} allowed flows cannot be opened"
        counts.since = time.monotonic()
        try:
            yield counts
        finally:
            ended = await asyncio.gather(*(host.ask("end", **patience) for host in self.hosts.values()))
            arrived = await asyncio.gather(*(host.ask("arrivals") for host in self.hosts.values()))
            if more:
                await self.hosts["front1"].ask("close")
        counts.add(ended, arrived)

    async def renew_flows(self) -> None:
        """Close all allowed flows; the next count opens others."""
        await asyncio.gather(*(host.ask("renew") for host in self.hosts.values()))

    def many_flows(self, number: int) -> list[Json]:
        """Return the plan of many flows from front1 to back2, each with a message every few seconds."""
        interval = max(0.5, number / 400)
        addresses = [str(self.lab.address("back2", family)) for family in FAMILIES]
        return [{"address": addresses[n % 2], "port": ECHO, "interval": interval} for n in range(number)]

    # -- the plan of a host -------------------------------------------------------------------------------------------

    def _plan(self, name: str) -> Json:
        return {
            "serve": self._addresses([name]) if name in SERVERS else [],
            "flows": [flow for address in self._addresses(ALLOWED.get(name, ())) for flow in _flows(address)],
            "connect": self._addresses(ALLOWED.get(name, ())),
            "forbidden": [*self._attempts(name), *self._forgeries(name)],
            "watch": [
                {"source": source, "destination": destination, "port": port}
                for attacker, targets in FORBIDDEN.items()
                if name in targets
                for source, destination in zip(self._addresses([attacker]), self._addresses([name]), strict=True)
                for port in (ECHO, DATAGRAMS)
            ],
        }

    def _addresses(self, names: Iterable[str]) -> list[str]:
        return [str(self.lab.address(name, family)) for name in names for family in FAMILIES]

    def _attempts(self, name: str) -> list[Json]:
        targets = self._addresses(FORBIDDEN.get(name, ()))
        return [{"address": address, "port": port} for port in (ECHO, DATAGRAMS) for address in targets]

    def _forgeries(self, name: str) -> list[Json]:
        """Return datagrams of a host to a forbidden target that bear a frontend's stamp."""
        if name not in FORGERS:
            return []
        identity = Identity(identities(self.lab)["front1"])
        return [
            {"address": address, "port": DATAGRAMS, "option": _stamp(address, identity).hex()}
            for address in self._addresses([FORGERS[name]])
        ]


def _flows(address: str) -> list[Json]:
    """Return the flows to a server that stay open: TCP, a stream in which the server sends, UDP."""
    tcp = {"address": address, "port": ECHO, "interval": 0.2}
    return [tcp, tcp, *({"address": address, "port": port, "interval": TICK} for port in (STREAM, DATAGRAMS))]


def _stamp(address: str, identity: Identity) -> bytes:
    """Return a stamp as an IPv4 option, or as a Destination Options header."""
    plain = udp(address, address, DATAGRAMS, b"")
    stamped = stamp.write(plain, parse(plain), Stamp(identity))
    start = 20 if plain[0] >> 4 == 4 else 40
    return stamped[start : start + len(stamped) - len(plain)]
