"""Host traffic with real programs: one test for each row of the table in docs/host-traffic.md.

The endpoint front1 and its node n1, in both modes, without policy and with each way to close an endpoint.
"""

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK, WORLD
from tests.integration.conftest import MakeLab
from tests.support.dhcp import DhcpServer
from tests.support.host_traffic import CLOSED, GROUPS, VETH, ask, link_local, pings
from tests.support.labs import (
    BRIEF,
    FAMILIES,
    PATIENT,
    PER_FLOW,
    PER_PACKET,
    DatapathSettings,
    await_flow,
    flows_since,
    now,
    run_in,
    start,
    until,
)
from tests.support.namespaces import link_socket, received

both_families = pytest.mark.parametrize("family", FAMILIES)
ARP = {"n1": "10.31.1.1", "front1": "10.31.1.10"}
REDIRECT = bytes((137, 0, 0, 0)) + bytes(4) + socket.inet_pton(socket.AF_INET6, "fe80::1") * 2  # RFC 4861 section 4.5


class Query(NamedTuple):
    """General query of group membership, to all hosts of the link, with the option Router Alert."""

    proto: int
    group: str
    message: bytes
    option: tuple[int, int, bytes]
    start: int  # of the message in a packet that a raw socket returns


QUERIES = {
    4: Query(  # version 3: RFC 3376 section 4.1
        *(socket.IPPROTO_IGMP, "224.0.0.1", bytes.fromhex("1101ec81 00000000 027d0000")),
        *((socket.IPPROTO_IP, socket.IP_OPTIONS, bytes.fromhex("94040000")), 24),
    ),
    6: Query(  # version 2: RFC 3810 section 5.1; the kernel writes the checksum
        *(socket.IPPROTO_ICMPV6, "ff02::1", bytes.fromhex("82000000 00010000") + bytes(16) + bytes.fromhex("027d0000")),
        *((socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, bytes.fromhex("0000050200000100")), 0),
    ),
}


class Protection(NamedTuple):
    """Protection: policy and mode of the node."""

    name: str
    mode: str
    settings: dict[str, Any]

    @property
    def closed(self) -> bool:
        return self.name != "no policy"

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"


PROTECTIONS = [
    Protection(name, mode, settings | DatapathSettings("netlink", queues, mode).settings)
    for mode, queues in ((PER_PACKET, 1), (PER_FLOW, 2))
    for name, settings in (
        ("no policy", {}),
        ("default deny", {"documents": CLOSED}),
        ("always", {"enforcement": "always"}),
    )
]


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[DhcpServer]:
    server = DhcpServer(lab, "n1", "front1")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=PROTECTIONS, ids=str)
def protection(lab: Lab, server: DhcpServer, request: pytest.FixtureRequest) -> Iterator[Protection]:
    """Enforce policy on n1."""
    protection: Protection = request.param
    start(lab, "n1", **protection.settings)
    yield protection
    lab.nodes["n1"].stop()


class TestDhcp:
    @both_families
    def test_a_client_gets_its_lease_with_its_first_message(
        self, protection: Protection, server: DhcpServer, family: int
    ) -> None:
        server.start()

        assert server.lease(family) == 1

    def test_a_client_renews_its_lease_by_unicast(self, protection: Protection, server: DhcpServer) -> None:
        server.lease(4)

        assert server.renew(PATIENT)

    def test_no_exchange_is_dropped_or_opens_a_flow(self, protection: Protection, lab: Lab, server: DhcpServer) -> None:
        since = now()
        for family in FAMILIES:
            server.lease(family)

        assert [flow for flow in flows_since(lab.nodes["n1"], since) if flow["port"] in {67, 68, 546, 547}] == []

    @both_families
    def test_a_neighbour_is_no_server_where_policy_closes_the_client(
        self, protection: Protection, lab: Lab, family: int
    ) -> None:
        server, client = {4: (67, 68), 6: (547, 546)}[family]
        with (
            closing(link_socket(lab, "front1", UPLINK, family, client)) as asking,
            closing(link_socket(lab, "back1", UPLINK, family, server)) as rogue,
        ):
            rogue.sendto(b"rogue offer", (str(lab.address("front1", family)), client))
            found = received(asking, BRIEF if protection.closed else PATIENT, lambda data: data == b"rogue offer")

        assert (found is None) is protection.closed

    @both_families
    def test_a_server_beyond_the_node_follows_policy(self, protection: Protection, lab: Lab, family: int) -> None:
        server, client = {4: (67, 68), 6: (547, 546)}[family]
        with (
            closing(link_socket(lab, "front1", UPLINK, family, client)) as asking,
            closing(link_socket(lab, WORLD, UPLINK, family, server)) as answering,
        ):
            asking.sendto(b"question", (str(lab.address(WORLD, family)), server))
            question = received(answering, BRIEF if protection.closed else PATIENT, lambda data: data == b"question")

        assert (question is None) is protection.closed


class TestNeighbourDiscovery:
    def test_a_router_solicitation_is_answered(self, protection: Protection, lab: Lab) -> None:
        with closing(link_socket(lab, "front1", UPLINK, 6, raw=socket.IPPROTO_ICMPV6)) as asking:
            asking.sendto(bytes((133, 0, 0, 0)) + bytes(4), ("ff02::2", 0))

            assert received(asking, PATIENT, lambda data: data[0] == 134) is not None

    async def test_a_duplicate_address_is_detected(self, protection: Protection, lab: Lab, server: DhcpServer) -> None:
        taken = server.address(6)
        run_in(lab, "front1", "sysctl", "-q", "-w", f"net.ipv6.conf.{UPLINK}.accept_dad=1")
        run_in(lab, "front1", "ip", "address", "add", f"{taken}/128", "dev", UPLINK, "noprefixroute")
        try:
            await until(lambda: taken in run_in(lab, "front1", "ip", "-6", "address", "show", "dadfailed"))
        finally:
            run_in(lab, "front1", "ip", "address", "del", f"{taken}/128", "dev", UPLINK)

    @both_families
    @pytest.mark.parametrize(("asker", "device", "asked"), [("front1", UPLINK, "n1"), ("n1", VETH, "front1")])
    async def test_neighbours_find_each_other(
        self, protection: Protection, lab: Lab, asker: str, device: str, asked: str, family: int
    ) -> None:
        """By neighbour discovery; in IPv4 by ARP, for the gateway of an endpoint or the address of one."""
        target = link_local(lab, asked, VETH if asked == "n1" else UPLINK) if family == 6 else ARP[asked]
        run_in(lab, asker, "ip", f"-{family}", "neighbour", "flush", "dev", device)
        with closing(link_socket(lab, asker, device, family)) as sender:
            sender.sendto(b"hello", (target, 9))
            await until(lambda: "lladdr" in run_in(lab, asker, "ip", f"-{family}", "neighbour", "show", "to", target))

    def test_an_endpoint_receives_a_redirect_of_its_node(self, protection: Protection, lab: Lab) -> None:
        with (
            closing(link_socket(lab, "front1", UPLINK, 6, raw=socket.IPPROTO_ICMPV6)) as listening,
            closing(link_socket(lab, "n1", VETH, 6, raw=socket.IPPROTO_ICMPV6)) as router,
        ):
            router.sendto(REDIRECT, (link_local(lab, "front1", UPLINK), 0))

            assert received(listening, PATIENT, lambda data: data[0] == REDIRECT[0]) is not None

    def test_an_endpoint_redirects_its_node_where_policy_lets_it(self, protection: Protection, lab: Lab) -> None:
        since = now()
        with (
            closing(link_socket(lab, "n1", VETH, 6, raw=socket.IPPROTO_ICMPV6)) as listening,
            closing(link_socket(lab, "front1", UPLINK, 6, raw=socket.IPPROTO_ICMPV6)) as rogue,
        ):
            rogue.sendto(REDIRECT, (link_local(lab, "n1", VETH), 0))
            patience = BRIEF if protection.closed else PATIENT
            found = received(listening, patience, lambda data: data[0] == REDIRECT[0])

        assert (found is None) is protection.closed
        if protection.closed:
            source = link_local(lab, "front1", UPLINK)
            await_flow(lab.nodes["n1"], since, verdict="DROPPED", reason="POLICY_DENIED", source=source)

    def test_an_endpoint_advertises_no_router_where_policy_closes_it(self, protection: Protection, lab: Lab) -> None:
        since, advertisement = now(), bytes((134, 0, 0, 0)) + bytes(12)
        with (
            closing(link_socket(lab, "n1", VETH, 6, group="ff02::6a", raw=socket.IPPROTO_ICMPV6)) as listening,
            closing(link_socket(lab, "front1", UPLINK, 6, raw=socket.IPPROTO_ICMPV6)) as rogue,
        ):
            rogue.sendto(advertisement, ("ff02::1", 0))
            sent_by = link_local(lab, "front1", UPLINK)
            found = False
            while not found and (got := received(listening, BRIEF if protection.closed else PATIENT)):
                found = got[0][0] == 134 and got[1][0].partition("%")[0] == sent_by

        assert found is not protection.closed
        if protection.closed:
            await_flow(lab.nodes["n1"], since, verdict="DROPPED", reason="POLICY_DENIED", source=sent_by)


class TestGroupMembership:
    @pytest.mark.parametrize(
        ("family", "proto", "report", "routers", "group"),
        [
            (4, socket.IPPROTO_IGMP, 0x22, "224.0.0.22", "239.7.7.7"),
            (6, socket.IPPROTO_ICMPV6, 143, "ff02::16", "ff05::77:7"),
        ],
        ids=["IGMP", "MLD"],
    )
    def test_the_node_receives_the_reports_of_an_endpoint(
        self, protection: Protection, lab: Lab, family: int, proto: int, report: int, routers: str, group: str
    ) -> None:
        named = socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, group)
        start_of = 24 if family == 4 else 0  # IPv4: with its header, and the option Router Alert
        with (
            closing(link_socket(lab, "n1", VETH, family, group=routers, raw=proto)) as router,
            closing(link_socket(lab, "front1", UPLINK, family, group=group)),
        ):
            found = received(router, PATIENT, lambda data: data[start_of] == report and named in data)

        assert found is not None

    @both_families
    def test_an_endpoint_receives_the_queries_of_its_node(self, protection: Protection, lab: Lab, family: int) -> None:
        assert query(lab, family, ("n1", VETH), ("front1", UPLINK), PATIENT)

    @both_families
    def test_an_endpoint_queries_its_node_where_policy_lets_it(
        self, protection: Protection, lab: Lab, family: int
    ) -> None:
        since, patience = now(), BRIEF if protection.closed else PATIENT

        assert query(lab, family, ("front1", UPLINK), ("n1", VETH), patience) is not protection.closed
        if protection.closed:
            group = QUERIES[family].group
            await_flow(lab.nodes["n1"], since, verdict="DROPPED", reason="POLICY_DENIED", destination=group)


def query(lab: Lab, family: int, sender: tuple[str, str], receiver: tuple[str, str], patience: float) -> bool:
    """Query all groups of a link; return whether the query arrives."""
    proto, group, sent, option, start_of = QUERIES[family]
    with (
        closing(link_socket(lab, *receiver, family, group=group, raw=proto)) as listening,
        closing(link_socket(lab, *sender, family, raw=proto)) as querier,
    ):
        querier.setsockopt(*option)
        if family == 6:
            querier.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        querier.sendto(sent, (group, 0))
        return received(listening, patience, lambda data: data[start_of:][:1] == sent[:1]) is not None


class TestGroups:
    @both_families
    @pytest.mark.parametrize("service", GROUPS)
    def test_a_question_to_a_group_and_its_answer_follow_policy(
        self, protection: Protection, lab: Lab, service: str, family: int
    ) -> None:
        group, port = GROUPS[service][family]
        since = now()

        assert ask(lab, group, port, family, closed=protection.closed) is not protection.closed
        if protection.closed:
            await_flow(lab.nodes["n1"], since, verdict="DROPPED", reason="POLICY_DENIED", destination=group, port=port)

    @both_families
    def test_the_node_reaches_the_groups_of_its_endpoints(self, protection: Protection, lab: Lab, family: int) -> None:
        group, port = GROUPS["mDNS"][family]
        with (
            closing(link_socket(lab, "front1", UPLINK, family, port, group=group)) as member,
            closing(link_socket(lab, "n1", VETH, family)) as sender,
        ):
            sender.sendto(b"announcement", (group, port))

            assert received(member, PATIENT, lambda data: data == b"announcement") is not None

    def test_a_broadcast_follows_policy(self, protection: Protection, lab: Lab) -> None:
        with (
            closing(link_socket(lab, "n1", VETH, 4, 9999)) as listening,
            closing(link_socket(lab, "front1", UPLINK, 4)) as sender,
        ):
            sender.sendto(b"to all", ("255.255.255.255", 9999))
            found = received(listening, BRIEF if protection.closed else PATIENT)

        assert (found is None) is protection.closed

    def test_the_node_broadcasts_to_its_endpoints(self, protection: Protection, lab: Lab) -> None:
        with (
            closing(link_socket(lab, "front1", UPLINK, 4, 9999)) as listening,
            closing(link_socket(lab, "n1", VETH, 4)) as sender,
        ):
            sender.sendto(b"to all", ("255.255.255.255", 9999))

            assert received(listening, PATIENT) is not None

    @both_families
    @pytest.mark.parametrize("service", GROUPS)
    def test_an_answer_from_elsewhere_follows_policy(
        self, protection: Protection, lab: Lab, service: str, family: int
    ) -> None:
        _, port = GROUPS[service][family]
        with (
            closing(link_socket(lab, "front1", UPLINK, family, port)) as asking,
            closing(link_socket(lab, WORLD, UPLINK, family, port)) as answering,
        ):
            answering.sendto(b"an answer", (str(lab.address("front1", family)), port))
            found = received(asking, BRIEF if protection.closed else PATIENT, lambda data: data == b"an answer")

        assert (found is None) is protection.closed


class TestLinkLocal:
    def test_the_gateway_follows_policy(self, protection: Protection, lab: Lab) -> None:
        assert pings(lab, "front1", link_local(lab, "n1", VETH), UPLINK) is not protection.closed

    def test_the_node_reaches_its_endpoint(self, protection: Protection, lab: Lab) -> None:
        assert pings(lab, "n1", link_local(lab, "front1", UPLINK), VETH)
