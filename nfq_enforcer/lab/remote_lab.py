"""A site: real hosts, or virtual ones, on which the demo plays as it does in the lab.

Agents run there and endpoints are known to them; the demo brings traffic, captures and policies, and takes all of it
away again. A cluster that has policies of its own is left alone.
"""

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.base import LabBase, policies
from nfq_enforcer.lab.capture import INBOUND, Capture, Captures
from nfq_enforcer.lab.inventory import Inventory
from nfq_enforcer.lab.ssh import SshExecutor
from nfq_enforcer.lab.topology import ENDPOINTS, NODES, ROUTER

_FIRST = NODES[0]  # policies are loaded here; all nodes enforce them
_PATIENCE = "10"  # seconds for a change to be in force on all nodes
_SEPARATOR = "\n---\n"  # of YAML documents
_TABLES = {4: "iptables", 6: "ip6tables"}


class RemoteLab(LabBase):
    """The hosts of one file; ``async with`` connects to them, and leaves them as they were."""

    def __init__(self, hosts: Inventory, machines: SshExecutor) -> None:
        """Take the hosts; nothing is asked of them yet."""
        super().__init__(machines)
        self._remote = machines
        self._program = hosts.program
        self._sockets = {machine.name: machine.socket for machine in hosts.machines}
        self._uplinks: dict[str, str] = {}
        self._loaded: dict[str, str] = {}
        self._masquerades: list[list[str]] = []  # what undoes each rule

    async def apply(self, name: str, text: str) -> None:
        """Put a text of policies in force on all nodes, in place of the one of this name; raise NfqError if refused."""
        gone = policies(self._loaded.get(name, "")) - policies(text)
        self._loaded[name] = _SEPARATOR.join([self._loaded.get(name, ""), text])  # until this is done: any of both
        await self._ask(_FIRST, "policy", "load", "--wait", "--timeout", _PATIENCE, "-", text=text)
        await self._delete(gone)
        self._loaded[name] = text

    async def withdraw(self, name: str) -> None:
        """Take a text of policies away and return when all nodes enforce what is left."""
        await self._delete(policies(self._loaded[name]))
        del self._loaded[name]

    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the packets that a node has dropped, as its log has them, the latest last."""
        said = await self._ask(node, "observe", "-o", "json", "--verdict", FlowVerdict.DROPPED)
        return [json.loads(line) for line in said.splitlines()]

    def capture(self) -> Captures:
        """Return a capture of what comes in at each node: every packet between two of them, once."""
        return Captures([Capture(self._remote, node, self._uplinks[node], only=INBOUND) for node in NODES])

    def masquerade(self, on: bool) -> None:
        """Let the router hide the source of what endpoints send through it, or no longer; new connections only."""
        while self._masquerades:
            self._remote.run(ROUTER, *self._masquerades.pop())
        for family, command in _TABLES.items() if on else ():
            for name in ENDPOINTS:
                rule = ["POSTROUTING", "-s", str(self.address(name, family)), "-j", "MASQUERADE"]
                self._remote.run(ROUTER, command, "-w", "-t", "nat", "-A", *rule)
                self._masquerades.append([command, "-w", "-t", "nat", "-D", *rule])

    async def __aenter__(self) -> Self:
        """Connect; raise NfqError where an agent or an endpoint is missing, or policies are there already."""
        try:
            await asyncio.to_thread(self._remote.connect)
            self._uplinks = {node: self._device(node) for node in NODES}
            for node in NODES:
                await self._ask(node, "status")
            await self._check_cluster()
        except BaseException:
            self._remote.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the traffic, take away what was loaded, and hang up."""
        try:
            await self.leave()
            self.masquerade(False)
            there = {(one["namespace"], one["name"]) for one in await self._listed("policy")}
            await self._delete(there & policies(_SEPARATOR.join(self._loaded.values())))
        finally:
            self._remote.close()

    def _device(self, node: str) -> str:
        """Return the interface that has the node's own address."""
        address = self.address(node)
        said = self._remote.run(node, "ip", "-o", "address", "show", "to", str(address)).split()
        if not said:
            raise NfqError(f"{node} has no interface with the address {address}, which the file of machines gives it")
        return said[1].partition("@")[0]

    async def _check_cluster(self) -> None:
        loaded = sorted(one["name"] for one in await self._listed("policy"))
        if loaded:
            raise NfqError(
                f"the cluster has policies already, which the demo would mix with its own: {', '.join(loaded)}; "
                f"'nfq-enforcer policy delete' takes them back"
            )
        known = {address for one in await self._listed("endpoint") for address in one["addresses"]}
        missing = [name for name in ENDPOINTS if not {str(self.address(name, family)) for family in _TABLES} <= known]
        if missing:
            raise NfqError(
                f"the cluster knows no endpoints with the addresses of {', '.join(missing)}; "
                f"'nfq-enforcer endpoint add' on their nodes makes them known"
            )

    async def _listed(self, noun: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(await self._ask(_FIRST, noun, "list", "-o", "json"))
        return listed

    async def _delete(self, gone: set[tuple[str, str]]) -> None:
        for namespace, name in sorted(gone):
            called = f"{namespace}/{name}".lstrip("/")
            await self._ask(_FIRST, "policy", "delete", "--wait", "--timeout", _PATIENCE, called)

    async def _ask(self, node: str, *command: str, text: str = "") -> str:
        """Run a command of ours on a node, as its operator would."""
        argv = [self._program, *command, "--socket", self._sockets[node]]
        return await asyncio.to_thread(self._remote.run, node, *argv, text=text)
