"""Index of the cluster's nodes and endpoints, and of the owner of each address. Pure.

The cost of a change does not depend on the number of endpoints, and the fields that many endpoints have in common are
held once. The index records the addresses that have changed owners, so that no caller compares all of them.

Two endpoints can claim one address for a while, because the new owner may become known before the old one is deleted.
An endpoint of this node wins over those of other nodes (its packets pass here, and none of them may pass unjudged),
otherwise the last one does; when that one is deleted, the address goes back to an endpoint that still claims it.
"""

import operator
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from nfq_enforcer.cluster.records import EndpointRecord, NodeRecord
from nfq_enforcer.core.identity import REMOTE_NODE, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.ipcache import Peer
from nfq_enforcer.policy.rules import PortSet

_NODE = Peer(REMOTE_NODE, remote=True, is_node=True)
_UNNAMED: frozenset[PortSet] = frozenset((frozenset(),))


class _Template(NamedTuple):
    """_Template: the fields that endpoints have in common, those of one deployment for example."""

    namespace: str
    account: str
    identity: Identity
    labels: Labels
    ports: PortSet


class IndexChanges(NamedTuple):
    """IndexChanges: the changes since they were last reset."""

    touched: Mapping[bytes, Peer | None]  # addresses of all changed records, and their peers before the changes
    local: bool  # endpoints of this node have changed
    ports: bool  # the named ports of some identity have changed


class EndpointIndex:
    """EndpointIndex: nodes and endpoints from the point of view of one node."""

    def __init__(self, node: str) -> None:
        """Start empty; ``node`` is this node's name."""
        self._node = node
        self.nodes: dict[str, NodeRecord] = {}
        self.endpoints: dict[str, EndpointRecord] = {}  # by full name
        self.owners: dict[bytes, EndpointRecord] = {}  # by address
        self.local: dict[bytes, EndpointRecord] = {}  # the owners on this node, by address
        self.ports: dict[Identity, frozenset[PortSet]] = {}  # of identities with named ports
        self._contested: dict[bytes, list[EndpointRecord]] = {}  # claims of addresses with more than one
        self._hosts: Counter[bytes] = Counter()  # number of other nodes with an address
        self._templates: dict[_Template, tuple[_Template, int]] = {}  # each with the number of its endpoints
        self._port_counts: defaultdict[Identity, Counter[PortSet]] = defaultdict(
            Counter
        )  # number of _Template with them
        self._touched: dict[bytes, Peer | None] = {}
        self._local_changed = self._ports_changed = False

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
        if new is not None:
            for address in new.addresses:
                self._set_claims(address, [*self._claims(address), new])
            self.endpoints[name] = new
        else:
            del self.endpoints[name]

    def peer(self, address: bytes) -> Peer | None:
        """Return the peer on another node with this address; None for an unknown address or one of this node."""
        owner = self.owners.get(address)
        if owner is not None and owner.node != self._node:
            return _remote(owner.identity, address in self._hosts)
        return _NODE if address in self._hosts else None

    def peers(self) -> dict[bytes, Peer]:
        """Return all peers by address."""
        others = {
            address: _remote(owner.identity, address in self._hosts)
            for address, owner in self.owners.items()
            if address not in self.local
        }
        return dict.fromkeys(self._hosts, _NODE) | others

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
            self._touched[address] = self.peer(address)

    def _claims(self, address: bytes) -> Iterable[EndpointRecord]:
        owner = self.owners.get(address)
        return self._contested.get(address, () if owner is None else (owner,))

    def _set_claims(self, address: bytes, claims: list[EndpointRecord]) -> None:
        """Set the claims of an address, oldest first, and choose its owner among them."""
        self._touch(address)
        self._contested.pop(address, None)
        if len(claims) > 1:
            self._contested[address] = claims
        local = [claim for claim in claims if claim.node == self._node]
        self._local_changed |= bool(local) or address in self.local
        _set_owner(self.local, address, local)
        _set_owner(self.owners, address, local or claims)

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
        counts[template.ports] += step
        if not counts[template.ports]:
            del counts[template.ports]
        if not counts:
            del self._port_counts[template.identity]
        port_sets = frozenset(counts)
        if port_sets <= _UNNAMED:
            self._ports_changed |= self.ports.pop(template.identity, None) is not None
        elif self.ports.get(template.identity) != port_sets:
            self.ports[template.identity] = port_sets
            self._ports_changed = True


def _template(record: EndpointRecord) -> _Template:
    return _Template(record.namespace, record.account, record.identity, record.labels, record.ports)


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
