"""Any bytes at all get a decision, at any hook and under any policy; and nothing gets in that no rule allows."""

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.tables.conntrack import FlowState, KernelFlow
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.packet import TCP, UDP, parse
from tests.support.decisions import check
from tests.support.effort import scaled
from tests.support.nodes import CLIENT, DB, ETH0, FAMILIES, MTU, OTHER, VETH_DB, VETH_WEB, WAN0, WEB, Node
from tests.support.packets import (
    error,
    fin,
    ip,
    packed,
    ping,
    pong,
    request,
    response,
    rst,
    sctp,
    server_rst,
    server_syn,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)

SAME_EVERY_TIME = settings(derandomize=True, database=None, deadline=None, max_examples=scaled(500))
BULK = scaled(120_000)

BUILDERS = [syn, syn_ack, request, response, fin, rst, server_syn, server_rst, udp, udp_answer, ping, pong, sctp]
PAIRS = [
    pair
    for at in FAMILIES
    for one, other in ((at.web, at.client), (at.web, at.db), (at.web, at.world), (at.db, at.host), (at.web, at.web))
    for pair in ((one, other), (other, one))
]
PLAIN = [build(src, dst) for build in BUILDERS for src, dst in PAIRS] + [ip(*pair, 47, b"gre") for pair in PAIRS]
LONG = [udp(src, dst, data=bytes(MTU - 50)) for src, dst in PAIRS]
ERRORS = [error(dst, src, build(src, dst)) for build in (syn, udp, ping) for src, dst in PAIRS]
VALID = PLAIN + LONG + ERRORS
CORPUS = VALID + [stamped(payload, identity) for payload in VALID for identity in (CLIENT, OTHER)]

INTERFACES = [ETH0, WAN0, VETH_WEB, VETH_DB, "lo"]
POLICIES: list[dict[str, Any]] = [
    {},
    {"audit": True},
    {"ingress": {"web": []}, "egress": {"web": []}},
    {"ingress": {"web": [], "db": []}, "egress": {"web": [], "db": []}, "audit": True},
    {"ingress": {"web": [(CLIENT, TCP, 80), (CLIENT, UDP, 0)], "db": [(WEB, 0, 0)]}},
    {"egress": {"web": [(CLIENT, 0, 0), (DB, TCP, 80)]}, "allow_localhost": False},
    {"ingress": {"web": [(0, 0, 0)]}, "trust_ipcache": True, "node_addresses": {}},
    {"endpoints": {}},
]


def damaged(random: Random, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(random.randrange(4)):
        place = random.randrange(min(len(changed), 80))
        changed[place] = random.choice((0, 1, 4, 6, 8, 17, 30, 43, 44, 58, 60, 158, 255, random.randrange(256)))
    if random.random() < 0.1:
        del changed[random.randrange(len(changed)) :]
    return bytes(changed)


def at_any_hook(node: Node, random: Random) -> Callable[[bytes], Decision]:
    first, second = random.choice(INTERFACES), random.choice(INTERFACES)
    return random.choice(
        (
            lambda payload: node.receive(payload, first),
            lambda payload: node.send(payload, second),
            lambda payload: node.forward(payload, first, second),
        )
    )


def test_a_hundred_thousand_damaged_packets_at_any_hook_get_a_decision() -> None:
    random, node, dropped = Random(1), Node(maximum_flows=200), 0
    for number in range(BULK):
        if number % 500 == 0:
            node.load(**random.choice(POLICIES))
        node.now += random.random()
        decision = at_any_hook(node, random)(damaged(random, random.choice(CORPUS)))
        check(decision, node.now)
        dropped += decision.verdict is Verdict.DROP
        if number % 7 == 0:
            node.flows.expire(node.now, budget=random.randrange(20))

    assert len(node.flows) <= 200
    assert BULK // 10 < dropped < BULK - BULK // 10  # damage was neither always fatal nor always harmless


@SAME_EVERY_TIME
@given(st.binary(max_size=200), st.sampled_from(POLICIES), st.randoms(use_true_random=False))
def test_any_bytes_get_a_decision(payload: bytes, policy: dict[str, Any], random: Random) -> None:
    node = Node()
    node.load(**policy)

    check(at_any_hook(node, random)(payload), node.now)


@SAME_EVERY_TIME
@given(st.lists(st.tuples(st.sampled_from(CORPUS), st.sampled_from(POLICIES)), max_size=12), st.integers())
def test_any_sequence_of_packets_and_policies_gets_decisions(
    steps: list[tuple[bytes, dict[str, Any]]], seed: int
) -> None:
    random, node = Random(seed), Node(maximum_flows=2)
    for payload, policy in steps:
        node.load(**policy)
        node.now += random.choice((0, 1, 100, 10_000))
        check(at_any_hook(node, random)(payload), node.now)


def test_nothing_gets_in_from_outside_that_no_rule_allows() -> None:
    random, node = Random(2), Node()
    node.load(ingress={"web": [], "db": []})
    for _ in range(BULK // 2):
        payload = damaged(random, random.choice(CORPUS))
        come_by, leave_by = random.choice((ETH0, WAN0)), random.choice((VETH_WEB, VETH_DB))

        assert node.forward(payload, come_by, leave_by).verdict is Verdict.DROP
        assert node.receive(payload, come_by).verdict is Verdict.DROP

    assert len(node.flows) == 0


def test_no_learned_flow_lets_anything_in_from_outside_that_no_rule_allows() -> None:
    random, node = Random(4), Node(maximum_flows=10_000)
    node.load(ingress={"web": [], "db": []})
    homes = {packed(address) for at in FAMILIES for address in (at.web, at.db, at.host)}
    openers = [packet for packet in map(parse, PLAIN) if packet.src not in homes and packet.dst in homes]
    connections = set()
    for number in range(BULK // 2):
        if number % 100 == 0:
            opener, state = random.choice(openers), random.choice(list(FlowState))
            if node.flows.import_flow(KernelFlow(opener.key, state, 1e6), node.now) and opener.proto == TCP:
                connections.add(opener.key)
        payload = damaged(random, random.choice(CORPUS))
        come_by, leave_by = random.choice((ETH0, WAN0)), random.choice((VETH_WEB, VETH_DB))

        assert node.forward(payload, come_by, leave_by).verdict is Verdict.DROP
        assert node.receive(payload, come_by).verdict is Verdict.DROP

    assert connections <= {flow.key for flow in node.flows}  # no stranger has cut one
    assert len(connections) > 5


def test_nothing_gets_out_of_an_endpoint_that_no_rule_allows() -> None:
    random, node = Random(3), Node()
    node.load(egress={"web": [], "db": []})
    itself = {packed(at.web) for at in FAMILIES}
    for _ in range(BULK // 4):
        payload = damaged(random, random.choice(CORPUS))
        decision = node.forward(payload, VETH_WEB, random.choice((ETH0, WAN0, VETH_DB)))

        assert decision.verdict is Verdict.DROP or parse(payload).dst in itself
