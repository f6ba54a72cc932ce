"""Policy at egress and ingress: endpoints on one node, the host, and addresses without an endpoint."""

from dataclasses import replace
from ipaddress import ip_network

from nfq_enforcer.core.identity import HOST, LOCAL, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap
from nfq_enforcer.core.tables.prefixes import Prefixes
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    NOBODY,
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
    SYN,
    packed,
    ping,
    syn,
    syn_ack,
    tcp,
)


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
    assert accepted(node.forward(syn_ack(at.web, at.world), VETH_WEB, WAN0))  # no side is enforced


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

    assert refused(node.forward(syn(at.web, at.db), VETH_WEB, VETH_DB)) is DropReason.PROXY_MISSING


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
    # without a stamp its identity is world: neither the endpoint's identity nor that of a CIDR in a policy
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
    assert refused(node.forward(syn(at.world, at.client), ETH0, WAN0)) is DropReason.NO_ENDPOINT
