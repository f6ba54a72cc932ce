"""This node's part in the exchange of flows: its answers to other nodes, and the merged flows of all.

With the section ``peers``, flows pass between agents with certificates only; without it, through the store.
"""

import logging

from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.peers.cluster_flows import ClusterFlows, Roster
from nfq_enforcer.agent.peers.connections import PeerConnections
from nfq_enforcer.agent.peers.own_flows import OwnFlows
from nfq_enforcer.agent.peers.protocol import Transport
from nfq_enforcer.agent.peers.relay import StoreRelay
from nfq_enforcer.agent.peers.server import PeerServer
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_CERTIFICATES_ONLY = "it gives its flows to agents with a certificate only: configure 'peers' at this node"


class Peers:
    """Peers: the flows of all nodes, and this node's answers, between ``start`` and ``stop``."""

    def __init__(self, parts: Parts, roster: Roster) -> None:
        """Take the parts of the agent, and the function that reads the nodes of the cluster."""
        node, section, mail = parts.settings.name, parts.config.peers, parts.store.mail
        own = OwnFlows(node, parts.log)
        transport: Transport | None = None
        self._relay: StoreRelay | None = None
        self._server: PeerServer | None = None
        if mail is not None:
            refusal = _CERTIFICATES_ONLY if section.listening else None
            transport = self._relay = StoreRelay(node, mail, own.batches, refusal)
        if mail is not None and section.listening:
            transport = PeerConnections(section, lambda: parts.names.nodes)
            self._server = PeerServer(section, own.batches, lambda: parts.names.nodes)
        self.flows = ClusterFlows(node, own.batches, roster, transport)

    async def start(self) -> None:
        """Accept other agents; if that is not possible, the log has the reason, and all else works."""
        if self._server is not None:
            try:
                await self._server.start()
            except NfqError as error:
                _log.error("other nodes cannot ask this one for its flows: %s", error)

    async def stop(self) -> None:
        """End all answers to other nodes."""
        if self._relay is not None:
            await self._relay.stop()
        if self._server is not None:
            await self._server.stop()
