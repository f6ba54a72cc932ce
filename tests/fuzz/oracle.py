"""Oracle of decisions: the promises about accepted packets, by a model of the tests' network that asks no engine.

Stamps follow docs/decisions/0013-stamps-by-us-or-nobody.md. A sender's stamp is on the packets of its endpoint to other
nodes, ``world`` on packets that the node only routes to them, and no stamp on any other packet. A guarded endpoint
receives packets that its rules allow the identity of the sender, and replies that prove their sender. The model of a
flow is its opener: the interface and the stamp of the last accepted packet.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import KUBE_APISERVER, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.prefixes import Prefixes
from nfq_enforcer.core.verdict import DropReason, PacketError, Verdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import UDP, Packet, parse, parse_quoted, reply_key
from tests.support.nodes import (
    CLIENT,
    CLUSTER_NETWORKS,
    DB,
    ETH0,
    FAMILIES,
    OTHER,
    PEERS,
    VETH_DB,
    VETH_WEB,
    WEB,
    accepted,
)
from tests.support.packets import packed

_HOMES = {
    packed(address): (name, identity, home)
    for at in FAMILIES
    for address, name, identity, home in ((at.web, "web", WEB, VETH_WEB), (at.db, "db", DB, VETH_DB))
}
_BEHIND = {VETH_WEB: WEB, VETH_DB: DB}
_ENDPOINTS = {packed(address): i for at in FAMILIES for address, i in ((at.client, CLIENT), (at.other, OTHER))}
_NODES = {packed(at.second_node) for at in FAMILIES}
_KNOWN = {WEB, DB, CLIENT, OTHER}

OUTSIDE = Identity(1 << 24 | 7)
_OUTSIDE = {packed(at.world) for at in FAMILIES}
_SERVERS = _OUTSIDE | _NODES
NAMED_ADDRESSES = Ipcache(
    PEERS,
    CLUSTER_NETWORKS,
    Prefixes({ip_network(at.world): OUTSIDE for at in FAMILIES}),
    kube_apiserver=frozenset(_SERVERS),
)
"""Ipcache in which policy names the address of the world; it and the second node are the Kubernetes API server."""

_POLICY_REASONS = {
    DropReason.POLICY_DENIED,
    DropReason.POLICY_DENY,
    DropReason.CT_NO_MATCH,
    DropReason.INVALID_IDENTITY,
    DropReason.STAMP_MISSING,
    DropReason.NO_ENDPOINT,
    DropReason.FRAG_NEEDED,
}


class Passage(NamedTuple):
    """Passage: a packet at a hook of the kernel."""

    indev: str | None  # None: sent by this host itself
    outdev: str | None  # None: delivered to this host
    payload: bytes
    packet: Packet
    stamp: int | None  # None also for the senders of this node, whose stamps have no meaning

    @property
    def sender(self) -> int | None:
        """Return the identity of the endpoint of this node that sends the packet, None for any other sender."""
        home = _HOMES.get(self.packet.src)
        return _BEHIND.get(self.indev or "") or (home and home[1])

    @property
    def from_network(self) -> bool:
        return self.indev is not None and self.indev not in _BEHIND

    @property
    def is_transit(self) -> bool:
        return self.from_network and self.outdev == ETH0 and self.packet.dst not in _HOMES

    @property
    def is_unknown(self) -> bool:
        """Tell whether the stamp has an identity that nobody has."""
        return self.stamp not in {None, WORLD, *_KNOWN}


class _Opener(NamedTuple):
    interface: str | None
    stamp: int | None
    to_host: bool  # delivered to this host itself; the kernel delivers no flow here and there


_UNCERTAIN = _Opener("", None, to_host=False)


class Oracle:
    """Oracle: checks the decisions of one node, in the order of its packets."""

    def __init__(self, policy: Mapping[str, Any]) -> None:
        """Take the arguments of ``Node.load``."""
        self._openers: dict[bytes, _Opener] = {}  # by the key of the opener's packets
        self.load(policy)
        self._changed = False

    def load(self, policy: Mapping[str, Any]) -> None:
        """Enforce another policy: each known flow is evaluated again."""
        self._policy = policy
        self._audit = policy.get("audit", False)
        self._per_flow = "epoch" in policy
        self._trusts_ipcache = policy.get("trust_ipcache", False)
        self._names_addresses = policy.get("ipcache") is NAMED_ADDRESSES
        self._changed = True

    def import_flow(self, key: bytes) -> None:
        """Note a flow of the kernel's conntrack: it is evaluated at its next packet, from either end."""
        self._changed = True
        self._doubt(key)

    def _doubt(self, key: bytes) -> None:
        self._openers |= dict.fromkeys((key, reply_key(key)), _UNCERTAIN)

    def check(self, indev: str | None, outdev: str | None, payload: bytes, decision: Decision, *, gso: bool) -> None:
        """Check the decision on a packet; raise AssertionError if it breaks a promise."""
        try:
            packet = parse(payload, gso=gso)
            found = stamp.read(payload, packet) if indev is not None and packet.src not in _HOMES else None
        except PacketError:
            assert not accepted(decision)
            return
        passage = Passage(indev, outdev, payload, packet, found and found.identity)
        _check_event(passage, decision, self._identities(passage), presumes=self._per_flow)
        if decision.verdict is Verdict.DROP:
            self._check_dropped(passage, decision)
        elif accepted(decision):
            self._check_accepted(passage, decision, gso)

    def _check_accepted(self, passage: Passage, decision: Decision, gso: bool) -> None:
        _check_source(passage)
        out = decision.payload or passage.payload
        self._check_stamp(passage, decision, _identity_on(out, parse(out, gso=gso)))
        if passage.from_network and passage.packet.dst in _HOMES:
            self._check_received(passage, decision)
        self._note(passage, decision)

    def _note(self, passage: Passage, decision: Decision) -> None:
        """Note the opener of the packet's flow, if the packet opens one or is the opener's."""
        key = passage.packet.key
        if self._openers.get(key) is _UNCERTAIN or self._openers.get(reply_key(key)) is _UNCERTAIN:
            return
        if decision.event is not None and not decision.event.is_reply:
            self._openers.pop(reply_key(key), None)
        elif key not in self._openers:
            return
        self._openers[key] = _Opener(passage.indev, passage.stamp, passage.outdev is None)

    def _check_dropped(self, passage: Passage, decision: Decision) -> None:
        """Check the reason of a drop: none of policy in transit, its own for an identity that nobody has."""
        assert decision.event is not None
        keys = {passage.packet.key, reply_key(passage.packet.key)}
        in_flow = self._changed and bool(passage.packet.error or self._openers.keys() & keys)
        # With FRAG_NEEDED it has opened its flow all the same, if it opens any; a new policy may end a known flow.
        if decision.event.reason is DropReason.FRAG_NEEDED or in_flow:
            self._doubt(passage.packet.key)
        if passage.is_transit and passage.packet.src not in _HOMES:
            assert decision.event.reason not in _POLICY_REASONS
        enforced = self._is_enforced("ingress", passage.packet.dst)
        if passage.from_network and passage.is_unknown and enforced and not in_flow:
            assert decision.event.reason not in (DropReason.POLICY_DENIED, DropReason.CT_NO_MATCH)

    def _check_stamp(self, passage: Passage, decision: Decision, out: int | None) -> None:
        if passage.outdev is None:
            return
        if passage.is_transit:
            assert decision.verdict is Verdict.ACCEPT
            assert decision.event is None
            if _is_stamped_in_transit(passage):
                assert out == WORLD
            else:
                assert decision.payload is None
        elif passage.from_network:
            assert out == passage.stamp
        elif passage.packet.src not in _HOMES:
            assert out in (None, passage.sender)
        else:
            self._check_senders_stamp(passage, out)

    def _check_senders_stamp(self, passage: Passage, out: int | None) -> None:
        """Check that packets to other nodes bear the sender's identity, and replies to ``world`` and this node none."""
        packet = passage.packet
        own, opener = map(self._openers.get, (packet.key, reply_key(packet.key)))
        opener = None if packet.error else opener
        if opener is None:
            expected = passage.sender if _is_remote(packet.dst) else None
        elif opener.interface in (None, *_BEHIND) or opener.stamp == WORLD:
            expected = None
        else:
            expected = passage.sender if opener.stamp is not None or _is_remote(packet.dst) else None
        learned = self._per_flow and opener is not None  # the opener's node may have learned the stamp
        uncertain = learned or self._audit or _UNCERTAIN in (own, opener)
        uncertain |= opener is not None and packet.opens  # it may end the flow and open another
        uncertain |= any(one is not None and one.to_host for one in (own, opener))
        assert out == expected or (uncertain and out in (None, passage.sender))

    def _check_received(self, passage: Passage, decision: Decision) -> None:
        """Check a packet from the network that an endpoint of this node receives."""
        packet = passage.packet
        if self._audit:
            if passage.is_unknown and self._is_first(packet) and self._is_enforced("ingress", packet.dst):
                assert decision.event is not None
                assert decision.event.reason is DropReason.INVALID_IDENTITY
            return
        answers = not packet.error and not packet.opens and reply_key(packet.key) in self._openers
        if self._is_enforced("ingress", packet.dst) and not _is_dhcp_answer(passage):
            assert answers or self._quotes_flow(passage) or self._is_allowed(passage)
        certain = self._openers.get(reply_key(packet.key)) is not _UNCERTAIN
        if answers and certain and self._is_guarded(packet.dst):
            assert self._proves_sender(passage)

    def _is_first(self, packet: Packet) -> bool:
        return not packet.error and not self._openers.keys() & {packet.key, reply_key(packet.key)}

    def _is_guarded(self, address: bytes) -> bool:
        return self._is_enforced("ingress", address) or self._is_enforced("egress", address)

    def _is_enforced(self, side: str, address: bytes) -> bool:
        return address in _HOMES and _HOMES[address][0] in self._policy.get(side, {})

    def _quotes_flow(self, passage: Passage) -> bool:
        if not passage.packet.error or passage.is_unknown:
            return False
        quoted = parse_quoted(passage.payload, passage.packet)
        known = self._openers.keys() & {quoted.key, reply_key(quoted.key)}
        return bool(known) and quoted.src == passage.packet.dst

    def _proves_sender(self, passage: Passage) -> bool:
        """Tell whether a reply comes from the other end of its flow: another node's endpoint has that node's stamp."""
        if passage.is_unknown:
            return False
        if passage.stamp not in (None, WORLD) or passage.packet.src not in _ENDPOINTS or self._trusts_ipcache:
            return True
        return self._per_flow and passage.stamp is None and passage.indev == ETH0

    def _is_allowed(self, passage: Passage) -> bool:
        """Tell whether a rule allows the packet, or a rule has allowed the flow, whose packets need no stamps then."""
        packet = passage.packet
        if self._per_flow and passage.stamp is None and passage.indev == ETH0 and packet.key in self._openers:
            return True
        if passage.is_unknown:
            return False
        peers = {0, *self._identities(passage)}
        port = packet.icmp_type if packet.icmp_type >= 0 else packet.dport
        rules = self._policy["ingress"][_HOMES[packet.dst][0]]
        return any(i in peers and p in (0, packet.proto) and q in (0, port) for i, p, q in rules)

    def _identities(self, passage: Passage) -> set[int]:
        """Return the identities of a remote sender."""
        src = passage.packet.src
        own = _ENDPOINTS.get(src)
        if passage.stamp not in (None, WORLD):
            return {passage.stamp}
        if own is not None:
            return {own if self._trusts_ipcache and passage.stamp is None else WORLD}
        if src in _NODES:
            if passage.stamp == WORLD:
                return {WORLD}
            return {REMOTE_NODE, KUBE_APISERVER} if self._names_addresses else {REMOTE_NODE}
        return {OUTSIDE, KUBE_APISERVER} if self._names_addresses and src in _OUTSIDE else {WORLD}


def _check_event(passage: Passage, decision: Decision, identities: set[int], *, presumes: bool) -> None:
    """Check that the log names an identity of the sender, if the packet was evaluated at all."""
    event = decision.event
    presumed = presumes and passage.stamp is None
    if event is None or not passage.from_network or presumed or passage.packet.error:
        return
    if event.opening.src == passage.packet.src and event.opening.source:
        assert event.opening.source in identities


def _check_source(passage: Passage) -> None:
    """No packet has the address of an endpoint of this node but its own; no stamp from outside the cluster counts."""
    home = _HOMES.get(passage.packet.src)
    assert home is None or passage.indev in (None, home[2])
    assert passage.stamp is None or passage.indev == ETH0


def _is_stamped_in_transit(passage: Passage) -> bool:
    packet = passage.packet
    if passage.stamp is not None or packet.error or not _is_remote(packet.dst):
        return False
    return passage.indev != ETH0 or (packet.src not in _ENDPOINTS and packet.src not in _NODES)


def _is_remote(address: bytes) -> bool:
    return address in _ENDPOINTS or address in _NODES or any(ip_address(address) in net for net in CLUSTER_NETWORKS)


def _is_dhcp_answer(passage: Passage) -> bool:
    """Tell whether the packet may be a DHCP server's answer to this host, which needs no rule."""
    packet = passage.packet
    ports = (packet.sport, packet.dport)
    return packet.proto == UDP and passage.outdev is None and ports in ((67, 68), (547, 546))


def _identity_on(payload: bytes, packet: Packet) -> int | None:
    found = stamp.read(payload, packet)
    return found and found.identity
