"""The local lab as one object: its network, its nodes with their agents, its hosts, its captures, its documents."""

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
from nfq_enforcer.lab.network import LabNetwork, new_run_id
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.store import StoreServer
from nfq_enforcer.lab.topology import NODES, Topology
from nfq_enforcer.lab.traffic_host import TrafficHost

_TIMEOUT = 20.0  # seconds for all nodes to enforce a change
_POLL_INTERVAL = 0.02


class Lab(LabBase):
    """Lab: network namespaces on this host; ``async with Lab() as lab`` builds it and removes it.

    ``Lab(Topology(run_id))`` attaches to a lab that is up. The nodes share a store on Redis, on a machine of its own.
    With ``memory=True`` they have no shared store, and each watches the same folder of documents.
    """

    def __init__(self, topology: Topology | None = None, *, memory: bool = False) -> None:
        """Keep the topology; build nothing yet. A lab that is up records its kind of store in its state folder."""
        self.network = LabNetwork(topology or Topology(new_run_id()))
        self.documents = self.network.state / "documents"
        self.store = StoreServer(self.network)
        self._memory_flag = self.network.state / "memory"
        self._memory = memory or self._memory_flag.exists()
        self.nodes = {name: LabNode(self.network, name, self._store_settings(name)) for name in NODES}
        super().__init__(self.network)

    @property
    def topology(self) -> Topology:
        """Return the lab's present topology."""
        return self.network.topology

    def _store_settings(self, node: str) -> dict[str, Any]:
        if self._memory:
            return {"documents": [str(self.documents)]}
        return {"store": self.store.url, "state": str(self.network.state / f"{node}-state")}

    def up(self) -> None:
        """Build the network."""
        self.network.up()
        if self._memory:
            self._memory_flag.touch()

    def start_agents(self, *options: str, **settings: Any) -> None:
        """Start the store and an agent on every node, and declare the endpoints; return when every node enforces."""
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
        """Declare each node's endpoints to the store through its agent; return when every node has all of them."""
        for name, node in self.nodes.items():
            files = [("endpoints.yaml", self.topology.endpoint_documents(name))]
            client.call(node.socket, "apply", files=files)
        deadline = time.monotonic() + _TIMEOUT
        while any(
            node.status()["documents"]["endpoints"] < len(self.topology.endpoints) for node in self.nodes.values()
        ):
            if time.monotonic() > deadline:
                raise NfqError(f"not all nodes have received all endpoints in {_TIMEOUT:.0f} seconds")
            time.sleep(_POLL_INTERVAL)

    async def apply(self, name: str, text: str) -> None:
        """Enforce a file of documents, in place of the file of this name; raise NfqError if a document is refused."""
        await self._change(self.documents / f"{name}.yaml", text)

    async def withdraw(self, name: str) -> None:
        """Delete a file of documents; return when all nodes enforce the remaining documents."""
        await self._change(self.documents / f"{name}.yaml", None)

    async def _change(self, file: Path, text: str | None) -> None:
        before = {name: node.status() for name, node in self.nodes.items()} if self._memory else {}
        old = file.read_text() if file.exists() else ""
        if not self._memory:
            await asyncio.to_thread(self._load, file.name, old, text or "")
        if text is None:
            file.unlink()
        else:
            draft = file.with_suffix(".draft")
            draft.write_text(text)
            draft.replace(file)
        if self._memory:
            await self._await_change(file, before)

    def _load(self, name: str, old: str, new: str) -> None:
        """Load a file's new documents, and delete those of its old text that are gone; return when nodes enforce it."""
        node = next(iter(self.nodes.values()))
        if new:
            _check(client.call(node.socket, "apply", timeout=2 * _TIMEOUT, files=[(name, new)], wait=_TIMEOUT))
        for namespace, policy in policies(old) - policies(new):
            parameters = {"namespace": namespace, "name": policy, "wait": _TIMEOUT}
            _check(client.call(node.socket, "delete", timeout=2 * _TIMEOUT, **parameters))

    async def _await_change(self, file: Path, before: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                refusals = [await _wait_for_change(node, before[name]) for name, node in self.nodes.items()]
        except TimeoutError:
            raise NfqError(f"not all nodes have taken the change of {file.name} in {_TIMEOUT:.0f} seconds") from None
        for refusal in filter(None, refusals):
            raise NfqError(refusal)

    def attach(self, name: str, node: str) -> TrafficHost:
        """Add a workload to a node, as a new container or VM is; no document declares it yet."""
        self.network.attach(name, node)
        return self.host(name)

    async def down(self) -> None:
        """Stop the hosts' traffic, and remove the network with all its processes."""
        await self.leave()
        self.store.stop()
        self.network.down()

    def capture(self, file: Path | None = None) -> Capture:
        """Return a capture of the segment, which every packet between nodes passes exactly once."""
        return Capture(self.network, file=file)

    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the flow events of the packets that a node has dropped, oldest first."""
        return self.nodes[node].observe(allow={"verdict": [FlowVerdict.DROPPED]})

    def masquerade(self, on: bool) -> None:
        """Switch the router's masquerading of packets onto the segment; it affects new connections only."""
        self.network.masquerade(on)

    async def __aenter__(self) -> Self:
        """Build the network."""
        self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the network."""
        await self.down()


def _check(reply: Mapping[str, Any]) -> None:
    late = [node["name"] for node in reply["nodes"] if node["live"] and not node["enforced"]]
    if late:
        raise NfqError(f"revision {reply['revision']} is not in force on {', '.join(late)} in {_TIMEOUT:.0f} seconds")


async def _wait_for_change(node: LabNode, before: Mapping[str, Any]) -> str | None:
    """Wait until the node enforces the new documents, or refuses them; return the reason of a refusal."""
    while True:
        status = node.status()
        refused = status["refused"]
        if refused and refused != before["refused"]:
            return f"{node.name} refuses the documents: {refused['error']}"
        if status["revision"] > before["revision"] or (before["refused"] and not refused):
            return None
        await asyncio.sleep(_POLL_INTERVAL)
