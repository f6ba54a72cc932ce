"""Audit mode: every packet is accepted, and a packet that policy would drop is logged."""

import pytest

from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    HTTP,
    VETH_DB,
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
    request,
    syn,
    syn_ack,
)


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
