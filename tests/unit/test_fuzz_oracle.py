"""The oracle of the fuzz target decide refuses decisions that break the promises about stamps and identities."""

from typing import Any

import pytest

from nfq_enforcer.core.events import ACCEPT, Decision, FlowEvent
from nfq_enforcer.core.identity import ANY, KUBE_APISERVER, REMOTE_NODE, WORLD
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP, parse
from tests.fuzz.oracle import NAMED_ADDRESSES, Oracle
from tests.support.nodes import CLIENT, CLOSED, ETH0, FAMILIES, OTHER, VETH_DB, VETH_WEB, WAN0, WEB, Addresses
from tests.support.packets import error, stamped, syn, syn_ack

UNKNOWN = 777


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


def stamps(payload: bytes, identity: int) -> Decision:
    return Decision(Verdict.ACCEPT, stamped(payload, identity))


def opens(payload: bytes, decision: Decision = ACCEPT) -> Decision:
    """Return the decision with the event of a new flow."""
    return decision._replace(event=_event(payload, FlowVerdict.FORWARDED, None))


def drops(payload: bytes, reason: DropReason) -> Decision:
    return Decision(Verdict.DROP, event=_event(payload, FlowVerdict.DROPPED, reason))


def _event(payload: bytes, verdict: FlowVerdict, reason: DropReason | None) -> FlowEvent:
    packet = parse(payload)
    opening = Opening(packet.src, packet.dst, packet.proto, packet.sport, packet.dport, -1, -1, False, ANY, ANY)
    return FlowEvent(0.0, verdict, reason, Direction.INGRESS, opening, packet.tcp_flags, is_reply=False)


def refuses(oracle: Oracle, indev: str | None, outdev: str | None, payload: bytes, decision: Decision) -> bool:
    try:
        oracle.check(indev, outdev, payload, decision, gso=False)
    except AssertionError:
        return True
    return False


def test_a_packet_that_is_only_routed_to_a_remote_endpoint_bears_world(at: Addresses) -> None:
    for source, come_by in ((at.world, WAN0), (at.world, ETH0), (at.other, WAN0), (at.second_node, WAN0)):
        payload = syn(source, at.client)
        for decision, wrong in ((stamps(payload, WORLD), False), (stamps(payload, OTHER), True), (ACCEPT, True)):
            assert refuses(Oracle({}), come_by, ETH0, payload, decision) is wrong
    assert refuses(
        Oracle({}), WAN0, ETH0, syn(at.world, at.client), drops(syn(at.world, at.client), DropReason.CT_NO_MATCH)
    )


def test_other_packets_in_transit_keep_their_form(at: Addresses) -> None:
    for payload in (
        syn(at.other, at.client),
        syn(at.second_node, at.client),
        syn(at.world, at.world),
        error(at.world, at.client, syn(at.client, at.world)),
        stamped(syn(at.world, at.client), UNKNOWN),
    ):
        assert not refuses(Oracle({}), ETH0, ETH0, payload, ACCEPT)
        assert refuses(Oracle({}), ETH0, ETH0, payload, stamps(payload, WORLD))
    assert refuses(Oracle({}), None, ETH0, syn(at.host, at.client), stamps(syn(at.host, at.client), WORLD))


def test_an_endpoint_bears_its_own_identity_and_no_reply_to_the_world_bears_any(at: Addresses) -> None:
    opener, reply = syn(at.web, at.client), syn_ack(at.web, at.second_node)
    for identity, wrong in ((WEB, False), (WORLD, True), (OTHER, True)):
        assert refuses(Oracle({}), VETH_WEB, ETH0, opener, stamps(opener, identity)) is wrong
    for identity, right in ((WORLD, ACCEPT), (CLIENT, stamps(reply, WEB))):
        oracle, request = Oracle({}), stamped(syn(at.second_node, at.web), identity)
        assert not refuses(oracle, ETH0, VETH_WEB, request, opens(request))
        for decision in (ACCEPT, stamps(reply, WEB)):
            assert refuses(oracle, VETH_WEB, ETH0, reply, decision) is (decision != right)


@pytest.mark.parametrize(
    ("rule", "identity", "allowed"),
    [
        (ANY, UNKNOWN, False),
        (ANY, WORLD, True),
        (CLIENT, CLIENT, True),
        (REMOTE_NODE, WORLD, False),
        (REMOTE_NODE, None, True),
        (KUBE_APISERVER, WORLD, False),
        (KUBE_APISERVER, CLIENT, False),
        (KUBE_APISERVER, None, True),
    ],
)
def test_an_identity_enters_by_its_own_rules(at: Addresses, rule: int, identity: int | None, allowed: bool) -> None:
    policy: dict[str, Any] = {"ingress": {"web": [(rule, TCP, 80)]}, "ipcache": NAMED_ADDRESSES}
    payload = syn(at.second_node, at.web)
    payload = payload if identity is None else stamped(payload, identity)

    assert refuses(Oracle(policy), ETH0, VETH_WEB, payload, opens(payload)) is not allowed


def test_an_identity_that_nobody_has_is_dropped_for_that_reason(at: Addresses) -> None:
    payload = stamped(syn(at.client, at.web), UNKNOWN)

    for reason in (DropReason.INVALID_IDENTITY, DropReason.POLICY_DENIED):
        wrong = reason is DropReason.POLICY_DENIED
        assert refuses(Oracle({"ingress": CLOSED}), ETH0, VETH_WEB, payload, drops(payload, reason)) is wrong
    assert refuses(Oracle({"ingress": CLOSED, "audit": True}), ETH0, VETH_WEB, payload, opens(payload))


def test_a_reply_owes_the_stamp_of_its_sender(at: Addresses) -> None:
    opener, reply = syn(at.web, at.client), syn_ack(at.client, at.web)
    for identity in (None, WORLD, UNKNOWN, CLIENT):
        oracle = Oracle({"ingress": CLOSED})
        assert not refuses(oracle, VETH_WEB, ETH0, opener, opens(opener, stamps(opener, WEB)))
        answer = reply if identity is None else stamped(reply, identity)
        assert refuses(oracle, ETH0, VETH_WEB, answer, ACCEPT) is (identity != CLIENT)


def test_no_address_of_an_endpoint_comes_from_elsewhere(at: Addresses) -> None:
    for come_by in (ETH0, WAN0, VETH_DB):
        assert refuses(Oracle({}), come_by, WAN0, syn(at.web, at.world), ACCEPT)
    assert refuses(Oracle({}), WAN0, VETH_WEB, stamped(syn(at.world, at.web), CLIENT), ACCEPT)
