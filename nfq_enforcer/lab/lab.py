"""The lab as one object: its network, its nodes with their agents, its hosts, its captures, its documents."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nfq_enforcer.agent import client
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.base import LabBase, policies
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.network import Network, new_run_id
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.store import StoreServer
from nfq_enforcer.lab.topology import NODES, Topology
from nfq_enforcer.lab.traffic_host import TrafficHost

_PATIENCE = 10.0
_LOOK = 0.02


class Lab(LabBase):
    """A lab; ``async with Lab() as lab`` builds it and removes it, ``Lab(Topology(run_id))`` joins one that is up.

    Its nodes share a store on Redis, on a machine of its own. On request they have none (``memory=True``) and watch
    one folder of documents instead.
    """

    def __init__(self, topology: Topology | None = None, *, memory: bool = False) -> None:
        """Name the lab; nothing is built or asked yet. One that is up knows itself which store it has."""
        self.network = Network(topology or Topology(new_run_id()))
        self.documents = self.network.state / "documents"
        self.store = StoreServer(self.network)
        self._memory_mark = self.network.state / "memory"
        self._memory = memory or self._memory_mark.exists()
        self.nodes = {name: LabNode(self.network, name, self._store_settings(name)) for name in NODES}
        super().__init__(self.network)

    @property
    def topology(self) -> Topology:
        """Return what the lab looks like now."""
        return self.network.topology

    def _store_settings(self, node: str) -> dict[str, Any]:
        if self._memory:
            return {"documents": [str(self.documents)]}
        return {"store": self.store.url, "state": str(self.network.state / f"{node}-state")}

    def up(self) -> None:
        """Build the network."""
        self.network.up()
        if self._memory:
            self._memory_mark.touch()

    def start_agents(self, *options: str, **settings: Any) -> None:
        """Start the store and an agent on every node, and declare the endpoints; return when all of it is in force."""
        self.documents.mkdir(exist_ok=True)
        (self.documents / "endpoints.yaml").write_text(self.topology.endpoint_documents())
        if not self._memory and not self.store.runs:
            self.store.start()
        for node in self.nodes.values():
            node.start(*options, **settings)
        for node in self.nodes.values():
            node.wait_until_ready()
        if not self._memory:
            self.declare_endpoints()

    def declare_endpoints(self) -> None:
        """Have each node declare its own endpoints to the store; return when every node knows all of them."""
        for name, node in self.nodes.items():
            files = [("endpoints.yaml", self.topology.endpoint_documents(name))]
            client.call(node.socket, "apply", files=files)
        deadline = time.monotonic() + _PATIENCE
        while any(
            node.status()["documents"]["endpoints"] < len(self.topology.endpoints) for node in self.nodes.values()
        ):
            if time.monotonic() > deadline:
                raise NfqError(f"not all nodes have heard of all endpoints in {_PATIENCE:.0f} seconds")
            time.sleep(_LOOK)

    async def apply(self, name: str, text: str) -> None:
        """Put a file of documents in force, in place of the one of this name; raise NfqError if refused."""
        await self._change(self.documents / f"{name}.yaml", text)

    async def withdraw(self, name: str) -> None:
        """Take a file of documents away and return when all nodes enforce what is left."""
        await self._change(self.documents / f"{name}.yaml", None)

    async def _change(self, file: Path, text: str | None) -> None:
        before = {name: node.status() for name, node in self.nodes.items()} if self._memory else {}
        had = file.read_text() if file.exists() else ""
        if not self._memory:
            await asyncio.to_thread(self._load, file.name, had, text or "")
        if text is None:
            file.unlink()
        else:
            draft = file.with_suffix(".draft")
            draft.write_text(text)
            draft.replace(file)
        if self._memory:
            await self._await_change(file, before)

    def _load(self, name: str, before: str, now: str) -> None:
        """Load the documents of a file that are there now, and delete those that were; return when it is in force."""
        node = next(iter(self.nodes.values()))
        kept, gone = policies(now), policies(before)
        if now:
            _check(client.call(node.socket, "apply", timeout=2 * _PATIENCE, files=[(name, now)], wait=_PATIENCE))
        for namespace, policy in gone - kept:
            parameters = {"namespace": namespace, "name": policy, "wait": _PATIENCE}
            _check(client.call(node.socket, "delete", timeout=2 * _PATIENCE, **parameters))

    async def _await_change(self, file: Path, before: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                refusals = [await _follow(node, before[name]) for name, node in self.nodes.items()]
        except TimeoutError:
            raise NfqError(f"not all nodes have taken the change of {file.name} in {_PATIENCE:.0f} seconds") from None
        for refusal in filter(None, refusals):
            raise NfqError(refusal)

    def attach(self, name: str, node: str) -> TrafficHost:
        """Add a workload to a node, as a new container or VM would come to it; nobody has declared it yet."""
        self.network.attach(name, node)
        return self.host(name)

    async def down(self) -> None:
        """End the hosts' traffic and remove the network with all that runs in it."""
        await self.leave()
        self.store.stop()
        self.network.down()

    def capture(self, file: Path | None = None) -> Capture:
        """Return a capture of the segment, where every packet between nodes is seen exactly once."""
        return Capture(self.network, file=file)

    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the packets that a node has dropped, as its log has them, the latest last."""
        return self.nodes[node].observe(verdict=FlowVerdict.DROPPED)

    def masquerade(self, on: bool) -> None:
        """Let the router hide the source of what it forwards onto the segment, or no longer; new connections only."""
        self.network.masquerade(on)

    async def __aenter__(self) -> Self:
        """Build the network."""
        self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it."""
        await self.down()


def _check(taken: Mapping[str, Any]) -> None:
    late = [node["name"] for node in taken["nodes"] if node["live"] and not node["enforced"]]
    if late:
        raise NfqError(f"revision {taken['revision']} is not in force on {', '.join(late)} in {_PATIENCE:.0f} seconds")


async def _follow(node: LabNode, before: Mapping[str, Any]) -> str | None:
    """Return once the node enforces what the documents are now, or with the reason why it refuses to."""
    while True:
        status = node.status()
        refused = status["refused"]
        if refused and refused != before["refused"]:
            return f"{node.name} refuses the documents: {refused['error']}"
        if status["revision"] > before["revision"] or (before["refused"] and not refused):
            return None
        await asyncio.sleep(_LOOK)
