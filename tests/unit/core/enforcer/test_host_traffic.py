"""Host traffic: DHCP, link-local addresses, groups; without policy, under default deny and with deny rules.

``closed`` puts every endpoint into default deny in both directions. The enforcement mode ``always`` gives equal maps.
"""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from nfq_enforcer.core.identity import HOST, LOCAL, UNMANAGED, WORLD, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, Prefixes
from nfq_enforcer.core.tables.snapshot import LocalEndpoint
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.core.wire.packet import IGMP, UDP
from tests.support.nodes import (
    CLIENT,
    CLOSED,
    DB,
    ETH0,
    NOBODY,
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
)
from tests.support.packets import (
    CLIENT_PORT,
    datagram,
    error,
    icmp,
    ip,
    packed,
    ping,
    pong,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)

CLIENT_PORTS, SERVER_PORTS = {4: (68, 67), 6: (546, 547)}, {4: (67, 68), 6: (547, 546)}
BROADCAST = "255.255.255.255"
GATEWAY, WEB_LINK, DB_LINK = "fe80::1", "fe80::10", "fe80::20"  # the first is this host on each link
EVERYBODY = [(0, 0, 0)]
MDNS = {4: "224.0.0.251", 6: "ff02::fb"}
ROUTED_GROUP = {4: "239.1.1.1", 6: "ff05::1:1"}


def closed(node: Node, **changed: object) -> Node:
    node.load(ingress=CLOSED, egress=CLOSED, **changed)
    return node


REQUESTS = {
    "first": datagram("0.0.0.0", BROADCAST, 68, 67),
    "renewal": datagram(V4.web, V4.host, 68, 67),
    "rebinding": datagram(V4.web, BROADCAST, 68, 67),
    "v6, first": datagram(WEB_LINK, "ff02::1:2", 546, 547),
    "v6, to the server": datagram(WEB_LINK, GATEWAY, 546, 547),
    "v6, from its own address": datagram(V6.web, V6.host, 546, 547),
}
ANSWERS = {
    "to the new address": datagram(V4.host, V4.web, 67, 68),
    "to all": datagram(V4.host, BROADCAST, 67, 68),
    "v6": datagram(GATEWAY, WEB_LINK, 547, 546),
    "v6, to its own address": datagram(V6.host, V6.web, 547, 546),
}


class TestDhcpWithTheHost:
    @pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
    def test_a_request_passes_without_a_rule_and_opens_no_flow(self, node: Node, request_: bytes) -> None:
        for allow_localhost in (True, False):
            closed(node, allow_localhost=allow_localhost)
            decision = node.receive(request_, VETH_WEB)

            assert (decision.verdict, decision.event, len(node.flows)) == (Verdict.ACCEPT, None, 0)

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
    def test_an_answer_passes_without_a_rule_and_opens_no_flow(self, node: Node, answer: bytes) -> None:
        for allow_localhost in (True, False):
            closed(node, allow_localhost=allow_localhost)
            decision = node.send(answer, VETH_WEB)

            assert (decision.verdict, decision.event, len(node.flows)) == (Verdict.ACCEPT, None, 0)

    @pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
    def test_without_policy_a_request_opens_no_flow_either(self, node: Node, request_: bytes) -> None:
        assert accepted(node.receive(request_, VETH_WEB))
        assert len(node.flows) == 0

    def test_deny_rules_hold(self, node: Node) -> None:
        node.load(deny_egress={"web": [(HOST, UDP, 67)]}, deny_ingress={"web": [(HOST, UDP, 68)]})

        assert refused(node.receive(REQUESTS["first"], VETH_WEB)) is DropReason.POLICY_DENY
        assert refused(node.receive(REQUESTS["renewal"], VETH_WEB)) is DropReason.POLICY_DENY
        assert refused(node.send(ANSWERS["to the new address"], VETH_WEB)) is DropReason.POLICY_DENY
        assert refused(node.send(ANSWERS["to all"], VETH_WEB)) is DropReason.POLICY_DENY

    @pytest.mark.parametrize("ports", [(68, 69), (67, 67), (68, 68), (1068, 67)])
    def test_other_ports_need_a_rule(self, node: Node, ports: tuple[int, int]) -> None:
        closed(node)

        assert refused(node.receive(datagram(V4.web, V4.host, *ports), VETH_WEB)) is DropReason.POLICY_DENIED
        assert refused(node.receive(datagram("0.0.0.0", BROADCAST, *ports), VETH_WEB)) is DropReason.INVALID_SOURCE_IP

    def test_another_protocol_needs_a_rule(self, node: Node) -> None:
        segment = syn(V4.web, V4.host, 67)
        same_ports = segment[:20] + bytes((0, 68)) + segment[22:]

        assert refused(closed(node).receive(same_ports, VETH_WEB)) is DropReason.POLICY_DENIED

    def test_the_ports_of_one_ip_version_mean_nothing_in_the_other(self, node: Node) -> None:
        closed(node)

        assert refused(node.receive(datagram(V4.web, V4.host, 546, 547), VETH_WEB)) is DropReason.POLICY_DENIED
        assert refused(node.receive(datagram(V6.web, V6.host, 68, 67), VETH_WEB)) is DropReason.POLICY_DENIED


class TestDhcpOfOthers:
    """Between endpoints, and with servers beyond this host, DHCP is traffic like any other."""

    def test_an_endpoint_answers_no_other_endpoint(self, node: Node, at: Addresses) -> None:
        answer = datagram(at.db, at.web, *SERVER_PORTS[at.version])
        node.load(ingress={"web": NOBODY})

        assert refused(node.forward(answer, VETH_DB, VETH_WEB)) is DropReason.POLICY_DENIED

        node.load(ingress={"web": [(DB, UDP, CLIENT_PORTS[at.version][0])]})
        assert accepted(node.forward(answer, VETH_DB, VETH_WEB))

    def test_an_endpoint_asks_no_other_endpoint(self, node: Node, at: Addresses) -> None:
        question = datagram(at.web, at.db, *CLIENT_PORTS[at.version])

        node.load(egress={"web": NOBODY})
        assert refused(node.forward(question, VETH_WEB, VETH_DB)) is DropReason.POLICY_DENIED
        node.load(ingress={"db": NOBODY})
        assert refused(node.forward(question, VETH_WEB, VETH_DB)) is DropReason.POLICY_DENIED

    def test_an_endpoint_is_no_server_of_its_host(self, node: Node, at: Addresses) -> None:
        answer = datagram(at.db, at.host, *SERVER_PORTS[at.version])

        assert refused(closed(node).receive(answer, VETH_DB)) is DropReason.POLICY_DENIED

    def test_a_server_beyond_this_host_needs_a_rule(self, node: Node, at: Addresses) -> None:
        closed(node)
        question, answer = CLIENT_PORTS[at.version], SERVER_PORTS[at.version]

        assert refused(node.forward(datagram(at.web, at.world, *question), VETH_WEB, WAN0)) is DropReason.POLICY_DENIED
        assert refused(node.forward(datagram(at.world, at.web, *answer), WAN0, VETH_WEB)) is DropReason.POLICY_DENIED

    def test_with_a_rule_for_the_question_its_answer_is_a_reply(self, node: Node, at: Addresses) -> None:
        question, answer = CLIENT_PORTS[at.version], SERVER_PORTS[at.version]
        node.load(ingress=CLOSED, egress={"web": [(WORLD, UDP, question[1])]})

        assert accepted(node.forward(datagram(at.web, at.world, *question), VETH_WEB, WAN0))
        assert accepted(node.forward(datagram(at.world, at.web, *answer), WAN0, VETH_WEB))


class TestHostAsEndpoint:
    """This host is an endpoint itself, closed in both directions."""

    @pytest.fixture
    def node(self, at: Addresses) -> Node:
        node = Node()
        shut = PolicyMap({}, enforced=True)
        itself = LocalEndpoint("default/host", Identity(600), None, shut, shut, is_host=True)
        endpoints = dict(node.snapshot(0, CLOSED, CLOSED).endpoints) | {packed(at.host): itself}
        node.load(endpoints=endpoints, allow_localhost=False)
        return node

    def test_it_gets_its_own_lease(self, node: Node, at: Addresses) -> None:
        assert accepted(node.send(datagram(at.host, at.world, *CLIENT_PORTS[at.version]), WAN0))
        assert accepted(node.receive(datagram(at.world, at.host, *SERVER_PORTS[at.version]), WAN0))
        assert len(node.flows) == 0

    def test_no_endpoint_is_its_server(self, node: Node, at: Addresses) -> None:
        answer = SERVER_PORTS[at.version]
        of_peer = stamped(datagram(at.client, at.host, *answer), CLIENT)

        assert refused(node.receive(datagram(at.db, at.host, *answer), VETH_DB)) is DropReason.POLICY_DENIED
        assert refused(node.receive(of_peer, ETH0)) is DropReason.POLICY_DENIED

    def test_it_serves_its_endpoints_and_nobody_else(self, node: Node, at: Addresses) -> None:
        question, answer = CLIENT_PORTS[at.version], SERVER_PORTS[at.version]

        assert accepted(node.receive(datagram(at.web, at.host, *question), VETH_WEB))
        assert accepted(node.send(datagram(at.host, at.web, *answer), VETH_WEB))
        assert refused(node.receive(datagram(at.world, at.host, *question), WAN0)) is DropReason.POLICY_DENIED
        assert refused(node.send(datagram(at.host, at.world, *answer), WAN0)) is DropReason.POLICY_DENIED

    def test_it_reports_its_groups(self, node: Node, at: Addresses) -> None:
        report = ip(V4.host, "224.0.0.22", IGMP, b"\x22" + bytes(7), options=b"\x94\x04\0\0")
        if at is V4:
            assert accepted(node.send(report, ETH0))
            assert len(node.flows) == 0

    def test_a_server_that_is_an_endpoint_needs_a_rule_of_its_own(self, node: Node, at: Addresses) -> None:
        question = datagram(at.host, at.web, *CLIENT_PORTS[at.version])

        assert refused(node.send(question, VETH_WEB)) is DropReason.POLICY_DENIED


def test_a_group_report_of_an_endpoint_that_the_kernel_does_not_exempt_is_evaluated(node: Node) -> None:
    query = ip("0.0.0.0", "224.0.0.1", IGMP, b"\x11" + bytes(7))

    assert accepted(node.receive(query, VETH_WEB))
    assert refused(closed(node).receive(query, VETH_WEB)) is DropReason.POLICY_DENIED


class TestLinkLocal:
    """The host is ``fe80::1`` on the link of every endpoint."""

    def test_without_policy_both_ends_open_connections(self, node: Node) -> None:
        for opener, answer in ((syn, syn_ack), (udp, udp_answer), (ping, pong)):
            assert accepted(node.receive(opener(WEB_LINK, GATEWAY), VETH_WEB))
            assert accepted(node.send(answer(GATEWAY, WEB_LINK), VETH_WEB))
            assert accepted(node.send(opener(GATEWAY, DB_LINK), VETH_DB))
            assert accepted(node.receive(answer(DB_LINK, GATEWAY), VETH_DB))

    def test_it_is_the_endpoint_and_the_host_that_policy_sees(self, node: Node) -> None:
        seen = event(closed(node).receive(syn(WEB_LINK, GATEWAY), VETH_WEB))

        assert (seen.reason, seen.opening.source, seen.opening.destination) == (DropReason.POLICY_DENIED, WEB, HOST)

    def test_a_rule_for_the_host_allows_it(self, node: Node) -> None:
        node.load(ingress=CLOSED, egress={"web": [(HOST, 0, 0)]}, allow_localhost=False)

        assert accepted(node.receive(syn(WEB_LINK, GATEWAY), VETH_WEB))
        assert accepted(node.send(syn_ack(GATEWAY, WEB_LINK), VETH_WEB))

    @pytest.mark.parametrize("allow_localhost", [True, False])
    def test_the_host_may_open_as_much_as_to_the_endpoints_other_addresses(
        self, node: Node, allow_localhost: bool
    ) -> None:
        closed(node, allow_localhost=allow_localhost)

        for opener, answer in ((syn, syn_ack), (udp, udp_answer), (ping, pong)):
            assert accepted(node.send(opener(GATEWAY, WEB_LINK), VETH_WEB)) is allow_localhost
            assert accepted(node.receive(answer(WEB_LINK, GATEWAY), VETH_WEB)) is allow_localhost

    def test_the_same_address_on_another_link_is_another_endpoint(self, node: Node) -> None:
        node.load(egress=CLOSED, deny_ingress={"db": [(HOST, 0, 0)]})
        assert accepted(node.send(udp(GATEWAY, WEB_LINK), VETH_WEB))

        assert refused(node.receive(udp_answer(WEB_LINK, GATEWAY), VETH_DB)) is DropReason.INVALID_SOURCE_IP
        assert refused(node.send(udp(GATEWAY, WEB_LINK), VETH_DB)) is DropReason.POLICY_DENY

    def test_an_open_flow_follows_a_change_of_policy(self, node: Node) -> None:
        assert accepted(node.receive(udp(WEB_LINK, GATEWAY), VETH_WEB))

        assert refused(closed(node).receive(udp(WEB_LINK, GATEWAY), VETH_WEB)) is DropReason.POLICY_DENIED

    def test_an_imported_flow_has_its_replier_by_the_interface(self, node: Node) -> None:
        closed(node)
        node.import_flow(udp(GATEWAY, WEB_LINK))

        assert accepted(node.receive(udp_answer(WEB_LINK, GATEWAY), VETH_WEB))

    def test_an_icmp_error_about_a_packet_of_the_host_is_related(self, node: Node) -> None:
        about = udp(GATEWAY, WEB_LINK)
        closed(node).send(about, VETH_WEB)

        assert accepted(node.receive(error(WEB_LINK, GATEWAY, about), VETH_WEB))
        assert refused(node.receive(error(DB_LINK, GATEWAY, about), VETH_DB)) is DropReason.POLICY_DENIED

    @pytest.mark.parametrize(
        "forged",
        [
            udp(WEB_LINK, V6.host),
            udp(WEB_LINK, V6.world),
            udp("::", "ff02::1"),
            udp("::", GATEWAY),
            datagram("0.0.0.0", V4.host, 68, 67),
            datagram("0.0.0.0", BROADCAST, 67, 68),
            udp("169.254.1.1", V4.host),
        ],
    )
    def test_no_other_use_of_such_a_source_is_believed(self, node: Node, forged: bytes) -> None:
        assert refused(node.receive(forged, VETH_WEB)) is DropReason.INVALID_SOURCE_IP

    def test_on_other_interfaces_it_is_nobody(self, node: Node) -> None:
        assert refused(node.receive(udp(WEB_LINK, GATEWAY), WAN0)) is DropReason.NO_ENDPOINT
        assert refused(node.send(udp(GATEWAY, WEB_LINK), WAN0)) is DropReason.NO_ENDPOINT


ADVERTISEMENT = icmp(WEB_LINK, "ff02::1", 134, 0, bytes(12))


def test_a_router_advertisement_of_an_endpoint_follows_policy(node: Node) -> None:
    """The kernel exempts only those that come by other interfaces."""
    assert accepted(node.receive(ADVERTISEMENT, VETH_WEB))
    assert refused(closed(node).receive(ADVERTISEMENT, VETH_WEB)) is DropReason.POLICY_DENIED


class TestGroups:
    def asks(self, at: Addresses) -> bytes:
        return datagram(at.web, MDNS[at.version], 5353, 5353)

    def with_prefix(self, prefix: str, *, of_groups: bool = True) -> Ipcache:
        prefixes = Prefixes({ip_network(prefix): Identity(LOCAL + 1)})
        return Ipcache({}, outside=prefixes, groups=prefixes if of_groups else NO_PREFIXES)

    def test_the_copy_for_this_host_needs_a_rule_for_the_host(self, node: Node, at: Addresses) -> None:
        assert accepted(node.receive(self.asks(at), VETH_WEB))
        assert refused(closed(node).receive(self.asks(at), VETH_WEB)) is DropReason.POLICY_DENIED
        node.load(egress={"web": [(WORLD, 0, 0)]})
        assert refused(node.receive(self.asks(at), VETH_WEB)) is DropReason.POLICY_DENIED
        node.load(egress={"web": [(HOST, UDP, 5353)]})
        assert accepted(node.receive(self.asks(at), VETH_WEB))

    def test_a_broadcast_reaches_the_host_under_the_same_rules(self, node: Node) -> None:
        wake = datagram(V4.web, BROADCAST, 40000, 9)

        assert accepted(node.receive(wake, VETH_WEB))
        node.load(egress={"web": [(WORLD, 0, 0)]})
        assert refused(node.receive(wake, VETH_WEB)) is DropReason.POLICY_DENIED
        node.load(egress={"web": [(LOCAL + 1, 0, 0)]}, ipcache=self.with_prefix(f"{BROADCAST}/32"))
        assert accepted(node.receive(wake, VETH_WEB))

    def test_or_one_that_names_the_group(self, node: Node, at: Addresses) -> None:
        prefixes = {4: ("224.0.0.0/4", "0.0.0.0/0"), 6: ("ff02::fb/128", "::/0")}[at.version]
        egress = {"web": [(LOCAL + 1, UDP, 5353)]}

        node.load(egress=egress, ipcache=self.with_prefix(prefixes[0]))
        assert accepted(node.receive(self.asks(at), VETH_WEB))
        node.load(egress=egress, ipcache=self.with_prefix(prefixes[1], of_groups=False))
        assert refused(node.receive(self.asks(at), VETH_WEB)) is DropReason.POLICY_DENIED

    def test_a_deny_rule_that_names_the_group_holds(self, node: Node, at: Addresses) -> None:
        prefix = {4: "224.0.0.251/32", 6: "ff02::/16"}[at.version]
        node.load(deny_egress={"web": [(LOCAL + 1, 0, 0)]}, ipcache=self.with_prefix(prefix))

        assert refused(node.receive(self.asks(at), VETH_WEB)) is DropReason.POLICY_DENY

    def test_an_answer_to_the_asker_is_a_connection_of_the_answerer(self, node: Node, at: Addresses) -> None:
        """It comes from another address than the question went to."""
        node.load(ingress=CLOSED, egress={"web": [(HOST, UDP, 5353)]})
        node.receive(self.asks(at), VETH_WEB)
        answer = datagram(at.world, at.web, 5353, 5353)

        assert refused(node.forward(answer, WAN0, VETH_WEB)) is DropReason.POLICY_DENIED
        assert accepted(node.send(datagram(at.host, at.web, 5353, 5353), VETH_WEB))

    def test_each_copy_of_a_multicast_router_has_its_own_verdict(self, node: Node, at: Addresses) -> None:
        packet = datagram(at.web, ROUTED_GROUP[at.version], 40000, 5000)
        node.load(ingress={"db": NOBODY}, egress={"web": [(WORLD, 0, 0)]})

        for _ in range(2):
            assert accepted(node.forward(packet, VETH_WEB, WAN0))
            assert refused(node.forward(packet, VETH_WEB, VETH_DB)) is DropReason.POLICY_DENIED
            assert refused(node.receive(packet, VETH_WEB)) is DropReason.POLICY_DENIED

    def test_the_receiver_allows_the_sender(self, node: Node, at: Addresses) -> None:
        packet = datagram(at.web, ROUTED_GROUP[at.version], 40000, 5000)
        node.load(ingress={"db": [(WEB, UDP, 5000)]}, egress={"web": [(WORLD, 0, 0)]})

        assert accepted(node.forward(packet, VETH_WEB, VETH_DB))

    def test_a_stream_is_one_flow_in_the_log(self, node: Node, at: Addresses) -> None:
        packet = datagram(at.web, ROUTED_GROUP[at.version], 40000, 5000)

        assert event(node.forward(packet, VETH_WEB, WAN0)).opening.destination == WORLD
        assert node.forward(packet, VETH_WEB, WAN0).event is None

    def test_from_another_node_the_endpoint_is_guarded_as_ever(self, node: Node, at: Addresses) -> None:
        packet = datagram(at.client, ROUTED_GROUP[at.version], 40000, 5000)
        node.load(ingress={"web": NOBODY})
        assert refused(node.forward(stamped(packet, CLIENT), ETH0, VETH_WEB)) is DropReason.POLICY_DENIED
        node.load(ingress={"web": [(CLIENT, UDP, 5000)]})
        assert accepted(node.forward(stamped(packet, CLIENT), ETH0, VETH_WEB))

    @pytest.mark.parametrize("allow_localhost", [True, False])
    def test_the_host_sends_to_its_endpoints_as_ever(self, node: Node, at: Addresses, allow_localhost: bool) -> None:
        packet = datagram(at.host, MDNS[at.version], 5353, 5353)
        closed(node, allow_localhost=allow_localhost)

        assert accepted(node.send(packet, VETH_WEB)) is allow_localhost

    def test_no_such_flow_is_offloaded(self, node: Node, at: Addresses) -> None:
        node.load(epoch=1)
        packet = datagram(at.web, ROUTED_GROUP[at.version], 40000, 5000)

        for _ in range(3):
            assert node.forward(packet, VETH_WEB, WAN0).verdict is Verdict.ACCEPT


class TestSharedInterface:
    """Web and db are behind one bridge; an address that is neither's own belongs to the bridge."""

    BRIDGE = "br0"

    def shared(self, node: Node, **policy: object) -> Node:
        snapshot = node.snapshot(0, **policy)  # type: ignore[arg-type]
        endpoints = {
            address: replace(endpoint, interface=self.BRIDGE) for address, endpoint in snapshot.endpoints.items()
        }
        node.load(endpoints=endpoints)
        return node

    def test_without_policy_link_local_traffic_passes(self, node: Node) -> None:
        seen = event(self.shared(node).receive(syn(WEB_LINK, GATEWAY), self.BRIDGE))

        assert (seen.reason, seen.opening.source) == (None, UNMANAGED)

    def test_if_one_of_them_is_closed_it_does_not(self, node: Node) -> None:
        self.shared(node, egress={"db": NOBODY})

        assert refused(node.receive(syn(WEB_LINK, GATEWAY), self.BRIDGE)) is DropReason.POLICY_DENIED

    def test_they_get_their_leases(self, node: Node) -> None:
        self.shared(node, ingress=CLOSED, egress=CLOSED)

        assert accepted(node.receive(REQUESTS["first"], self.BRIDGE))
        assert accepted(node.receive(REQUESTS["v6, first"], self.BRIDGE))
        assert accepted(node.send(ANSWERS["to all"], self.BRIDGE))
        assert accepted(node.send(ANSWERS["v6"], self.BRIDGE))

    def test_from_one_to_the_other_by_such_an_address_nothing_passes(self, node: Node) -> None:
        """With br_netfilter, a frame between two ports of a bridge is forwarded from the bridge to itself."""
        self.shared(node, ingress={"db": NOBODY})

        assert refused(node.forward(syn(WEB_LINK, DB_LINK), self.BRIDGE, self.BRIDGE)) is DropReason.POLICY_DENIED
        group = udp(V4.web, ROUTED_GROUP[4])
        assert refused(node.forward(group, self.BRIDGE, self.BRIDGE)) is DropReason.POLICY_DENIED

    def test_an_endpoint_with_several_addresses_shares_nothing(self, node: Node) -> None:
        seen = event(node.receive(udp(WEB_LINK, GATEWAY, CLIENT_PORT), VETH_WEB))

        assert seen.opening.source == WEB
