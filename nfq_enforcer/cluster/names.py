"""Names for identities and addresses: labels, endpoints, nodes. For logs and lists only, never for a verdict."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NamedTuple, Protocol

from nfq_enforcer.cluster.records import Address
from nfq_enforcer.core.identity import HOST, KUBE_APISERVER, REMOTE_NODE, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.prefixes import Network


class NodeView(Protocol):
    """NodeView: the fields of a node's record that names are made of."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return the addresses by which other nodes reach it."""

    @property
    def version(self) -> str:
        """Return the version of its nfq_enforcer."""

    @property
    def datapath(self) -> Datapath | str:
        """Return the datapath of its configuration."""

    @property
    def peers(self) -> tuple[Address, int] | None:
        """Return address and port at which its agent accepts those of other nodes; None: it does not."""


class EndpointView(Protocol):
    """EndpointView: the fields of an endpoint's record that names are made of."""

    @property
    def namespace(self) -> str:
        """Return its namespace."""

    @property
    def name(self) -> str:
        """Return its name in the namespace."""

    @property
    def node(self) -> str:
        """Return its node."""

    @property
    def identity(self) -> Identity:
        """Return its identity."""

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Return its addresses, 4 or 16 bytes each."""

    @property
    def interface(self) -> str | None:
        """Return its interface on its node."""

    @property
    def cgroup(self) -> str | None:
        """Return the path of its cgroup, None for an endpoint with addresses."""


@dataclass(frozen=True, slots=True)
class EndpointName:
    """EndpointName: an endpoint of the cluster, in the terms of logs and lists."""

    namespace: str
    name: str
    node: str
    identity: Identity
    labels: Labels  # all of them, also those that are not part of the identity
    addresses: tuple[str, ...]
    interface: str | None
    cgroup: str | None


class End(NamedTuple):
    """End: the names of one end of a connection at some time."""

    labels: Labels | None  # of its identity; None: the identity was not known on this node
    namespace: str = ""
    name: str = ""  # empty: not an endpoint


class Ends(NamedTuple):
    """Ends: the names of both ends of a connection at some time."""

    source: End  # the opener
    destination: End


class KnownAddress(NamedTuple):
    """KnownAddress: an address of an endpoint, a node or the API server of the cluster."""

    address: str
    identity: Identity
    node: str  # empty: no node of the cluster
    endpoint: str  # its full name, namespace/name; empty: no endpoint


class Names:
    """Names: the current names of identities, addresses and nodes, a live view of a replica's mappings."""

    def __init__(
        self,
        node: str,
        identities: Mapping[Identity, Labels],
        nodes: Mapping[str, NodeView],
        endpoints: Mapping[str, EndpointView],
        owners: Mapping[bytes, EndpointView],
        all_labels: Callable[[str], Labels],
    ) -> None:
        """Take this node's name and the mappings of a replica, which goes on changing them.

        ``endpoints`` are by full name, ``namespace/name``, ``owners`` are endpoints by address; ``all_labels`` returns
        all labels of an endpoint by its full name.
        """
        self._node = node
        self.identities = identities  # of the cluster; the reserved ones are in RESERVED
        self.nodes = nodes
        self.cidrs: Mapping[Identity, Labels] = {}  # of identities of this node only; the replica replaces it
        self.cidr_of: Callable[[Network], Labels | None] = lambda address: None  # the replica replaces it, too
        self.processes: Mapping[int, EndpointView] = {}  # process endpoints of this node, by cgroup; replaced as well
        self.kube_apiserver: frozenset[bytes] = frozenset()  # addresses of the Kubernetes API server
        self._endpoints = endpoints
        self._owners = owners
        self._all_labels = all_labels

    def labels(self, identity: Identity) -> Labels | None:
        """Return the labels of an identity, None for one that is not known on this node."""
        for labels_by_identity in (self.identities, self.cidrs, RESERVED):
            labels = labels_by_identity.get(identity)
            if labels is not None:
                return labels
        return None

    def endpoint(self, address: bytes, identity: Identity) -> EndpointName | None:
        """Return the endpoint with this address if it also has this identity: an address alone is no proof."""
        owner = self._owners.get(address)
        return self._named(owner) if owner is not None and owner.identity == identity else None

    def ends(self, opening: Opening) -> Ends:
        """Return the current names of both ends of a connection, to be kept with an event."""
        return Ends(
            self._end(opening.src, opening.source, opening.sender),
            self._end(opening.dst, opening.destination, opening.receiver),
        )

    def process(self, cgroup: int, identity: Identity) -> EndpointName | None:
        """Return the process endpoint of this node with this cgroup if it also has this identity."""
        owner = self.processes.get(cgroup)
        return self._named(owner) if owner is not None and owner.identity == identity else None

    def addresses(self) -> Iterator[KnownAddress]:
        """Yield every address of an endpoint, a node or the API server; for an address of several, only the first."""
        for packed, owner in self._owners.items():
            full_name = f"{owner.namespace}/{owner.name}"
            yield KnownAddress(str(ip_address(packed)), owner.identity, owner.node, full_name)
        for name, node in self.nodes.items():
            for address in node.addresses:
                if address.packed not in self._owners:
                    yield KnownAddress(str(address), self._node_identity(name, address.packed), name, "")
        of_nodes = {address.packed for node in self.nodes.values() for address in node.addresses}
        for packed in sorted(self.kube_apiserver - of_nodes - self._owners.keys()):
            yield KnownAddress(str(ip_address(packed)), KUBE_APISERVER, "", "")

    def _node_identity(self, name: str, address: bytes) -> Identity:
        if name == self._node:
            return HOST
        return KUBE_APISERVER if address in self.kube_apiserver else REMOTE_NODE

    def __iter__(self) -> Iterator[EndpointName]:
        """Yield every endpoint of the cluster."""
        return map(self._named, self._endpoints.values())

    def __len__(self) -> int:
        """Return the number of endpoints."""
        return len(self._endpoints)

    def _end(self, address: bytes, identity: Identity, cgroup: int) -> End:
        labels, owner = self.labels(identity), self.processes.get(cgroup) or self._owners.get(address)
        if identity in self.cidrs:  # of several prefixes; the log names that of the address
            labels = self.cidr_of(ip_network(address)) or labels
        if owner is None or owner.identity != identity:
            return End(labels)
        return End(labels, owner.namespace, owner.name)

    def _named(self, endpoint: EndpointView) -> EndpointName:
        labels = self._all_labels(f"{endpoint.namespace}/{endpoint.name}")
        return EndpointName(
            endpoint.namespace,
            endpoint.name,
            endpoint.node,
            endpoint.identity,
            labels,
            tuple(str(ip_address(address)) for address in endpoint.addresses),
            endpoint.interface,
            endpoint.cgroup,
        )
