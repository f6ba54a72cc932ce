"""This node's part in the exchange of flows: its answers to other nodes, and the merged flows of all."""

from nfq_enforcer.agent.peers.cluster_flows import ClusterFlows, Roster
from nfq_enforcer.agent.peers.own_flows import OwnFlows
from nfq_enforcer.agent.peers.relay import StoreRelay
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.log import FlowLog


class Peers:
    """Peers: the flows of all nodes, and this node's answers, until ``stop``."""

    def __init__(self, node: str, store: Store, log: FlowLog[Logged], roster: Roster) -> None:
        """Take this node's name, store and flow log, and the function that reads the nodes of the cluster."""
        own = OwnFlows(node, log)
        self._relay = StoreRelay(node, store.mail, own.batches) if store.mail is not None else None
        self.flows = ClusterFlows(node, own.batches, roster, self._relay)

    async def stop(self) -> None:
        """End all answers to other nodes."""
        if self._relay is not None:
            await self._relay.stop()
