"""HTTP rules: connections that are redirected to the proxy, and those that the proxy opens."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.l7 import HttpMatch, L7Match, ProxyProtocols, SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.slots import SlotChange, SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.core.wire.skb import ASKS_SLOT, PROXIED, PROXY_LEG, SLOT_SHIFT
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    HTTP,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    refused,
)
from tests.support.packets import ACK, SYN, cut_short, packed, request, stamped, syn, syn_ack, tcp, udp

SLOT = 7
LEG_PORT = 40_001
TO_SLOT = PROXIED | SLOT << SLOT_SHIFT
LEG = PROXY_LEG | SLOT << SLOT_SHIFT
FROM_CLIENT = SlotKey("", "default/web", CLIENT, WEB, (CLIENT,), (WEB,), 80)
TO_CLIENT = SlotKey("default/web", "", WEB, CLIENT, (WEB,), (CLIENT,), 80)
BOTH = SlotKey("default/web", "default/db", WEB, DB, (WEB,), (DB,), 80)


@pytest.fixture
def node() -> Node:
    """Return the node with HTTP rules for the client of the second node at web, and an open slot for them."""
    node = Node()
    node.load_http()
    node.slots.apply([SlotChange(FROM_CLIENT, SLOT, True)])
    return node


def leg_syn(client: str, server: str) -> bytes:
    """Return the first packet of the proxy's connection for a client."""
    return tcp(client, server, LEG_PORT, 80, SYN)


def leg_syn_ack(server: str, client: str) -> bytes:
    return tcp(server, client, 80, LEG_PORT, SYN | ACK)


def leg_request(client: str, server: str) -> bytes:
    return tcp(client, server, LEG_PORT, 80, ACK, b"GET")


def ask(node: Node, at: Addresses, identity: int = CLIENT) -> Decision:
    """Return the answer to the question to which slot a connection of the second node is redirected."""
    return node.receive(stamped(syn(at.client, at.web), identity), ETH0, ASKS_SLOT)


def open_in(node: Node, at: Addresses, skb: int = TO_SLOT, identity: int = CLIENT) -> Decision:
    """Decide the first packet of a connection that was redirected."""
    return node.receive(stamped(syn(at.client, at.web), identity), ETH0, skb)


def leg(node: Node, at: Addresses, skb: int = LEG) -> Decision:
    """Decide the first packet of a connection that the proxy opens to web."""
    return node.send(leg_syn(at.client, at.web), VETH_WEB, skb=skb)


def test_the_first_packet_is_redirected_to_the_slot_of_its_ends(node: Node, at: Addresses) -> None:
    decision = ask(node, at)

    assert (decision.verdict, decision.slot, decision.wants) == (Verdict.REDIRECT, SLOT, FROM_CLIENT)
    assert decision.event is None
    assert len(node.flows) == 0


def test_a_slot_is_asked_for_where_the_ends_have_none(node: Node, at: Addresses) -> None:
    node.slots.apply([SlotChange(FROM_CLIENT, SLOT, False)])

    assert ask(node, at)[0] is Verdict.REDIRECT
    assert (ask(node, at).slot, ask(node, at).wants) == (0, FROM_CLIENT)


def test_what_is_denied_or_needs_no_proxy_is_decided_at_its_ordinary_hook(node: Node, at: Addresses) -> None:
    assert ask(node, at, OTHER).verdict is Verdict.UNDECIDED
    node.load({"web": HTTP})
    assert ask(node, at).verdict is Verdict.UNDECIDED
    node.load_http(audit=True)
    assert ask(node, at).verdict is Verdict.UNDECIDED
    assert node.receive(cut_short(syn(at.client, at.web)), ETH0, ASKS_SLOT).verdict is Verdict.UNDECIDED


def test_without_the_proxy_nothing_passes(node: Node, at: Addresses) -> None:
    decision = node.forward(stamped(syn(at.client, at.web), CLIENT), ETH0, VETH_WEB)

    assert refused(decision) is DropReason.PROXY_MISSING
    assert event(decision).enforced_by


def test_a_redirected_connection_passes_on_its_way_to_the_proxy_only(node: Node, at: Addresses) -> None:
    opened = open_in(node, at)
    assert accepted(opened)
    assert opened.payload is None
    assert (event(opened).verdict, event(opened).opening.destination) == (FlowVerdict.FORWARDED, WEB)
    assert not event(opened).opening.to_host
    answer = node.send(syn_ack(at.web, at.client), ETH0, skb=LEG)
    assert answer.payload == stamped(syn_ack(at.web, at.client), WEB)
    assert accepted(node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED))

    beside = node.forward(stamped(request(at.client, at.web), CLIENT), ETH0, VETH_WEB)
    assert refused(beside) is DropReason.PROXY_SLOT
    again = node.forward(stamped(syn(at.client, at.web), CLIENT), ETH0, VETH_WEB)
    assert refused(again) is DropReason.PROXY_SLOT
    from_web = node.forward(syn_ack(at.web, at.client), VETH_WEB, ETH0)
    assert refused(from_web) is DropReason.PROXY_SLOT


def test_a_connection_in_another_slot_is_refused(node: Node, at: Addresses) -> None:
    assert refused(open_in(node, at, PROXIED | (SLOT + 1) << SLOT_SHIFT)) is DropReason.PROXY_SLOT
    assert refused(open_in(node, at, PROXIED)) is DropReason.PROXY_SLOT
    assert refused(open_in(node, at, identity=OTHER)) is DropReason.POLICY_DENIED


def test_the_proxy_connects_to_the_ends_of_the_slot(node: Node, at: Addresses) -> None:
    opened = leg(node, at)
    assert accepted(opened)
    assert opened.event is None
    reply = leg_syn_ack(at.web, at.client)
    assert accepted(node.forward(reply, VETH_WEB, ETH0)) is False
    assert accepted(node.receive(reply, VETH_WEB, PROXIED))
    assert accepted(node.send(leg_request(at.client, at.web), VETH_WEB, skb=LEG))


def test_the_proxy_connects_to_no_other_end(node: Node, at: Addresses) -> None:
    for packet, link, skb in (
        (syn(at.client, at.web, port=81), VETH_WEB, LEG),
        (syn(at.client, at.db), VETH_DB, LEG),
        (syn(at.db, at.web), VETH_WEB, LEG),
        (syn(at.client, at.web), VETH_WEB, PROXY_LEG | (SLOT + 1) << SLOT_SHIFT),
        (syn(at.client, at.web), VETH_WEB, PROXY_LEG),
    ):
        assert refused(node.send(packet, link, skb=skb)) is DropReason.PROXY_SLOT


def test_the_proxy_connects_to_another_node_with_the_stamp_of_its_client(at: Addresses) -> None:
    node = Node()
    node.load_http(direction=Direction.EGRESS)
    node.slots.apply([SlotChange(TO_CLIENT, SLOT, True)])

    asked = node.receive(syn(at.web, at.client), VETH_WEB, ASKS_SLOT)
    assert (asked.verdict, asked.slot) == (Verdict.REDIRECT, SLOT)
    opened = node.receive(syn(at.web, at.client), VETH_WEB, TO_SLOT)
    assert (accepted(opened), opened.payload) == (True, None)
    assert node.send(syn_ack(at.client, at.web), VETH_WEB, skb=LEG).payload is None
    sent = node.send(leg_syn(at.web, at.client), ETH0, skb=LEG)
    assert sent.payload == stamped(leg_syn(at.web, at.client), WEB)
    unstamped = leg_syn_ack(at.client, at.web)
    assert refused(node.receive(unstamped, ETH0, PROXIED)) is DropReason.STAMP_MISSING
    assert accepted(node.receive(stamped(unstamped, CLIENT), ETH0, PROXIED))


def test_both_ends_on_one_node_have_one_slot(at: Addresses) -> None:
    node = Node()
    node.load_http("db", WEB)
    node.slots.apply([SlotChange(BOTH, SLOT, True)])

    assert node.receive(syn(at.web, at.db), VETH_WEB, ASKS_SLOT).slot == SLOT
    assert accepted(node.receive(syn(at.web, at.db), VETH_WEB, TO_SLOT))
    assert accepted(node.send(leg_syn(at.web, at.db), VETH_DB, skb=LEG))


def test_a_change_of_policy_leaves_a_connection_in_its_slot(node: Node, at: Addresses) -> None:
    open_in(node, at)
    leg(node, at)
    loads: tuple[Callable[[], None], ...] = (partial(node.load, {"web": HTTP}), node.load_http, node.load)
    for load in loads:
        load()
        assert accepted(node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED))
        assert accepted(node.send(syn_ack(at.web, at.client), ETH0, skb=LEG))
        assert accepted(node.send(leg_request(at.client, at.web), VETH_WEB, skb=LEG))

    node.load(CLOSED)
    denied = node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED)
    assert refused(denied) is DropReason.POLICY_DENIED


def load_l7(node: Node, *matches: L7Match, proto: int = TCP) -> None:
    rules = tuple(
        L7Rule(RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0), each) for each in matches
    )
    node._load_side("web", Direction.INGRESS, {PolicyKey(CLIENT, proto, 80, 16 if proto else 0): PolicyEntry(l7=rules)})


def test_server_names_have_a_slot_of_their_own(node: Node, at: Addresses) -> None:
    load_l7(node, SniMatch("a.example"))
    of_tls = FROM_CLIENT._replace(protocols=ProxyProtocols.TLS)
    assert (ask(node, at).slot, ask(node, at).wants) == (0, of_tls)
    node.slots.apply([SlotChange(of_tls, SLOT + 1, True)])
    assert ask(node, at).slot == SLOT + 1
    load_l7(node, SniMatch("a.example"), HttpMatch("GET"))
    assert ask(node, at).wants == FROM_CLIENT._replace(protocols=ProxyProtocols.TLS | ProxyProtocols.HTTP)


def test_server_names_open_no_other_protocol(node: Node, at: Addresses) -> None:
    load_l7(node, SniMatch("a.example"))
    without = node.forward(stamped(syn(at.client, at.web), CLIENT), ETH0, VETH_WEB)
    assert refused(without) is DropReason.PROXY_MISSING
    load_l7(node, SniMatch("a.example"), proto=UDP)
    datagram = node.forward(stamped(udp(at.client, at.web, 80), CLIENT), ETH0, VETH_WEB)
    assert refused(datagram) is DropReason.POLICY_DENIED


def test_a_connection_whose_protocol_policy_allows_no_more_leaves_a_slot_of_tls(node: Node, at: Addresses) -> None:
    load_l7(node, SniMatch("a.example"))
    node.slots.apply([SlotChange(FROM_CLIENT._replace(protocols=ProxyProtocols.TLS), SLOT + 1, True)])
    assert accepted(open_in(node, at, PROXIED | (SLOT + 1) << SLOT_SHIFT))
    for load in (partial(load_l7, node, SniMatch("b"), HttpMatch()), node.load, partial(load_l7, node, SniMatch("b"))):
        load()
        assert accepted(node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED))

    node.load_http()
    denied = node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED)
    assert refused(denied) is DropReason.PROXY_SLOT


def test_two_sides_without_a_common_protocol_have_a_slot_for_http(at: Addresses) -> None:
    """Such a slot refuses every request; the client at web is closed to TLS, the server at db to HTTP."""
    node = Node()
    node.load_http("db", WEB)
    snapshot = node._enforcer.snapshot
    sni = L7Rule(RuleRef("CiliumNetworkPolicy", "default", "web", Direction.EGRESS, 0), SniMatch("a"))
    names = PolicyMap({PolicyKey(DB, TCP, 80, 16): PolicyEntry(l7=(sni,))}, enforced=True)
    endpoints = {
        address: replace(endpoint, egress=names) if endpoint.name == "default/web" else endpoint
        for address, endpoint in snapshot.endpoints.items()
    }
    node._enforcer.snapshot = replace(snapshot, endpoints=endpoints)

    assert node.receive(syn(at.web, at.db), VETH_WEB, ASKS_SLOT).wants == BOTH


def test_a_connection_ends_with_its_slot(node: Node, at: Addresses) -> None:
    open_in(node, at)
    leg(node, at)
    node.slots.apply([SlotChange(FROM_CLIENT, 0, False)])
    node.load_http()

    denied = node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED)
    assert refused(denied) is DropReason.PROXY_SLOT
    denied = node.send(leg_request(at.client, at.web), VETH_WEB, skb=LEG)
    assert refused(denied) is DropReason.PROXY_SLOT


def test_a_new_worker_knows_redirected_connections_by_their_packets(node: Node, at: Addresses) -> None:
    node.import_flow(syn(at.client, at.web))
    node.import_flow(leg_syn(at.client, at.web))

    assert accepted(node.receive(leg_syn_ack(at.web, at.client), VETH_WEB, PROXIED))
    assert accepted(node.send(leg_request(at.client, at.web), VETH_WEB, skb=LEG))
    assert accepted(node.send(syn_ack(at.web, at.client), ETH0, skb=LEG))
    assert accepted(node.receive(stamped(request(at.client, at.web), CLIENT), ETH0, PROXIED))
    beside = node.forward(stamped(request(at.client, at.web), CLIENT), ETH0, VETH_WEB)
    assert refused(beside) is DropReason.PROXY_SLOT


def test_a_host_that_is_an_endpoint_is_no_other_receiver_for_its_own_address(node: Node, at: Addresses) -> None:
    node.load_http(own_addresses=frozenset({packed(at.web)}))

    assert ask(node, at).slot == SLOT
    assert event(open_in(node, at)).opening.to_host


def test_an_endpoint_that_connects_to_itself_is_not_redirected(at: Addresses) -> None:
    node = Node()
    node.load_http("web", WEB)

    assert node.receive(syn(at.web, at.web), VETH_WEB, ASKS_SLOT).verdict is Verdict.UNDECIDED


def test_the_slot_of_a_connection_depends_on_both_identities(node: Node, at: Addresses) -> None:
    node.load_http(peer=OTHER)
    wanted = ask(node, at, OTHER).wants
    assert wanted is not None
    assert (wanted.source, wanted.client_peers) == (Identity(OTHER), (OTHER,))
