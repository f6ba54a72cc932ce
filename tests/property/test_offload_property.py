"""Two nodes whose kernels pass flows by themselves, random traffic, losses and policies: nothing passes but what may.

The kernels here are models of what the rules of ``dataplane.marks`` make of the real one: who opened a flow, its mark,
and the epoch in force. Endpoints are honest, so what they say is judged by one question: does the policy in force at a
node let the opener of this conversation open it?
"""

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import pytest

from nfq_enforcer.core.context import Interface
from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.tables.conntrack import Conntrack, Offload
from nfq_enforcer.core.tables.flow_ends import EndCause
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PORT_BITS, PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, Verdict
from nfq_enforcer.core.wire.packet import TCP, UDP, parse, reply_key
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER
from tests.support.effort import scaled
from tests.support.nodes import rule
from tests.support.packets import ACK, PSH, SYN, datagram, identity_on, packed, tcp

ROUNDS, STEPS = scaled(60), 600
CLUSTER, UPLINK = Interface("eth0", 1500), Interface("wan0", 1500)
SERVICE = 80
EARLIER = 0  # an epoch that is never in force
_SHARES = {Verdict.OFFLOAD_OPENER: Offload.OPENER, Verdict.OFFLOAD_FLOW: Offload.FLOW}


class Party(NamedTuple):
    name: str
    node: str  # "" for the world
    identity: Identity
    address: str


PARTIES = [
    Party("a1", "a", Identity(301), "10.1.0.1"),
    Party("a2", "a", Identity(302), "10.1.0.2"),
    Party("b1", "b", Identity(401), "10.2.0.1"),
    Party("b2", "b", Identity(402), "10.2.0.2"),
    Party("w", "", WORLD, "203.0.113.9"),
]
IDENTITIES = frozenset(one.identity for one in PARTIES if one.node)
Allowed = frozenset[tuple[str, str, int]]  # opener, other end, protocol


@dataclass
class Record:
    """What a kernel has on record of a flow."""

    opener: bytes  # the key of its packets
    answered: bool = False
    mark: tuple[int, Offload] | None = None


@dataclass
class Gate:
    """A node: its worker, and its kernel as the rules have it."""

    name: str
    allowed: Allowed = frozenset()
    now: float = 1000.0
    rules: int = 1  # the epoch in force
    records: dict[bytes, Record] = field(default_factory=dict)
    unseen: int = 0  # packets that the kernel has passed

    def __post_init__(self) -> None:
        self.flows = Conntrack(10_000, self.now)
        self.enforcer = Enforcer(self.snapshot(1), self.flows)

    def snapshot(self, revision: int) -> Snapshot:
        peers = {packed(one.address): Peer(one.identity, True) for one in PARTIES if one.node not in ("", self.name)}
        endpoints = {packed(one.address): self.endpoint(one) for one in PARTIES if one.node == self.name}
        return Snapshot(
            revision, endpoints, Ipcache(peers, []), frozenset({CLUSTER.name}), identities=IDENTITIES, epoch=self.rules
        )

    def endpoint(self, one: Party) -> LocalEndpoint:
        ingress = [(PARTY[opener].identity, proto) for opener, other, proto in self.allowed if other == one.name]
        egress = [(PARTY[other].identity, proto) for opener, other, proto in self.allowed if opener == one.name]
        return LocalEndpoint(one.name, one.identity, f"veth-{one.name}", side(ingress), side(egress))

    def renew(self) -> None:
        """Have the workers judge by what is allowed now, in the epoch in force."""
        self.enforcer.snapshot = self.snapshot(self.enforcer.snapshot.revision + 1)

    def passes(self, payload: bytes, source: Party, target: Party) -> bytes | None:
        """Return the packet as it leaves the node, None if it is dropped."""
        self.now += 0.001
        packet = parse(payload)
        record = self.records.get(packet.key)
        if record and self.bypassed(record, packet.key):
            self.unseen += 1
            record.answered |= packet.key != record.opener
            return payload
        told = 0
        if record and record.mark and (record.answered or packet.key != record.opener):
            told = FLOW_OPENER if packet.key == record.opener else FLOW_REPLIER
        ends = [Interface(f"veth-{end.name}", 1500) if end.node == self.name else way(end) for end in (source, target)]
        judged_in = self.enforcer.snapshot.epoch
        decision = self.enforcer.decide(payload, ends[0], ends[1], self.now, told)
        if decision.verdict is Verdict.DROP:
            return None
        record = self.records.setdefault(packet.key, record or Record(packet.key))
        self.records[reply_key(packet.key)] = record
        record.answered |= packet.key != record.opener
        if decision.verdict in _SHARES:
            record.mark = self.rules if judged_in == self.rules else EARLIER, _SHARES[decision.verdict]
        return decision.payload or payload

    def bypassed(self, record: Record, key: bytes) -> bool:
        if record.mark is None or record.mark[0] != self.rules:
            return False
        return record.mark[1] is Offload.FLOW or key == record.opener


def side(allowed: list[tuple[Identity, int]]) -> PolicyMap:
    entry = PolicyEntry((rule("any", Direction.INGRESS, 1),))
    return PolicyMap({PolicyKey(*one, SERVICE, PORT_BITS): entry for one in allowed}, enforced=True)


def way(end: Party) -> Interface:
    return CLUSTER if end.node else UPLINK


PARTY = {one.name: one for one in PARTIES}


@dataclass
class Conversation:
    """What two ends say to each other, as far as it gets through."""

    opener: Party
    other: Party
    proto: int
    port: int
    heard: int = 0  # of the opener's packets, by the other end
    answers: int = 0  # heard by the opener
    cut: set[str] = field(default_factory=set)  # nodes that have refused a part of it

    def says(self, reply: bool) -> bytes:
        """Return the next packet of an end; TCP's keep to a handshake."""
        src, dst = (self.other, self.opener) if reply else (self.opener, self.other)
        ports = (SERVICE, self.port) if reply else (self.port, SERVICE)
        if self.proto == UDP:
            return datagram(src.address, dst.address, *ports)
        begins = self.answers == 0
        flags = (SYN | ACK if begins else ACK | PSH) if reply else (SYN if begins else ACK)
        return tcp(src.address, dst.address, *ports, flags)

    def is_allowed(self, gate: Gate) -> bool:
        return (self.opener.name, self.other.name, self.proto) in gate.allowed


class World:
    """All of it, and what happens by chance."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.gates = {name: Gate(name) for name in ("a", "b")}
        self.port = 1024
        self.passed = self.refused = self.lost = 0

    def begin(self) -> Conversation:
        opener, other = self.random.sample([one for one in PARTIES if one.node] * 3 + PARTIES[-1:], 2)
        while opener.name == other.name:
            opener, other = self.random.sample(PARTIES, 2)
        self.port += 1
        return Conversation(opener, other, self.random.choice((TCP, UDP)), self.port)

    def speak(self, one: Conversation) -> None:
        """Have an end say something, if it has something to say; hold what every node on the way makes of it."""
        reply = one.heard > 0 and self.random.random() < 0.5
        payload, (source, target) = one.says(reply), (one.other, one.opener) if reply else (one.opener, one.other)
        for name in dict.fromkeys(end.node for end in (source, target) if end.node):
            gate = self.gates[name]
            left = gate.passes(payload, source, target)
            if left is None:
                self.refused += 1
                assert not one.is_allowed(gate) or name in one.cut, f"{one} cut at {name}, {reply=}"
                if one.proto == UDP:
                    one.cut |= {"a", "b"}  # it is forgotten by some: see ``Enforcer._judge_opener``
                return
            assert one.is_allowed(gate), f"{one} passes {name}, {reply=}"
            self.passed += 1
            payload = left
            if self.random.random() < 0.02:
                self.lost += 1
                return
        assert identity_on(payload) in (None, source.identity)
        if reply:
            one.answers += 1
        else:
            one.heard += 1

    def change_policy(self, gate: Gate) -> None:
        ways = [(a.name, b.name, proto) for a in PARTIES for b in PARTIES if a != b for proto in (TCP, UDP)]
        gate.allowed = frozenset(way for way in ways if self.random.random() < 0.85)
        gate.rules += gate.rules == gate.enforcer.snapshot.epoch
        gate.renew()

    def forget(self, gate: Gate) -> None:
        """Have so much time go by that the worker forgets what it has left to the kernel."""
        for flow in [flow for flow in gate.flows if flow.offload in (Offload.OPENER, Offload.FLOW)]:
            gate.flows.remove(flow, EndCause.EXPIRED, gate.now)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_what_passes_is_what_policy_lets_pass(seed: int) -> None:
    world = World(seed)
    for gate in world.gates.values():
        world.change_policy(gate)
    talking = [world.begin() for _ in range(12)]
    for _ in range(STEPS):
        chance, gate = world.random.random(), world.random.choice(list(world.gates.values()))
        if chance < 0.01:
            world.change_policy(gate)
        elif chance < 0.02:  # the workers hear of it some packets later
            gate.rules += gate.rules == gate.enforcer.snapshot.epoch
        elif chance < 0.05 and gate.rules != gate.enforcer.snapshot.epoch:
            gate.renew()
        elif chance < 0.06:
            world.forget(gate)
        elif chance < 0.09:
            talking[world.random.randrange(len(talking))] = world.begin()
        else:
            world.speak(world.random.choice(talking))

    assert world.passed > STEPS / 3
    assert sum(gate.unseen for gate in world.gates.values()) > STEPS / 10
