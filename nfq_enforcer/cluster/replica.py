"""This node's replica of the cluster: changes in, the snapshot for the workers and changed peers out. Pure.

Changes come one by one or a thousand at once, in any order, from whichever store. ``apply`` only notes them, and
``view`` then compiles what they call for, once. What it comes to depends on what is so, not on how it came about.

An endpoint of another node whose labels and named ports are known changes its address's peer and nothing else: nothing
is compiled, and the snapshot is the very one of before. So is it after any change that means nothing on this node.

An endpoint may name an identity whose record is not there (yet). It counts with that number, which no selector selects.
If it lives here, nobody can tell what may pass it: as soon as there is any policy, nothing may.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from nfq_enforcer.cluster.compilation import Compilation
from nfq_enforcer.cluster.endpoint_index import EndpointIndex
from nfq_enforcer.cluster.names import Names
from nfq_enforcer.cluster.records import Address, Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.core.tables.ipcache import NO_PREFIXES, Ipcache, Peer, Prefixes
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.local_identities import LocalIdentities

_SHUT = EndpointMaps(PolicyMap({}, enforced=True), PolicyMap({}, enforced=True))
_OPEN = EndpointMaps(PolicyMap({}, enforced=False), PolicyMap({}, enforced=False))


@dataclass(frozen=True)
class NodeSettings:
    """What a snapshot takes from the configuration of this node."""

    name: str
    addresses: tuple[Address, ...] = ()  # how other nodes reach this one
    own_addresses: frozenset[Address] = frozenset()  # all that this host has
    cluster_interfaces: frozenset[str] = frozenset()
    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    enforcement: Enforcement = Enforcement.AUTO
    audit: bool = False
    allow_localhost: bool = True
    believe_ipcache: bool = False
    relevant: LabelFilter = field(default_factory=LabelFilter)
    datapath: str = "per-packet"


@dataclass(frozen=True)
class View:
    """The cluster as this node sees it now, and what is new about it since the view before."""

    snapshot: Snapshot  # its ipcache knows no peers
    changed: bool  # whether the snapshot is another than in the view before; if not, it is the very same
    peer_changes: tuple[tuple[bytes, Peer | None], ...]  # by address; None: nobody there any more
    policies: tuple[PolicyDocument, ...]  # in the order of their names
    directory: Names  # live: one for all views
    compilations: int  # how often the policy was compiled or revised so far


class Replica:
    """What this node knows of the cluster."""

    def __init__(self, settings: NodeSettings) -> None:
        """Begin with an empty cluster."""
        self._settings = settings
        self._own = frozenset(address.packed for address in settings.own_addresses)
        self._roster = EndpointIndex(settings.name)
        self._identities: dict[Identity, Labels] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._policies: dict[str, PolicyDocument] = {}
        self._sorted: tuple[PolicyDocument, ...] = ()  # as of the last compilation
        self._stale = False  # the policy is no longer that of these identities and documents
        self._compiled = Compilation.fresh((), {}, {}, settings.enforcement)
        self._compilations = 0
        self._local_numbers = self._compiled.policy.local_identities  # those of the last view
        self._outside, self._blocks, self._sites = NO_PREFIXES, NO_PREFIXES, dict[bytes, Identity]()
        self._snapshot: Snapshot | None = None
        known = self._roster
        self._directory = Names(
            settings.name, self._identities, known.nodes, known.endpoints, known.owners, self._labels_of
        )

    @property
    def peers(self) -> dict[bytes, Peer]:
        """Return all peers by address: what all ``peer_changes`` together come to once nothing waits for a view."""
        return self._roster.peers()

    @property
    def endpoints(self) -> Mapping[str, EndpointRecord]:
        """Return every endpoint by its ``namespace/name``."""
        return self._roster.endpoints

    def apply(self, changes: Iterable[Change]) -> None:
        """Take what is so now; the next view shows it."""
        for change in changes:
            match change:
                case (Kind.ENDPOINT, name, EndpointRecord() | None as endpoint):
                    self._roster.put(name, endpoint)
                case (Kind.NODE, name, NodeRecord() | None as node):
                    self._roster.put_node(name, node)
                case (Kind.IDENTITY, name, Labels() | None as labels):
                    self._put_identity(Identity(int(name)), labels)
                case (Kind.DOCUMENT, name, PolicyDocument() | Namespace() | None as document):
                    self._put_document(name, document)
                case _:
                    raise TypeError(f"a record of another kind: {change}")

    def view(self, revision: int) -> View:
        """Return the view now; its snapshot has this revision if it is another than before.

        To be called by one at a time, and not while ``apply`` is. If it fails, the next view is of all that this one
        was to be of, and new.
        """
        old, self._snapshot = self._snapshot, None
        noted, policies = self._roster.noted(), self._compiled.policies
        if stale := self._stale or noted.ports:
            self._compile()
        anew = self._look_at_addresses(noted.touched) or policies is not self._compiled.policies
        endpoints = self._local_endpoints() if old is None or stale or noted.local else old.endpoints
        if old is None or anew or not _equal(endpoints, old.endpoints):
            snapshot = self._new_snapshot(revision, endpoints)
        else:
            snapshot = old
        peers = ((address, had, self._roster.peer(address)) for address, had in noted.touched.items())
        changes = tuple((address, now) for address, had, now in peers if now != had)
        self._snapshot, self._stale = snapshot, False
        self._roster.forget()
        return View(snapshot, snapshot is not old, changes, self._sorted, self._directory, self._compilations)

    def ipcache(self, peers: Mapping[bytes, Peer]) -> Ipcache:
        """Return an ipcache of these peers that knows what policy says of addresses, as of the last view."""
        return Ipcache(peers, self._settings.cluster_networks, self._outside, self._blocks, self._sites)

    def _put_identity(self, identity: Identity, labels: Labels | None) -> None:
        if self._identities.get(identity) == labels:
            return
        self._stale = True
        if labels is None:
            del self._identities[identity]
        else:
            self._identities[identity] = labels

    def _put_document(self, name: str, document: PolicyDocument | Namespace | None) -> None:
        if isinstance(document, Namespace):
            self._namespaces[name] = document
        elif document is not None:
            self._policies[name], self._stale = document, True
        elif self._namespaces.pop(name, None) is None:
            self._stale |= self._policies.pop(name, None) is not None

    def _compile(self) -> None:
        """Bring the policy up to date."""
        # in the order of their names, so that rules stand in one order on all nodes
        self._sorted = tuple(one for _, one in sorted(self._policies.items(), key=lambda named: named[0]))
        # of two numbers for the same labels, which no store gives, the lower one counts
        numbers = {labels: number for number, labels in sorted(self._identities.items(), reverse=True)}
        known = self._roster.ports
        ports = {number: known[number] for number in numbers.values() if number in known}
        after = self._compiled.followed_by(self._sorted, numbers, ports, self._settings.enforcement)
        if after is not self._compiled:
            self._compiled = after
            self._compilations += 1

    def _look_at_addresses(self, touched: Collection[bytes]) -> bool:
        """Bring up to date what policy calls addresses on this node; say whether anything of it is new."""
        numbers, old = self._compiled.policy.local_identities, self._sites
        if numbers is not self._local_numbers:
            self._local_numbers = numbers
            self._outside, self._blocks = Prefixes(numbers.by_cidr), Prefixes(numbers.by_ip_block)
            self._directory.cidrs = {number: labels for labels, number in numbers.cidr_labels.items()}
            self._sites = self._sites_of(numbers, self._roster.owners) if numbers.by_port_set else {}
            return True
        if numbers.by_port_set:
            now = self._sites_of(numbers, touched)
            kept = {address: site for address, site in old.items() if address not in touched}
            self._sites = kept | now
        return self._sites != old

    def _sites_of(self, numbers: LocalIdentities, addresses: Iterable[bytes]) -> dict[bytes, Identity]:
        """Return what tells apart endpoints of one identity whose named ports differ, of these addresses."""
        owners = ((address, self._roster.owners.get(address)) for address in addresses)
        return {
            address: site
            for address, owner in owners
            if owner is not None and (site := numbers.by_port_set.get((owner.identity, owner.ports))) is not None
        }

    def _local_endpoints(self) -> dict[bytes, LocalEndpoint]:
        made: dict[str, LocalEndpoint] = {}
        return {
            address: made.get(one.called) or made.setdefault(one.called, self._local(one))
            for address, one in self._roster.local.items()
        }

    def _local(self, one: EndpointRecord) -> LocalEndpoint:
        maps = self._maps(one)
        is_host = not self._own.isdisjoint(one.addresses)
        return LocalEndpoint(one.called, one.identity, one.interface, maps.ingress, maps.egress, is_host)

    def _maps(self, one: EndpointRecord) -> EndpointMaps:
        labels = self._directory.labels(one.identity)
        if labels is not None:
            return self._compiled.policy.maps_for(labels, one.ports)
        mode = self._settings.enforcement
        closed = mode is Enforcement.ALWAYS or (mode is not Enforcement.NEVER and bool(self._policies))
        return _SHUT if closed else _OPEN

    def _new_snapshot(self, revision: int, endpoints: Mapping[bytes, LocalEndpoint]) -> Snapshot:
        settings = self._settings
        return Snapshot(
            revision,
            endpoints,
            self.ipcache({}),
            settings.cluster_interfaces,
            {address.version: address.packed for address in reversed(settings.addresses)},
            audit=settings.audit,
            allow_localhost=settings.allow_localhost,
            believe_ipcache=settings.believe_ipcache,
        )

    def _labels_of(self, called: str) -> Labels:
        return self._roster.endpoints[called].all_labels(self._namespaces)


def _equal(some: Mapping[bytes, LocalEndpoint], others: Mapping[bytes, LocalEndpoint]) -> bool:
    return some is others or some == others
