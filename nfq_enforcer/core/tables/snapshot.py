"""Snapshot: the data of one policy revision that a verdict needs.

The agent builds a snapshot when policies or endpoints of its node change, and sends it to the workers without the
peers. Peers are numerous and change often, so each worker keeps them in a table of its own, applies their changes, and
combines each snapshot with that table. A packet is decided by exactly one snapshot and one state of the peers, because
both change between packets only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """Local endpoint: an endpoint of this node, with its policy maps."""

    name: str  # namespace/name
    identity: Identity
    interface: str | None  # its interface on this host; None: not given, or the host itself
    ingress: PolicyMap
    egress: PolicyMap
    is_host: bool = False  # its addresses belong to the host

    @property
    def guarded(self) -> bool:
        """Tell whether policy can deny anything in either direction."""
        return self.ingress.can_refuse or self.egress.can_refuse


@dataclass(frozen=True)
class Snapshot:
    """Snapshot: the input of all verdicts, of one revision."""

    revision: int
    endpoints: Mapping[bytes, LocalEndpoint]  # of this node, by address
    ipcache: Ipcache  # all other addresses
    cluster_interfaces: frozenset[str] = frozenset()  # interfaces on which stamps are trusted
    node_addresses: Mapping[int, bytes] = field(default_factory=dict)  # IP version: this node's address
    audit: bool = False  # log denials, and accept the packets
    allow_localhost: bool = True  # policy allows every opening by the host to its endpoints, except for deny rules
    trust_ipcache: bool = False  # an unstamped packet has the identity of its source address
    epoch: int | None = None  # of the connmarks that offload flows (per-flow); None: per-packet
    endpoint_interfaces: frozenset[str] = field(init=False)  # interfaces that only endpoints use

    def __post_init__(self) -> None:
        """Collect the interfaces of endpoints, except cluster interfaces, which other hosts use as well."""
        interfaces = frozenset(e.interface for e in self.endpoints.values() if e.interface is not None)
        object.__setattr__(self, "endpoint_interfaces", interfaces - self.cluster_interfaces)

    def with_peers(self, peers: Mapping[bytes, Peer]) -> "Snapshot":
        """Return the same snapshot over these peers, which their owner may continue to change between packets."""
        return replace(self, ipcache=self.ipcache.with_peers(peers))

    def with_revision(self, revision: int, epoch: int | None = None) -> "Snapshot":
        """Return the same snapshot under another revision, so that known flows are evaluated again."""
        return replace(self, revision=revision, epoch=epoch)

    def source_endpoint(self, address: bytes, interface: str | None) -> LocalEndpoint | None:
        """Return the local endpoint with this source address, None for a remote source.

        ``interface``: by which the packet arrived, None for packets of this host. Raise LookupError for an address that
        cannot come from that interface: an endpoint's address from elsewhere, or a foreign address from an endpoint.
        """
        endpoint = self.endpoints.get(address)
        if interface is None or (endpoint is not None and interface == endpoint.interface):
            return endpoint
        if interface in self.endpoint_interfaces or (
            endpoint is not None and self._must_be_elsewhere(endpoint, interface)
        ):
            raise LookupError
        return endpoint

    def _must_be_elsewhere(self, endpoint: LocalEndpoint, interface: str) -> bool:
        return endpoint.interface is not None or endpoint.is_host or interface in self.cluster_interfaces

    def is_from_endpoint(self, address: bytes, interface: str | None) -> bool:
        """Tell whether an endpoint of this node has sent a packet, even under a forged source address."""
        try:
            return interface in self.endpoint_interfaces or self.source_endpoint(address, interface) is not None
        except LookupError:
            return False
