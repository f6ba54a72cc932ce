"""Two nodes see the same packets, one of them without a glance at any: they agree on all, and know the same flows."""

from itertools import product
from random import Random
from typing import Any

from nfq_enforcer.core.events import Decision, DnsMessage
from nfq_enforcer.core.identity import travels
from nfq_enforcer.core.tables.conntrack import Conntrack, FlowState, KernelFlow
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.fast_parse import parse_fast
from nfq_enforcer.core.wire.packet import TCP, UDP, checksum, parse
from nfq_enforcer.core.wire.stamp import read
from tests.support.dns import address, alias, answer, answers, asks, query
from tests.support.effort import scaled
from tests.support.nodes import (
    CLIENT,
    DB,
    ETH0,
    FAMILIES,
    MTU,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
)
from tests.support.packets import (
    Build,
    error,
    fin,
    ping,
    pong,
    request,
    response,
    server_rst,
    server_syn,
    stamped,
    syn,
    syn_ack,
    tcp,
    udp,
    udp_answer,
    unfinished,
)

COUNT = scaled(60_000)

LARGE = bytes(MTU - 50)
FORWARD: list[Build] = [syn, request, request, request, fin, udp, udp, udp, ping]
BACK: list[Build] = [syn_ack, response, response, response, server_syn, server_rst, udp_answer, udp_answer, pong]
WAYS = [  # source, destination, by which interfaces
    way
    for at in FAMILIES
    for one, home, other, hers in (
        (at.web, VETH_WEB, at.client, ETH0),
        (at.web, VETH_WEB, at.client, ETH0),
        (at.web, VETH_WEB, at.world, WAN0),
        (at.web, VETH_WEB, at.db, VETH_DB),
        (at.db, VETH_DB, at.host, None),
        (at.db, None, at.other, ETH0),
    )
    for way in ((one, other, home, hers), (other, one, hers, home))
]
PORTS = (40_000, 40_001)  # of a DNS client
STRANGE = [ETH0, WAN0, VETH_WEB, VETH_DB, None]
POLICIES: list[dict[str, Any]] = [
    {},
    {"ingress": {"web": [(CLIENT, TCP, 0), (CLIENT, UDP, 0), (DB, 0, 0)]}},
    {"ingress": {"web": [(CLIENT, 0, 0), (OTHER, 0, 0)]}, "egress": {"web": [(CLIENT, 0, 0), (DB, TCP, 80)]}},
    {"ingress": {"web": [], "db": []}, "audit": True},
    {"ingress": {"web": []}, "egress": {"web": [], "db": [(WEB, 0, 0)]}},
    {"trust_ipcache": True},
]


def sound(payload: bytes) -> bytes:
    """Return the packet with a right checksum of its IPv4 header: the kernel drops others before our hooks."""
    size = (payload[0] & 0x0F) * 4 if payload and payload[0] >> 4 == 4 else 0
    if not 20 <= size <= len(payload):
        return payload
    header = bytearray(payload[:size])
    header[10:12] = bytes(2)
    return payload[:10] + checksum(header).to_bytes(2, "big") + payload[12:]


def build(random: Random, src: str, dst: str, *, opens: bool) -> bytes:
    made = random.choice(FORWARD if opens else BACK)(src, dst)
    chance = random.random()
    if chance < 0.03:
        return error(src, dst, random.choice(BACK if opens else FORWARD)(dst, src))
    if chance < 0.06:
        return tcp(src, dst, 40_000, 80, random.randrange(256))
    if chance < 0.1:
        return udp(src, dst, data=LARGE[: random.randrange(len(LARGE))], df=random.random() < 0.9)
    return made


def damage(random: Random, payload: bytes) -> bytes:
    """Return the packet with some byte of its headers changed, or its end cut off."""
    if not payload:
        return payload
    place = random.randrange(min(len(payload), 84))
    value = random.choice((0, 1, 4, 5, 0x45, 0x47, 0x60, 6, 17, 30, 60, 158, 255, random.randrange(256)))
    if random.random() < 0.5:
        return payload[:place] + bytes((value,)) + payload[place + 1 :]
    return payload[: random.randrange(len(payload))]


def draw(random: Random) -> tuple[bytes, str | None, str | None, int]:
    """Return a packet, the interfaces it comes and goes by, and what the kernel has left undone."""
    src, dst, indev, outdev = random.choice(WAYS)
    payload = build(random, src, dst, opens=random.random() < 0.5)
    skb = random.choice((0, 0, 0, 1, 3))
    if skb and parse(payload).proto in (TCP, UDP) and random.random() < 0.9:
        payload = unfinished(payload)
    if (indev == ETH0 and random.random() < 0.8) or random.random() < 0.05:
        payload = stamped(payload, CLIENT if random.random() < 0.9 else OTHER)
    if random.random() < 0.1:
        payload = damage(random, payload)
    if random.random() < 0.05:
        indev, outdev = random.choice(STRANGE), random.choice(STRANGE)
    return sound(payload), indev, outdev, skb


def decide(node: Node, payload: bytes, indev: str | None, outdev: str | None, skb: int) -> Decision:
    if indev is None:
        return node.send(payload, outdev or ETH0, skb=skb)
    return node.receive(payload, indev, skb) if outdev is None else node.forward(payload, indev, outdev, skb=skb)


def draw_message(random: Random, at: Addresses) -> tuple[bytes, str | None, str | None, int]:
    """Return a packet of a DNS client and its server, as ``draw`` does."""
    asked, answered = (random.choice(("www.example.com", "x.example.net", "www.example.org")) for _ in range(2))
    ident, edns, port = random.randrange(3), random.random() < 0.5, random.choice(PORTS)
    if random.random() < 0.5:
        payload = asks(at.web, at.client, query(asked, ident=ident, edns=edns), port)
        ends: tuple[str | None, str | None] = (VETH_WEB, ETH0)
    else:
        owner = random.choice((answered, asked))
        records = [address(owner, f"192.0.2.{random.randrange(5)}") for _ in range(random.randrange(3))]
        if random.random() < 0.2:
            records.insert(0, alias(answered, asked))
        payload = stamped(answers(at.client, at.web, answer(answered, *records, ident=ident), port), CLIENT)
        ends = (ETH0, VETH_WEB)
    chance = random.random()
    if chance < 0.05:
        payload = damage(random, payload)
    elif chance < 0.1:
        place = random.randrange(len(payload))
        payload = payload[:place] + random.randbytes(1) + payload[place + 1 :]
    elif chance < 0.15:
        payload += random.randbytes(3)
    if random.random() < 0.05:
        ends = random.choice(STRANGE), random.choice(STRANGE)
    skb = random.choice((0, 0, 0, 1, 3))
    return sound(unfinished(payload) if skb and chance > 0.2 else payload), *ends, skb


def known(flows: Conntrack, now: float) -> list[object]:
    """Return all that is known of every flow but those whose time is over, which only a look-up removes."""
    return [
        (f.key, f.state, f.expires, f.revision, f.origin, f.reply_origin, f.stamp, f.reply_stamp, f.opening)
        for f in flows
        if f.expires > now
    ]


def test_a_glance_and_the_long_way_agree_on_every_packet_and_know_the_same_flows() -> None:
    random, pressed, passed = Random(5), 0, 0
    nodes = [Node(10_000, can_requeue=True), Node(10_000, can_requeue=True, fast=False)]  # never full
    for number in range(COUNT):
        policy = random.choice(POLICIES) if number % 300 == 0 else None
        step = random.choice((0.0, 0.01, 0.1, 40.0 if number % 50 == 0 else 0.0))
        drawn = draw(random)
        seen = parse_fast(draw(random)[0]) if number % 20 == 0 else None
        learned, state = seen and seen[0], random.choice(list(FlowState))
        for node in nodes:
            node.now += step
            if policy is not None:
                node.load(**policy)
            if learned is not None:
                node.flows.import_flow(KernelFlow(learned, state, 100.0), node.now)
        quick, slow = (decide(node, *drawn) for node in nodes)

        assert quick == slow
        if number % 100 == 0:
            assert known(nodes[0].flows, nodes[0].now) == known(nodes[1].flows, nodes[1].now)
        if quick.verdict is Verdict.ACCEPT and parse_fast(drawn[0]) is not None:
            pressed += quick.payload is not None
            passed += quick.payload is None

    assert pressed > COUNT // 20  # the corpus has enough of both
    assert passed > COUNT // 20


def test_a_glance_and_the_long_way_agree_on_every_message_of_dns() -> None:
    random, asked, answered, denied = Random(8), 0, 0, 0
    nodes = [Node(10_000, can_requeue=True), Node(10_000, can_requeue=True, fast=False)]
    for number in range(COUNT // 2):
        rules = random.choice((["www.example.com"], ["*.example.net", "www.example.com"], ["*"]))
        drawn = draw_message(random, random.choice(FAMILIES))
        step = 40.0 if number % 500 == 0 else random.choice((0.0, 0.01, 0.1))
        for node in nodes:
            node.now += step
            if number % 300 == 0:
                node.load_dns(*rules)
            if number % 500 == 0:  # queries open the flows, so answers do not
                for at, port in product(FAMILIES, PORTS):
                    decide(node, asks(at.web, at.client, query("www.example.com"), port), VETH_WEB, ETH0, 0)
        quick, slow = (decide(node, *drawn) for node in nodes)

        assert quick == slow
        if number % 100 == 0:
            assert known(nodes[0].flows, nodes[0].now) == known(nodes[1].flows, nodes[1].now)
        if isinstance(quick.event and quick.event.l7, DnsMessage):
            asked += quick.verdict is Verdict.ACCEPT and not quick.learned
            answered += bool(quick.learned)
            denied += quick.verdict is Verdict.DROP

    assert min(asked, answered, denied) > COUNT // 200


def test_what_a_glance_tells_is_what_parsing_and_reading_the_stamp_tell() -> None:
    random, plain = Random(6), 0
    for _ in range(COUNT):
        payload = damage(random, draw(random)[0])
        seen = parse_fast(payload)
        if seen is None:
            continue
        plain += 1
        packet = parse(payload)
        claim = seen[1]
        if claim is None or travels(claim):  # no flow comes from another
            mark = read(payload, packet)
            assert claim == (mark and mark.identity)
        assert (seen[0], *seen[2:]) == (packet.key, packet.tcp_flags, packet.l4_offset, packet.length)
        assert not packet.opens

    assert plain > COUNT // 20
