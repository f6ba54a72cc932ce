"""Identity of the source: stamps, addresses without a stamp, and invalid source addresses."""

from typing import Any

import pytest

from nfq_enforcer.core.identity import ANY, HOST, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.identities import IdentityTable
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    OTHER,
    V4,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    from_client,
    refused,
)
from tests.support.packets import (
    LONG,
    identity_on,
    ping,
    request,
    stamped,
    syn,
    syn_ack,
    udp,
    with_options,
)

# Stamps and addresses


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
    node.load(trust_ipcache=True)

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


NOBODY = 54321  # on a stamp, but of no identity in the cluster


def allows_every_peer(node: Node, **changed: Any) -> None:
    node.load(ingress={"web": [(ANY, 0, 0)]}, **changed)


def test_no_rule_allows_an_identity_that_nobody_has(node: Node, at: Addresses) -> None:
    allows_every_peer(node)

    decision = from_client(node, syn(at.client, at.web), NOBODY)

    assert refused(decision) is DropReason.INVALID_IDENTITY
    assert event(decision).opening.source == NOBODY
    assert accepted(from_client(node, syn(at.client, at.web), OTHER))


def test_an_identity_that_nobody_has_passes_where_no_policy_can_refuse_it(node: Node, at: Addresses) -> None:
    assert accepted(from_client(node, syn(at.client, at.web), NOBODY))


@pytest.mark.parametrize("trust", [False, True])
def test_a_deny_rule_alone_refuses_an_identity_that_nobody_has(node: Node, at: Addresses, trust: bool) -> None:
    node.load(deny_ingress={"web": [(CLIENT, TCP, 80)]}, trust_ipcache=trust)

    assert refused(from_client(node, syn(at.client, at.web), NOBODY)) is DropReason.INVALID_IDENTITY
    assert refused(from_client(node, syn(at.client, at.web), CLIENT)) is DropReason.POLICY_DENY
    assert accepted(from_client(node, syn(at.client, at.web), OTHER))


def test_audit_logs_an_identity_that_nobody_has(node: Node, at: Addresses) -> None:
    allows_every_peer(node, audit=True)

    logged = event(from_client(node, syn(at.client, at.web), NOBODY))
    assert (logged.verdict, logged.reason) == (FlowVerdict.AUDIT, DropReason.INVALID_IDENTITY)


def test_an_identity_counts_from_when_the_table_has_it(node: Node, at: Addresses) -> None:
    table = IdentityTable()
    allows_every_peer(node, identities=table)
    assert not accepted(from_client(node, syn(at.client, at.web), NOBODY))

    table.add(Identity(NOBODY))
    assert accepted(from_client(node, syn(at.client, at.web), NOBODY))
    assert accepted(from_client(node, request(at.client, at.web), NOBODY))

    table.discard(Identity(NOBODY))
    assert accepted(from_client(node, request(at.client, at.web), NOBODY))  # an open flow, until the next revision
    allows_every_peer(node, identities=table)
    assert refused(from_client(node, request(at.client, at.web), NOBODY)) is DropReason.INVALID_IDENTITY


@pytest.mark.parametrize(("audit", "reason"), [(False, DropReason.INVALID_IDENTITY), (True, None)])
def test_a_reply_proves_nothing_by_an_identity_that_nobody_has(
    node: Node, at: Addresses, audit: bool, reason: DropReason | None
) -> None:
    node.load(ingress=CLOSED, audit=audit)
    node.forward(syn(at.web, at.client), VETH_WEB, ETH0)

    assert refused(from_client(node, syn_ack(at.client, at.web), NOBODY)) is reason
    assert accepted(from_client(node, syn_ack(at.client, at.web), CLIENT))


BAD_STAMPS = [
    ("9e08 10 00 00000100 9e08 10 00 00000100", "1e06 10 00 00000100 1e06 10 00 00000100", DropReason.STAMP_DUPLICATE),
    ("9e08 20 00 00000100", "1e06 20 00 00000100", DropReason.STAMP_VERSION),
    ("9e08 12 00 00000100", "1e06 12 00 00000100", DropReason.STAMP_MALFORMED),
    ("9e04 10 00", "1e02 10 00", DropReason.STAMP_MALFORMED),
    ("9e08 10 00 00000001", "1e06 10 00 00000001", DropReason.STAMP_IDENTITY),  # the host
    ("9e08 10 00 00000006", "1e06 10 00 00000006", DropReason.STAMP_IDENTITY),  # a node
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


# Stamps that leave by a cluster interface

OTHER_OPTION = {4: bytes((94, 4, 1, 2)), 6: header6(bytes((0x3E, 4, 1, 2, 3, 4)))}


def test_a_stamp_of_the_host_itself_is_stripped_though_neither_end_is_an_endpoint(node: Node, at: Addresses) -> None:
    for payload in (udp(at.host, at.client), syn(at.host, at.second_node), ping(at.world, at.client)):
        assert node.send(stamped(payload, CLIENT), ETH0).payload == payload
    assert len(node.flows) == 0


def test_a_stamp_of_a_workload_without_an_endpoint_is_refused(node: Node, at: Addresses) -> None:
    for come_by in ("veth-unknown", WAN0):
        decision = node.forward(stamped(udp(at.world, at.client), CLIENT), come_by, ETH0)
        assert refused(decision) is DropReason.STAMP_UNTRUSTED


@pytest.mark.parametrize(("v4", "v6", "reason"), BAD_STAMPS)
def test_a_bad_stamp_between_others_is_refused_with_its_reason(
    node: Node, at: Addresses, v4: str, v6: str, reason: DropReason
) -> None:
    options = bytes.fromhex(v4) if at.version == 4 else header6(bytes.fromhex(v6))
    plain = udp(at.world, at.client, data=LONG)
    packet = with_options(plain, options)

    for come_by in ("veth-unknown", ETH0):
        assert refused(node.forward(packet, come_by, ETH0)) is reason
    sent = node.send(packet, ETH0)
    if reason is DropReason.INVALID_PACKET:
        assert refused(sent) is reason
    else:
        assert sent.payload == plain


def test_a_stamp_of_another_node_is_left_to_a_node_that_only_routes(node: Node, at: Addresses) -> None:
    decision = node.forward(stamped(udp(at.client, at.cluster), CLIENT), ETH0, ETH0)

    assert (decision.verdict, decision.payload, decision.event) == (Verdict.ACCEPT, None, None)


def test_other_options_of_packets_between_others_are_left_alone(node: Node, at: Addresses) -> None:
    payload = with_options(udp(at.world, at.world), OTHER_OPTION[at.version])

    for decision in (node.forward(payload, WAN0, ETH0), node.send(payload, ETH0)):
        assert (decision.verdict, decision.payload) == (Verdict.ACCEPT, None)


def test_options_toward_the_world_or_with_a_forged_source_are_no_transit(node: Node, at: Addresses) -> None:
    payload = with_options(udp(at.world, at.client), OTHER_OPTION[at.version])

    assert refused(node.forward(payload, VETH_WEB, ETH0)) is DropReason.INVALID_SOURCE_IP
    assert refused(node.send(with_options(udp(at.host, at.world), OTHER_OPTION[at.version]), WAN0)) is (
        DropReason.NO_ENDPOINT
    )
