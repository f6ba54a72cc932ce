"""New flows and replies: flows that policy allows or denies, and replies that need no rule."""

import pytest

from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    ETH0,
    EVERYTHING_FROM_CLIENT,
    HTTP,
    NOBODY,
    OTHER,
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
    rule,
)
from tests.support.packets import (
    ACK,
    FIN,
    OPENERS_AND_REPLIES,
    RST,
    SYN,
    Build,
    fin,
    identity_on,
    ping,
    pong,
    request,
    response,
    rst,
    sctp,
    server_rst,
    server_syn,
    syn,
    syn_ack,
    tcp,
    udp,
)

# No enforcement


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


# Enforcement and replies


def test_what_a_rule_allows_passes_and_all_else_is_dropped(node: Node, at: Addresses) -> None:
    node.load(ingress={"web": HTTP})

    assert accepted(from_client(node, syn(at.client, at.web, 80)))
    assert refused(from_client(node, syn(at.client, at.web, 81))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, udp(at.client, at.web, 80))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, ping(at.client, at.web))) is DropReason.POLICY_DENIED
    assert refused(from_client(node, syn(at.other, at.web, 80), OTHER)) is DropReason.POLICY_DENIED
    assert refused(node.forward(syn(at.db, at.web, 80), VETH_DB, VETH_WEB)) is DropReason.POLICY_DENIED


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
    assert (
        identity_on(decision.payload) == WEB
    )  # without the stamp the other node would not classify it as a packet of web
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
