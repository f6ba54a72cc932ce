"""Ipcache: the identity of each address, and whether packets to it bear a stamp.

Endpoints of this node are not in the ipcache (``Snapshot.endpoints`` has them), nor is this node itself: the hook
identifies packets from and to the host. An address without a peer has the identity of the longest prefix that a policy
names for it, else ``world``. The addresses of the Kubernetes API server (configuration) are ``kube-apiserver``, and
keep the identity that they would have without it as a local identity, so that policy on either one applies.

Peers are numerous and change one by one, so the ipcache does not own them: it reads a mapping that its owner may change
between two look-ups.

Beside its identity, an address may have *local identities*, for policy on the address itself instead of on labels (see
``policy.local_identities``). A local identity is valid on this node only.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from copy import copy
from itertools import chain
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import ANY, KUBE_APISERVER, WORLD, Identity, may_be_stamped, travels
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, Network, Prefixes


class Peer(NamedTuple):
    """Peer: a remote owner of an address."""

    identity: Identity
    remote: bool  # in the cluster and on another node: packets to it are stamped
    is_node: bool = False  # the address of a node, which may route packets and quote them in ICMP errors


PeerChange = tuple[bytes, Peer | None]
"""Change of a peer: an address (4 or 16 bytes), and its peer from now on; None: no peer."""


_PARTS = 256
_MAX_CACHED = 4096


class PeerTable(MutableMapping[bytes, Peer]):
    """Table of peers by address, in many small dicts: a large dict stalls the packet path while it grows."""

    __slots__ = ("_parts",)

    def __init__(self, peers: Mapping[bytes, Peer]) -> None:
        """Take the initial peers."""
        self._parts: tuple[dict[bytes, Peer], ...] = tuple({} for _ in range(_PARTS))
        self.update(peers)

    def __getitem__(self, address: bytes) -> Peer:
        """Return the peer of an address; raise KeyError without one."""
        return self._parts[hash(address) % _PARTS][address]

    def get(self, address: bytes, default: Any = None) -> Any:
        """Return the peer of an address; the inherited method raises a KeyError inside for each unknown address."""
        return self._parts[hash(address) % _PARTS].get(address, default)

    def __setitem__(self, address: bytes, peer: Peer) -> None:
        """Set the peer of an address."""
        self._parts[hash(address) % _PARTS][address] = peer

    def __delitem__(self, address: bytes) -> None:
        """Remove the peer of an address; raise KeyError without one."""
        del self._parts[hash(address) % _PARTS][address]

    def __iter__(self) -> Iterator[bytes]:
        """Yield all addresses."""
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        """Return the number of addresses."""
        return sum(map(len, self._parts))


def apply_changes(peers: MutableMapping[bytes, Peer], changes: Iterable[PeerChange]) -> None:
    """Apply changes to the peers, in order."""
    for address, peer in changes:
        if peer is None:
            peers.pop(address, None)
        else:
            peers[address] = peer


def changes_between(before: Mapping[bytes, Peer], now: Mapping[bytes, Peer]) -> list[PeerChange]:
    """Return the changes from one state of the peers to another."""
    gone: list[PeerChange] = [(address, None) for address in before.keys() - now.keys()]
    return gone + [(address, peer) for address, peer in now.items() if before.get(address) != peer]


class Ipcache:
    """Ipcache: look-up of peers by address (4 or 16 bytes)."""

    __slots__ = ("_blocks", "_cluster", "_groups", "_kube_apiserver", "_outside", "_peers", "_sites", "_unknown")

    def __init__(
        self,
        peers: Mapping[bytes, Peer],
        cluster: Iterable[Network] = (),
        outside: Prefixes = NO_PREFIXES,
        blocks: Prefixes = NO_PREFIXES,
        sites: Mapping[bytes, Identity] | None = None,
        kube_apiserver: frozenset[bytes] = frozenset(),
        groups: Prefixes = NO_PREFIXES,
    ) -> None:
        """Take the peers, and further networks that count as part of the cluster.

        ``outside``: identities of addresses without a peer. ``blocks``, ``sites``: local identities of all addresses,
        by prefix and by address. ``kube_apiserver``: addresses of the Kubernetes API server. ``groups``: identities of
        prefixes that have nothing but groups, which ``outside`` has as well.
        """
        self._peers = peers
        self._cluster = tuple((net.max_prefixlen, int(net.network_address), int(net.netmask)) for net in cluster)
        self._outside = outside
        self._blocks = blocks
        self._sites = sites or {}
        self._kube_apiserver = kube_apiserver
        self._groups = groups
        self._unknown: dict[bytes, Peer] = {}  # cached results for addresses without a peer

    def with_peers(self, peers: Mapping[bytes, Peer]) -> "Ipcache":
        """Return the same ipcache over other peers, which their owner may continue to change."""
        other = copy(self)
        other._peers = peers
        return other

    @property
    def prefixes(self) -> tuple[Prefixes, Prefixes]:
        """Return the prefix tables of addresses without a peer, and of local identities."""
        return self._outside, self._blocks

    def with_prefixes(self, outside: Prefixes, blocks: Prefixes) -> "Ipcache":
        """Return the same ipcache with other prefix tables."""
        other = copy(self)
        other._outside, other._blocks, other._unknown = outside, blocks, {}
        return other

    def lookup(self, address: bytes) -> Peer:
        """Return the peer of this address; without one, a peer with the identity of its prefix, or ``world``."""
        if self._kube_apiserver and address in self._kube_apiserver:
            found = self.underlying(address)
            return found if travels(found.identity) else found._replace(identity=KUBE_APISERVER)
        return self.underlying(address)

    def underlying(self, address: bytes) -> Peer:
        """Return the peer of this address as if it were no address of the Kubernetes API server."""
        return self._peers.get(address) or self._unknown.get(address) or self._resolve_unknown(address)

    def local_identities(self, address: bytes, identity: Identity = ANY) -> tuple[Identity, ...]:
        """Return the local identities of this address, in addition to ``identity``, the one that its user has.

        ``identity``: ANY for an endpoint of this node, which owns the address.
        """
        if not self._sites and not self._blocks and not self._kube_apiserver:
            return ()
        found: tuple[Identity | None, ...] = (self._blocks.lookup(address), self._sites.get(address))
        if address in self._kube_apiserver and not self._is_translated(address, identity):
            other = self.underlying(address).identity if identity == KUBE_APISERVER else KUBE_APISERVER
            found = (*found, other)
        return tuple(identity for identity in found if identity is not None)

    def _is_translated(self, address: bytes, identity: Identity) -> bool:
        """Tell whether a sender with this identity, by its stamp, is not the owner of its address.

        Such a packet has passed a node that translates addresses: it is not the node's own, nor the API server's there.
        """
        owner = self._peers.get(address)
        return may_be_stamped(identity) and (owner is None or identity != owner.identity)

    def named_group(self, address: bytes) -> Identity | None:
        """Return the CIDR identity of a group, if policy names a prefix that has nothing but groups."""
        return self._groups.lookup(address)

    def _resolve_unknown(self, address: bytes) -> Peer:
        found = Peer(self._outside.lookup(address) or WORLD, self._in_cluster(address))
        if len(self._unknown) >= _MAX_CACHED:
            self._unknown.clear()
        self._unknown[address] = found
        return found

    def _in_cluster(self, address: bytes) -> bool:
        number, bits = int.from_bytes(address, "big"), len(address) * 8
        return any(bits == width and number & mask == network for width, network, mask in self._cluster)

    def __len__(self) -> int:
        """Return the number of peers."""
        return len(self._peers)
