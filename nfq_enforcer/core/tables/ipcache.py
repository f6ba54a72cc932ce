"""The ipcache: which identity an address has, and whether packets to it bear a stamp.

Endpoints of this node are not in it (``Snapshot.endpoints`` has them), nor is this node itself: what comes from or
goes to the host is known by the hook, not by an address. An address that is nobody's has the identity of the longest
prefix that a policy names for it, else ``world``.

Peers are many and change one by one, so they are not the ipcache's own: it looks into a mapping that somebody else
holds, and changes between two look-ups.

Beside its identity an address, whoever has it, may have *local identities*: what policy says of the address and not of
the labels behind it (see ``policy.numbers``). They mean something on this node only.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from copy import copy
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import WORLD, Identity

Network = IPv4Network | IPv6Network


class Peer(NamedTuple):
    """What is known of an address."""

    identity: Identity
    remote: bool  # in the cluster and on another node: packets to it are stamped


PeerChange = tuple[bytes, Peer | None]
"""An address (4 or 16 bytes), and the peer that is now there; None: nobody is."""


_PARTS = 256
_MOST_STRANGERS = 4096


class PeerTable(MutableMapping[bytes, Peer]):
    """Peers by address, in many small dicts: a big one, when it has to grow, would stall the packets meanwhile."""

    __slots__ = ("_parts",)

    def __init__(self, peers: Mapping[bytes, Peer]) -> None:
        """Take the peers there are at first."""
        self._parts: tuple[dict[bytes, Peer], ...] = tuple({} for _ in range(_PARTS))
        self.update(peers)

    def __getitem__(self, address: bytes) -> Peer:
        """Return the peer at an address; raise KeyError if nobody is."""
        return self._parts[hash(address) % _PARTS][address]

    def get(self, address: bytes, default: Any = None) -> Any:
        """Return the peer at an address; what the mapping has by itself raises an error inside for each stranger."""
        return self._parts[hash(address) % _PARTS].get(address, default)

    def __setitem__(self, address: bytes, peer: Peer) -> None:
        """Put a peer at an address."""
        self._parts[hash(address) % _PARTS][address] = peer

    def __delitem__(self, address: bytes) -> None:
        """Take the peer from an address; raise KeyError if nobody is there."""
        del self._parts[hash(address) % _PARTS][address]

    def __iter__(self) -> Iterator[bytes]:
        """Yield all addresses."""
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        """Return the number of addresses."""
        return sum(map(len, self._parts))


def change(peers: MutableMapping[bytes, Peer], changes: Iterable[PeerChange]) -> None:
    """Change the peers, in order."""
    for address, peer in changes:
        if peer is None:
            peers.pop(address, None)
        else:
            peers[address] = peer


def changes_between(before: Mapping[bytes, Peer], now: Mapping[bytes, Peer]) -> list[PeerChange]:
    """Return the changes that make of the peers before those of now."""
    gone: list[PeerChange] = [(address, None) for address in before.keys() - now.keys()]
    return gone + [(address, peer) for address, peer in now.items() if before.get(address) != peer]


class Prefixes:
    """Identities of networks, found by the longest prefix: a dict for each length that there is, longest first."""

    __slots__ = ("_families",)

    def __init__(self, numbers: Mapping[Network, Identity]) -> None:
        """Take every network there is, of both families."""
        lengths: dict[int, dict[int, dict[int, Identity]]] = {4: {}, 16: {}}
        for network, identity in numbers.items():
            family = lengths[network.max_prefixlen // 8]
            family.setdefault(int(network.netmask), {})[int(network.network_address)] = identity
        self._families = {size: sorted(by_mask.items(), reverse=True) for size, by_mask in lengths.items() if by_mask}

    def __bool__(self) -> bool:
        """Say whether there is any network."""
        return bool(self._families)

    def lookup(self, address: bytes) -> Identity | None:
        """Return the identity of the longest prefix that the address (4 or 16 bytes) is in, None if it is in none."""
        number = int.from_bytes(address, "big")
        for mask, networks in self._families.get(len(address), ()):
            identity = networks.get(number & mask)
            if identity is not None:
                return identity
        return None


NO_PREFIXES = Prefixes({})


class Ipcache:
    """Look-up of peers by address (4 or 16 bytes)."""

    __slots__ = ("_blocks", "_cluster", "_outside", "_peers", "_sites", "_strangers")

    def __init__(
        self,
        peers: Mapping[bytes, Peer],
        cluster: Iterable[Network] = (),
        outside: Prefixes = NO_PREFIXES,
        blocks: Prefixes = NO_PREFIXES,
        sites: Mapping[bytes, Identity] | None = None,
    ) -> None:
        """Take the known peers, and further networks that count as in the cluster.

        ``outside`` names the addresses that are nobody's; ``blocks`` and ``sites`` are the local identities of all.
        """
        self._peers = peers
        self._cluster = tuple((net.max_prefixlen, int(net.network_address), int(net.netmask)) for net in cluster)
        self._outside = outside
        self._blocks = blocks
        self._sites = sites or {}
        self._strangers: dict[bytes, Peer] = {}  # whom the networks were asked about lately

    def over(self, peers: Mapping[bytes, Peer]) -> "Ipcache":
        """Return the same ipcache over other peers, whose holder may go on changing them."""
        other = copy(self)
        other._peers = peers
        return other

    def lookup(self, address: bytes) -> Peer:
        """Return the peer at this address; ``world``, or a part of it, if nobody is known there."""
        return self._peers.get(address) or self._strangers.get(address) or self._stranger(address)

    def local_identities(self, address: bytes) -> tuple[Identity, ...]:
        """Return what else policy may call this address on this node, whoever has it."""
        if not self._sites and not self._blocks:
            return ()
        found = (self._blocks.lookup(address), self._sites.get(address))
        return tuple(identity for identity in found if identity is not None)

    def _stranger(self, address: bytes) -> Peer:
        found = Peer(self._outside.lookup(address) or WORLD, self._in_cluster(address))
        if len(self._strangers) >= _MOST_STRANGERS:
            self._strangers.clear()
        self._strangers[address] = found
        return found

    def _in_cluster(self, address: bytes) -> bool:
        number, bits = int.from_bytes(address, "big"), len(address) * 8
        return any(bits == width and number & mask == network for width, network, mask in self._cluster)

    def __len__(self) -> int:
        """Return the number of known addresses."""
        return len(self._peers)
