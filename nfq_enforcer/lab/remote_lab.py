"""A remote lab: real or virtual machines on which the demo runs as it does in the local lab.

Agents run on its nodes and the cluster has its endpoints already; the demo adds traffic, captures and policies, and
removes all of them. It refuses a cluster that has policies of its own.
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
_TIMEOUT = "10"  # seconds for all nodes to enforce a change
_SEPARATOR = "\n---\n"  # of YAML documents
_IPTABLES = {4: "iptables", 6: "ip6tables"}


class RemoteLab(LabBase):
    """RemoteLab: the machines of one inventory; ``async with`` connects to them, and restores them at the end."""

    def __init__(self, inventory: Inventory, ssh: SshExecutor) -> None:
        """Keep the inventory and the executor; do not connect yet."""
        super().__init__(ssh)
        self._ssh = ssh
        self._program = inventory.program
        self._sockets = {machine.name: machine.socket for machine in inventory.machines}
        self._uplinks: dict[str, str] = {}
        self._loaded: dict[str, str] = {}
        self._masquerade_deletions: list[list[str]] = []  # the command that deletes each rule

    async def apply(self, name: str, text: str) -> None:
        """Enforce the policy documents of a text on all nodes, in place of the text of this name.

        Raises NfqError if a document is refused.
        """
        removed = policies(self._loaded.get(name, "")) - policies(text)
        # Until the load is complete, the cluster may have documents of both texts.
        self._loaded[name] = _SEPARATOR.join([self._loaded.get(name, ""), text])
        await self._nfq_enforcer(_FIRST, "policy", "load", "--wait", "--timeout", _TIMEOUT, "-", text=text)
        await self._delete(removed)
        self._loaded[name] = text

    async def withdraw(self, name: str) -> None:
        """Delete the policy documents of a text; return when all nodes enforce the remaining documents."""
        await self._delete(policies(self._loaded[name]))
        del self._loaded[name]

    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the flow events of the packets that a node has dropped, oldest first."""
        lines = await self._nfq_enforcer(node, "observe", "--all", "-o", "json", "--verdict", FlowVerdict.DROPPED)
        return [json.loads(line) for line in lines.splitlines()]

    def capture(self) -> Captures:
        """Return a capture of the inbound packets at every node: each packet between two nodes is in it once."""
        return Captures([Capture(self._ssh, node, self._uplinks[node], pcap_filter=INBOUND) for node in NODES])

    def masquerade(self, on: bool) -> None:
        """Switch the router's masquerading of the source addresses of endpoints; it affects new connections only."""
        while self._masquerade_deletions:
            self._ssh.run(ROUTER, *self._masquerade_deletions.pop())
        for family, command in _IPTABLES.items() if on else ():
            for name in ENDPOINTS:
                rule = ["POSTROUTING", "-s", str(self.address(name, family)), "-j", "MASQUERADE"]
                self._ssh.run(ROUTER, command, "-w", "-t", "nat", "-A", *rule)
                self._masquerade_deletions.append([command, "-w", "-t", "nat", "-D", *rule])

    async def __aenter__(self) -> Self:
        """Connect; raise NfqError if an agent or an endpoint is missing, or if the cluster already has policies."""
        try:
            await asyncio.to_thread(self._ssh.connect)
            self._uplinks = {node: self._interface(node) for node in NODES}
            for node in NODES:
                await self._nfq_enforcer(node, "node", "list")  # "status" fails for a degraded node
            await self._check_cluster()
        except BaseException:
            self._ssh.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the traffic, delete the policies of this lab, and close the connections."""
        try:
            await self.leave()
            self.masquerade(False)
            present = {(policy["namespace"], policy["name"]) for policy in await self._list("policy")}
            await self._delete(present & policies(_SEPARATOR.join(self._loaded.values())))
        finally:
            self._ssh.close()

    def _interface(self, node: str) -> str:
        """Return the interface that has the node's own address."""
        address = self.address(node)
        fields = self._ssh.run(node, "ip", "-o", "address", "show", "to", str(address)).split()
        if not fields:
            raise NfqError(f"{node} has no interface with the address {address}, which the file of machines gives it")
        return fields[1].partition("@")[0]

    async def _check_cluster(self) -> None:
        loaded = sorted(policy["name"] for policy in await self._list("policy"))
        if loaded:
            raise NfqError(
                f"the cluster has policies already, which the demo would mix with its own: {', '.join(loaded)}; "
                f"'nfq-enforcer policy delete' takes them back"
            )
        known = {address for endpoint in await self._list("endpoint") for address in endpoint["addresses"]}
        missing = [name for name in ENDPOINTS if not {str(self.address(name, family)) for family in _IPTABLES} <= known]
        if missing:
            raise NfqError(
                f"the cluster knows no endpoints with the addresses of {', '.join(missing)}; "
                f"'nfq-enforcer endpoint add' on their nodes makes them known"
            )

    async def _list(self, noun: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(await self._nfq_enforcer(_FIRST, noun, "list", "-o", "json"))
        return rows

    async def _delete(self, documents: set[tuple[str, str]]) -> None:
        for namespace, name in sorted(documents):
            full_name = f"{namespace}/{name}".lstrip("/")
            await self._nfq_enforcer(_FIRST, "policy", "delete", "--wait", "--timeout", _TIMEOUT, full_name)

    async def _nfq_enforcer(self, node: str, *command: str, text: str = "") -> str:
        """Run an ``nfq-enforcer`` command on a node, as its operator would; return its output."""
        argv = [self._program, *command, "--socket", self._sockets[node]]
        return await asyncio.to_thread(self._ssh.run, node, *argv, text=text)
