"""Rules for host traffic: under default deny, rules open what they name, and deny rules close it."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.dhcp import DhcpServer
from tests.support.host_traffic import CLOSED, GROUPS, VETH, ask, link_local, pings
from tests.support.labs import BRIEF, FAMILIES, PATIENT, PER_FLOW, PER_PACKET, await_flow, from_role, now, policy, start
from tests.support.namespaces import link_socket, received, within

MRT_INIT, MRT_ADD_VIF, MRT_ADD_MFC, USE_INDEX = 200, 202, 204, 8  # linux/mroute.h


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


@pytest.fixture(autouse=True)
def stopped(lab: Lab) -> Iterator[None]:
    yield
    lab.nodes["n1"].stop()


def test_a_rule_that_names_a_group_opens_it(lab: Lab) -> None:
    port = {"ports": [{"port": "5353", "protocol": "UDP"}]}
    names = {"toCIDR": ["224.0.0.251/32", "ff02::fb/128"], "toPorts": [port]}
    start(lab, "n1", documents=CLOSED + policy("mdns", "frontend", egress=[names]))

    for family in FAMILIES:
        assert ask(lab, *GROUPS["mDNS"][family], family, closed=False)
        assert not ask(lab, *GROUPS["LLMNR"][family], family, closed=True)


def test_the_world_is_not_the_node_behind_a_group(lab: Lab) -> None:
    start(lab, "n1", documents=CLOSED + policy("world", "frontend", egress=[{"toEntities": ["world"]}]))

    for family in FAMILIES:
        assert not ask(lab, *GROUPS["mDNS"][family], family, closed=True)


def test_the_host_is_also_the_host_at_its_link_local_address(lab: Lab) -> None:
    start(lab, "n1", documents=CLOSED + policy("host", "frontend", egress=[{"toEntities": ["host"]}]))

    assert pings(lab, "front1", link_local(lab, "n1", VETH), UPLINK)


def test_a_deny_rule_holds_for_dhcp(lab: Lab) -> None:
    server = DhcpServer(lab, "n1", "front1")
    server.start()
    port = {"ports": [{"port": "67", "protocol": "UDP"}]}
    start(lab, "n1", documents=policy("no-dhcp", "frontend", egressDeny=[{"toEntities": ["host"], "toPorts": [port]}]))
    since = now()

    assert not server.renew(BRIEF)
    server.stop()
    await_flow(lab.nodes["n1"], since, verdict="DROPPED", reason="POLICY_DENY", port=67)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", [PER_PACKET, PER_FLOW])
def test_sender_and_receiver_of_routed_multicast_are_guarded(lab: Lab, mode: str, family: int) -> None:
    group, create, level, hops = ROUTED[family]
    router = within(lab, "n1", lambda: create(group, lab.address("front1", family), VETH, "veth-back1"))
    with (
        closing(router),
        closing(link_socket(lab, "back1", UPLINK, family, 5000, group=group)) as receiver,
        closing(link_socket(lab, "front1", UPLINK, family, 4000)) as sender,
    ):
        sender.setsockopt(level, hops, 4)

        def arrives(documents: str, *, expected: bool) -> bool:
            start(lab, "n1", documents=documents, datapath=mode)
            for _ in range(3):  # per-flow mode must not offload it either
                sender.sendto(documents.encode()[:100] + b"!", (group, 5000))
            found = [received(receiver, PATIENT if expected else BRIEF) for _ in range(3)]
            lab.nodes["n1"].stop()
            assert len(set(found)) == 1
            return found[0] is not None

        assert arrives("", expected=True)
        assert not arrives(policy("closed", "backend", ingress=[from_role("nobody")]), expected=False)
        opened = policy("open", "backend", ingress=[from_role("frontend", (5000, "UDP"))])
        assert arrives(opened, expected=True)
        to_world = policy("world", "frontend", egress=[{"toEntities": ["world"]}])
        assert arrives(opened + to_world, expected=True)  # a copy for another link is the world's
        assert not arrives(opened + policy("host", "frontend", egress=[{"toEntities": ["host"]}]), expected=False)


def route_ipv4(group: str, source: object, come_by: str, leave_by: str) -> socket.socket:
    """Route a group's packets from a source; call it on the router. The route lasts as long as the socket."""
    router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    router.setsockopt(socket.IPPROTO_IP, MRT_INIT, 1)
    for number, name in enumerate((come_by, leave_by)):
        interface = struct.pack("=HBBIi4x", number, USE_INDEX, 1, 0, socket.if_nametoindex(name))
        router.setsockopt(socket.IPPROTO_IP, MRT_ADD_VIF, interface)
    hops = bytes((255, 1)) + bytes((255,)) * 30  # the least TTL for each interface
    ends = socket.inet_aton(str(source)) + socket.inet_aton(group)
    router.setsockopt(socket.IPPROTO_IP, MRT_ADD_MFC, struct.pack("=8sH32s2xIIIi", ends, 0, hops, 0, 0, 0, 0))
    return router


def route_ipv6(group: str, source: object, come_by: str, leave_by: str) -> socket.socket:
    """Do the same for IPv6 (linux/mroute6.h)."""
    router = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    router.setsockopt(socket.IPPROTO_IPV6, MRT_INIT, 1)
    for number, name in enumerate((come_by, leave_by)):
        interface = struct.pack("=HBBHxxI", number, 0, 1, socket.if_nametoindex(name), 0)
        router.setsockopt(socket.IPPROTO_IPV6, MRT_ADD_VIF, interface)
    ends = b"".join(
        struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, str(address)), 0)
        for address in (source, group)
    )
    to_second = struct.pack("=8I", 1 << 1, *[0] * 7)
    router.setsockopt(socket.IPPROTO_IPV6, MRT_ADD_MFC, ends + struct.pack("=Hxx", 0) + to_second)
    return router


class Routed(NamedTuple):
    """Multicast of a family beyond its link."""

    group: str
    create: Callable[[str, object, str, str], socket.socket]  # the route
    level: int
    hops: int  # socket option: the hop limit of multicast packets


ROUTED = {
    4: Routed("239.9.9.9", route_ipv4, socket.IPPROTO_IP, socket.IP_MULTICAST_TTL),
    6: Routed("ff05::9:9", route_ipv6, socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS),
}
