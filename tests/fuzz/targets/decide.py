"""Every packet gets a decision, on the fast path as on the slow one, and each keeps the promises of the oracle."""

from contextlib import suppress
from typing import Any, NamedTuple

from nfq_enforcer.core.context import Interface
from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import ANY, KUBE_APISERVER, REMOTE_NODE, WORLD
from nfq_enforcer.core.tables.conntrack import FlowState, KernelFlow
from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire.packet import TCP, UDP, parse
from nfq_enforcer.core.wire.skb import CHECKSUM_UNFINISHED, GSO
from tests.fuzz.inputs import Input, string
from tests.fuzz.oracle import NAMED_ADDRESSES, OUTSIDE, Oracle
from tests.support.decisions import check as check_decision
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    FAMILIES,
    MTU,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Node,
)
from tests.support.packets import (
    TOO_BIG,
    Build,
    datagram,
    error,
    icmp,
    ping,
    pong,
    request,
    response,
    sctp,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
    unfinished,
)

_POLICIES: list[dict[str, Any]] = [
    {},
    {"ingress": CLOSED},
    {"egress": CLOSED},
    {"ingress": CLOSED, "egress": CLOSED, "allow_localhost": False},
    {"ingress": CLOSED, "egress": CLOSED, "audit": True},
    {"ingress": {"web": [(CLIENT, TCP, 80), (CLIENT, UDP, 0)], "db": [(WEB, 0, 0)]}},
    {"egress": {"web": [(CLIENT, 0, 0), (DB, TCP, 80)]}, "trust_ipcache": True},
    {"ingress": CLOSED, "epoch": 5},
    {"ingress": {"web": [(CLIENT, 0, 0)]}, "epoch": 5, "node_addresses": {}},
    {"ingress": {"web": [(ANY, 0, 0)]}, "egress": {"db": [(ANY, 0, 0)]}},
    {"ingress": {"web": [(REMOTE_NODE, 0, 0)], "db": [(WORLD, 0, 0)]}},
    {"ingress": {"web": [(KUBE_APISERVER, 0, 0)], "db": [(OUTSIDE, 0, 0)]}, "ipcache": NAMED_ADDRESSES},
    {"ingress": {"web": [(ANY, 0, 0)], "db": [(OTHER, 0, 0)]}, "audit": True},
]
_INTERFACES = [ETH0, WAN0, VETH_WEB, VETH_DB, "lo"]
_PATHS = [(one, other) for one in (None, *_INTERFACES) for other in (None, *_INTERFACES) if one or other]
_KINDS: list[tuple[str | None, str | None] | str] = [*_PATHS, "load", "import"]
_DRIVERS = [{}, {"can_requeue": True}, {"has_next": True}]
_FORMS = [(skb, mtu) for mtu in (MTU, 60, 100) for skb in range(4)]
"""Flags of the packet, and the MTU of both interfaces: an input has no packet of more than 255 bytes."""
_UNKNOWN = 777  # an identity that nobody has
_DHCP = {4: (68, 67), 6: (546, 547)}  # ports of client and server, by IP version
_STEPS = 10  # seconds, in which no flow expires


class _Step(NamedTuple):
    indev: str | None
    outdev: str | None
    payload: bytes
    skb: int = 0
    mtu: int = MTU

    def encode(self) -> bytes:
        start = _PATHS.index((self.indev, self.outdev)), _FORMS.index((self.skb, self.mtu))
        return bytes(start) + string(self.payload)

    def decide(self, node: Node) -> Decision:
        indev, outdev = (Interface(name, self.mtu) if name else None for name in (self.indev, self.outdev))
        return node._decide(self.payload, indev, outdev, node.now, self.skb)


class _Load(NamedTuple):
    policy: int

    def encode(self) -> bytes:
        return bytes((_KINDS.index("load"), self.policy))


class _Import(NamedTuple):
    opener: bytes

    def encode(self) -> bytes:
        return bytes((_KINDS.index("import"),)) + string(self.opener)


def _seed(policy: int, *steps: _Step | _Load | _Import, driver: int = 0) -> bytes:
    return bytes((policy + driver * len(_POLICIES),)) + b"".join(step.encode() for step in steps)


def _exchange(build: Build, answer: Build, one: str, home: str, other: str) -> tuple[_Step, ...]:
    there, back = build(one, other), answer(other, one)
    quote = error(other, one, there)
    stamps = other in {address for at in FAMILIES for address in (at.client, at.other)}
    if stamps:
        back, quote = stamped(back, CLIENT), stamped(quote, CLIENT)
    way = ETH0 if stamps else WAN0
    return _Step(home, way, there), _Step(way, home, back), _Step(way, home, quote)


_BUILDERS = [(syn, syn_ack), (request, response), (udp, udp_answer), (ping, pong)]
_EXCHANGES = [
    _exchange(*builders, at.web, VETH_WEB, other)
    for builders in _BUILDERS
    for at in FAMILIES
    for other in (at.client, at.world)
]
_STAMPED = [
    (_Step(ETH0, VETH_WEB, stamped(build(at.client, at.web), CLIENT)), _Step(VETH_WEB, ETH0, answer(at.web, at.client)))
    for build, answer in _BUILDERS
    for at in FAMILIES
]
_LOCAL = [
    (
        _Step(VETH_WEB, VETH_DB, stamped(syn(at.web, at.db), CLIENT)),
        _Step(VETH_DB, None, udp(at.db, at.host)),
        _Step(None, ETH0, stamped(udp(at.host, at.client), OTHER)),
        _Step(None, VETH_WEB, ping(at.host, at.web), 1),
    )
    for at in FAMILIES
]
_TRANSIT = [
    (
        *(_Step(WAN0, ETH0, syn(source, at.client)) for source in (at.world, at.other)),
        *(_Step(ETH0, ETH0, udp(source, at.cluster)) for source in (at.world, at.other, at.second_node)),
        _Step(ETH0, ETH0, stamped(udp(at.world, at.client), _UNKNOWN)),
        _Step(WAN0, ETH0, udp(at.world, at.world)),
        _Step(WAN0, ETH0, udp(at.world, at.client), mtu=60),
        _Step(WAN0, ETH0, error(at.world, at.client, udp(at.client, at.world))),
        _Step(None, ETH0, stamped(udp(at.host, at.client), WORLD)),
    )
    for at in FAMILIES
]
_BEHIND_A_NODE = [
    (
        _Step(ETH0, VETH_WEB, stamped(syn(source, at.web), WORLD)),
        _Step(VETH_WEB, ETH0, syn_ack(at.web, source)),
        _Step(ETH0, VETH_DB, stamped(udp(source, at.db), WORLD)),
        _Step(VETH_DB, ETH0, udp_answer(at.db, source)),
        _Step(ETH0, VETH_WEB, syn(source, at.web, 81)),
        _Step(VETH_WEB, ETH0, syn_ack(at.web, source, 81)),
    )
    for at in FAMILIES
    for source in (at.world, at.second_node, at.client)
]
_FORGED = [
    (
        *(_Step(ETH0, VETH_WEB, stamped(build(at.client, at.web), _UNKNOWN)) for build in (udp, syn_ack)),
        *(_Step(ETH0, VETH_WEB, stamped(ping(source, at.web), CLIENT)) for source in (at.second_node, at.world)),
        _Step(VETH_WEB, ETH0, syn(at.web, at.client)),
        *(_Step(ETH0, VETH_WEB, stamped(syn_ack(at.client, at.web), identity)) for identity in (_UNKNOWN, WORLD)),
        _Step(ETH0, VETH_WEB, syn_ack(at.client, at.web)),
    )
    for at in FAMILIES
]
_SIZES = [
    (
        _Step(VETH_WEB, ETH0, udp(at.web, at.client, data=bytes(30)), mtu=60),
        _Step(VETH_WEB, ETH0, unfinished(udp(at.web, at.client, data=bytes(9))), CHECKSUM_UNFINISHED, 100),
        _Step(VETH_WEB, ETH0, sctp(at.web, at.client), CHECKSUM_UNFINISHED),
        _Step(VETH_WEB, ETH0, unfinished(request(at.web, at.client)), CHECKSUM_UNFINISHED | GSO, 60),
        _Step(ETH0, VETH_WEB, error(at.world, at.web, stamped(udp(at.web, at.client), WEB), TOO_BIG)),
        _Step(VETH_WEB, None, datagram(at.web, at.host, client, server)),
        _Step(None, VETH_WEB, datagram(at.host, at.web, server, client)),
    )
    for at in FAMILIES
    for client, server in (_DHCP[at.version],)
]
_LATER = [
    (
        _Step(ETH0, VETH_WEB, stamped(build(at.client, at.web), CLIENT)),
        _Step(VETH_WEB, ETH0, answer(at.web, at.client)),
        _Import(build(at.db, at.other)),
        _Load(later),
        _Step(ETH0, VETH_WEB, error(at.client, at.web, answer(at.web, at.client))),
        _Step(VETH_WEB, ETH0, answer(at.web, at.client)),
        _Step(ETH0, VETH_WEB, stamped(build(at.client, at.web), CLIENT)),
        _Step(ETH0, VETH_DB, stamped(answer(at.other, at.db), OTHER)),
    )
    for build, answer in _BUILDERS
    for at in FAMILIES
    for later in (0, 1, 5, 7)
]
_LOWERED = [
    (
        _Step(VETH_WEB, ETH0, udp(at.web, at.client)),
        _Step(ETH0, VETH_WEB, icmp(at.world, at.web, *TOO_BIG[at.version], mtu.to_bytes(4, "big") + quoted)),
        _Step(None, ETH0, stamped(udp(at.web, at.client, data=bytes(68)), WEB), mtu=100),
    )
    for at in FAMILIES
    for mtu in (1400, 60)
    for quoted in (stamped(udp(at.web, at.client), WEB),)
]
SEEDS = [
    *(_seed(policy, *steps) for policy in (1, 5, 7) for steps in _EXCHANGES),
    *(_seed(policy, *steps) for policy in (0, 5, 6, 8) for steps in _STAMPED),
    *(_seed(policy, *steps) for policy in (0, 2, 3, 4) for steps in _LOCAL),
    *(_seed(policy, *steps) for policy in (0, 3) for steps in _TRANSIT),
    *(_seed(policy, *steps) for policy in (0, 8) for steps in _LATER),
    *(_seed(1, *steps, driver=driver) for driver in (0, 1, 2) for steps in (*_LOWERED, *_SIZES)),
    *(_seed(policy, *steps) for policy in (9, 10, 11, 12) for steps in (*_BEHIND_A_NODE, *_FORGED)),
    *(_seed(policy, *steps) for policy in (1, 6, 7) for steps in (*_FORGED, *_SIZES)),
]


def check(data: bytes) -> None:
    given = Input(data)
    variant, number = divmod(given.byte(), len(_POLICIES))
    policy, driver = _POLICIES[number], _DRIVERS[variant % len(_DRIVERS)]
    nodes = fast, slow = Node(20, **driver), Node(20, **driver, fast=False)
    oracle = Oracle(policy)
    for node in nodes:
        node.load(**policy)
    for _ in range(_STEPS):
        if not given.has_more:
            break
        fast.now = slow.now = fast.now + 1
        match given.choose(_KINDS):
            case "load":
                policy = given.choose(_POLICIES)
                oracle.load(policy)
                for node in nodes:
                    node.load(**policy)
            case "import":
                _import_flow(nodes, oracle, given.string())
            case (indev, outdev):
                skb, mtu = given.choose(_FORMS)
                _decide(nodes, oracle, _Step(indev, outdev, given.string(), skb, mtu))
    assert len(fast.flows) == len(slow.flows) <= 20
    assert all(flow.state in FlowState for flow in fast.flows)


def _import_flow(nodes: tuple[Node, Node], oracle: Oracle, payload: bytes) -> None:
    with suppress(PacketError):
        key = parse(payload).key
        oracle.import_flow(key)
        for node in nodes:
            node.flows.import_flow(KernelFlow(key, FlowState.ESTABLISHED, 60), node.now)


def _decide(nodes: tuple[Node, Node], oracle: Oracle, step: _Step) -> None:
    decision, other = map(step.decide, nodes)
    assert decision == other
    check_decision(decision, nodes[0].now)
    oracle.check(step.indev, step.outdev, step.payload, decision, gso=bool(step.skb & GSO))
