"""Process endpoints: identities by the sockets at the ends of a packet, on one host and between hosts."""

from collections.abc import Callable

import pytest

from nfq_enforcer.core.identity import HOST, REMOTE_NODE, Identity
from nfq_enforcer.core.process_sockets import find_nothing
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.core.wire.skb import ASKS_SLOT, OF_PROCESS, SENT_BY_PROCESS
from tests.support.nodes import (
    CLIENT,
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
    refused,
)
from tests.support.packets import (
    datagram,
    error,
    fin,
    identity_on,
    packed,
    request,
    response,
    server_rst,
    stamped,
    syn,
    syn_ack,
    tcp,
    udp,
    udp_answer,
)

BATCH, API = Identity(600), Identity(601)
CGROUPS = {7: ("batch", BATCH), 8: ("api", API)}
PLAIN = 99  # cgroup of a process without an endpoint
LO = "lo"
BY_SOCKET = OF_PROCESS | SENT_BY_PROCESS  # the kernel has classified the packet by the socket that sent it


@pytest.fixture
def host(node: Node, at: Addresses) -> Node:
    """Give a node with two process endpoints: batch, a client, and api, a server of ports 80 and 53."""
    node.processes = dict(CGROUPS)
    for address in (at.host, "127.0.0.1"):
        node.sockets |= {(TCP, address, 80): 8, (UDP, address, 53): 8}
        node.sockets |= {(TCP, address, 40_000): 7, (UDP, address, 40_000): 7}
    load(node)
    return node


def load(node: Node, **sides: object) -> None:
    identities = frozenset({WEB, DB, CLIENT, OTHER, BATCH, API})
    own = frozenset(node.enforced.node_addresses.values())
    node.load(**sides, identities=identities, own_addresses=own)  # type: ignore[arg-type]


def sent(node: Node, payload: bytes, leave_by: str = ETH0, skb: int = BY_SOCKET) -> DropReason | None:
    return refused(node.send(payload, leave_by, skb=skb))


def received(node: Node, payload: bytes, come_by: str = ETH0) -> DropReason | None:
    return refused(node.receive(payload, come_by, skb=OF_PROCESS))


# One host


def test_two_processes_of_one_address_are_told_apart(host: Node, at: Addresses) -> None:
    load(host, ingress={"api": [(BATCH, TCP, 80)]})

    assert sent(host, syn(at.host, at.host), LO) is None
    assert sent(host, syn_ack(at.host, at.host), LO) is None
    host.sockets[TCP, at.host, 40_001] = 8
    assert sent(host, tcp(at.host, at.host, 40_001, 80, 2), LO) is None  # of the same endpoint
    host.processes[9] = ("other", OTHER)
    host.sockets[TCP, at.host, 40_002] = 9
    load(host, ingress={"api": [(BATCH, TCP, 80)]})
    assert sent(host, tcp(at.host, at.host, 40_002, 80, 2), LO) is DropReason.POLICY_DENIED


@pytest.fixture
def opened(host: Node, at: Addresses) -> Node:
    """Give a node with a connection of batch to api, which policy allows."""
    load(host, ingress={"api": [(BATCH, TCP, 80)]})
    assert sent(host, syn(at.host, at.host), LO) is None
    return host


def test_the_event_names_both_sockets(host: Node, at: Addresses) -> None:
    opening = event(host.send(syn(at.host, at.host), LO, skb=BY_SOCKET)).opening

    assert (opening.sender, opening.receiver, opening.source, opening.destination) == (7, 8, BATCH, API)
    assert opening.to_host


def test_only_the_first_packet_of_a_flow_costs_a_look_up(opened: Node, at: Addresses) -> None:
    before = opened.lookups

    for payload in (syn_ack(at.host, at.host), request(at.host, at.host), response(at.host, at.host)):
        assert sent(opened, payload, LO) is None
    assert opened.lookups == before


def test_a_process_and_the_plain_host_are_told_apart(host: Node, at: Addresses) -> None:
    host.sockets[TCP, at.host, 40_000] = PLAIN
    load(host, ingress={"api": [(BATCH, 0, 0)]}, egress={"batch": [(HOST, TCP, 22)]})
    allowed = event(host.receive(syn(at.host, at.host), LO, skb=OF_PROCESS))
    host.load(ingress={"api": [(BATCH, 0, 0)]}, egress={"batch": [(HOST, TCP, 22)]}, allow_localhost=False)

    assert (allowed.verdict, allowed.opening.source) == (FlowVerdict.FORWARDED, HOST)  # allow_localhost: always
    assert received(host, tcp(at.host, at.host, 40_002, 80, 2), LO) is DropReason.POLICY_DENIED
    host.sockets[TCP, at.host, 40_000] = 7
    assert sent(host, syn(at.host, at.host, 22), LO) is None
    assert sent(host, syn(at.host, at.host, 23), LO) is DropReason.POLICY_DENIED


def test_the_reply_to_a_packet_that_was_decided_on_arrival_passes(host: Node, at: Addresses) -> None:
    host.sockets[TCP, at.host, 40_000] = PLAIN

    assert received(host, syn(at.host, at.host), LO) is None
    assert sent(host, syn_ack(at.host, at.host), LO, OF_PROCESS) is None
    assert sent(host, request(at.host, at.host), LO, OF_PROCESS) is None


def test_a_datagram_of_a_closed_socket_is_not_taken_for_one_of_the_host(host: Node, at: Addresses) -> None:
    del host.sockets[UDP, at.host, 40_000]

    assert sent(host, udp(at.host, at.host), LO) is DropReason.UNKNOWN_PROCESS
    assert sent(host, udp(at.host, at.host), LO, OF_PROCESS) is None  # of the host, by its connection


def test_a_packet_of_no_process_that_is_known_is_dropped(host: Node, at: Addresses) -> None:
    for cgroup in (None, PLAIN):
        host.sockets = {(TCP, at.host, 40_000): cgroup} if cgroup else {}
        assert sent(host, syn(at.host, at.world), WAN0) is DropReason.UNKNOWN_PROCESS
        assert received(host, syn(at.client, at.host)) is DropReason.UNKNOWN_PROCESS
        assert sent(host, server_rst(at.host, at.client)) is DropReason.UNKNOWN_PROCESS


def test_the_drop_of_a_known_sender_is_one_of_egress(host: Node, at: Addresses) -> None:
    load(host, egress={"batch": NOBODY})

    assert event(host.send(syn(at.host, at.world), WAN0, skb=OF_PROCESS)).direction is Direction.EGRESS


def test_other_packets_of_the_host_cost_no_look_up(host: Node, at: Addresses) -> None:
    assert accepted(host.send(syn(at.host, at.web), VETH_WEB))
    assert host.lookups == 0


# Between hosts


def test_packets_to_another_node_bear_the_identity_of_the_process(host: Node, at: Addresses) -> None:
    first = host.send(syn(at.host, at.client), ETH0, skb=OF_PROCESS)
    host.receive(stamped(syn_ack(at.client, at.host), CLIENT), ETH0, skb=OF_PROCESS)
    second = host.send(request(at.host, at.client), ETH0, skb=OF_PROCESS)

    assert identity_on(first.payload) == identity_on(second.payload) == BATCH
    assert identity_on(host.send(syn(at.host, at.second_node, 9), ETH0, skb=BY_SOCKET).payload) == BATCH
    assert host.send(syn(at.host, at.world), WAN0, skb=BY_SOCKET).payload is None


def test_a_server_takes_the_identity_on_the_stamp_and_answers_with_its_own(host: Node, at: Addresses) -> None:
    load(host, ingress={"api": HTTP})

    assert received(host, stamped(syn(at.client, at.host), CLIENT)) is None
    assert identity_on(host.send(syn_ack(at.host, at.client), ETH0, skb=BY_SOCKET).payload) == API
    assert received(host, stamped(syn(at.other, at.host), OTHER)) is DropReason.POLICY_DENIED
    assert received(host, syn(at.client, at.host, 80)) is not None


@pytest.mark.parametrize("address", ["client", "second_node"])
def test_an_unstamped_reply_of_an_endpoint_is_forged(host: Node, at: Addresses, address: str) -> None:
    load(host, egress={"batch": [(CLIENT, 0, 0), (REMOTE_NODE, 0, 0)]})
    peer = getattr(at, address)
    assert sent(host, syn(at.host, peer)) is None

    forged = received(host, syn_ack(peer, at.host))

    assert forged is (DropReason.STAMP_MISSING if address == "client" else None)


def test_an_error_with_an_identity_that_nobody_has_is_dropped(host: Node, at: Addresses) -> None:
    load(host, egress={"batch": [(CLIENT, 0, 0)]}, ingress={"api": [(CLIENT, 0, 0)]})
    assert sent(host, udp(at.host, at.client)) is None
    assert received(host, stamped(udp(at.client, at.host), CLIENT)) is None

    for about in (udp(at.host, at.client), udp_answer(at.host, at.client)):
        assert received(host, stamped(error(at.client, at.host, about), 999)) is DropReason.INVALID_IDENTITY
        assert received(host, stamped(error(at.client, at.host, about), CLIENT)) is None


def test_a_process_and_an_endpoint_of_the_node_meet(host: Node, at: Addresses) -> None:
    load(host, ingress={"web": [(BATCH, TCP, 80)], "api": [(WEB, TCP, 80)]})

    assert sent(host, syn(at.host, at.web), VETH_WEB) is None
    assert received(host, syn(at.web, at.host), VETH_WEB) is None
    host.sockets[TCP, at.host, 40_000] = 8
    assert sent(host, tcp(at.host, at.web, 40_001, 80, 2), VETH_WEB) is DropReason.UNKNOWN_PROCESS
    assert received(host, udp(at.web, at.host), VETH_WEB) is DropReason.POLICY_DENIED


def test_datagrams_of_clients_and_servers(host: Node, at: Addresses) -> None:
    load(host, ingress={"api": [(CLIENT, UDP, 53)]}, egress={"batch": [(CLIENT, UDP, 53)]})

    assert received(host, stamped(udp(at.client, at.host), CLIENT)) is None
    assert identity_on(host.send(udp_answer(at.host, at.client), ETH0, skb=BY_SOCKET).payload) == API
    assert sent(host, udp(at.host, at.client)) is None
    assert sent(host, udp(at.host, at.client, 54)) is DropReason.POLICY_DENIED


# Changes


def test_the_identity_of_a_flow_is_that_of_its_socket_at_the_first_packet(opened: Node, at: Addresses) -> None:
    opened.sockets.clear()  # the process has closed its socket, or another one has its ports by now
    load(opened, ingress={"api": [(BATCH, TCP, 80)]})
    assert sent(opened, request(at.host, at.host), LO) is None
    load(opened, ingress={"api": NOBODY})

    assert sent(opened, request(at.host, at.host), LO) is DropReason.POLICY_DENIED


@pytest.mark.parametrize("cgroup", CGROUPS)
def test_a_flow_ends_with_the_endpoint(opened: Node, at: Addresses, cgroup: int) -> None:
    del opened.processes[cgroup]
    load(opened)

    assert sent(opened, fin(at.host, at.host), LO) is DropReason.UNKNOWN_PROCESS


@pytest.mark.parametrize("build", [request, response])
def test_an_imported_flow_finds_its_sockets(host: Node, at: Addresses, build: Callable[[str, str], bytes]) -> None:
    load(host, ingress={"api": [(BATCH, TCP, 80)]})
    host.import_flow(request(at.host, at.host))

    assert sent(host, build(at.host, at.host), LO) is None
    load(host, ingress={"api": NOBODY})
    assert sent(host, request(at.host, at.host), LO) is DropReason.POLICY_DENIED


def test_a_flow_of_the_plain_host_becomes_that_of_an_endpoint(node: Node, at: Addresses) -> None:
    assert accepted(node.send(syn(at.host, at.web), VETH_WEB))
    node.processes, node.sockets = dict(CGROUPS), {(TCP, at.host, 40_000): 7}
    load(node, egress={"batch": NOBODY})

    assert sent(node, request(at.host, at.web), VETH_WEB) is DropReason.POLICY_DENIED


def test_a_process_gains_nothing_by_the_ports_of_a_flow_of_the_host(host: Node, at: Addresses) -> None:
    load(host, egress={"batch": NOBODY})
    assert accepted(host.send(udp(at.host, at.web), VETH_WEB))

    assert sent(host, udp(at.host, at.web), VETH_WEB) is DropReason.POLICY_DENIED
    assert accepted(host.send(udp(at.host, at.web), VETH_WEB))
    load(host)
    assert sent(host, udp(at.host, at.web), VETH_WEB) is None
    assert sent(host, udp(at.host, at.web), VETH_WEB) is None


# Layer 7, and packets of the host itself


def test_layer_7_rules_of_a_process_allow_nothing(host: Node, at: Addresses) -> None:
    host.load_http("api", CLIENT)
    assert received(host, stamped(syn(at.client, at.host), CLIENT)) is DropReason.PROCESS_L7
    host.load_dns("example.org", peer=CLIENT, mine="batch")
    assert sent(host, udp(at.host, at.client)) is DropReason.PROCESS_L7
    host.load_http("batch", CLIENT, Direction.EGRESS)
    assert sent(host, syn(at.host, at.client)) is DropReason.PROCESS_L7


def test_a_connection_of_a_process_is_not_redirected(host: Node, at: Addresses) -> None:
    host.load_http("web", BATCH)

    assert host.send(syn(at.host, at.web), VETH_WEB, skb=ASKS_SLOT).verdict is Verdict.UNDECIDED
    assert sent(host, syn(at.host, at.web), VETH_WEB) is DropReason.PROCESS_L7
    host.sockets[TCP, at.host, 40_000] = PLAIN
    host.sockets[TCP, at.client, 80] = 8  # a listener on all addresses
    host.load_http("web", CLIENT, Direction.EGRESS, own_addresses=frozenset({packed(at.host)}))
    asking = tcp(at.web, at.client, 40_000, 80, 2), tcp(at.web, at.host, 40_000, 80, 2)
    verdicts = [host.receive(payload, VETH_WEB, skb=ASKS_SLOT).verdict for payload in asking]
    assert verdicts == [Verdict.REDIRECT, Verdict.UNDECIDED]
    host.load_http("web", HOST, allow_localhost=False)
    assert host.send(syn(at.host, at.web), VETH_WEB, skb=ASKS_SLOT).verdict is Verdict.REDIRECT


def test_a_process_is_no_host_that_configures_itself(host: Node, at: Addresses) -> None:
    load(host, egress={"batch": NOBODY})
    ports = (68, 67) if at.version == 4 else (546, 547)
    host.sockets[UDP, at.host, ports[0]] = 7

    assert sent(host, datagram(at.host, at.client, *ports)) is DropReason.POLICY_DENIED


def test_a_node_without_look_ups_finds_nothing() -> None:
    assert find_nothing(TCP, (packed("10.0.0.1"), 1), (packed("10.0.0.2"), 2), None) is None
