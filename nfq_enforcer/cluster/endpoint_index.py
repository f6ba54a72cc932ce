"""Who is in the cluster: its nodes and endpoints, and who of them has which address. Pure.

A change costs what it changes, however many endpoints there are, and what all endpoints of a kind have in common is
held once. Which addresses have changed hands is noted, so that nobody has to compare all of them to find out.

Two endpoints may claim one address, for a while: the one that is new there may be heard of before the old one is gone.
An endpoint of this node is believed before those of others (it is here, and nothing may pass it unjudged), otherwise
the one that came last; when that one goes, the address is again that of who still claims it.
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

_NODE = Peer(REMOTE_NODE, remote=True)
_UNNAMED: frozenset[PortSet] = frozenset((frozenset(),))


class _Sort(NamedTuple):
    """What endpoints of one sort have in common, those of a deployment for example."""

    namespace: str
    account: str
    identity: Identity
    labels: Labels
    ports: PortSet


class IndexChanges(NamedTuple):
    """What has changed."""

    touched: Mapping[bytes, Peer | None]  # addresses about which anything was said, and the peers they had before
    local: bool  # endpoints of this node
    ports: bool  # what endpoints of some identity have names for


class EndpointIndex:
    """Nodes and endpoints, as the node of this name sees them."""

    def __init__(self, node: str) -> None:
        """Begin with nobody; ``node`` is this node's name."""
        self._node = node
        self.nodes: dict[str, NodeRecord] = {}
        self.endpoints: dict[str, EndpointRecord] = {}  # by namespace/name
        self.owners: dict[bytes, EndpointRecord] = {}  # by address
        self.local: dict[bytes, EndpointRecord] = {}  # those of them that live on this node
        self.ports: dict[Identity, frozenset[PortSet]] = {}  # of identities whose endpoints have names for ports
        self._contested: dict[bytes, list[EndpointRecord]] = {}  # who claims an address, if more than one does
        self._hosts: Counter[bytes] = Counter()  # how many other nodes have an address
        self._sorts: dict[_Sort, tuple[_Sort, int]] = {}  # each once, and how many are of it
        self._named: defaultdict[Identity, Counter[PortSet]] = defaultdict(Counter)  # how many sorts have them
        self._touched: dict[bytes, Peer | None] = {}
        self._local_changed = self._ports_changed = False

    def put_node(self, name: str, record: NodeRecord | None) -> None:
        """Take a node as it is now; None: it is gone."""
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
        """Take an endpoint as it is now, by its ``namespace/name``; None: it is gone."""
        old = self.endpoints.get(name)
        if old == record:
            return
        new = self._enter(record) if record is not None else None
        if old is not None:
            for address in old.addresses:
                self._settle(address, [one for one in self._claims(address) if one is not old])
            self._leave(old)
        if new is not None:
            for address in new.addresses:
                self._settle(address, [*self._claims(address), new])
            self.endpoints[name] = new
        else:
            del self.endpoints[name]

    def peer(self, address: bytes) -> Peer | None:
        """Return the peer on another node that has this address; None: there is none."""
        owner = self.owners.get(address)
        if owner is not None and owner.node != self._node:
            return _remote(owner.identity)
        return _NODE if address in self._hosts else None

    def peers(self) -> dict[bytes, Peer]:
        """Return all peers by address."""
        others = {address: _remote(one.identity) for address, one in self.owners.items() if address not in self.local}
        return dict.fromkeys(self._hosts, _NODE) | others

    def noted(self) -> IndexChanges:
        """Return what has changed since that was last forgotten."""
        return IndexChanges(self._touched, self._local_changed, self._ports_changed)

    def forget(self) -> None:
        """Note anew from here on."""
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

    def _settle(self, address: bytes, claims: list[EndpointRecord]) -> None:
        """Give an address to the right one of those who claim it, in the order in which they came."""
        self._touch(address)
        self._contested.pop(address, None)
        if len(claims) > 1:
            self._contested[address] = claims
        here = [one for one in claims if one.node == self._node]
        self._local_changed |= bool(here) or address in self.local
        _set(self.local, address, here)
        _set(self.owners, address, here or claims)

    def _enter(self, record: EndpointRecord) -> EndpointRecord:
        """Return the record, with what it has in common with others as the very objects that they have."""
        given = _Sort(record.namespace, record.account, record.identity, record.labels, record.ports)
        sort, count = self._sorts.get(given, (given, 0))
        self._sorts[sort] = sort, count + 1
        if not count:
            self._name(sort, 1)
        node = sys.intern(record.node)
        shared = node is record.node and all(map(operator.is_, given, sort))
        return record if shared else record._replace(**sort._asdict(), node=node)

    def _leave(self, record: EndpointRecord) -> None:
        given = _Sort(record.namespace, record.account, record.identity, record.labels, record.ports)
        sort, count = self._sorts.pop(given)
        if count > 1:
            self._sorts[sort] = sort, count - 1
        else:
            self._name(sort, -1)

    def _name(self, sort: _Sort, step: int) -> None:
        """Count who has names for which ports."""
        named = self._named[sort.identity]
        named[sort.ports] += step
        if not named[sort.ports]:
            del named[sort.ports]
        if not named:
            del self._named[sort.identity]
        found = frozenset(named)
        if found <= _UNNAMED:
            self._ports_changed |= self.ports.pop(sort.identity, None) is not None
        elif self.ports.get(sort.identity) != found:
            self.ports[sort.identity] = found
            self._ports_changed = True


@lru_cache(maxsize=1 << 16)
def _remote(identity: Identity) -> Peer:
    """Return the peer that endpoints of an identity are, the very same for all of them."""
    return Peer(identity, remote=True)


def _set(owners: dict[bytes, EndpointRecord], address: bytes, claims: list[EndpointRecord]) -> None:
    """Make the last claim the one that holds."""
    if claims:
        owners[address] = claims[-1]
    else:
        owners.pop(address, None)
