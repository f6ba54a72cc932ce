"""Snapshot: the data of one policy revision that a verdict needs.

The agent builds a snapshot when policies or endpoints of its node change, and sends it to the workers without the
peers and without the identities of the cluster. These are numerous and change often, so each worker keeps them in
tables of its own, applies their changes, and combines each snapshot with the tables. A packet is decided by exactly one
snapshot and one state of the tables, because all of them change between packets only.
"""

from collections.abc import Mapping, MutableMapping, Set
from copy import copy
from dataclasses import dataclass, field

from nfq_enforcer.core.identity import UNMANAGED, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.wire.scopes import depends_on_link, is_link_local, is_unspecified

HOST_NAME = "host"  # of the local endpoint that is the host itself; an endpoint with a document has a namespace


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """Local endpoint: an endpoint of this node, with its policy maps."""

    name: str  # namespace/name, or HOST_NAME; empty: several endpoints behind one interface
    identity: Identity
    interface: str | None  # its interface on this host; None: not given, or the host itself
    ingress: PolicyMap
    egress: PolicyMap
    is_host: bool = False  # its addresses belong to the host
    is_process: bool = False  # it has sockets of this host, and no address of its own

    @property
    def guarded(self) -> bool:
        """Tell whether policy can deny anything in either direction."""
        return self.ingress.can_refuse or self.egress.can_refuse


Behind = Mapping[str, Mapping[str, bytes]]
"""Endpoints behind interfaces: for each interface, one address of each endpoint, by the endpoint's name."""


def add_behind(behind: MutableMapping[str, dict[str, bytes]], endpoint: LocalEndpoint, address: bytes) -> None:
    """Add an endpoint to those behind its interface, if it has one."""
    if endpoint.interface is not None:
        behind.setdefault(endpoint.interface, {}).setdefault(endpoint.name, address)


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
    identities: Set[Identity] = frozenset()  # all that endpoints of the cluster have
    own_addresses: frozenset[bytes] = frozenset()  # all addresses of this host
    name_identities: Mapping[str, Identity] = field(default_factory=dict)  # by the patterns in toFQDNs
    processes: Mapping[int, LocalEndpoint] = field(default_factory=dict)  # process endpoints, by cgroup
    epoch: int | None = None  # of the connmarks that offload flows (per-flow); None: per-packet
    _behind: Behind = field(init=False)  # without cluster interfaces, which other hosts use as well

    def __post_init__(self) -> None:
        """Collect the interfaces of endpoints."""
        behind: dict[str, dict[str, bytes]] = {}
        for address, endpoint in self.endpoints.items():
            add_behind(behind, endpoint, address)
        object.__setattr__(self, "_behind", self._without_cluster(behind))

    @property
    def endpoint_interfaces(self) -> Set[str]:
        """Return the interfaces that only endpoints use."""
        return self._behind.keys()

    def with_tables(self, peers: Mapping[bytes, Peer], identities: Set[Identity]) -> "Snapshot":
        """Return the same snapshot over these tables, which their owner may continue to change between packets."""
        return self._with(ipcache=self.ipcache.with_peers(peers), identities=identities)

    def with_revision(self, revision: int, epoch: int | None = None) -> "Snapshot":
        """Return the same snapshot under another revision, so that known flows are evaluated again."""
        return self._with(revision=revision, epoch=epoch)

    def with_endpoints(
        self,
        endpoints: Mapping[bytes, LocalEndpoint],
        behind: Behind,
        ipcache: Ipcache,
        processes: Mapping[int, LocalEndpoint],
    ) -> "Snapshot":
        """Return the same snapshot with other endpoints, their interfaces, and another ipcache.

        It takes no copy of the interfaces, unless one of them is a cluster interface.
        """
        behind = self._without_cluster(behind)
        return self._with(endpoints=endpoints, _behind=behind, ipcache=ipcache, processes=processes)

    def _without_cluster(self, behind: Behind) -> Behind:
        if self.cluster_interfaces.isdisjoint(behind):
            return behind
        return {name: sharers for name, sharers in behind.items() if name not in self.cluster_interfaces}

    def _with(self, **changed: object) -> "Snapshot":
        """Return a copy with other fields, without another pass over all endpoints."""
        other = copy(self)
        for name, value in changed.items():
            object.__setattr__(other, name, value)
        return other

    def enforces(self, policy: PolicyMap, *, from_host: bool) -> bool:
        """Tell whether a policy map denies openings that no rule allows; ``from_host``: of the host to its endpoint."""
        return policy.enforced and not (from_host and (self.allow_localhost or not policy.closes_host))

    def source_endpoint(self, address: bytes, interface: str | None) -> LocalEndpoint | None:
        """Return the local endpoint with this source address, None for a remote source.

        ``interface``: by which the packet arrived, None for packets of this host. Raise LookupError for an address that
        cannot come from that interface: an endpoint's address from elsewhere, or a foreign address from an endpoint.
        An address that every host may use on its link belongs to the owner of the interface.
        """
        endpoint = self.endpoints.get(address)
        if interface is None or (endpoint is not None and interface == endpoint.interface):
            return endpoint
        if interface in self.endpoint_interfaces:
            if is_link_local(address) or is_unspecified(address):
                return self._owner(interface)
            raise LookupError
        if endpoint is not None and self._must_be_elsewhere(endpoint, interface):
            raise LookupError
        return endpoint

    def destination_endpoint(self, address: bytes, interface: str | None) -> LocalEndpoint | None:
        """Return the local endpoint that receives packets to this address, None for any other receiver.

        ``interface``: by which the packets leave, None if this host receives them. It decides where the address does
        not: the same link-local address or group exists on several links.
        """
        if interface is not None and interface in self._behind and depends_on_link(address):
            return self._owner(interface)
        return self.endpoints.get(address)

    def _owner(self, interface: str) -> LocalEndpoint:
        """Return the endpoint behind an interface; for several, one as closed as any of them."""
        sharers = [self.endpoints[address] for address in self._behind[interface].values()]
        if len(sharers) == 1:
            return sharers[0]
        ingress, egress = any(e.ingress.can_refuse for e in sharers), any(e.egress.can_refuse for e in sharers)
        return LocalEndpoint("", UNMANAGED, interface, PolicyMap({}, enforced=ingress), PolicyMap({}, enforced=egress))

    def _must_be_elsewhere(self, endpoint: LocalEndpoint, interface: str) -> bool:
        return endpoint.interface is not None or endpoint.is_host or interface in self.cluster_interfaces

    def is_from_endpoint(self, address: bytes, interface: str | None) -> bool:
        """Tell whether an endpoint of this node has sent a packet, even under a forged source address."""
        try:
            return interface in self.endpoint_interfaces or self.source_endpoint(address, interface) is not None
        except LookupError:
            return False
