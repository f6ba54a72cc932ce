"""The snapshot: all that a verdict needs, of one policy revision.

The agent builds one whenever policies or its own endpoints change, and sends it to the workers without the peers: those
are many and change often, so a worker holds them itself, hears of their changes, and puts each snapshot over them. A
packet sees exactly one snapshot and one state of the peers, because both change between packets only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """An endpoint of this node."""

    name: str  # namespace/name
    identity: Identity
    interface: str | None  # the interface behind which it lives; None: not said, or the host itself
    ingress: PolicyMap
    egress: PolicyMap
    is_host: bool = False  # its addresses are the host's own

    @property
    def guarded(self) -> bool:
        """Say whether policy can refuse anything at any side of it."""
        return self.ingress.can_refuse or self.egress.can_refuse


@dataclass(frozen=True)
class Snapshot:
    """One state of the world, as the verdict loop sees it."""

    revision: int
    endpoints: Mapping[bytes, LocalEndpoint]  # those of this node, by address
    ipcache: Ipcache  # everybody else
    cluster_interfaces: frozenset[str] = frozenset()  # where stamps are believed
    node_addresses: Mapping[int, bytes] = field(default_factory=dict)  # IP version: this node's address
    audit: bool = False  # log what policy would drop, and let it pass
    allow_localhost: bool = True  # the host may open connections to its endpoints, whatever policy says
    believe_ipcache: bool = False  # an unstamped packet from an endpoint's address counts as the endpoint's
    epoch: int | None = None  # of the marks by which the kernel passes established flows; None: every packet is judged
    homes: frozenset[str] = field(init=False)  # the interfaces behind which nobody lives but endpoints

    def __post_init__(self) -> None:
        """Gather the homes; endpoints may also live behind a cluster interface, which is nobody's own."""
        homes = frozenset(e.interface for e in self.endpoints.values() if e.interface is not None)
        object.__setattr__(self, "homes", homes - self.cluster_interfaces)

    def over(self, peers: Mapping[bytes, Peer]) -> "Snapshot":
        """Return the same snapshot over these peers, whose holder may go on changing them between packets."""
        return replace(self, ipcache=self.ipcache.over(peers))

    def renewed(self, revision: int, epoch: int | None = None) -> "Snapshot":
        """Return the same snapshot under another revision number, by which known flows are judged again."""
        return replace(self, revision=revision, epoch=epoch)

    def source_endpoint(self, address: bytes, interface: str | None) -> LocalEndpoint | None:
        """Return the local endpoint that a packet with this source comes from, None if it is not one's.

        ``interface`` is the one it came in by, None for what this host sends itself. Raise LookupError when the
        address cannot come from there: an endpoint's address from elsewhere, or a foreign one from an endpoint.
        """
        endpoint = self.endpoints.get(address)
        if interface is None or (endpoint is not None and interface == endpoint.interface):
            return endpoint
        if interface in self.homes or (endpoint is not None and self._must_be_elsewhere(endpoint, interface)):
            raise LookupError
        return endpoint

    def _must_be_elsewhere(self, endpoint: LocalEndpoint, interface: str) -> bool:
        return endpoint.interface is not None or endpoint.is_host or interface in self.cluster_interfaces

    def leaves(self, address: bytes, interface: str | None) -> bool:
        """Say whether an endpoint of this node sends a packet, whatever source it names."""
        try:
            return interface in self.homes or self.source_endpoint(address, interface) is not None
        except LookupError:
            return False
