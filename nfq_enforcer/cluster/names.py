"""Names for numbers: the labels an identity stands for, the endpoint that has an address. For logs and lists only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol

from nfq_enforcer.core.identity import HOST, REMOTE_NODE, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.conntrack import Opening


class NodeView(Protocol):
    """A node, as whoever keeps the cluster has it."""

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Return how other nodes reach it."""

    @property
    def version(self) -> str:
        """Return the version that it runs."""

    @property
    def datapath(self) -> str:
        """Return its datapath, as the configuration has it."""


class EndpointView(Protocol):
    """An endpoint, as whoever keeps the cluster has it."""

    @property
    def namespace(self) -> str:
        """Return its namespace."""

    @property
    def name(self) -> str:
        """Return its name there."""

    @property
    def node(self) -> str:
        """Return the node where it lives."""

    @property
    def identity(self) -> Identity:
        """Return its identity."""

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Return its addresses, 4 or 16 bytes each."""

    @property
    def interface(self) -> str | None:
        """Return the interface behind which it lives, on its node."""


@dataclass(frozen=True, slots=True)
class EndpointName:
    """An endpoint of the cluster, as a reader knows it."""

    namespace: str
    name: str
    node: str
    identity: Identity
    labels: Labels  # all of them, also those that enter no identity
    addresses: tuple[str, ...]
    interface: str | None


class End(NamedTuple):
    """What one end of a connection was called at some moment."""

    labels: Labels | None  # those that make its identity; None: the identity was not known here
    namespace: str = ""
    name: str = ""  # empty: no endpoint


class Ends(NamedTuple):
    """What both ends of a connection were called at some moment."""

    source: End  # who opened it
    destination: End


class KnownAddress(NamedTuple):
    """An address that somebody in the cluster has."""

    address: str
    identity: Identity
    node: str
    endpoint: str  # namespace/name; empty: the node itself


class Names:
    """What things are called now: a live look at what its owner keeps, not a copy."""

    def __init__(
        self,
        node: str,
        identities: Mapping[Identity, Labels],
        nodes: Mapping[str, NodeView],
        endpoints: Mapping[str, EndpointView],
        owners: Mapping[bytes, EndpointView],
        all_labels: Callable[[str], Labels],
    ) -> None:
        """Take this node's name, and what its owner keeps and goes on changing.

        ``endpoints`` are by ``namespace/name``, ``owners`` are those who have an address; ``all_labels`` of an endpoint
        are asked for by its ``namespace/name``.
        """
        self._node = node
        self.identities = identities  # of the cluster; the reserved ones are known anyway
        self.nodes = nodes
        self.cidrs: Mapping[Identity, Labels] = {}  # identities of this node only; its owner puts others in place
        self._endpoints = endpoints
        self._owners = owners
        self._all_labels = all_labels

    def labels(self, identity: Identity) -> Labels | None:
        """Return the labels that make an identity, None for one that is not known here."""
        for known in (self.identities, self.cidrs, RESERVED):
            labels = known.get(identity)
            if labels is not None:
                return labels
        return None

    def endpoint(self, address: bytes, identity: Identity) -> EndpointName | None:
        """Return the endpoint that has this address, if it also has this identity: an address alone proves nothing."""
        found = self._owners.get(address)
        return self._named(found) if found is not None and found.identity == identity else None

    def ends(self, opening: Opening) -> Ends:
        """Return what both ends of a connection are called now, for who wants to know later."""
        return Ends(self._end(opening.src, opening.source), self._end(opening.dst, opening.destination))

    def addresses(self) -> Iterator[KnownAddress]:
        """Yield every address that somebody in the cluster has; an endpoint's before a node's."""
        for packed, owner in self._owners.items():
            called = f"{owner.namespace}/{owner.name}"
            yield KnownAddress(str(ip_address(packed)), owner.identity, owner.node, called)
        for name, node in self.nodes.items():
            identity = HOST if name == self._node else REMOTE_NODE
            for address in node.addresses:
                if address.packed not in self._owners:
                    yield KnownAddress(str(address), identity, name, "")

    def __iter__(self) -> Iterator[EndpointName]:
        """Yield every endpoint of the cluster."""
        return map(self._named, self._endpoints.values())

    def __len__(self) -> int:
        """Return how many endpoints there are."""
        return len(self._endpoints)

    def _end(self, address: bytes, identity: Identity) -> End:
        labels, found = self.labels(identity), self._owners.get(address)
        if found is None or found.identity != identity:
            return End(labels)
        return End(labels, found.namespace, found.name)

    def _named(self, one: EndpointView) -> EndpointName:
        labels = self._all_labels(f"{one.namespace}/{one.name}")
        addresses = tuple(str(ip_address(address)) for address in one.addresses)
        return EndpointName(one.namespace, one.name, one.node, one.identity, labels, addresses, one.interface)
