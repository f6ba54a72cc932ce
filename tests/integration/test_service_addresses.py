"""Connections of a host to addresses that its own rules translate (DNAT in OUTPUT), as kube-proxy's for a ClusterIP.

The kernel gives replies the service's address back in INPUT, with nft-backed iptables before the rules of table
``security``; without it, too, a reply belongs to the flow that the host has opened to the endpoint.
"""

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import IPAddress
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    FAMILIES,
    PATIENT,
    DatapathSettings,
    Policies,
    await_flow,
    now,
    of_nodes,
    policy,
    run_in,
)
from tests.support.process_endpoints import OTHER_PORT, Attempt, check, running

DATAPATH_SETTINGS = DATAPATHS
SERVICES = {4: "10.96.0.0/24", 6: "fd00:96::/64"}
TARGETS = ("back1", "back2", "n2", "world")  # of this node, of another one, another node, outside
NODES_ONLY = policy("nodes", "backend", ingress=[{"fromEntities": ["host", "remote-node"]}])
CLOSED_HOSTS = of_nodes("closed", ingress=[{}])
CLOSED_PORT = 9


def service(target: str, family: int) -> IPAddress:
    """Return the address of the service of a target, on n1."""
    return ip_network(SERVICES[family])[10 + TARGETS.index(target)]


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Run agents that do not let a node reach its own endpoints without a rule."""
    lab = make_served()
    lab.start_agents(**datapath.settings, allow_localhost="policy")
    return lab


@pytest.fixture(scope="module", autouse=True)
def services(guarded: Lab) -> Iterator[None]:
    """Translate on n1 a service's address to each target, as kube-proxy does for clients in the host's namespace."""
    for family in FAMILIES:
        run_in(guarded, "n1", "ip", f"-{family}", "route", "add", SERVICES[family], "dev", "eth0")
        command = "iptables" if family == 4 else "ip6tables"
        for target in TARGETS:
            to = str(guarded.address(target, family))
            run_in(
                guarded, "n1", command, "-t", "nat", "-A", "OUTPUT", "-d", str(service(target, family)), "-j", "DNAT",
                "--to-destination", to,
            )  # fmt: skip
    yield


async def reached(lab: Lab, target: str, timeout: float, port: int = 80) -> set[str]:
    """Return the outcomes of a connection and of a datagram of the host n1 to a service, in both families."""
    host = lab.host("n1")
    results = [await host.connect(service(target, family), port, timeout) for family in FAMILIES]
    results += [
        await host.send_udp(service(target, family), 53 if port == 80 else port, timeout=timeout) for family in FAMILIES
    ]
    return {result.status for result in results}


class TestHost:
    @pytest.mark.parametrize("closed", [False, True], ids=["open host", "host with rules"])
    @pytest.mark.parametrize("target", TARGETS)
    async def test_replies_of_a_service_pass(self, guarded: Lab, policies: Policies, target: str, closed: bool) -> None:
        await policies.apply(
            "file",
            NODES_ONLY,
            *([of_nodes("closed", {}, ingress=[{"fromEntities": ["remote-node"]}])] if closed else []),
        )

        assert await reached(guarded, target, PATIENT) == {"ok"}
        held = await guarded.host("n1").hold(service(target, 4), 80, PATIENT)
        for _ in range(5):
            assert (await held.talk(PATIENT)).status == "ok"
        assert (await guarded.host("n1").bulk(service(target, 4), 80, 1_000_000, PATIENT)).status == "ok"
        await held.close()

    @pytest.mark.parametrize("target", ["back1", "back2"])
    async def test_a_service_whose_endpoint_allows_others_only_stays_closed(
        self, guarded: Lab, policies: Policies, target: str
    ) -> None:
        others = policy("others", "backend", ingress=[{"fromEntities": ["world"]}])
        await policies.apply("file", others)

        assert await reached(guarded, target, BRIEF) == {"timeout"}

    @pytest.mark.parametrize("target", ["back1", "back2"])
    async def test_an_open_connection_is_cut_once_no_rule_allows_it(
        self, guarded: Lab, policies: Policies, target: str
    ) -> None:
        await policies.apply("file", NODES_ONLY)
        held = await guarded.host("n1").hold(service(target, 4), 80, PATIENT)
        assert (await held.talk(PATIENT)).status == "ok"

        await policies.apply("file", policy("nodes", "backend", ingress=[{}]))
        assert (await held.talk()).status != "ok"
        await held.close()

    @pytest.mark.parametrize("target", ["back1", "back2", "world"])
    async def test_an_error_about_a_datagram_reaches_the_host(
        self, guarded: Lab, policies: Policies, target: str
    ) -> None:
        await policies.apply("file", NODES_ONLY, CLOSED_HOSTS)

        assert await reached(guarded, target, PATIENT, CLOSED_PORT) == {"refused"}

    async def test_a_flow_has_the_endpoint_as_its_end(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("file", NODES_ONLY)
        since = now()
        await guarded.host("n1").connect(service("back1", 4), 80, PATIENT)

        ends = {"source": str(guarded.address("n1")), "destination": str(guarded.address("back1"))}
        await_flow(guarded.nodes["n1"], since, verdict="FORWARDED", **ends)


class TestProcesses:
    async def test_replies_of_a_service_reach_a_process(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply(
            "file",
            policy("backend", "backend", ingress=[{"fromEndpoints": [{"matchLabels": {"role": "client"}}]}]),
            policy("client", "client", egress=[{"toEndpoints": [{"matchLabels": {"role": "backend"}}]}]),
        )
        for target in ("back1", "back2"):
            attempts = [
                Attempt(protocol, service(target, family), OTHER_PORT)
                for protocol in ("TCP", "UDP")
                for family in FAMILIES
            ]
            with running(guarded, target, None, "serve", str(OTHER_PORT)):
                await check(guarded, "n1", "client", attempts, "ok")
                await check(guarded, "n1", "other", attempts, "timeout")
