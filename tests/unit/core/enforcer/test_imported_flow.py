"""Flows imported from the kernel's conntrack, without an opener seen by the enforcer."""

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import HOST, WORLD
from nfq_enforcer.core.tables.conntrack import FlowState
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    HTTP,
    NOBODY,
    OTHER,
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
    OPENERS_AND_REPLIES,
    Build,
    error,
    identity_on,
    packed,
    request,
    response,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)


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
    node.import_flow(syn(at.world, at.web))  # a router has rewritten the source

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
