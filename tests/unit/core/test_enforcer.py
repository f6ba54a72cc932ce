"""The verdict on one packet: every promise of the data path that needs no kernel."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from nfq_enforcer.core.enforcer import Decision
from nfq_enforcer.core.identity import HOST, LOCAL, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.conntrack import FlowState
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer, Prefixes
from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP, parse, parse_quoted
from tests.support.nodes import (
    CLIENT,
    DB,
    ETH0,
    FAMILIES,
    MTU,
    OTHER,
    V4,
    V6,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    refused,
    rule,
)
from tests.support.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    TOO_BIG,
    Build,
    error,
    fin,
    identity_on,
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
    tcp,
    udp,
    udp_answer,
    unfinished,
    with_options,
)

HTTP = [(CLIENT, TCP, 80)]
NOBODY: list[tuple[int, int, int]] = []
EVERYTHING_FROM_CLIENT = [(CLIENT, 0, 0)]
CLOSED = {"web": NOBODY, "db": NOBODY}


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


def from_client(node: Node, payload: bytes, identity: int = CLIENT) -> Decision:
    """Decide a packet that another node forwards to web with this identity."""
    return node.forward(stamped(payload, identity), ETH0, VETH_WEB)


# Nothing enforced


@pytest.mark.parametrize("build", [syn, syn_ack, request, rst, udp, ping, pong, sctp])
def test_without_policy_everything_passes_in_either_direction(node: Node, at: Addresses, build: Build) -> None:
    assert accepted(from_client(node, build(at.client, at.web)))
    assert accepted(node.forward(build(at.db, at.client), VETH_DB, ETH0))
    assert accepted(node.forward(build(at.web, at.world), VETH_WEB, WAN0))
    assert accepted(node.forward(build(at.world, at.db), WAN0, VETH_DB))
    assert accepted(node.forward(build(at.web, at.db), VETH_WEB, VETH_DB))
    assert accepted(node.receive(build(at.web, at.host), VETH_WEB))
    assert accepted(node.send(build(at.host, at.web), VETH_WEB))


def test_without_policy_an_answer_needs_no_stamp(node: Node, at: Addresses) -> None:
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))


def test_a_side_that_is_not_enforced_is_open_although_another_is_closed(node: Node, at: Addresses) -> None:
    node.load(ingress={"db": NOBODY})

    assert accepted(node.forward(syn(at.world, at.web), WAN0, VETH_WEB))
    assert accepted(node.forward(syn(at.db, at.world), VETH_DB, WAN0))


# Who may open, and replies


def test_what_a_rule_allows_passes_and_all_else_is_dropped(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    assert accepted(from_client(node, syn(at.client, at.web, 80)))
    assert refused(from_client(node, syn(at.client, at.web, 81))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, udp(at.client, at.web, 80))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, ping(at.client, at.web))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, syn(at.other, at.web, 80), OTHER)) is DropReason.POLICY_DENIED
    assert refused(node.forward(syn(at.db, at.web, 80), VETH_DB, VETH_WEB)) is DropReason.POLICY_DENIED


OPENERS_AND_REPLIES = [(syn, syn_ack), (request, response), (udp, udp_answer), (ping, pong)]


@pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
def test_a_reply_passes_without_a_rule_for_it(node: Node, at: Addresses, opener: Build, reply: Build) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": NOBODY})

    assert accepted(from_client(node, opener(at.client, at.web)))
    assert accepted(node.forward(reply(at.web, at.client), VETH_WEB, ETH0))


@pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
def test_a_reply_from_another_node_passes_without_a_rule_for_it(
    node: Node, at: Addresses, opener: Build, reply: Build
) -> None:
    node.load(egress={"web": EVERYTHING_FROM_CLIENT}, ingress={"web": NOBODY})

    assert accepted(node.forward(opener(at.web, at.client), VETH_WEB, ETH0))
    assert accepted(from_client(node, reply(at.client, at.web)))
    assert accepted(from_client(node, reply(at.client, at.web)))


@pytest.mark.parametrize("opener", [server_syn, ping, syn, udp])
def test_the_other_end_of_a_flow_may_not_open_one_of_its_own(node: Node, at: Addresses, opener: Build) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": NOBODY})
    for payload in (syn, ping, udp):
        assert accepted(from_client(node, payload(at.client, at.web)))
    node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)

    drop = node.forward(opener(at.web, at.client), VETH_WEB, ETH0)

    assert refused(drop) is DropReason.POLICY_DENIED
    assert (event(drop).direction, event(drop).is_reply) == (Direction.EGRESS, False)
    assert accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))


def test_both_ends_may_open_at_once_if_both_are_allowed_to_and_have_one_flow(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": EVERYTHING_FROM_CLIENT})

    from_client(node, syn(at.client, at.web))
    crossing = node.forward(server_syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(crossing)
    assert crossing.event is None
    assert identity_on(crossing.payload) == WEB
    assert accepted(from_client(node, tcp(at.client, at.web, 40_000, 80, SYN | ACK)))
    assert len(node.flows) == 1


def test_data_in_the_midst_of_a_connection_is_judged_like_its_opener(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    assert refused(from_client(node, request(at.client, at.web, 81))) is DropReason.POLICY_DENIED
    assert accepted(from_client(node, request(at.client, at.web, 80)))
    assert accepted(node.forward(response(at.web, at.client, 80), VETH_WEB, ETH0))


ANSWERS = [syn_ack, rst, server_rst, pong]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("allowed", [NOBODY, EVERYTHING_FROM_CLIENT])
def test_an_answer_to_nothing_is_dropped_where_policy_is_enforced(
    node: Node, at: Addresses, answer: Build, allowed: list[tuple[int, int, int]]
) -> None:
    node.load(ingress={"web": allowed})

    drop = from_client(node, answer(at.client, at.web))

    assert refused(drop) is DropReason.CT_NO_MATCH
    assert (event(drop).opening.source, event(drop).opening.destination) == (CLIENT, WEB)
    assert event(drop).direction is Direction.INGRESS
    assert event(drop).enforced_by == (rule("web", Direction.INGRESS, 99),)
    assert len(node.flows) == 0


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_to_nothing_passes_where_nothing_is_enforced_and_opens_nothing(
    node: Node, at: Addresses, answer: Build
) -> None:
    decision = node.forward(answer(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(decision)
    assert identity_on(decision.payload) == WEB  # or the other node would not take it for web's
    assert len(node.flows) == 0


def test_an_answer_to_nothing_is_logged_in_audit(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": NOBODY}, audit=True)

    decision = from_client(node, syn_ack(at.client, at.web))

    assert accepted(decision)
    assert (event(decision).verdict, event(decision).reason) == (FlowVerdict.AUDIT, DropReason.CT_NO_MATCH)
    assert len(node.flows) == 0


@pytest.mark.parametrize("last", [fin, rst])
def test_a_port_used_again_after_a_connection_has_ended_is_judged_anew(node: Node, at: Addresses, last: Build) -> None:
    for payload in (syn, last):
        assert accepted(from_client(node, payload(at.client, at.web)))
    again = from_client(node, syn(at.client, at.web))

    assert event(again).verdict is FlowVerdict.FORWARDED
    assert len(node.flows) == 1


def test_the_other_end_may_use_the_ports_of_an_ended_connection_for_its_own(node: Node, at: Addresses) -> None:
    for payload in (syn, fin):
        from_client(node, payload(at.client, at.web))
    node.forward(server_syn(at.web, at.client), VETH_WEB, ETH0)
    node.load(egress={"web": NOBODY})

    assert refused(from_client(node, request(at.client, at.web))) is DropReason.POLICY_DENIED


def test_a_syn_sent_twice_is_one_flow(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))

    assert from_client(node, syn(at.client, at.web)).event is None
    assert len(node.flows) == 1


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | RST, 0, 0xFF])
def test_odd_tcp_flags_are_held_against_policy_too(node: Node, at: Addresses, flags: int) -> None:
    node.load(ingress=CLOSED)

    assert not accepted(from_client(node, tcp(at.client, at.web, 40_000, 80, flags)))


# Both sides


def test_of_two_endpoints_on_one_node_each_enforced_side_must_allow(node: Node, at: Addresses) -> None:
    to_db, from_web = {"web": [(DB, TCP, 80)]}, {"db": [(WEB, TCP, 80)]}
    attempts = [
        (from_web, to_db, None),
        (from_web, None, None),
        (None, to_db, None),
        ({"db": NOBODY}, to_db, Direction.INGRESS),
        ({"db": NOBODY}, None, Direction.INGRESS),
        (from_web, {"web": NOBODY}, Direction.EGRESS),
        ({"db": NOBODY}, {"web": NOBODY}, Direction.EGRESS),
        ({"web": NOBODY}, {"db": NOBODY}, None),
    ]
    for number, (ingress, egress, side) in enumerate(attempts):
        node.load(ingress, egress)
        decision = node.forward(tcp(at.web, at.db, 1000 + number, 80, SYN), VETH_WEB, VETH_DB)

        assert refused(decision) is (DropReason.POLICY_DENIED if side else None)
        assert event(decision).direction is (side or Direction.INGRESS)


def test_a_flow_that_both_sides_allow_names_the_rules_of_both(node: Node, at: Addresses) -> None:
    node.load(ingress={"db": [(WEB, TCP, 80)]}, egress={"web": [(DB, TCP, 80)]})

    decision = node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)

    assert event(decision).allowed_by == (rule("web", Direction.EGRESS, 0), rule("db", Direction.INGRESS, 0))
    assert event(decision).enforced_by == ()


def test_a_deny_rule_refuses_whatever_allows_and_is_named(node: Node, at: Addresses) -> None:
    node.load(ingress={"db": [(0, 0, 0)]}, deny_ingress={"db": [(WEB, TCP, 80)]})

    drop = node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)

    assert refused(drop) is DropReason.POLICY_DENY
    assert event(drop).denied_by == (rule("db", Direction.INGRESS, 0)._replace(deny=True),)
    assert event(drop).enforced_by == ()
    assert accepted(node.forward(syn(at.web, at.db, 81), VETH_WEB, VETH_DB))


def test_a_deny_rule_holds_where_nothing_else_is_closed(node: Node, at: Addresses) -> None:
    node.load(deny_egress={"web": [(DB, TCP, 80)]})

    assert refused(node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)) is DropReason.POLICY_DENY
    assert accepted(node.forward(syn(at.web, at.db, 81), VETH_WEB, VETH_DB))
    assert accepted(node.forward(syn_ack(at.web, at.world), VETH_WEB, WAN0))  # nothing is closed to it


def test_the_host_reaches_its_endpoints_except_where_a_rule_denies_it(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, deny_ingress={"db": [(HOST, TCP, 80)]})

    assert refused(node.send(syn(at.host, at.db), VETH_DB)) is DropReason.POLICY_DENY
    assert accepted(node.send(syn(at.host, at.db, 81), VETH_DB))


def test_a_rule_for_some_requests_lets_nothing_pass_without_a_proxy(node: Node, at: Addresses) -> None:
    ref = rule("db", Direction.INGRESS, 0)
    some = PolicyEntry(l7=(L7Rule(ref, HttpMatch("GET")),))
    closed = PolicyMap({PolicyKey(WEB, TCP, 80, 16): some}, enforced=True, enforced_by=(ref,))
    endpoints = node.snapshot(0).endpoints
    node.load(endpoints={address: replace(one, ingress=closed) for address, one in endpoints.items()})

    assert refused(node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)) is DropReason.POLICY_DENIED


def test_a_type_of_icmp_is_judged_like_a_port(node: Node, at: Addresses) -> None:
    echo = ICMP if at.version == 4 else ICMPV6
    kind = 8 if at.version == 4 else 128
    node.load(ingress={"db": [(WEB, echo, kind)]})

    assert accepted(node.forward(ping(at.web, at.db), VETH_WEB, VETH_DB))
    node.load(ingress={"db": [(WEB, echo, kind + 1)]})
    assert refused(node.forward(ping(at.web, at.db, 2), VETH_WEB, VETH_DB)) is DropReason.POLICY_DENIED


def test_what_policy_calls_an_address_counts_beside_its_identity(node: Node, at: Addresses) -> None:
    block = Identity(LOCAL | 1)
    blocks = Prefixes({ip_network(at.db): block})
    node.load(egress={"web": [(block, TCP, 80)]}, ipcache=Ipcache({}, blocks=blocks))

    assert accepted(node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB))
    assert refused(node.forward(syn(at.web, at.world), VETH_WEB, WAN0)) is DropReason.POLICY_DENIED


def test_an_address_that_is_nobodys_is_its_cidr_and_no_endpoints_is(node: Node, at: Addresses) -> None:
    cidr = Identity(LOCAL | 1)
    outside = Prefixes({ip_network("0.0.0.0/0"): cidr, ip_network("::/0"): cidr})
    known = {packed(at.client): Peer(CLIENT, remote=True)}
    node.load(ingress={"web": [(cidr, TCP, 80)]}, ipcache=Ipcache(known, outside=outside))

    assert accepted(node.forward(syn(at.world, at.web), WAN0, VETH_WEB))
    # without a stamp it is the world's, and neither the endpoint's nor a part of the world that policy names
    assert refused(node.forward(syn(at.client, at.web), WAN0, VETH_WEB)) is DropReason.POLICY_DENIED


def test_an_endpoint_is_never_cut_off_from_itself(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, egress=CLOSED)

    assert accepted(node.forward(syn(at.web, at.web), VETH_WEB, VETH_WEB))


def test_egress_is_judged_by_the_destinations_identity(node: Node, at: Addresses) -> None:
    node.load(egress={"web": [(CLIENT, TCP, 80), (REMOTE_NODE, TCP, 81), (WORLD, TCP, 82), (HOST, TCP, 83)]})

    ways = [(at.client, ETH0, 80), (at.second_node, ETH0, 81), (at.world, WAN0, 82)]
    for address, leave_by, port in ways:
        assert accepted(node.forward(syn(at.web, address, port), VETH_WEB, leave_by))
        assert refused(node.forward(syn(at.web, address, 84), VETH_WEB, leave_by)) is DropReason.POLICY_DENIED
    assert accepted(node.receive(syn(at.web, at.host, 83), VETH_WEB))
    assert refused(node.receive(syn(at.web, at.host, 84), VETH_WEB)) is DropReason.POLICY_DENIED


def test_any_address_that_the_host_itself_receives_is_the_hosts(node: Node, at: Addresses) -> None:
    node.load(egress={"web": [(HOST, TCP, 80)]})

    assert event(node.receive(syn(at.web, at.world), VETH_WEB)).opening.destination == HOST


def test_the_host_may_open_to_its_endpoints_whatever_policy_says(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    opened = node.send(syn(at.host, at.web), VETH_WEB)

    assert accepted(opened)
    assert event(opened).opening.source == HOST
    assert accepted(node.receive(syn_ack(at.web, at.host), VETH_WEB))


def test_the_host_is_held_to_policy_where_the_node_says_so(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(HOST, TCP, 80)], "db": NOBODY}, allow_localhost=False)

    assert accepted(node.send(syn(at.host, at.web), VETH_WEB))
    assert refused(node.send(syn(at.host, at.db), VETH_DB)) is DropReason.POLICY_DENIED


def test_a_network_policy_closes_no_endpoint_to_its_host(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, allow_localhost=False, closed_by="NetworkPolicy")

    assert accepted(node.send(syn(at.host, at.web), VETH_WEB))
    assert refused(node.forward(syn(at.world, at.web), WAN0, VETH_WEB)) is DropReason.POLICY_DENIED


def test_an_endpoint_needs_a_rule_to_reach_the_host(node: Node, at: Addresses) -> None:
    node.load(egress={"web": NOBODY})

    assert refused(node.receive(syn(at.web, at.host), VETH_WEB)) is DropReason.POLICY_DENIED


def test_a_packet_of_no_endpoint_of_this_node_is_dropped(node: Node, at: Addresses) -> None:
    assert refused(node.forward(syn(at.world, at.client), WAN0, ETH0)) is DropReason.NO_ENDPOINT


# Identity


def test_identity_comes_from_the_stamp_and_never_from_the_address(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [(CLIENT, TCP, 80), (WORLD, TCP, 81), (REMOTE_NODE, TCP, 82)]})

    assert accepted(from_client(node, syn(at.world, at.web, 80), CLIENT))
    assert accepted(from_client(node, syn(at.second_node, at.web, 80), CLIENT))
    assert not accepted(from_client(node, syn(at.client, at.web, 80), OTHER))
    assert not accepted(node.forward(syn(at.client, at.web, 80), ETH0, VETH_WEB))
    assert not accepted(node.forward(syn(at.client, at.web, 80), WAN0, VETH_WEB))


@pytest.mark.parametrize("come_by", [ETH0, WAN0])
def test_without_a_stamp_an_endpoints_address_is_the_worlds(node: Node, at: Addresses, come_by: str) -> None:
    decision = node.forward(syn(at.client, at.web), come_by, VETH_WEB)

    assert event(decision).opening.source == WORLD


def test_without_a_stamp_an_address_is_believed_where_the_node_says_so(node: Node, at: Addresses) -> None:
    node.load(believe_ipcache=True)

    assert event(node.forward(syn(at.client, at.web), ETH0, VETH_WEB)).opening.source == CLIENT
    assert event(node.forward(syn(at.world, at.web), ETH0, VETH_WEB)).opening.source == WORLD


def test_a_nodes_own_address_is_remote_node(node: Node, at: Addresses) -> None:
    assert event(node.forward(syn(at.second_node, at.web), ETH0, VETH_WEB)).opening.source == REMOTE_NODE


def test_an_address_in_the_clusters_networks_is_the_worlds(node: Node, at: Addresses) -> None:
    assert event(node.forward(syn(at.cluster, at.web), ETH0, VETH_WEB)).opening.source == WORLD


@pytest.mark.parametrize("come_by", [WAN0, VETH_DB])
def test_a_stamp_is_not_believed_from_elsewhere_than_the_cluster(node: Node, at: Addresses, come_by: str) -> None:
    drop = node.forward(stamped(syn(at.client, at.web), CLIENT), come_by, VETH_WEB)

    assert refused(drop) is DropReason.STAMP_UNTRUSTED


BAD_STAMPS = [
    ("9e08 10 00 00000100 9e08 10 00 00000100", "1e06 10 00 00000100 1e06 10 00 00000100", DropReason.STAMP_DUPLICATE),
    ("9e08 20 00 00000100", "1e06 20 00 00000100", DropReason.STAMP_VERSION),
    ("9e08 12 00 00000100", "1e06 12 00 00000100", DropReason.STAMP_MALFORMED),
    ("9e04 10 00", "1e02 10 00", DropReason.STAMP_MALFORMED),
    ("9e08 10 00 00000001", "1e06 10 00 00000001", DropReason.STAMP_IDENTITY),  # the host
    ("9e08 10 00 00000002", "1e06 10 00 00000002", DropReason.STAMP_IDENTITY),  # the world
    ("9e08 10 00 01000000", "1e06 10 00 01000000", DropReason.STAMP_IDENTITY),  # a CIDR's
    ("9e00 10 00", "1eff 10 00", DropReason.INVALID_PACKET),
]


@pytest.mark.parametrize(("v4", "v6", "reason"), BAD_STAMPS)
def test_a_bad_stamp_is_a_drop_of_its_own_name(node: Node, at: Addresses, v4: str, v6: str, reason: DropReason) -> None:
    options = bytes.fromhex(v4) if at.version == 4 else header6(bytes.fromhex(v6))

    assert refused(node.forward(with_options(syn(at.client, at.web), options), ETH0, VETH_WEB)) is reason


def header6(options: bytes) -> bytes:
    """Return the rest of a Destination Options header with these options, padded to whole words."""
    padding = -(len(options) + 2) % 8
    filled = options + (bytes((1, padding - 2)) + bytes(padding - 2) if padding else b"")
    return bytes(((len(filled) + 2) // 8 - 1,)) + filled


def test_a_stamp_on_a_known_flow_is_held_against_the_flow_too(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))

    assert refused(node.forward(stamped(request(at.client, at.web), CLIENT), WAN0, VETH_WEB)) is (
        DropReason.STAMP_UNTRUSTED
    )


def test_an_endpoints_own_stamp_counts_for_nothing_and_is_replaced_toward_other_nodes(
    node: Node, at: Addresses
) -> None:
    decision = node.forward(stamped(syn(at.web, at.client), OTHER), VETH_WEB, ETH0)

    assert identity_on(decision.payload) == WEB
    assert event(decision).opening.source == WEB


def test_a_stamp_on_what_the_host_sends_counts_for_nothing(node: Node, at: Addresses) -> None:
    assert event(node.send(stamped(syn(at.host, at.web), OTHER), VETH_WEB)).opening.source == HOST


def test_an_endpoints_own_stamp_is_taken_off_where_none_belongs(node: Node, at: Addresses) -> None:
    for dst, leave_by in ((at.world, WAN0), (at.db, VETH_DB)):
        decision = node.forward(stamped(syn(at.web, dst), OTHER), VETH_WEB, leave_by)
        assert decision.payload == syn(at.web, dst)
    assert node.receive(stamped(syn(at.web, at.host), OTHER), VETH_WEB).payload == syn(at.web, at.host)


def test_an_endpoints_own_stamp_is_taken_off_its_replies(node: Node, at: Addresses) -> None:
    node.forward(syn(at.world, at.web), WAN0, VETH_WEB)

    decision = node.forward(stamped(syn_ack(at.web, at.world), OTHER), VETH_WEB, WAN0)

    assert decision.payload == syn_ack(at.web, at.world)


def test_other_options_are_no_stamp(node: Node) -> None:
    router_alert = with_options(syn(V4.client, V4.web), bytes((148, 4, 0, 0)))

    assert event(node.forward(router_alert, WAN0, VETH_WEB)).opening.source == WORLD


def test_an_endpoints_other_options_stay(node: Node) -> None:
    payload = with_options(syn(V4.web, V4.world), bytes((148, 4, 0, 0)))  # router alert

    assert node.forward(payload, VETH_WEB, WAN0).payload is None


# Source addresses


def test_an_endpoints_address_is_refused_from_elsewhere(node: Node, at: Addresses) -> None:
    for come_by in (ETH0, WAN0, VETH_WEB):
        drop = node.forward(syn(at.db, at.web), come_by, VETH_WEB)
        assert refused(drop) is DropReason.INVALID_SOURCE_IP
        assert event(drop).direction is (Direction.EGRESS if come_by == VETH_WEB else Direction.INGRESS)


@pytest.mark.parametrize("foreign", ["world", "client", "second_node", "host"])
def test_a_foreign_address_is_refused_from_an_endpoint(node: Node, at: Addresses, foreign: str) -> None:
    drop = node.forward(syn(getattr(at, foreign), at.db), VETH_WEB, VETH_DB)

    assert refused(drop) is DropReason.INVALID_SOURCE_IP
    assert event(drop).direction is Direction.EGRESS


def test_a_stamped_packet_with_a_local_endpoints_address_is_refused(node: Node, at: Addresses) -> None:
    assert refused(from_client(node, syn(at.db, at.web))) is DropReason.INVALID_SOURCE_IP


def test_a_forged_source_is_refused_in_a_known_flow_too(node: Node, at: Addresses) -> None:
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert refused(node.forward(request(at.web, at.client), VETH_DB, ETH0)) is DropReason.INVALID_SOURCE_IP
    assert refused(node.forward(syn_ack(at.client, at.web), VETH_DB, VETH_WEB)) is DropReason.INVALID_SOURCE_IP
    assert accepted(node.forward(request(at.web, at.client), VETH_WEB, ETH0))


# Strangers in a flow


def test_a_strangers_packet_neither_passes_in_a_flow_nor_cuts_it(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    from_client(node, syn(at.client, at.web))
    strangers = [(stamped(request(at.client, at.web), OTHER), ETH0)]
    strangers += [(payload(at.client, at.web), way) for payload in (request, rst, fin, syn) for way in (ETH0, WAN0)]

    for payload, come_by in strangers:
        drop = node.forward(payload, come_by, VETH_WEB)
        assert refused(drop) is DropReason.POLICY_DENIED
        assert event(drop).opening.source == (OTHER if identity_on(payload) else WORLD)

    assert from_client(node, request(at.client, at.web)) == Decision(Verdict.ACCEPT)
    assert [flow.opening.source for flow in node.flows] == [CLIENT]


def test_a_strangers_packet_does_not_cut_a_flow_that_a_new_policy_still_allows(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress={"web": HTTP})

    assert not accepted(from_client(node, request(at.client, at.web), OTHER))
    assert from_client(node, request(at.client, at.web)).event is None


def test_a_strangers_datagram_does_not_cut_a_flow_either(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})
    from_client(node, udp(at.client, at.web))

    assert not accepted(from_client(node, udp(at.client, at.web), OTHER))
    assert from_client(node, udp(at.client, at.web)).event is None


def test_a_stranger_whom_policy_allows_may_have_the_flow_and_its_owner_keeps_it_too(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": [*HTTP, (OTHER, TCP, 80)]})
    from_client(node, syn(at.client, at.web))

    assert accepted(from_client(node, request(at.client, at.web), OTHER))
    assert accepted(from_client(node, request(at.client, at.web), CLIENT))
    assert accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))


def test_a_reply_of_another_nodes_endpoint_must_be_stamped(node: Node, at: Addresses) -> None:
    for sides in ({"egress": {"web": EVERYTHING_FROM_CLIENT}}, {"ingress": {"web": NOBODY}}):
        node = Node()
        node.load(**sides)
        node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

        for come_by in (ETH0, WAN0):
            drop = node.forward(syn_ack(at.client, at.web), come_by, VETH_WEB)
            assert refused(drop) is DropReason.STAMP_MISSING
        assert accepted(from_client(node, syn_ack(at.client, at.web)))
        assert refused(node.forward(response(at.client, at.web), ETH0, VETH_WEB)) is DropReason.STAMP_MISSING


def test_an_unstamped_reply_is_believed_where_the_node_says_so(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, believe_ipcache=True)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))


def test_a_reply_of_the_world_or_another_node_itself_needs_no_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    for server, way in ((at.world, WAN0), (at.second_node, ETH0), (at.cluster, ETH0)):
        node.forward(syn(at.web, server), VETH_WEB, way)
        assert accepted(node.forward(syn_ack(server, at.web), way, VETH_WEB))


def test_a_reply_passes_in_audit_without_its_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))


def test_a_service_may_answer_with_its_own_address_and_the_endpoints_stamp(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(syn(at.web, at.cluster), VETH_WEB, ETH0)

    assert accepted(from_client(node, syn_ack(at.cluster, at.web), CLIENT))


def test_what_the_host_answers_comes_from_nowhere_else(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.receive(udp(at.web, at.host), VETH_WEB)

    for come_by in (ETH0, WAN0):
        drop = node.forward(udp_answer(at.host, at.web), come_by, VETH_WEB)
        assert refused(drop) is DropReason.INVALID_SOURCE_IP
    assert accepted(node.send(udp_answer(at.host, at.web), VETH_WEB))


def test_a_reply_is_asked_for_its_stamp_again_when_its_sender_becomes_an_endpoint(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, ipcache=Ipcache({}))
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)
    assert accepted(node.forward(syn_ack(at.client, at.web), ETH0, VETH_WEB))

    node.load(ingress=CLOSED)
    assert accepted(node.forward(request(at.web, at.client), VETH_WEB, ETH0))
    assert refused(node.forward(response(at.client, at.web), ETH0, VETH_WEB)) is DropReason.STAMP_MISSING


# A change of policy


@pytest.mark.parametrize("reply_first", [False, True])
@pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
def test_a_flow_no_longer_allowed_is_cut_at_its_next_packet(
    node: Node, at: Addresses, opener: Build, reply: Build, reply_first: bool
) -> None:
    from_client(node, opener(at.client, at.web))
    node.forward(reply(at.web, at.client), VETH_WEB, ETH0)
    node.load(ingress={"web": NOBODY}, egress={"web": NOBODY})

    for is_reply in (reply_first, not reply_first):
        if is_reply:
            drop = node.forward(reply(at.web, at.client), VETH_WEB, ETH0)
        else:
            drop = from_client(node, opener(at.client, at.web))
        assert not accepted(drop)


def test_a_cut_is_logged_with_the_flows_opener_and_the_rules_that_closed_it(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress={"web": NOBODY})

    cut = event(node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0))

    assert (cut.verdict, cut.reason) == (FlowVerdict.DROPPED, DropReason.POLICY_DENIED)
    assert (cut.direction, cut.is_reply) == (Direction.INGRESS, True)
    assert (cut.opening.src, cut.opening.source) == (packed(at.client), CLIENT)
    assert (cut.opening.dst, cut.opening.destination) == (packed(at.web), WEB)
    assert cut.enforced_by == (rule("web", Direction.INGRESS, 99),)


def test_the_other_end_of_a_cut_connection_cannot_revive_it(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)
    node.load(ingress={"web": NOBODY})  # web may open to client, but this connection is the client's

    for _ in range(3):  # as TCP retransmits
        assert not accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))
        assert not accepted(from_client(node, request(at.client, at.web)))


def test_the_other_end_of_a_cut_connection_may_open_its_own(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)
    node.load(ingress={"web": NOBODY})
    assert not accepted(from_client(node, request(at.client, at.web)))

    assert event(node.forward(server_syn(at.web, at.client), VETH_WEB, ETH0)).opening.source == WEB
    assert accepted(from_client(node, tcp(at.client, at.web, 40_000, 80, SYN | ACK)))


def test_the_other_end_of_a_cut_exchange_of_datagrams_may_open_its_own(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    node.load(ingress={"web": NOBODY})
    assert not accepted(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0))

    assert event(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0)).opening.source == WEB


def test_a_cut_connection_goes_on_when_policy_allows_it_again(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress={"web": NOBODY})
    assert not accepted(from_client(node, request(at.client, at.web)))
    node.load(ingress={"web": HTTP})

    assert accepted(from_client(node, request(at.client, at.web)))


def test_a_flow_still_allowed_outlives_a_change_of_policy_unnoticed(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress={"web": HTTP})

    assert node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0).event is None
    assert from_client(node, request(at.client, at.web)) == Decision(Verdict.ACCEPT)
    assert len(node.flows) == 1


def test_an_endpoint_that_is_gone_takes_its_flows_along(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(endpoints={})

    assert refused(from_client(node, request(at.client, at.web))) is DropReason.NO_ENDPOINT
    assert refused(node.forward(response(at.web, at.client), VETH_WEB, ETH0)) is DropReason.NO_ENDPOINT


def test_a_flow_that_fell_silent_for_too_long_is_judged_anew(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    node.now += 30

    assert event(from_client(node, udp(at.client, at.web))).verdict is FlowVerdict.FORWARDED


# Flows that only the kernel remembers


def test_the_server_may_speak_first_in_a_learned_flow_whose_opener_policy_allows(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP}, egress={"web": NOBODY})
    node.import_flow(syn(at.client, at.web))

    for _ in range(2):
        decision = node.forward(response(at.web, at.client), VETH_WEB, ETH0)
        assert (decision.payload, decision.event) == (stamped(response(at.web, at.client), WEB), None)
    assert from_client(node, request(at.client, at.web)) == Decision(Verdict.ACCEPT)
    assert [flow.opening.source for flow in node.flows] == [CLIENT]


@pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
def test_a_learned_flow_that_policy_does_not_allow_is_cut_from_either_side(
    node: Node, at: Addresses, opener: Build, reply: Build
) -> None:
    node.load(ingress={"web": [(OTHER, 0, 0)]}, egress={"web": NOBODY})
    node.import_flow(opener(at.client, at.web))

    for _ in range(2):
        assert not accepted(from_client(node, opener(at.client, at.web)))
    for _ in range(2):
        assert not accepted(node.forward(reply(at.web, at.client), VETH_WEB, ETH0))


def test_a_learned_flow_lets_no_stranger_in_who_bears_its_openers_address(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    node.import_flow(syn(at.client, at.web))
    strangers = [(stamped(request(at.client, at.web), OTHER), ETH0)]
    strangers += [(request(at.client, at.web), way) for way in (ETH0, WAN0)]

    for _ in range(2):
        for payload, come_by in strangers:
            assert refused(node.forward(payload, come_by, VETH_WEB)) is DropReason.POLICY_DENIED
        assert accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))
    assert accepted(from_client(node, request(at.client, at.web)))


def test_a_learned_flows_opener_counts_by_its_stamp_once_it_speaks(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    node.import_flow(syn(at.world, at.web))  # a router has changed its address

    assert refused(node.forward(response(at.web, at.world), VETH_WEB, ETH0)) is DropReason.POLICY_DENIED
    assert accepted(from_client(node, request(at.world, at.web)))
    assert identity_on(node.forward(response(at.web, at.world), VETH_WEB, ETH0).payload) == WEB


def test_replies_in_a_learned_flow_of_a_local_opener_must_come_from_its_other_end(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": NOBODY}, egress={"web": [(CLIENT, 0, 0), (WORLD, 0, 0), (DB, 0, 0)]})
    for address in (at.client, at.world, at.db):
        node.import_flow(syn(at.web, address))

    for come_by in (ETH0, WAN0):
        drop = node.forward(response(at.client, at.web), come_by, VETH_WEB)
        assert refused(drop) is DropReason.STAMP_MISSING
        assert refused(node.forward(response(at.db, at.web), come_by, VETH_WEB)) is DropReason.INVALID_SOURCE_IP
    assert accepted(from_client(node, response(at.client, at.web)))
    assert accepted(node.forward(response(at.world, at.web), WAN0, VETH_WEB))
    assert accepted(node.forward(request(at.web, at.client), VETH_WEB, ETH0))


def test_a_learned_flow_of_a_local_opener_is_held_against_its_egress(node: Node, at: Addresses) -> None:
    node.load(egress={"web": [(OTHER, 0, 0)]})
    node.import_flow(syn(at.web, at.client))

    drop = from_client(node, response(at.client, at.web))
    assert (refused(drop), event(drop).direction) == (DropReason.POLICY_DENIED, Direction.EGRESS)
    assert (event(drop).opening.source, event(drop).is_reply) == (WEB, True)


def test_a_learned_flow_of_the_host_is_the_hosts(node: Node, at: Addresses) -> None:
    node.import_flow(syn(at.host, at.web))
    node.load(ingress=CLOSED, egress=CLOSED)

    assert accepted(node.receive(response(at.web, at.host), VETH_WEB))
    assert [flow.opening.source for flow in node.flows] == [HOST]
    node.load(ingress=CLOSED, egress=CLOSED, allow_localhost=False)
    assert refused(node.receive(response(at.web, at.host), VETH_WEB)) is DropReason.POLICY_DENIED


def test_in_a_learned_flow_to_the_host_only_the_host_answers(node: Node, at: Addresses) -> None:
    node.import_flow(udp(at.web, at.host))
    node.load(ingress=CLOSED, egress={"web": [(HOST, 0, 0)]})

    assert accepted(node.send(udp_answer(at.host, at.web), VETH_WEB))
    assert [flow.opening.to_host for flow in node.flows] == [True]
    for come_by in (ETH0, WAN0):
        drop = node.forward(udp_answer(at.host, at.web), come_by, VETH_WEB)
        assert refused(drop) is DropReason.INVALID_SOURCE_IP
    assert accepted(node.receive(udp(at.web, at.host), VETH_WEB))


def test_the_other_end_of_a_learned_exchange_of_datagrams_that_is_cut_may_open_its_own(
    node: Node, at: Addresses
) -> None:
    node.load(ingress=CLOSED)
    node.import_flow(udp(at.client, at.web))
    assert not accepted(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0))

    assert event(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0)).opening.source == WEB


def test_who_the_opener_of_a_learned_flow_is_likely_to_be_changes_with_what_is_known(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    node.import_flow(syn(at.client, at.web))
    assert accepted(node.forward(response(at.web, at.client), VETH_WEB, ETH0))
    node.load(ingress={"web": HTTP}, ipcache=Ipcache({packed(at.client): Peer(OTHER, remote=True)}))

    assert refused(node.forward(response(at.web, at.client), VETH_WEB, ETH0)) is DropReason.POLICY_DENIED


def test_an_error_about_a_learned_flow_is_held_against_policy_until_its_opener_is_seen(
    node: Node, at: Addresses
) -> None:
    node.load(ingress=CLOSED, egress={"web": [(CLIENT, 0, 0)]})
    node.import_flow(udp(at.web, at.client))
    about = udp(at.web, at.client)

    assert refused(from_client(node, error(at.client, at.web, about))) is DropReason.POLICY_DENIED
    assert accepted(node.forward(about, VETH_WEB, ETH0))
    assert accepted(from_client(node, error(at.client, at.web, about)))


def test_a_learned_flow_that_only_audit_lets_pass_is_logged(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)
    node.import_flow(syn(at.client, at.web))

    decision = node.forward(response(at.web, at.client), VETH_WEB, ETH0)
    assert (accepted(decision), event(decision).verdict) == (True, FlowVerdict.AUDIT)
    assert event(decision).opening.source == CLIENT


def test_a_learned_flow_whose_handshake_is_not_over_goes_on(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP}, egress=CLOSED)
    node.import_flow(syn(at.client, at.web), FlowState.NEW)

    assert accepted(node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0))
    assert accepted(from_client(node, request(at.client, at.web)))
    assert [flow.state for flow in node.flows] == [FlowState.ESTABLISHED]


# Related errors


@pytest.mark.parametrize("opener", [syn, udp, ping, sctp])
def test_an_error_about_a_flow_passes_with_it_in_either_direction(node: Node, at: Addresses, opener: Build) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": EVERYTHING_FROM_CLIENT})
    inbound, outbound = opener(at.client, at.web), opener(at.web, at.client)
    from_client(node, inbound)
    node.forward(outbound, VETH_WEB, ETH0)

    reply = node.forward(error(at.web, at.client, inbound), VETH_WEB, ETH0)
    assert accepted(reply)
    assert identity_on(reply.payload) == WEB
    assert accepted(from_client(node, error(at.client, at.web, outbound)))
    for router in (at.world, at.second_node, at.host):
        assert accepted(node.forward(error(router, at.web, outbound, TOO_BIG), ETH0, VETH_WEB))


def test_an_error_about_a_stamped_packet_passes_with_its_flow(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    sent = node.forward(syn(at.web, at.client), VETH_WEB, ETH0).payload
    assert sent is not None

    assert accepted(node.forward(error(at.second_node, at.web, sent), ETH0, VETH_WEB))


def test_an_error_about_a_reply_passes_with_its_flow(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})
    from_client(node, syn(at.client, at.web))

    assert accepted(from_client(node, error(at.client, at.web, syn_ack(at.web, at.client))))


def test_an_error_about_an_unknown_flow_is_held_against_policy(node: Node, at: Addresses) -> None:
    about = udp(at.web, at.client)
    assert accepted(from_client(node, error(at.client, at.web, about)))  # nothing enforced yet

    node.load(ingress=CLOSED)
    assert refused(from_client(node, error(at.client, at.web, about))) is DropReason.POLICY_DENIED
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})
    assert accepted(from_client(node, error(at.client, at.web, about)))
    assert len(node.flows) == 0


@pytest.mark.parametrize("last", [1, 2])
def test_an_error_is_handed_on_until_it_meets_the_worker_that_knows_the_flow(last: int, at: Addresses) -> None:
    workers = [Node(has_next=place < last) for place in range(last + 1)]
    for worker in workers:
        worker.load(ingress=CLOSED)
    about = udp(at.web, at.client)
    workers[last].forward(about, VETH_WEB, ETH0)
    packet = error(at.world, at.web, about, TOO_BIG)

    for worker in workers[:last]:
        assert worker.forward(packet, WAN0, VETH_WEB) == Decision(Verdict.REQUEUE_NEXT)
        assert len(worker.flows) == 0
    assert accepted(workers[last].forward(packet, WAN0, VETH_WEB))


def test_an_error_that_concerns_a_worker_is_decided_there_though_there_is_another(at: Addresses) -> None:
    node = Node(has_next=True)
    about = udp(at.web, at.client)
    node.forward(about, VETH_WEB, ETH0)

    assert accepted(node.forward(error(at.world, at.web, about), WAN0, VETH_WEB))
    node.load(egress={"web": NOBODY})
    assert refused(node.forward(error(at.world, at.web, about), WAN0, VETH_WEB)) is DropReason.POLICY_DENIED


def test_an_error_about_a_learned_flow_is_handed_on_to_who_may_have_seen_its_opener(at: Addresses) -> None:
    """Every worker learns all flows that the kernel remembers, and meets its own alone."""
    first, last = Node(has_next=True), Node()
    about = udp(at.web, at.client)
    for worker in (first, last):
        worker.load(ingress=CLOSED)
        worker.import_flow(about)
    packet = error(at.world, at.web, about, TOO_BIG)

    assert first.forward(packet, WAN0, VETH_WEB) == Decision(Verdict.REQUEUE_NEXT)
    assert refused(last.forward(packet, WAN0, VETH_WEB)) is DropReason.POLICY_DENIED
    last.forward(about, VETH_WEB, ETH0)
    assert accepted(last.forward(packet, WAN0, VETH_WEB))


def test_nothing_but_an_error_that_can_be_read_is_handed_to_another_worker(at: Addresses) -> None:
    node = Node(has_next=True)
    about = udp(at.web, at.client)

    assert refused(from_client(node, error(at.client, at.web, b""))) is DropReason.INVALID_PACKET
    assert refused(node.forward(error(at.client, at.web, about), VETH_DB, VETH_WEB)) is DropReason.INVALID_SOURCE_IP
    node.load(ingress=CLOSED)
    assert refused(from_client(node, pong(at.client, at.web))) is DropReason.CT_NO_MATCH
    assert refused(from_client(node, udp(at.client, at.web))) is DropReason.POLICY_DENIED


def test_an_error_about_somebody_elses_flow_is_held_against_policy(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED)
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    about = udp(at.web, at.client)

    drop = node.forward(error(at.world, at.db, about), WAN0, VETH_DB)
    assert refused(drop) is DropReason.POLICY_DENIED
    assert (event(drop).opening.proto, event(drop).opening.source) == (ICMP if at.version == 4 else ICMPV6, WORLD)


def test_an_endpoint_may_not_speak_of_its_neighbours_flows(node: Node, at: Addresses) -> None:
    node.load(egress=CLOSED)
    about = udp(at.client, at.web)
    from_client(node, about)

    assert refused(node.forward(error(at.db, at.client, about), VETH_DB, ETH0)) is DropReason.POLICY_DENIED
    assert accepted(node.forward(error(at.web, at.client, about), VETH_WEB, ETH0))


def test_the_host_may_speak_of_a_flow_between_its_endpoints(node: Node, at: Addresses) -> None:
    node.load(ingress={"db": NOBODY}, allow_localhost=False)
    about = udp(at.db, at.web)
    node.forward(about, VETH_DB, VETH_WEB)

    assert accepted(node.send(error(at.host, at.db, about), VETH_DB))


def test_an_error_does_not_pass_with_a_flow_that_is_no_longer_allowed(node: Node, at: Addresses) -> None:
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    node.load(egress={"web": NOBODY})

    drop = node.forward(error(at.world, at.web, udp(at.web, at.client)), WAN0, VETH_WEB)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_an_error_passes_with_a_flow_that_a_new_policy_still_allows(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})

    assert accepted(from_client(node, error(at.client, at.web, udp_answer(at.web, at.client))))
    assert accepted(node.forward(udp_answer(at.web, at.client), VETH_WEB, ETH0))


def test_an_error_with_a_forged_source_is_refused(node: Node, at: Addresses) -> None:
    node.forward(udp(at.web, at.client), VETH_WEB, ETH0)
    about = udp(at.web, at.client)

    assert refused(node.forward(error(at.client, at.web, about), VETH_DB, VETH_WEB)) is DropReason.INVALID_SOURCE_IP


def test_an_error_whose_quote_cannot_be_read_is_refused(node: Node, at: Addresses) -> None:
    assert refused(from_client(node, error(at.client, at.web, b""))) is DropReason.INVALID_PACKET


def test_an_error_that_policy_would_drop_is_logged_in_audit(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)

    decision = from_client(node, error(at.client, at.web, udp(at.web, at.client)))

    assert accepted(decision)
    assert (event(decision).verdict, event(decision).direction) == (FlowVerdict.AUDIT, Direction.INGRESS)


# Stamping


def test_what_goes_to_another_node_is_stamped(node: Node, at: Addresses) -> None:
    for dst in (at.client, at.second_node, at.cluster):
        for payload in (syn(at.web, dst), request(at.web, dst), udp(at.web, dst), ping(at.web, dst)):
            assert node.forward(payload, VETH_WEB, ETH0).payload == stamped(payload, WEB)


def test_what_the_host_endpoint_sends_is_stamped(node: Node, at: Addresses) -> None:
    assert node.send(syn(at.web, at.client), ETH0).payload == stamped(syn(at.web, at.client), WEB)
    assert node.send(stamped(udp(at.web, at.client), OTHER), ETH0).payload == stamped(udp(at.web, at.client), WEB)


@pytest.mark.parametrize("build", [syn, udp, ping, sctp])
def test_what_stays_on_the_node_or_goes_to_the_world_bears_no_stamp(node: Node, at: Addresses, build: Build) -> None:
    decisions = [
        node.forward(build(at.web, at.world), VETH_WEB, WAN0),
        node.forward(build(at.web, at.db), VETH_WEB, VETH_DB),
        node.receive(build(at.web, at.host), VETH_WEB),
        node.send(build(at.host, at.web), VETH_WEB),
        node.receive(build(at.web, at.client), VETH_WEB),  # redirected to this host
    ]
    assert [decision.payload for decision in decisions] == [None] * 5


def test_replies_to_another_node_are_stamped(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    reply = syn_ack(at.web, at.client)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_replies_to_a_stamped_opener_are_stamped_whatever_address_a_router_gave_it(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.world, at.web))
    reply = syn_ack(at.web, at.world)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_replies_to_an_unstamped_opener_on_another_node_are_stamped(node: Node, at: Addresses) -> None:
    node.forward(syn(at.second_node, at.web), ETH0, VETH_WEB)
    reply = syn_ack(at.web, at.second_node)

    assert node.forward(reply, VETH_WEB, ETH0).payload == stamped(reply, WEB)


def test_what_stays_on_the_node_bears_no_stamp_although_its_addresses_are_in_the_clusters_networks(
    node: Node, at: Addresses
) -> None:
    node.load(ipcache=Ipcache({}, [ip_network("0.0.0.0/0"), ip_network("::/0")]))
    decisions = [
        node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB),
        node.forward(syn_ack(at.db, at.web), VETH_DB, VETH_WEB),
        node.receive(udp(at.web, at.host), VETH_WEB),
        node.send(udp_answer(at.host, at.web), VETH_WEB),
        node.send(syn(at.host, at.web), VETH_WEB),
        node.receive(syn_ack(at.web, at.host), VETH_WEB),
    ]
    assert [decision.payload for decision in decisions] == [None] * 6


def test_replies_to_the_world_or_the_host_bear_no_stamp(node: Node, at: Addresses) -> None:
    node.forward(syn(at.world, at.web), WAN0, VETH_WEB)
    node.send(syn(at.host, at.web), VETH_WEB)
    node.forward(syn(at.db, at.web), VETH_DB, VETH_WEB)

    assert node.forward(syn_ack(at.web, at.world), VETH_WEB, WAN0) == Decision(Verdict.ACCEPT)
    assert node.receive(syn_ack(at.web, at.host), VETH_WEB) == Decision(Verdict.ACCEPT)
    assert node.forward(syn_ack(at.web, at.db), VETH_WEB, VETH_DB) == Decision(Verdict.ACCEPT)


def test_a_received_stamp_stays_as_it_came(node: Node, at: Addresses) -> None:
    assert from_client(node, syn(at.client, at.web)).payload is None


# Length


def cut_short(payload: bytes) -> bytes:
    """Return the packet as a queue hands it over that cannot copy all of it."""
    return payload[:100]


LONG = bytes(200)


def test_a_packet_cut_short_is_judged_like_any_other(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT}, egress={"web": NOBODY})

    assert accepted(node.forward(cut_short(stamped(udp(at.client, at.web, data=LONG), CLIENT)), ETH0, VETH_WEB))
    drop = node.forward(cut_short(udp(at.web, at.world, data=LONG)), VETH_WEB, WAN0)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_a_packet_cut_short_cannot_be_stamped(node: Node, at: Addresses) -> None:
    too_long = cut_short(tcp(at.web, at.client, 40_000, 80, ACK, LONG))

    for drop in (node.forward(too_long, VETH_WEB, ETH0), node.send(too_long, ETH0)):
        assert refused(drop) is DropReason.PAYLOAD_TOO_LONG
        assert (event(drop).direction, event(drop).tcp_flags) == (Direction.EGRESS, ACK)


def test_a_forged_stamp_on_a_packet_cut_short_does_not_get_out(node: Node, at: Addresses) -> None:
    drop = node.forward(cut_short(stamped(udp(at.web, at.world, data=LONG), OTHER)), VETH_WEB, WAN0)

    assert refused(drop) is DropReason.PAYLOAD_TOO_LONG


def filled(at: Addresses, src: str, dst: str, *, less: int, df: bool = True) -> bytes:
    """Return a datagram that is so much shorter than the MTU."""
    headers = len(udp(src, dst, data=b"", df=df))
    return udp(src, dst, data=bytes(MTU - less - headers), df=df)


# An IPv6 packet that the kernel has put together from fragments looks like a whole one: the kernel, which will cut it
# again or refuse it, has the last word.
TOO_LONG = {4: DropReason.FRAG_NEEDED, 6: None}


def test_a_forwarded_datagram_that_its_stamp_makes_too_long_is_answered_with_the_size_that_fits(
    node: Node, at: Addresses
) -> None:
    room = stamp.overhead(at.version)
    too_long = filled(at, at.web, at.client, less=room - 1)

    decision = node.forward(too_long, VETH_WEB, ETH0)

    assert refused(decision) is TOO_LONG[at.version]
    assert decision.answer is not None
    answer = parse(decision.answer)
    assert (answer.src, answer.dst) == (packed(at.host), packed(at.web))
    assert (answer.icmp_type, answer.icmp_code) == TOO_BIG[at.version]
    assert int.from_bytes(decision.answer[answer.l4_offset + 4 : answer.l4_offset + 8], "big") == MTU - room
    assert parse_quoted(decision.answer, answer).key == parse(too_long).key
    assert accepted(node.send(decision.answer, VETH_WEB))
    assert accepted(node.forward(filled(at, at.web, at.client, less=room), VETH_WEB, ETH0))


def test_the_answer_reaches_its_endpoint_under_any_policy(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, allow_localhost=False)
    answer = node.forward(filled(at, at.web, at.client, less=0), VETH_WEB, ETH0).answer
    assert answer is not None

    assert accepted(node.send(answer, VETH_WEB))


def test_without_an_address_of_its_own_the_node_cannot_answer(node: Node, at: Addresses) -> None:
    node.load(node_addresses={})

    decision = node.forward(filled(at, at.web, at.client, less=0), VETH_WEB, ETH0)
    assert (refused(decision), decision.answer) == (TOO_LONG[at.version], None)


def test_a_datagram_that_came_in_fragments_goes_on_stamped_to_be_cut_again(node: Node, at: Addresses) -> None:
    reassembled = filled(at, at.web, at.client, less=-1)

    decision = node.forward(reassembled, VETH_WEB, ETH0)

    assert (refused(decision), decision.answer) == (None, None)
    assert decision.payload == stamped(reassembled, WEB)


def test_no_error_is_sent_about_an_error(node: Node, at: Addresses) -> None:
    about = udp(at.client, at.web, data=bytes(100))
    from_client(node, about)
    message = error(at.web, at.client, about)

    decision = node.forward(message, VETH_WEB, ETH0, mtu=len(message))
    assert (refused(decision), decision.answer) == (TOO_LONG[at.version], None)


def test_a_forwarded_datagram_that_may_be_fragmented_goes_on(node: Node) -> None:
    long = filled(V4, V4.web, V4.client, less=0, df=False)

    assert node.forward(long, VETH_WEB, ETH0).payload == stamped(long, WEB)


def test_a_datagram_of_this_host_that_its_stamp_makes_too_long_may_be_fragmented(node: Node) -> None:
    first = node.send(filled(V4, V4.web, V4.client, less=0), ETH0)

    assert first.payload is not None
    sent = parse(first.payload)
    assert (accepted(first), sent.df, sent.length) == (True, False, MTU + stamp.overhead(4))
    assert identity_on(first.payload) == WEB
    assert event(first).verdict is FlowVerdict.FORWARDED


def test_a_datagram_of_this_host_gets_an_identification_of_its_own_for_its_fragments(node: Node) -> None:
    datagram = bytearray(filled(V4, V4.web, V4.client, less=0))
    datagram[4:6] = bytes(2)
    sent = [node.send(bytes(datagram), ETH0).payload for _ in range(2)]

    assert [payload[4:6] for payload in sent if payload is not None] == [b"\0\1", b"\0\2"]


def test_an_ipv6_datagram_of_this_host_is_left_to_the_kernel_to_fragment(node: Node) -> None:
    long = filled(V6, V6.web, V6.client, less=0)

    decision = node.send(long, ETH0)
    assert decision.payload == stamped(long, WEB)
    assert event(decision).verdict is FlowVerdict.FORWARDED


def test_a_header_without_room_for_the_stamp_is_a_drop_of_its_own_name(node: Node) -> None:
    full = with_options(syn(V4.web, V4.client), bytes((7, 39, 4)) + bytes(37))  # record route

    assert refused(node.forward(full, VETH_WEB, ETH0)) is DropReason.STAMP_NO_ROOM


# What the kernel has left to a device: checksums, and cutting into segments

UNFINISHED, GSO = 1, 3  # bits of NFQA_SKB_INFO; what will be cut has no finished checksum either
LONGEST = 65_531  # bytes that a verdict can carry


@pytest.fixture
def passing_on() -> Node:
    return Node(can_requeue=True)


@pytest.mark.parametrize("build", [syn, request, udp])
def test_an_unfinished_checksum_is_finished_where_the_packet_is_stamped(
    node: Node, at: Addresses, build: Build
) -> None:
    whole = build(at.web, at.client)

    for _ in range(2):  # the first packet, and one of a known flow
        assert node.forward(unfinished(whole), VETH_WEB, ETH0, skb=UNFINISHED).payload == stamped(whole, WEB)


def test_an_unfinished_checksum_is_left_where_the_packet_goes_on_as_it_is(node: Node, at: Addresses) -> None:
    for _ in range(2):
        assert node.forward(unfinished(udp(at.web, at.world)), VETH_WEB, WAN0, skb=UNFINISHED).payload is None


def test_an_unfinished_checksum_is_finished_where_a_forged_stamp_is_taken_off(node: Node, at: Addresses) -> None:
    whole = udp(at.web, at.world)
    forged = unfinished(stamped(whole, OTHER))

    assert node.forward(forged, VETH_WEB, WAN0, skb=UNFINISHED).payload == whole


def test_of_what_will_be_cut_the_kernel_finishes_the_checksums(node: Node, at: Addresses) -> None:
    large = unfinished(request(at.web, at.client, data=bytes(20_000)))

    for _ in range(2):
        assert node.forward(large, VETH_WEB, ETH0, skb=GSO).payload == stamped(large, WEB)


def test_what_will_be_cut_is_not_held_against_the_mtu(node: Node, at: Addresses) -> None:
    headers = len(request(at.web, at.client, data=b""))
    large = unfinished(request(at.web, at.client, data=bytes(MTU - headers)))

    for _ in range(2):
        for decision in (node.forward(large, VETH_WEB, ETH0, skb=GSO), node.send(large, ETH0, skb=GSO)):
            assert (decision.payload, decision.answer) == (stamped(large, WEB), None)


def large_tcp(at: Addresses, length: int) -> bytes:
    """Return a TCP packet of this length that the kernel will yet cut."""
    headers = len(request(at.web, at.client, data=b""))
    return unfinished(request(at.web, at.client, data=bytes(length - headers)))


def test_what_has_no_room_for_its_stamp_is_handed_on_to_come_in_segments(passing_on: Node, at: Addresses) -> None:
    room = LONGEST - stamp.overhead(at.version)
    passing_on.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert passing_on.forward(large_tcp(at, room), VETH_WEB, ETH0, skb=GSO).payload is not None
    for _ in range(2):
        decision = passing_on.forward(large_tcp(at, room + 1), VETH_WEB, ETH0, skb=GSO)
        assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


def test_a_connection_that_was_open_before_comes_in_segments_that_are_held_against_the_mtu(
    passing_on: Node, at: Addresses
) -> None:
    """Its SYN was not seen, so it has agreed on segments that may leave no room for a stamp."""
    headers = len(request(at.web, at.client, data=b""))
    segment = request(at.web, at.client, data=bytes(MTU - headers))

    for _ in range(2):
        assert passing_on.forward(large_tcp(at, 20_000), VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)
        assert passing_on.forward(segment, VETH_WEB, ETH0).answer is not None
    for again in (rst(at.web, at.client), syn(at.web, at.client)):
        passing_on.forward(again, VETH_WEB, ETH0)
    assert passing_on.forward(large_tcp(at, 20_000), VETH_WEB, ETH0, skb=GSO).payload is not None


def test_without_another_queue_what_has_no_room_for_its_stamp_is_dropped(node: Node, at: Addresses) -> None:
    drop = node.forward(large_tcp(at, LONGEST), VETH_WEB, ETH0, skb=GSO)

    assert refused(drop) is DropReason.STAMP_NO_ROOM


def test_a_datagram_without_room_is_dropped_whatever_other_queue_there_is(passing_on: Node, at: Addresses) -> None:
    datagram = udp(at.web, at.client, data=bytes(LONGEST - len(udp(at.web, at.client, data=b""))))

    assert refused(passing_on.forward(datagram, VETH_WEB, ETH0)) is DropReason.STAMP_NO_ROOM
    assert refused(passing_on.forward(cut_short(datagram), VETH_WEB, ETH0)) is DropReason.PAYLOAD_TOO_LONG


def test_what_is_cut_short_and_must_be_stamped_is_handed_on_to_come_whole(passing_on: Node, at: Addresses) -> None:
    long = request(at.web, at.client, data=LONG)

    for _ in range(2):
        assert passing_on.forward(cut_short(long), VETH_WEB, ETH0) == Decision(Verdict.REQUEUE_WHOLE)
    whole = passing_on.forward(long, VETH_WEB, ETH0)
    assert whole.payload == stamped(long, WEB)
    assert event(whole).verdict is FlowVerdict.FORWARDED
    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0) == Decision(Verdict.REQUEUE_WHOLE)


def test_what_is_handed_on_is_noted_when_it_comes_again(passing_on: Node, at: Addresses) -> None:
    from_client(passing_on, syn(at.client, at.web))
    before = [(flow.state, flow.expires, flow.reply_origin) for flow in passing_on.flows]
    passing_on.now += 1
    long = tcp(at.web, at.client, 80, 40_000, FIN | ACK, LONG)

    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0).verdict is Verdict.REQUEUE_WHOLE
    assert [(flow.state, flow.expires, flow.reply_origin) for flow in passing_on.flows] == before


def test_what_policy_refuses_is_not_handed_on(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress=CLOSED)

    drop = passing_on.forward(cut_short(udp(at.web, at.client, data=LONG)), VETH_WEB, ETH0)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_what_only_audit_lets_pass_is_logged_when_it_comes_again(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress=CLOSED, audit=True)
    long = udp(at.web, at.client, data=LONG)

    assert passing_on.forward(cut_short(long), VETH_WEB, ETH0).event is None
    assert event(passing_on.forward(long, VETH_WEB, ETH0)).verdict is FlowVerdict.AUDIT


def test_a_forged_stamp_on_a_packet_cut_short_is_handed_on_to_be_taken_off(passing_on: Node, at: Addresses) -> None:
    forged = stamped(udp(at.web, at.world, data=LONG), OTHER)

    assert passing_on.forward(cut_short(forged), VETH_WEB, WAN0).verdict is Verdict.REQUEUE_WHOLE
    assert passing_on.forward(forged, VETH_WEB, WAN0).payload == udp(at.web, at.world, data=LONG)


def test_a_tunnels_packets_are_handed_on_to_get_their_inner_checksums(passing_on: Node, at: Addresses) -> None:
    inner = unfinished(syn(at.web, at.db))

    for payload in (ip(at.web, at.client, 47, inner), udp(at.web, at.client, 4789, inner)):
        for skb in (UNFINISHED, GSO):
            decision = passing_on.forward(payload, VETH_WEB, ETH0, skb=skb)
            assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


@pytest.mark.parametrize("build", [udp, sctp])
def test_what_is_not_tcp_is_cut_before_it_is_stamped(passing_on: Node, at: Addresses, build: Build) -> None:
    burst = build(at.web, at.client) if build is sctp else unfinished(build(at.web, at.client))

    assert passing_on.forward(burst, VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)
    assert accepted(passing_on.forward(build(at.web, at.client), VETH_WEB, ETH0))
    assert passing_on.forward(burst, VETH_WEB, ETH0, skb=GSO) == Decision(Verdict.REQUEUE_SEGMENTED)


def beyond(at: Addresses, src: str, dst: str) -> bytes:
    """Return the start of a packet that is longer than its length field can say (BIG TCP)."""
    payload = bytearray(unfinished(request(src, dst, data=LONG)))
    length = slice(2, 4) if at.version == 4 else slice(4, 6)
    payload[length] = bytes(2)
    return bytes(payload)


def test_what_is_longer_than_its_header_can_say_is_judged_like_any_other(passing_on: Node, at: Addresses) -> None:
    passing_on.load(egress={"web": [(WORLD, TCP, 80)]})

    assert accepted(passing_on.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0, skb=GSO))
    assert accepted(passing_on.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0, skb=GSO))
    drop = passing_on.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)
    assert refused(drop) is DropReason.POLICY_DENIED


def test_what_is_longer_than_its_header_can_say_comes_in_segments_to_be_stamped(
    passing_on: Node, at: Addresses
) -> None:
    decision = passing_on.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)

    assert decision == Decision(Verdict.REQUEUE_SEGMENTED)


def test_without_another_queue_what_is_longer_than_its_header_can_say_is_not_stamped(node: Node, at: Addresses) -> None:
    drop = node.forward(beyond(at, at.web, at.client), VETH_WEB, ETH0, skb=GSO)

    assert refused(drop) is DropReason.PAYLOAD_TOO_LONG


def test_a_length_of_zero_is_an_error_in_any_other_packet(node: Node, at: Addresses) -> None:
    assert refused(node.forward(beyond(at, at.web, at.world), VETH_WEB, WAN0)) is DropReason.INVALID_PACKET


# Audit


@pytest.mark.parametrize(
    ("sides", "side"),
    [
        ({"ingress": CLOSED}, Direction.INGRESS),
        ({"egress": CLOSED}, Direction.EGRESS),
        ({"ingress": CLOSED, "egress": CLOSED}, Direction.EGRESS),
    ],
)
def test_in_audit_all_passes_and_what_would_not_is_named(
    node: Node, at: Addresses, sides: dict[str, dict[str, list[tuple[int, int, int]]]], side: Direction
) -> None:
    node.load(**sides, audit=True)

    decision = node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)

    assert accepted(decision)
    log = event(decision)
    assert (log.verdict, log.reason, log.direction) == (FlowVerdict.AUDIT, DropReason.POLICY_DENIED, side)
    assert (log.opening.source, log.opening.destination, log.allowed_by) == (WEB, DB, ())
    assert log.enforced_by == (rule("web" if side is Direction.EGRESS else "db", side, 99),)
    assert accepted(node.forward(syn_ack(at.db, at.web), VETH_DB, VETH_WEB))


def test_in_audit_what_policy_allows_is_logged_as_ever(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP}, audit=True)

    assert event(from_client(node, syn(at.client, at.web))).verdict is FlowVerdict.FORWARDED


def test_in_audit_a_flow_that_a_new_policy_would_cut_is_logged_once(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    node.load(ingress=CLOSED, audit=True)

    decision = node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)
    assert (accepted(decision), event(decision).verdict) == (True, FlowVerdict.AUDIT)
    assert (event(decision).opening.source, event(decision).is_reply) == (CLIENT, True)
    assert from_client(node, request(at.client, at.web)).event is None


def test_a_flow_that_passed_in_audit_is_cut_when_audit_ends(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, audit=True)
    from_client(node, syn(at.client, at.web))
    node.load(ingress=CLOSED)

    assert refused(from_client(node, request(at.client, at.web))) is DropReason.POLICY_DENIED


# Events


def test_a_new_flow_is_logged_once_with_all_that_is_known_of_it(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    log = event(from_client(node, syn(at.client, at.web, 80)))

    assert (log.time, log.verdict, log.reason) == (node.now, FlowVerdict.FORWARDED, None)
    assert (log.direction, log.is_reply, log.tcp_flags) == (Direction.INGRESS, False, SYN)
    assert (log.opening.src, log.opening.dst) == (packed(at.client), packed(at.web))
    assert (log.opening.proto, log.opening.sport, log.opening.dport) == (TCP, 40_000, 80)
    assert (log.opening.source, log.opening.destination, log.opening.to_host) == (CLIENT, WEB, False)
    assert log.allowed_by == (rule("web", Direction.INGRESS, 0),)
    assert log.enforced_by == ()


def test_packets_of_known_flows_are_not_logged(node: Node, at: Addresses) -> None:
    from_client(node, syn(at.client, at.web))
    seen = [
        node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0),
        from_client(node, request(at.client, at.web)),
        from_client(node, error(at.client, at.web, response(at.web, at.client))),
        from_client(node, fin(at.client, at.web)),
    ]
    assert [decision.event for decision in seen] == [None] * 4


@pytest.mark.parametrize(
    ("leaving", "direction"), [(True, Direction.EGRESS), (False, Direction.INGRESS)], ids=["leaving", "entering"]
)
def test_a_flow_is_logged_on_the_side_of_the_endpoint(
    node: Node, at: Addresses, leaving: bool, direction: Direction
) -> None:
    if leaving:
        decision = node.forward(ping(at.web, at.world), VETH_WEB, WAN0)
    else:
        decision = node.forward(ping(at.world, at.web), WAN0, VETH_WEB)

    assert event(decision).direction is direction
    assert event(decision).opening.icmp_type == (8 if at.version == 4 else 128)


def test_each_drop_is_logged_with_the_side_and_rules_that_refuse_it(node: Node, at: Addresses) -> None:
    node.load(egress={"web": [(DB, TCP, 80)]})

    for _ in range(2):
        log = event(node.forward(udp(at.web, at.world), VETH_WEB, WAN0))
        assert (log.verdict, log.reason) == (FlowVerdict.DROPPED, DropReason.POLICY_DENIED)
        assert (log.direction, log.is_reply) == (Direction.EGRESS, False)
        assert (log.opening.proto, log.opening.source, log.opening.destination) == (UDP, WEB, WORLD)
        assert log.enforced_by == (rule("web", Direction.EGRESS, 99),)
        assert log.allowed_by == ()


@pytest.mark.parametrize(("come_by", "side"), [(VETH_WEB, Direction.EGRESS), (ETH0, Direction.INGRESS)])
def test_what_cannot_be_read_is_logged_without_addresses(node: Node, come_by: str, side: Direction) -> None:
    log = event(node.forward(b"\x45\x00", come_by, VETH_DB))

    assert (log.verdict, log.reason, log.direction) == (FlowVerdict.DROPPED, DropReason.INVALID_PACKET, side)
    assert (log.opening.src, log.opening.dst, log.opening.source, log.tcp_flags) == (b"", b"", 0, 0)


def test_a_drop_of_what_the_host_sends_to_an_endpoint_is_logged_at_its_ingress(node: Node, at: Addresses) -> None:
    node.load(ingress=CLOSED, allow_localhost=False)

    assert event(node.send(syn_ack(at.host, at.web), VETH_WEB)).direction is Direction.INGRESS


def test_a_protocol_without_ports_is_judged_by_its_peer(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": EVERYTHING_FROM_CLIENT})

    assert event(from_client(node, ip(at.client, at.web, 47, b"gre"))).opening.dport == 0
    assert refused(from_client(node, ip(at.other, at.web, 47, b"gre"), OTHER)) is DropReason.POLICY_DENIED
