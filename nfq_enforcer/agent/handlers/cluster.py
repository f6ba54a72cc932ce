"""Cluster: endpoints, identities, nodes and the ipcache, as this node has them."""

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import texts
from nfq_enforcer.cluster.names import EndpointName
from nfq_enforcer.cluster.source import NodeStatus
from nfq_enforcer.core.identity import RESERVED
from nfq_enforcer.observe.status import NodeReport
from nfq_enforcer.text import utc_time


class ClusterHandlers:
    """Cluster handlers: list the cluster's objects, and delete endpoints."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read and to change."""
        self._parts = parts

    async def endpoints(self, _params: Params) -> list[dict[str, Any]]:
        """Return every endpoint of the cluster; ``problem`` is None, or a sentence about an endpoint of this node."""
        interfaces = self._parts.interfaces
        missing = interfaces.check()
        return [
            {
                "namespace": endpoint.namespace,
                "name": endpoint.name,
                "node": endpoint.node,
                "identity": endpoint.identity,
                "labels": [str(label) for label in endpoint.labels],
                "addresses": list(endpoint.addresses),
                "interface": endpoint.interface,
                "cgroup": endpoint.cgroup,
                "pids": self._pids(endpoint),
                "problem": _problem(f"{endpoint.namespace}/{endpoint.name}", missing, interfaces.unnamed),
                "document": self._parts.replica.endpoints[f"{endpoint.namespace}/{endpoint.name}"].document(),
            }
            for endpoint in self._parts.names
        ]

    def _pids(self, endpoint: EndpointName) -> list[int]:
        """Return the processes of a process endpoint of this node."""
        if endpoint.cgroup is None or endpoint.node != self._parts.settings.name:
            return []
        return self._parts.processes.pids(endpoint.cgroup)

    async def delete_endpoints(self, params: Params) -> dict[str, Any]:
        """Delete endpoints; return the deleted and the missing names once this node enforces the deletion."""
        names = texts(params, "names")
        deleted = await self._parts.store.delete_endpoints(names)
        await self._parts.reconcile("the endpoints are deleted")
        return {"deleted": deleted, "missing": [name for name in names if name not in deleted]}

    async def identities(self, _params: Params) -> list[dict[str, Any]]:
        """Return every identity: the reserved ones, the cluster's, and this node's own for CIDRs."""
        names = self._parts.names
        endpoints = Counter(endpoint.identity for endpoint in self._parts.replica.endpoints.values())
        identities = {**RESERVED, **names.identities, **names.cidrs}
        return [
            {
                "identity": number,
                "labels": [str(label) for label in labels],
                "endpoints": endpoints[number],
                "reserved": number in RESERVED,
            }
            for number, labels in sorted(identities.items())
        ]

    async def nodes(self, _params: Params) -> list[dict[str, Any]]:
        """Return every node, with its liveness."""
        return [node.to_json() for node in await self.read_nodes()]

    async def read_nodes(self) -> list[NodeReport]:
        """Read the nodes of the cluster, and their heartbeats from the store."""
        endpoints = Counter(endpoint.node for endpoint in self._parts.replica.endpoints.values())
        statuses = {status.name: status for status in await self._parts.store.enforced_by(0, 0)}
        return [
            NodeReport(
                name=name,
                addresses=[str(address) for address in node.addresses],
                **node_status(statuses.get(name) or NodeStatus(name, live=None)),
                version=node.version,
                datapath=node.datapath,
                endpoints=endpoints[name],
            )
            for name, node in sorted(self._parts.names.nodes.items())
        ]

    async def ipcache(self, _params: Params) -> list[dict[str, Any]]:
        """Return the ipcache: the identity, node and endpoint of each address."""
        names = self._parts.names
        return [
            {
                "address": entry.address,
                "identity": entry.identity,
                "node": entry.node,
                "endpoint": entry.endpoint,
                "labels": [str(label) for label in names.labels(entry.identity) or ()],
            }
            for entry in names.addresses()
        ]


def _problem(name: str, missing: Mapping[str, str], unnamed: Set[str]) -> str | None:
    if name in missing:
        return f"interface {missing[name]} does not exist"
    return "no interface: others can send from its addresses" if name in unnamed else None


def node_status(status: NodeStatus) -> dict[str, Any]:
    """Return the store's record of a node as the API has it."""
    return {
        "live": status.live,
        "last_seen": utc_time(status.seen) if status.seen is not None else None,
        "revision": status.revision,
    }
