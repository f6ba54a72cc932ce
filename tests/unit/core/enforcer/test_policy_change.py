"""Policy changes: known flows that a new revision cuts, and flows that continue."""

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from tests.support.nodes import (
    CLIENT,
    ETH0,
    HTTP,
    NOBODY,
    VETH_WEB,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    from_client,
    refused,
    rule,
)
from tests.support.packets import (
    ACK,
    OPENERS_AND_REPLIES,
    SYN,
    Build,
    identity_on,
    packed,
    request,
    response,
    server_syn,
    syn,
    syn_ack,
    tcp,
    udp,
    udp_answer,
)


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
    assert identity_on(node.forward(response(at.web, at.client), VETH_WEB, ETH0).payload) == WORLD


def test_a_flow_that_fell_silent_for_too_long_is_judged_anew(node: Node, at: Addresses) -> None:
    from_client(node, udp(at.client, at.web))
    node.now += 30

    assert event(from_client(node, udp(at.client, at.web))).verdict is FlowVerdict.FORWARDED
