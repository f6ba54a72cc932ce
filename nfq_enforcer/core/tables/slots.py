"""Slots of the proxy: which slot a connection with HTTP rules or server names uses, and the rules of a slot.

A slot is a listener of the proxy with rules of its own. Its key consists of the ends of its connections and of the
protocols that it reads. A change of policy changes the rules of a slot and never the slot of a connection; where rules
of another protocol apply from then on, later connections use another slot (docs/decisions/0019-http-by-envoy.md).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nfq_enforcer.core.identity import HOST, Identity
from nfq_enforcer.core.tables.l7 import EVERY_PROTOCOL, HttpMatch, ProxyProtocols, SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP

MAX_SLOTS = 1000
UNKNOWN_SLOT = 0xFFFF  # of a flow that only the kernel has seen, until a packet names the slot


class SlotKey(NamedTuple):
    """Slot key: the ends of the connections of one slot, and the protocols that it reads."""

    client: str  # name of the local endpoint that opens the connections; empty: it is not on this node
    server: str  # name of the local endpoint that receives them; empty: it is not on this node
    source: Identity
    destination: Identity
    client_peers: tuple[Identity, ...]  # of the client, for ingress rules: its identity, then its local identities
    server_peers: tuple[Identity, ...]  # of the server, for egress rules
    port: int
    protocols: ProxyProtocols = ProxyProtocols.HTTP

    @property
    def ends(self) -> tuple[object, ...]:
        """Return the ends alone."""
        return self[:-1]

    def serves(self, other: "SlotKey") -> bool:
        """Tell whether the slot's connections may go on where policy in force asks for a slot with the other key.

        Names are compared when a TLS connection begins, so it goes on only where policy still allows TLS by name, or
        without any rule of the proxy.
        """
        return self.ends == other.ends and not self.protocols & ProxyProtocols.TLS & ~other.protocols


class SlotChange(NamedTuple):
    """Slot change: the slot of a key from now on."""

    key: SlotKey
    slot: int  # 0: none any more
    is_open: bool  # the proxy listens, and every worker knows the slot


Side = tuple[L7Rule, ...] | None
"""The rules of one side, of which a request or a ClientHello has to match one; None: the side allows all of them."""
_ALL = tuple(ProxyProtocols(number) for number in range(1, EVERY_PROTOCOL + 1))


class SlotTable:
    """Slot table of one worker."""

    def __init__(self, changes: Iterable[SlotChange] = ()) -> None:
        """Start with these slots."""
        self._slots: dict[SlotKey, int] = {}
        self._keys: dict[int, SlotKey] = {}
        self._open: set[SlotKey] = set()
        self.apply(changes)

    def apply(self, changes: Iterable[SlotChange]) -> None:
        """Apply changes, in order."""
        for key, slot, is_open in changes:
            self._keys.pop(self._slots.pop(key, 0), None)
            self._open.discard(key)
            if slot:
                self._slots[key] = slot
                self._keys[slot] = key
                if is_open:
                    self._open.add(key)

    def find(self, key: SlotKey) -> int:
        """Return the slot of a key, 0 without one."""
        return self._slots.get(key, 0)

    def find_serving(self, key: SlotKey, slot: int) -> int:
        """Return this slot if it serves a connection with this key, 0 if not; ``UNKNOWN_SLOT``: any slot that does."""
        if self._keys.get(slot) == key:
            return slot
        slots = [self.find(key._replace(protocols=each)) for each in _ALL] if slot == UNKNOWN_SLOT else [slot]
        keys = ((found, self._keys.get(found)) for found in slots)
        return next((found for found, known in keys if known is not None and known.serves(key)), 0)

    def is_open(self, key: SlotKey) -> bool:
        """Tell whether connections may be redirected to the key's slot."""
        return key in self._open

    def key(self, slot: int) -> SlotKey | None:
        """Return the key of a slot."""
        return self._keys.get(slot)


def sides(snapshot: Snapshot, endpoints: Mapping[str, LocalEndpoint], key: SlotKey) -> tuple[Side, ...]:
    """Return the rules of each side of this node, by the policy in force; ``endpoints``: those of this node, by name.

    Nothing is allowed once an endpoint of the key has gone or has another identity.
    """
    found: list[Side] = []
    for name, identity, direction, peers in (
        (key.client, key.source, Direction.EGRESS, key.server_peers),
        (key.server, key.destination, Direction.INGRESS, key.client_peers),
    ):
        if name:
            endpoint = endpoints.get(name)
            known = endpoint is not None and endpoint.identity == identity
            found.append(_side(snapshot, endpoint, direction, peers, key.port) if endpoint and known else ())
    return tuple(found)


def _side(
    snapshot: Snapshot, endpoint: LocalEndpoint, direction: Direction, peers: tuple[Identity, ...], port: int
) -> Side:
    """Return the rules of one side; see ``policy_verdict``, which decides the connection by the same look-up."""
    policy = endpoint.egress if direction is Direction.EGRESS else endpoint.ingress
    result = policy.lookup(peers[0], TCP, port, peers[1:])
    if result.denied:
        return ()
    from_host = direction is Direction.INGRESS and peers[0] == HOST
    if not snapshot.enforces(policy, from_host=from_host):
        return None
    if result.allowed and not result.l7:
        return None
    return tuple(rule for rule in result.l7 if isinstance(rule.match, HttpMatch | SniMatch))
