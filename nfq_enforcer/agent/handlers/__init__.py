"""Handlers of the agent's API, one module for each noun: each returns or yields data for JSON."""

from collections.abc import Mapping

from nfq_enforcer.agent.api import Method
from nfq_enforcer.agent.handlers.capture import CaptureHandlers
from nfq_enforcer.agent.handlers.cluster import ClusterHandlers
from nfq_enforcer.agent.handlers.conntrack import ConntrackHandlers
from nfq_enforcer.agent.handlers.fqdn import FqdnHandlers
from nfq_enforcer.agent.handlers.observe import ObserveHandlers
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.handlers.policies import PolicyHandlers
from nfq_enforcer.agent.handlers.status import StatusHandlers
from nfq_enforcer.agent.handlers.store import StoreHandlers
from nfq_enforcer.agent.health_watch import HealthWatch
from nfq_enforcer.agent.peers.peers import Peers
from nfq_enforcer.observe import metrics
from nfq_enforcer.observe.metric_family import MetricFamily


class Handlers:
    """Handlers: the API's methods, and the metrics, of one agent."""

    def __init__(self, parts: Parts) -> None:
        """Make the handlers of each noun."""
        self.health = HealthWatch(parts)
        self._status = StatusHandlers(parts, self.health)
        self._policies = PolicyHandlers(parts)
        self._cluster = ClusterHandlers(parts)
        self._fqdn = FqdnHandlers(parts)
        self._conntrack = ConntrackHandlers(parts)
        self.peers = Peers(parts, self._cluster.read_nodes)
        self._observe = ObserveHandlers(parts, self.peers.flows)
        self._capture = CaptureHandlers(parts)
        self._store = StoreHandlers(parts)

    def methods(self) -> Mapping[str, Method]:
        """Return the handlers by the names of the API's methods, which the command line calls."""
        return {
            "status": self._status.status,
            "observe": self._observe.observe,
            "capture": self._capture.capture,
            "endpoints": self._cluster.endpoints,
            "identities": self._cluster.identities,
            "nodes": self._cluster.nodes,
            "ipcache": self._cluster.ipcache,
            "fqdn": self._fqdn.list_names,
            "policies": self._policies.policies,
            "conntrack": self._conntrack.list_flows,
            "conntrack_flush": self._conntrack.flush,
            "documents": self._policies.documents,
            "endpoint_policy": self._policies.endpoint_policy,
            "apply": self._policies.apply,
            "delete": self._policies.delete,
            "delete_endpoints": self._cluster.delete_endpoints,
            "store_status": self._store.store_status,
            "store_export": self._store.store_export,
            "store_import": self._store.store_import,
            "store_gc": self._store.store_gc,
        }

    async def read_metrics(self) -> list[MetricFamily]:
        """Read the metric families for a scrape."""
        return metrics.families(await self._status.read(), await self._cluster.read_nodes())
