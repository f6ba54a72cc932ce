"""This node's replica of the cluster: changes in, the snapshot for the workers and changed peers out. Pure.

Changes come one by one or a thousand at once, in any order, from whichever store. ``apply`` only records them;
``view`` compiles once for all of them. The result depends on the current records only, not on the order of the changes.

An endpoint of another node with known labels and named ports changes the peer of its address and nothing else: nothing
is compiled, and the snapshot is the same object as before. The same holds for any change without effect on this node.

An endpoint can have an identity without a record (so far). Its number is used, and no selector selects it. If
the endpoint is on this node, its policy cannot be compiled: as soon as the cluster has any policy, all its traffic is
dropped.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nfq_enforcer.cluster.compilation import Compilation
from nfq_enforcer.cluster.endpoint_index import EndpointIndex
from nfq_enforcer.cluster.names import Names
from nfq_enforcer.cluster.records import Address, Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import HOST, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.tables import identities as identity_table
from nfq_enforcer.core.tables.identities import IdentityChange
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, Network, Prefixes
from nfq_enforcer.core.tables.snapshot import HOST_NAME, LocalEndpoint, Snapshot
from nfq_enforcer.core.wire.scopes import has_only_groups
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.local_identities import LocalIdentities
from nfq_enforcer.policy.services import api_servers

_SHUT = EndpointMaps(PolicyMap({}, enforced=True), PolicyMap({}, enforced=True))
_OPEN = EndpointMaps(PolicyMap({}, enforced=False), PolicyMap({}, enforced=False))


class Cgroup(NamedTuple):
    """Cgroup: a group of processes of this host; a socket belongs to that of the process that has made it, for good."""

    level: int  # below the root of cgroup2, which has 0
    number: int  # inode of its folder; a later one under the same path has another


@dataclass(frozen=True)
class NodeSettings:
    """NodeSettings: the configuration of this node that its records and snapshots depend on."""

    name: str
    addresses: tuple[Address, ...] = ()  # by which other nodes reach this one
    own_addresses: frozenset[Address] = frozenset()  # all addresses of this host
    cluster_interfaces: frozenset[str] = frozenset()
    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    enforcement: Enforcement = Enforcement.AUTO
    audit: bool = False
    allow_localhost: bool = True
    trust_ipcache: bool = False
    relevant: LabelFilter = field(default_factory=LabelFilter)
    cluster: str = DEFAULT_CLUSTER  # label of every endpoint of this node
    kube_apiserver: frozenset[Address] = frozenset()
    datapath: Datapath = Datapath.PER_PACKET
    labels: Labels = field(default_factory=Labels)  # of the node itself
    process_cgroup: str = "/nfqe"  # the path of the cgroup above all that the agent makes for processes

    @property
    def registered_addresses(self) -> tuple[Address, ...]:
        """Return all addresses that identify packets of this node, those by which other nodes reach it first.

        A node also sends from further addresses: a floating one, or the gateway of its endpoints.
        """
        others = self.own_addresses - set(self.addresses)
        return (*self.addresses, *sorted(others, key=lambda address: (address.version, address.packed)))


@dataclass(frozen=True)
class View:
    """View: the state that this node enforces, and its differences from the view before."""

    snapshot: Snapshot  # without peers in its ipcache
    changed: bool  # the snapshot differs from the view before; if False, it is the same object
    # by address; None: no peer has it any more; the same peer as before: it has moved to another node
    peer_changes: tuple[tuple[bytes, Peer | None], ...]
    remote_networks: frozenset[Network]  # with all endpoints of other nodes
    policies: tuple[PolicyDocument, ...]  # in the order of their names
    names: Names  # live: one object for all views
    sockets: frozenset[Cgroup]  # the kernel classifies packets by sockets of these cgroups
    compilations: int  # number of compilations and incremental revisions of the policy so far


class Replica:
    """Replica: the records of the cluster, compiled for one node."""

    def __init__(self, settings: NodeSettings) -> None:
        """Start with an empty cluster."""
        self.settings = settings
        self.node_labels = settings.labels
        self._own = frozenset(address.packed for address in settings.own_addresses)
        self._configured_apiserver = frozenset(address.packed for address in settings.kube_apiserver)
        self._apiserver = self._configured_apiserver  # and the addresses that documents name
        self._index = EndpointIndex(settings.name)
        self._identities: dict[Identity, Labels] = {}
        self._known: set[Identity] = set()  # as of the last ``identity_changes``
        self._namespaces: dict[str, Namespace] = {}
        self._policies: dict[str, PolicyDocument] = {}
        self._sorted: tuple[PolicyDocument, ...] = ()  # as of the last compilation
        self._stale = False  # identities or documents have changed since the compilation
        self._compiled = Compilation.fresh((), {}, {}, settings.enforcement)
        self._compilations = 0
        self._local_numbers = self._compiled.policy.local_identities  # of the last view
        self._outside, self._blocks, self._sites = NO_PREFIXES, NO_PREFIXES, dict[bytes, Identity]()
        self._groups = NO_PREFIXES  # the part of ``_outside`` that has nothing but groups
        self._cgroups: Mapping[str, tuple[Cgroup, ...]] = {}
        self._snapshot: Snapshot | None = None
        index = self._index
        self._names = Names(
            settings.name, self._identities, index.nodes, index.endpoints, index.owners, self._labels_of
        )
        self._names.kube_apiserver = self._apiserver

    @property
    def peers(self) -> dict[bytes, Peer]:
        """Return all peers by address: the sum of all ``peer_changes``, after a view of all changes."""
        return self._index.peers()

    @property
    def identities(self) -> Set[Identity]:
        """Return all identities of the cluster: the sum of all ``identity_changes``."""
        return self._known

    @property
    def endpoints(self) -> Mapping[str, EndpointRecord]:
        """Return every endpoint by its full name, ``namespace/name``."""
        return self._index.endpoints

    @property
    def hosted(self) -> Mapping[str, EndpointRecord]:
        """Return every endpoint on this node by its full name."""
        return self._index.hosted

    @property
    def namespaces(self) -> Mapping[str, Namespace]:
        """Return every Namespace document by the name of its record."""
        return self._namespaces

    @property
    def documents(self) -> Mapping[str, PolicyDocument | Namespace]:
        """Return every document by the name of its record."""
        return self._namespaces | self._policies

    def apply(self, changes: Iterable[Change]) -> None:
        """Record changes for the next view."""
        for change in changes:
            match change:
                case (Kind.ENDPOINT, name, EndpointRecord() | None as endpoint):
                    self._index.put(name, endpoint)
                case (Kind.NODE, name, NodeRecord() | None as node):
                    self._index.put_node(name, node)
                case (Kind.IDENTITY, name, Labels() | None as labels):
                    self._put_identity(Identity(int(name)), labels)
                case (Kind.DOCUMENT, name, PolicyDocument() | Namespace() | None as document):
                    self._put_document(name, document)
                case _:
                    raise TypeError(f"a record of another kind: {change}")

    def use(self, settings: NodeSettings) -> None:
        """Use other addresses of this node from the next view on; not to be called concurrently with ``view``."""
        self.settings = settings
        self._own = frozenset(address.packed for address in settings.own_addresses)
        self._snapshot = None

    def use_labels(self, labels: Labels) -> None:
        """Use other labels of this node from the next view on; not to be called concurrently with ``view``."""
        self.node_labels, self._snapshot = labels, None

    def use_cgroups(self, cgroups: Mapping[str, tuple[Cgroup, ...]]) -> None:
        """Use these cgroups from the next view on; not to be called concurrently with ``view``.

        Each path has its cgroup, and those below that belong to the same endpoint. That of the settings is above
        all that the agent has made: packets of a process below it without an endpoint are dropped.
        """
        self._cgroups, self._snapshot = cgroups, None

    def policy_of(self, full_name: str) -> Callable[[], EndpointMaps]:
        """Return a function that returns the policy maps of an endpoint of any node, or of HOST_NAME, this node itself.

        They are of the last view. The function may be called in another thread. Raise KeyError for an unknown endpoint.
        """
        policy = self._compiled.policy
        if full_name == HOST_NAME:
            return partial(policy.maps_once, RESERVED[HOST].union(self.node_labels))
        record = self._index.endpoints[full_name]
        labels = self._names.labels(record.identity)
        return partial(self._maps, record) if labels is None else partial(policy.maps_once, labels, record.ports)

    def identity_changes(self) -> tuple[IdentityChange, ...]:
        """Return the changes of the cluster's identities since the last call; nothing is compiled for them.

        The cluster has every identity that has a record, or an endpoint.
        """
        touched, self._index.touched_identities = self._index.touched_identities, set()
        states = ((number, number in self._identities or self._index.has_endpoint_of(number)) for number in touched)
        changes = tuple((number, known) for number, known in states if known != (number in self._known))
        identity_table.apply_changes(self._known, changes)
        return changes

    def view(self, revision: int) -> View:
        """Return the current view; a snapshot that differs from the one before has this revision.

        Not to be called concurrently with itself or with ``apply``. If it fails, the next view has all of its changes
        and a new snapshot.
        """
        old, self._snapshot = self._snapshot, None
        changes, policies, apiserver = self._index.changes(), self._compiled.policies, self._apiserver
        if stale := self._stale or changes.ports:
            self._compile()
        different = self._update_local_identities(changes.touched) or policies is not self._compiled.policies
        different |= apiserver != self._apiserver
        self._names.kube_apiserver = self._apiserver
        endpoints = self._local_endpoints() if old is None or stale or changes.local else old.endpoints
        processes = self._process_endpoints() if old is None or stale or changes.local else old.processes
        if old is None or different or not (_equal(endpoints, old.endpoints) and processes == old.processes):
            snapshot = self._new_snapshot(revision, endpoints, processes)
        else:
            snapshot = old
        remotes = ((address, before, self._index.remote(address)) for address, before in changes.touched.items())
        peer_changes = tuple((address, now and now.peer) for address, before, now in remotes if now != before)
        self._snapshot, self._stale = snapshot, False
        self._index.reset_changes()
        networks = self._index.remote_networks.union(self.settings.cluster_networks)
        return View(
            *(snapshot, snapshot is not old, peer_changes, networks, self._sorted, self._names),
            *(self._sockets(), self._compilations),
        )

    def ipcache(self, peers: Mapping[bytes, Peer]) -> Ipcache:
        """Return an ipcache of these peers, with the policy's identities of addresses as of the last view."""
        networks, apiserver = self.settings.cluster_networks, self._apiserver
        return Ipcache(peers, networks, self._outside, self._blocks, self._sites, apiserver, self._groups)

    def _put_identity(self, identity: Identity, labels: Labels | None) -> None:
        if self._identities.get(identity) == labels:
            return
        self._stale = True
        self._index.touched_identities.add(identity)
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
        """Compile the policy of the current documents and identities."""
        # In the order of their names, so that the rules have the same order on all nodes.
        self._sorted = tuple(policy for _, policy in sorted(self._policies.items(), key=lambda item: item[0]))
        # Of two numbers for the same labels, which no store allocates, the lower one is used.
        numbers = {labels: number for number, labels in sorted(self._identities.items(), reverse=True)}
        named = self._index.ports
        ports = {number: named[number] for number in numbers.values() if number in named}
        compiled = self._compiled.followed_by(self._sorted, numbers, ports, self.settings.enforcement)
        if compiled is not self._compiled:
            self._compiled = compiled
            self._compilations += 1
        self._apiserver = self._configured_apiserver | api_servers(self._sorted)

    def _update_local_identities(self, touched: Collection[bytes]) -> bool:
        """Update this node's own identities of addresses (CIDRs and sites); return whether any is different."""
        numbers, old = self._compiled.policy.local_identities, self._sites
        if numbers is not self._local_numbers:
            self._local_numbers = numbers
            self._groups = Prefixes({net: number for net, number in numbers.by_cidr.items() if has_only_groups(net)})
            self._outside, self._blocks = Prefixes(numbers.by_cidr), Prefixes(numbers.by_ip_block)
            self._names.cidrs = numbers.cidr_names | numbers.name_labels
            self._names.cidr_of = numbers.labels_of
            self._sites = self._sites_of(numbers, self._index.owners) if numbers.by_port_set else {}
            return True
        if numbers.by_port_set:
            new = self._sites_of(numbers, touched)
            kept = {address: site for address, site in old.items() if address not in touched}
            self._sites = kept | new
        return self._sites != old

    def _sites_of(self, numbers: LocalIdentities, addresses: Iterable[bytes]) -> dict[bytes, Identity]:
        """Return the sites of addresses: local identities for endpoints of one identity with different named ports."""
        owners = ((address, self._index.owners.get(address)) for address in addresses)
        return {
            address: site
            for address, owner in owners
            if owner is not None and (site := numbers.by_port_set.get((owner.identity, owner.ports))) is not None
        }

    def _local_endpoints(self) -> dict[bytes, LocalEndpoint]:
        made: dict[str, LocalEndpoint] = {}
        return self._host_endpoints() | {
            address: made.get(record.full_name) or made.setdefault(record.full_name, self._local_endpoint(record))
            for address, record in self._index.local.items()
        }

    def _host_endpoints(self) -> dict[bytes, LocalEndpoint]:
        """Return this host as an endpoint at each of its addresses, if a rule selects it; without one it is none.

        An endpoint with a document at an address of the host has that address for itself.
        """
        ingress, egress = self._compiled.policy.maps_for(RESERVED[HOST].union(self.node_labels))
        host = LocalEndpoint(HOST_NAME, HOST, None, ingress, egress, is_host=True)
        return dict.fromkeys(self._own, host) if host.guarded else {}

    def _local_endpoint(self, record: EndpointRecord) -> LocalEndpoint:
        maps = self._maps(record)
        is_process = record.cgroup is not None
        is_host = is_process or not self._own.isdisjoint(record.addresses)
        ends = record.full_name, record.identity, record.interface
        return LocalEndpoint(*ends, maps.ingress, maps.egress, is_host, is_process)

    def _process_endpoints(self) -> dict[int, LocalEndpoint]:
        """Return this node's process endpoints by the numbers of their cgroups, as far as these exist."""
        made = {path: self._local_endpoint(record) for path, record in self._index.processes.items()}
        found = {cgroup.number: endpoint for path, endpoint in made.items() for cgroup in self._cgroups.get(path, ())}
        self._names.processes = {number: self._index.endpoints[endpoint.name] for number, endpoint in found.items()}
        return found

    def _sockets(self) -> frozenset[Cgroup]:
        parent = self.settings.process_cgroup
        paths = {parent, *(path for path in self._index.processes if not path.startswith(f"{parent}/"))}
        return frozenset(found[0] for path in paths if (found := self._cgroups.get(path)))

    def _maps(self, record: EndpointRecord) -> EndpointMaps:
        labels = self._names.labels(record.identity)
        if labels is not None:
            return self._compiled.policy.maps_for(labels, record.ports)
        mode = self.settings.enforcement
        closed = mode is Enforcement.ALWAYS or (
            mode is not Enforcement.NEVER and any(one.has_rules for one in self._policies.values())
        )
        return _SHUT if closed else _OPEN

    def _new_snapshot(
        self, revision: int, endpoints: Mapping[bytes, LocalEndpoint], processes: Mapping[int, LocalEndpoint]
    ) -> Snapshot:
        settings = self.settings
        return Snapshot(
            revision,
            endpoints,
            self.ipcache({}),
            settings.cluster_interfaces,
            {address.version: address.packed for address in reversed(settings.addresses)},
            audit=settings.audit,
            allow_localhost=settings.allow_localhost,
            trust_ipcache=settings.trust_ipcache,
            own_addresses=self._own,
            name_identities=self._local_numbers.by_name,
            processes=processes,
        )

    def _labels_of(self, full_name: str) -> Labels:
        return self._index.endpoints[full_name].all_labels(self._namespaces, self.settings.cluster)


def _equal(endpoints: Mapping[bytes, LocalEndpoint], others: Mapping[bytes, LocalEndpoint]) -> bool:
    return endpoints is others or endpoints == others
