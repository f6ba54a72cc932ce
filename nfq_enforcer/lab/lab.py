"""The lab as one object: its network, its nodes with their agents, its hosts, its captures, its documents."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.host import Host
from nfq_enforcer.lab.network import Network, new_run_id
from nfq_enforcer.lab.node import Node
from nfq_enforcer.lab.topology import NODES, Address, Topology

_PATIENCE = 10.0
_LOOK = 0.02


class Lab:
    """A lab; ``async with Lab() as lab`` builds it and removes it, ``Lab(Topology(run_id))`` joins one that is up."""

    def __init__(self, topology: Topology | None = None) -> None:
        """Name the lab; nothing is built or asked yet."""
        self.topology = topology or Topology(new_run_id())
        self.network = Network(self.topology)
        self.documents = self.network.state / "documents"
        self.nodes = {name: Node(self.network, name, self.documents) for name in NODES}
        self._hosts: dict[str, Host] = {}

    def up(self) -> None:
        """Build the network."""
        self.network.up()

    def start_agents(self, *options: str, **settings: Any) -> None:
        """Declare the endpoints, start an agent on every node and return when all are ready."""
        self.documents.mkdir(exist_ok=True)
        (self.documents / "endpoints.yaml").write_text(self.topology.endpoint_documents())
        for node in self.nodes.values():
            node.start(*options, **settings)
        for node in self.nodes.values():
            node.wait_until_ready()

    async def apply(self, name: str, text: str) -> None:
        """Put a file of documents into the folder and return when all nodes enforce it; raise NfqError if refused."""
        await self._change(self.documents / f"{name}.yaml", text)

    async def withdraw(self, name: str) -> None:
        """Take a file of documents away and return when all nodes enforce what is left."""
        await self._change(self.documents / f"{name}.yaml", None)

    async def _change(self, file: Path, text: str | None) -> None:
        before = {name: node.status() for name, node in self.nodes.items()}
        if text is None:
            file.unlink()
        else:
            draft = file.with_suffix(".draft")
            draft.write_text(text)
            draft.replace(file)
        try:
            async with asyncio.timeout(_PATIENCE):
                refusals = [await _follow(node, before[name]) for name, node in self.nodes.items()]
        except TimeoutError:
            raise NfqError(f"not all nodes have taken the change of {file.name} in {_PATIENCE:.0f} seconds") from None
        for refusal in filter(None, refusals):
            raise NfqError(refusal)

    async def leave(self) -> None:
        """End the hosts' traffic, but leave the network."""
        for host in self._hosts.values():
            await host.stop()
        self._hosts.clear()

    async def down(self) -> None:
        """End the hosts' traffic and remove the network with all that runs in it."""
        await self.leave()
        self.network.down()

    def host(self, name: str) -> Host:
        """Return the host of this name, always the same."""
        if name not in self._hosts:
            self._hosts[name] = Host(self.network, name)
        return self._hosts[name]

    def address(self, name: str, family: int = 4) -> Address:
        """Return a host's own address of IP version 4 or 6."""
        return self.topology.address(name, family)

    def capture(self, file: Path | None = None) -> Capture:
        """Return a capture of the segment, where every packet between nodes is seen exactly once."""
        return Capture(self.network, file=file)

    async def __aenter__(self) -> Self:
        """Build the network."""
        self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove it."""
        await self.down()


async def _follow(node: Node, before: Mapping[str, Any]) -> str | None:
    """Return once the node enforces a later revision than before, or with the reason why it refuses to."""
    while (status := node.status())["revision"] <= before["revision"]:
        refused = status["refused"]
        if refused and refused != before["refused"]:
            return f"{node.name} refuses the documents: {refused['error']}"
        await asyncio.sleep(_LOOK)
    return None
