"""The ipcache: which identity an address of another node has, and whether packets to it bear a stamp.

Endpoints of this node are not in it (``Snapshot.endpoints`` has them), nor is this node itself: what comes from or
goes to the host is known by the hook, not by an address.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nfq_enforcer.core.identity import WORLD, Identity


class Peer(NamedTuple):
    """What is known of an address."""

    identity: Identity
    remote: bool  # in the cluster and on another node: packets to it are stamped


class Ipcache:
    """Look-up of peers by address (4 or 16 bytes)."""

    __slots__ = ("_cluster", "_peers")

    def __init__(self, peers: Mapping[bytes, Peer], cluster: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        """Take the known peers, and further networks that count as in the cluster."""
        self._peers = peers
        self._cluster = tuple((net.max_prefixlen, int(net.network_address), int(net.netmask)) for net in cluster)

    def lookup(self, address: bytes) -> Peer:
        """Return the peer at this address; ``world`` if nobody is known there."""
        return self._peers.get(address) or Peer(WORLD, self._in_cluster(address))

    def _in_cluster(self, address: bytes) -> bool:
        number, bits = int.from_bytes(address, "big"), len(address) * 8
        return any(bits == width and number & mask == network for width, network, mask in self._cluster)

    def __len__(self) -> int:
        """Return the number of known addresses."""
        return len(self._peers)
