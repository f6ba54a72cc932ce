"""Index of the cluster's nodes and endpoints, and of the owner of each address. Pure.

The cost of a change does not depend on the number of endpoints, and the fields that many endpoints have in common are
held once. The index records the addresses that have changed owners, so that no caller compares all of them.

Two endpoints can claim one address for a while, because the new owner may become known before the old one is deleted.
An endpoint of this node wins over those of other nodes (its packets pass here, and none of them may pass unjudged),
otherwise the last one does; when that one is deleted, the address goes back to an endpoint that still claims it. Of two
process endpoints of this node with one cgroup, the older one keeps it.
"""

import operator
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple

from nfq_enforcer.cluster.records import EndpointRecord, NodeRecord
from nfq_enforcer.core.identity import REMOTE_NODE, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.ipcache import Peer
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.policy.rules import PortSet

_NODE = Peer(REMOTE_NODE, remote=True, is_node=True)
_PREFIX_BYTES = {4: 3, 16: 8}  # of a remote network, by the bytes of an address: /24 and /64
_UNNAMED: frozenset[PortSet] = frozenset((frozenset(),))


class _Template(NamedTuple):
    """_Template: the fields that endpoints have in common, those of one deployment for example."""

    namespace: str
    account: str
    identity: Identity
    labels: Labels
    ports: PortSet


class Remote(NamedTuple):
    """Remote: the peer of an address, and the node where it is."""

    peer: Peer
    node: str  # empty for an address of a node itself


class IndexChanges(NamedTuple):
    """IndexChanges: the changes since they were last reset."""

    touched: Mapping[bytes, Remote | None]  # addresses of all changed records, as they were before the changes
    local: bool  # endpoints of this node have changed
    ports: bool  # the named ports of some identity have changed


class EndpointIndex:
    """EndpointIndex: nodes and endpoints from the point of view of one node."""

    def __init__(self, node: str) -> None:
        """Start empty; ``node`` is this node's name."""
        self._node = node
        self.nodes: dict[str, NodeRecord] = {}
        self.endpoints: dict[str, EndpointRecord] = {}  # by full name
        self.hosted: dict[str, EndpointRecord] = {}  # those on this node, by full name
        self.owners: dict[bytes, EndpointRecord] = {}  # by address
        self.local: dict[bytes, EndpointRecord] = {}  # the owners on this node, by address
        self.processes: dict[str, EndpointRecord] = {}  # process endpoints on this node, by cgroup
        self.ports: dict[Identity, frozenset[PortSet]] = {}  # of identities with named ports
        self._cgroup_claims: dict[str, list[EndpointRecord]] = {}  # of process endpoints on this node, by cgroup
        self._contested: dict[bytes, list[EndpointRecord]] = {}  # claims of addresses with more than one
        self._hosts: Counter[bytes] = Counter()  # number of other nodes with an address
        self._templates: dict[_Template, tuple[_Template, int]] = {}  # each with the number of its endpoints
        self._port_counts: defaultdict[Identity, Counter[PortSet]] = defaultdict(
            Counter
        )  # number of _Template with them
        self._touched: dict[bytes, Remote | None] = {}
        self._local_changed = self._ports_changed = False
        self._networks: Counter[bytes] = Counter()  # number of remote endpoints' addresses with a prefix
        self._network_set: frozenset[Network] | None = None  # the same as networks, once somebody has needed them
        self.touched_identities: set[Identity] = set()  # gained their first endpoint, or lost the last; see ``Replica``

    def put_node(self, name: str, record: NodeRecord | None) -> None:
        """Update a node's record; None: the node is deleted."""
        old = self.nodes.get(name)
        if old == record:
            return
        if old is not None:
            self._count(name, old, -1)
        if record is not None:
            self._count(name, record, 1)
            self.nodes[name] = record
        else:
            del self.nodes[name]

    def put(self, name: str, record: EndpointRecord | None) -> None:
        """Update an endpoint's record, by its full name ``namespace/name``; None: the endpoint is deleted."""
        old = self.endpoints.get(name)
        if old == record:
            return
        new = self._with_template(record) if record is not None else None
        if old is not None:
            for address in old.addresses:
                self._set_claims(address, [claim for claim in self._claims(address) if claim is not old])
            self._release_template(old)
            if old.node == self._node:
                del self.hosted[name]
                self._release_cgroup(old)
        if new is not None:
            for address in new.addresses:
                self._set_claims(address, [*self._claims(address), new])
            self.endpoints[name] = new
            if new.node == self._node:
                self.hosted[name] = new
                self._claim_cgroup(new)
        else:
            del self.endpoints[name]

    def _claim_cgroup(self, record: EndpointRecord) -> None:
        if record.cgroup is not None:
            self._set_cgroup_claims(record.cgroup, [*self._cgroup_claims.get(record.cgroup, ()), record])

    def _release_cgroup(self, record: EndpointRecord) -> None:
        if record.cgroup is not None:
            claims = [claim for claim in self._cgroup_claims[record.cgroup] if claim is not record]
            self._set_cgroup_claims(record.cgroup, claims)

    def _set_cgroup_claims(self, cgroup: str, claims: list[EndpointRecord]) -> None:
        """Set the claims of a cgroup, oldest first."""
        self._local_changed = True
        if claims:
            self._cgroup_claims[cgroup], self.processes[cgroup] = claims, claims[0]
        else:
            del self._cgroup_claims[cgroup], self.processes[cgroup]

    def remote(self, address: bytes) -> Remote | None:
        """Return the peer on another node with this address; None for an unknown address or one of this node."""
        owner = self.owners.get(address)
        if owner is not None and owner.node != self._node:
            return Remote(_remote(owner.identity, address in self._hosts), owner.node)
        return Remote(_NODE, "") if address in self._hosts else None

    def peers(self) -> dict[bytes, Peer]:
        """Return all peers by address."""
        others = {
            address: _remote(owner.identity, address in self._hosts)
            for address, owner in self.owners.items()
            if address not in self.local
        }
        return dict.fromkeys(self._hosts, _NODE) | others

    @property
    def remote_networks(self) -> frozenset[Network]:
        """Return networks that have all addresses of endpoints on other nodes: few, so that they rarely change."""
        if self._network_set is None:
            self._network_set = frozenset(map(_network, self._networks))
        return self._network_set

    def has_endpoint_of(self, identity: Identity) -> bool:
        """Tell whether any endpoint of the cluster has this identity."""
        return identity in self._port_counts

    def changes(self) -> IndexChanges:
        """Return the changes since the last reset."""
        return IndexChanges(self._touched, self._local_changed, self._ports_changed)

    def reset_changes(self) -> None:
        """Start recording changes anew."""
        self._touched, self._local_changed, self._ports_changed = {}, False, False

    def _count(self, name: str, record: NodeRecord, step: int) -> None:
        if name == self._node:
            return
        for address in record.addresses:
            self._touch(address.packed)
            self._hosts[address.packed] += step
            if not self._hosts[address.packed]:
                del self._hosts[address.packed]

    def _touch(self, address: bytes) -> None:
        if address not in self._touched:
            self._touched[address] = self.remote(address)

    def _claims(self, address: bytes) -> Iterable[EndpointRecord]:
        owner = self.owners.get(address)
        return self._contested.get(address, () if owner is None else (owner,))

    def _set_claims(self, address: bytes, claims: list[EndpointRecord]) -> None:
        """Set the claims of an address, oldest first, and choose its owner among them."""
        self._touch(address)
        was_remote = self._is_remote(address)
        self._contested.pop(address, None)
        if len(claims) > 1:
            self._contested[address] = claims
        local = [claim for claim in claims if claim.node == self._node]
        self._local_changed |= bool(local) or address in self.local
        _set_owner(self.local, address, local)
        _set_owner(self.owners, address, local or claims)
        self._count_network(address, self._is_remote(address) - was_remote)

    def _is_remote(self, address: bytes) -> bool:
        return address in self.owners and address not in self.local

    def _count_network(self, address: bytes, step: int) -> None:
        if not step:
            return
        prefix = address[: _PREFIX_BYTES[len(address)]]
        if self._networks[prefix] + step in (0, step):
            self._network_set = None
        self._networks[prefix] += step
        if not self._networks[prefix]:
            del self._networks[prefix]

    def _with_template(self, record: EndpointRecord) -> EndpointRecord:
        """Count the record, and return it with the same objects for common fields as the other records have."""
        own = _template(record)
        template, count = self._templates.get(own, (own, 0))
        self._templates[template] = template, count + 1
        if not count:
            self._count_ports(template, 1)
        node = sys.intern(record.node)
        shared = node is record.node and all(map(operator.is_, own, template))
        return record if shared else record._replace(**template._asdict(), node=node)

    def _release_template(self, record: EndpointRecord) -> None:
        template, count = self._templates.pop(_template(record))
        if count > 1:
            self._templates[template] = template, count - 1
        else:
            self._count_ports(template, -1)

    def _count_ports(self, template: _Template, step: int) -> None:
        """Add to the count of the named ports of an identity, and update ``ports``."""
        counts = self._port_counts[template.identity]
        if not counts:
            self.touched_identities.add(template.identity)
        counts[template.ports] += step
        if not counts[template.ports]:
            del counts[template.ports]
        if not counts:
            self.touched_identities.add(template.identity)
            del self._port_counts[template.identity]
        port_sets = frozenset(counts)
        if port_sets <= _UNNAMED:
            self._ports_changed |= self.ports.pop(template.identity, None) is not None
        elif self.ports.get(template.identity) != port_sets:
            self.ports[template.identity] = port_sets
            self._ports_changed = True


def _template(record: EndpointRecord) -> _Template:
    return _Template(record.namespace, record.account, record.identity, record.labels, record.ports)


def _network(prefix: bytes) -> Network:
    size = 4 if len(prefix) == _PREFIX_BYTES[4] else 16
    return ip_network((prefix + bytes(size - len(prefix)), len(prefix) * 8))


@lru_cache(maxsize=1 << 16)
def _remote(identity: Identity, is_node: bool) -> Peer:
    """Return the peer for remote endpoints of an identity: one object for all of them."""
    return Peer(identity, remote=True, is_node=is_node)


def _set_owner(owners: dict[bytes, EndpointRecord], address: bytes, claims: list[EndpointRecord]) -> None:
    """Make the endpoint of the last claim the owner."""
    if claims:
        owners[address] = claims[-1]
    else:
        owners.pop(address, None)
