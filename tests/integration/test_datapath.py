"""Policy with real packets: connections that each endpoint may open, and the effect of changes on open ones.

All tests except those of the modes share one lab with agents in default settings (``guarded``); each applies its own
policies and withdraws them.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import pytest

from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.traffic_host import HeldConnection
from tests.integration.conftest import MakeLab
from tests.support import packets
from tests.support.labs import (
    BACKENDS,
    BRIEF,
    CLOSED,
    DATAPATHS,
    DNS,
    ENDPOINTS,
    FAMILIES,
    FRONT_TO_BACK,
    FRONTENDS,
    HTTP,
    HTTPS,
    OTHER_TCP,
    PATIENT,
    PER_FLOW,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    dropped,
    ends,
    expect,
    flows_since,
    from_role,
    identities,
    now,
    outcomes,
    passes,
    policy,
    properties,
    stamps_on,
    stop_agents,
    to_role,
)

WEB = ((HTTP, "TCP"), (HTTPS, "TCP"))
StartAgents = Callable[..., Lab]

both_families = pytest.mark.parametrize("family", FAMILIES)


DATAPATH_SETTINGS = DATAPATHS
# Enforcement modes decide in the policy maps and in the enforcer; what they decide passes a driver as any other verdict
# does. Each driver and each mode of the data path has them once.
MODE_SETTINGS = (DatapathSettings("netfilterqueue"), DatapathSettings("netlink", 2, PER_FLOW))


class TestIngress:
    async def test_without_a_policy_everything_passes(self, guarded: Lab) -> None:
        hosts = (*ENDPOINTS, "world", "n1")
        expected = passes(hosts, hosts)

        assert await outcomes(guarded, expected) == expected

    async def test_with_the_first_rule_only_what_it_allows_passes(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("first", FRONT_TO_BACK)
        others = (*BACKENDS, "db3", "n3", "world")
        expected = (
            passes(FRONTENDS, BACKENDS)
            | dropped(others, BACKENDS)
            | dropped((*FRONTENDS, *BACKENDS, "world"), ("front1", "front2", "db3", "n3"))
            | passes(ENDPOINTS, ("world",))
        )

        assert await outcomes(guarded, expected) == expected

    async def test_the_same_on_one_node(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("first", FRONT_TO_BACK)
        expected = passes(["front1"], ["back1"]) | dropped(["back1"], ["front1"]) | dropped(["front3"], ["db3"])

        assert await outcomes(guarded, expected) == expected

    async def test_replies_pass_though_their_sender_may_open_nothing(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("first", FRONT_TO_BACK)
        back2 = guarded.host("back2")

        for family in FAMILIES:
            connection = await guarded.host("front1").hold(guarded.address("back2", family), HTTP, PATIENT)
            assert (await connection.other_end(back2).talk(PATIENT)).answered_by == "front1"
            assert not (await back2.connect(guarded.address("front1", family), HTTP, BRIEF)).ok

    async def test_a_rule_with_ports_opens_just_those(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("web", policy("web", "backend", ingress=[from_role("frontend", *WEB)]))
        opened, closed = ("80/TCP", "443/TCP"), ("8080/TCP", "53/UDP", "ping")
        expected = passes(FRONTENDS, BACKENDS, ways=opened) | dropped(FRONTENDS, BACKENDS, ways=closed)

        assert await outcomes(guarded, expected) == expected

    async def test_rules_add_up(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("web", policy("web", "backend", ingress=[from_role("frontend", *WEB)]))
        await policies.apply("dns", policy("dns", "backend", ingress=[from_role("db", (DNS, "UDP"))]))
        expected = (
            passes(FRONTENDS, BACKENDS, ways=("80/TCP", "443/TCP"))
            | passes(["db3"], BACKENDS, ways=("53/UDP",))
            | dropped(FRONTENDS, BACKENDS, ways=("53/UDP",))
            | dropped(["db3"], BACKENDS, ways=("80/TCP",))
        )

        assert await outcomes(guarded, expected) == expected

    async def test_a_refusal_names_both_ends_and_the_document(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("first", FRONT_TO_BACK)
        begun, names = now(), identities(guarded)

        await guarded.host("db3").connect(guarded.address("back2"), HTTP, BRIEF)

        flow = await_flow(guarded.nodes["n2"], begun, identity=names["db3"], port=HTTP)
        assert (flow["verdict"], flow["drop_reason_desc"], flow["traffic_direction"]) == (
            "DROPPED",
            "POLICY_DENIED",
            "INGRESS",
        )
        assert (flow["source"]["pod_name"], flow["destination"]["pod_name"]) == ("db3", "back2")
        assert "k8s:role=db" in flow["source"]["labels"]
        assert [rule["name"] for rule in flow["enforced_by"]] == ["front-to-back"]


class TestEgress:
    EGRESS_WEB = policy("egress-web", "frontend", egress=[to_role("backend", *WEB)])

    async def test_a_rule_with_ports_opens_just_those_and_closes_all_other_egress(
        self, guarded: Lab, policies: Policies
    ) -> None:
        await policies.apply("egress", self.EGRESS_WEB)
        expected = (
            passes(FRONTENDS, BACKENDS, ways=("80/TCP", "443/TCP"))
            | dropped(FRONTENDS, BACKENDS, ways=("8080/TCP", "53/UDP", "ping"))
            | dropped(FRONTENDS, ("db3", "world"))
            | dropped(BACKENDS, ("front1", "front2", "world"))
            | passes(["world"], ENDPOINTS)
        )

        assert await outcomes(guarded, expected) == expected

    async def test_it_is_the_senders_node_that_drops(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("egress", self.EGRESS_WEB)
        begun = now()

        await guarded.host("front1").connect(guarded.address("back2"), OTHER_TCP, BRIEF)

        flow = await_flow(guarded.nodes["n1"], begun, port=OTHER_TCP)
        assert (flow["verdict"], flow["traffic_direction"]) == ("DROPPED", "EGRESS")
        # Only this connection counts: packets that close connections of an earlier test may arrive now, and be dropped.
        seen_at = {
            name: [seen["verdict"] for seen in flows_since(node, begun) if seen["port"] == OTHER_TCP]
            for name, node in guarded.nodes.items()
        }
        assert seen_at == {"n1": ["DROPPED"], "n2": [], "n3": []}

    async def test_both_sides_must_allow(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("in", FRONT_TO_BACK)
        await policies.apply("out", policy("out", "frontend", egress=[to_role("db")]))
        begun = now()
        expected = dropped(FRONTENDS, (*BACKENDS, "db3"))
        assert await outcomes(guarded, expected) == expected
        refused_by = {
            target: await_flow(
                guarded.nodes[node], begun, verdict="DROPPED", destination=str(guarded.address(target)), port=HTTP
            )["traffic_direction"]
            for node, target in (("n1", "back2"), ("n1", "back1"), ("n3", "db3"))
        }
        assert refused_by == {"back2": "EGRESS", "back1": "EGRESS", "db3": "INGRESS"}

        await policies.apply("out", policy("out", "frontend", egress=[to_role("db"), to_role("backend")]))

        expected = passes(FRONTENDS, BACKENDS) | dropped(FRONTENDS, ["db3"])
        assert await outcomes(guarded, expected) == expected


class TestHosts:
    async def test_ingress_of_a_host_that_is_an_endpoint(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("monitor", policy("monitor", "monitor", ingress=[from_role("frontend", (HTTP, "TCP"))]))
        expected = (
            passes(FRONTENDS, ["n3"], ways=("80/TCP",))
            | dropped(FRONTENDS, ["n3"], ways=("443/TCP", "53/UDP", "ping"))
            | dropped((*BACKENDS, "db3", "world", "n1"), ["n3"])
            | passes(["n3"], ("world", "n1"))
        )

        assert await outcomes(guarded, expected) == expected

    async def test_egress_of_a_host_that_is_an_endpoint(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("monitor", policy("monitor", "monitor", egress=[to_role("backend", (HTTP, "TCP"))]))
        expected = (
            passes(["n3"], BACKENDS, ways=("80/TCP",))
            | dropped(["n3"], BACKENDS, ways=("443/TCP", "53/UDP", "ping"))
            | dropped(["n3"], ("front1", "front3", "world", "n1"))
            | passes(("world", "n1"), ["n3"])
        )

        assert await outcomes(guarded, expected) == expected

    async def test_a_host_that_is_no_endpoint_is_not_touched(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("in", FRONT_TO_BACK)
        await policies.apply("out", policy("out", "frontend", egress=[to_role("backend")]))
        hosts = ("n1", "n2", "world", "rtr")
        expected = passes(hosts, hosts)
        begun = now()

        assert await outcomes(guarded, expected) == expected
        theirs = {str(address) for host in hosts for address in guarded.topology.machine(host).addresses}
        seen = [
            flow for flow in flows_since(guarded.nodes["n1"], begun) if {flow["source"], flow["destination"]} <= theirs
        ]
        assert seen == []  # their packets reached no queue; otherwise each connection would be in the log

    async def test_a_host_reaches_its_own_endpoints_and_not_those_of_others(
        self, guarded: Lab, policies: Policies
    ) -> None:
        await policies.apply("in", FRONT_TO_BACK)
        expected = passes(["n1"], ("front1", "back1")) | dropped(["n1"], ("front2", "back2", "db3"))

        assert await outcomes(guarded, expected) == expected


class TestChange:
    """A policy change applies to open connections too."""

    @pytest.mark.parametrize("target", ["back1", "back2"])
    @both_families
    async def test_a_connection_no_longer_allowed_is_cut_and_goes_on_when_it_is_allowed_again(
        self, guarded: Lab, policies: Policies, target: str, family: int
    ) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        await policies.apply("db", policy("db", "db", ingress=[from_role("frontend")]))
        connection = await guarded.host("front1").hold(guarded.address(target, family), HTTP, PATIENT)

        await policies.withdraw("back")
        assert (await connection.talk(BRIEF)).status == "timeout"
        assert (await connection.other_end(guarded.host(target)).talk(BRIEF)).status == "timeout"

        await policies.apply("back", FRONT_TO_BACK)
        assert (await connection.talk(PATIENT)).answered_by == target

    async def test_a_connection_still_allowed_goes_on(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        connections = [
            await guarded.host("front1").hold(guarded.address(target, family), HTTP, PATIENT)
            for target in ("back1", "back2")
            for family in FAMILIES
        ]

        await policies.apply("db", policy("db", "db", ingress=[from_role("frontend")]))
        assert await _answers(connections) == ["back1", "back1", "back2", "back2"]
        await policies.apply("back", policy("front-to-back", "backend", ingress=[from_role("frontend", (HTTP, "TCP"))]))
        assert await _answers(connections) == ["back1", "back1", "back2", "back2"]

    async def test_the_first_policy_cuts_what_was_open_before_it(self, guarded: Lab, policies: Policies) -> None:
        allowed = await guarded.host("front1").hold(guarded.address("back2"), HTTP, PATIENT)
        forbidden = await guarded.host("back1").hold(guarded.address("front2"), HTTP, PATIENT)

        await policies.apply("back", FRONT_TO_BACK)

        assert (await allowed.talk(PATIENT)).ok
        assert (await forbidden.talk(BRIEF)).status == "timeout"


async def _answers(connections: list[HeldConnection]) -> list[str]:
    return [(await connection.talk(PATIENT)).answered_by for connection in connections]


@pytest.fixture(scope="module")
def others(make_served: MakeLab) -> Lab:
    """Return a second lab, for agents with other settings."""
    return make_served(memory=True)


@pytest.fixture(params=MODE_SETTINGS, ids=str)
def start(others: Lab, request: pytest.FixtureRequest) -> Iterator[StartAgents]:
    """Start agents with these documents and settings, for one test."""
    datapath: DatapathSettings = request.param
    others.documents.mkdir(exist_ok=True)

    def start(*documents: str, **settings: Any) -> Lab:
        (others.documents / "policies.yaml").write_text("".join(documents))
        others.start_agents(**datapath.settings, **settings)
        return others

    yield start
    stop_agents(others)


class TestModes:
    """Enforcement modes: each test starts the agents with other settings."""

    async def test_per_endpoint_closes_what_a_rule_selects(self, start: StartAgents) -> None:
        lab = start(FRONT_TO_BACK, enforcement="per-endpoint")
        expected = (
            passes(FRONTENDS, BACKENDS)
            | dropped(("db3", "world"), BACKENDS)
            | passes((*BACKENDS, "world"), ("front1", "front2", "db3", "n3"))
        )

        assert await outcomes(lab, expected) == expected

    async def test_always_closes_everybody_from_the_start(self, start: StartAgents) -> None:
        lab = start(enforcement="always")
        expected = (
            dropped((*FRONTENDS, *BACKENDS, "db3", "world"), ENDPOINTS)
            | dropped(("front1", "n3"), ("back1", "world"))
            | passes(["n1"], ("front1", "back1"))
        )

        assert await outcomes(lab, expected) == expected

    async def test_always_wants_both_sides_to_allow(self, start: StartAgents) -> None:
        out = policy("out", "frontend", egress=[to_role("backend", (HTTP, "TCP"))])
        lab = start(FRONT_TO_BACK, out, enforcement="always")
        expected = passes(FRONTENDS, BACKENDS, ways=("80/TCP",)) | dropped(
            FRONTENDS, BACKENDS, ways=("443/TCP", "ping")
        )

        assert await outcomes(lab, expected) == expected

    async def test_never_closes_nobody(self, start: StartAgents) -> None:
        lab = start(FRONT_TO_BACK, enforcement="never")
        expected = passes((*ENDPOINTS, "world"), ENDPOINTS)

        assert await outcomes(lab, expected) == expected

    async def test_audit_lets_pass_and_says_what_it_would_have_dropped(self, start: StartAgents) -> None:
        lab = start(FRONT_TO_BACK, audit=True)
        begun, expected = now(), passes(("front1", "db3"), ["back2"])

        assert await outcomes(lab, expected) == expected

        for family in FAMILIES:
            ends = {"destination": str(lab.address("back2", family)), "port": HTTP}
            refused = await_flow(lab.nodes["n2"], begun, source=str(lab.address("db3", family)), **ends)
            allowed = await_flow(lab.nodes["n2"], begun, source=str(lab.address("front1", family)), **ends)
            assert properties(refused).items() >= {
                ("verdict", "AUDIT"),
                ("reason", "POLICY_DENIED"),
                ("direction", "INGRESS"),
            }
            assert (allowed["verdict"], allowed.get("drop_reason_desc")) == ("FORWARDED", None)
        assert [flow for flow in flows_since(lab.nodes["n2"], begun) if flow["verdict"] == "DROPPED"] == []

    async def test_the_host_itself_can_be_held_to_policy(self, start: StartAgents) -> None:
        lab = start(FRONT_TO_BACK, allow_localhost="policy")
        expected = dropped(["n1"], ("front1", "back1")) | passes(["front1"], ["back1"])

        assert await outcomes(lab, expected) == expected

    async def test_an_address_can_be_believed_where_it_is_wanted(self, start: StartAgents) -> None:
        lab = start(FRONT_TO_BACK, identity_source="stamp-or-ipcache")
        probe = _datagram(lab, "front1", "back2", 4)

        assert stamps_on(await _arrival(lab, "world", probe, probe.packet, "back2")) == []


class TestForgery:
    """Stamp and interface determine the sender, never the address alone."""

    async def test_a_frontends_address_without_a_stamp_is_not_a_frontend(
        self, guarded: Lab, policies: Policies
    ) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        for family in FAMILIES:
            probe = _datagram(guarded, "front1", "back2", family)

            flow = await _refusal(guarded, "world", probe, probe.packet, "n2")

            assert (flow["drop_reason_desc"], flow["source"]["labels"]) == ("POLICY_DENIED", ["reserved:world"])

    @pytest.mark.parametrize("borrowed", ["back1", "front2", "world"])
    @both_families
    async def test_an_endpoint_sends_from_its_own_address_alone(self, guarded: Lab, borrowed: str, family: int) -> None:
        probe = _datagram(guarded, borrowed, "back2", family)

        flow = await _refusal(guarded, "front1", probe, probe.packet, "n1")

        assert flow["drop_reason_desc"] == "INVALID_SOURCE_IP"

    async def test_the_cluster_interface_is_where_stamps_are_believed(self, guarded: Lab, policies: Policies) -> None:
        """Unsigned stamps make the segment trusted: any host that can send there can claim any identity."""
        await policies.apply("back", FRONT_TO_BACK)
        frontend, begun = identities(guarded)["front1"], now()
        for family in FAMILIES:
            probe = _datagram(guarded, "world", "back2", family)

            await _arrival(guarded, "world", probe, packets.stamped(probe.packet, frontend), "back2")

            flow = await_flow(guarded.nodes["n2"], begun, port=probe.port)
            assert (flow["verdict"], flow["source"]["identity"]) == ("FORWARDED", frontend)

    @both_families
    async def test_a_stamp_that_an_endpoint_puts_on_is_replaced_by_its_own(self, guarded: Lab, family: int) -> None:
        names = identities(guarded)
        probe = _datagram(guarded, "front1", "back2", family)

        arrived = await _arrival(guarded, "front1", probe, packets.stamped(probe.packet, names["db3"]), "back2")

        assert stamps_on(arrived) == [names["front1"]]

    @pytest.mark.parametrize("target", ["back1", "world"])
    @both_families
    async def test_a_stamp_that_an_endpoint_puts_on_goes_nowhere_else(
        self, guarded: Lab, target: str, family: int
    ) -> None:
        probe = _datagram(guarded, "front1", target, family)
        forged = packets.stamped(probe.packet, identities(guarded)["db3"])

        assert stamps_on(await _arrival(guarded, "front1", probe, forged, target)) == []

    async def test_a_stamp_that_an_endpoint_puts_on_gives_it_no_rights(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        frontend = identities(guarded)["front1"]
        for node, sender, target in (("n3", "db3", "front3"), ("n2", "db3", "back2")):
            probe = _datagram(guarded, sender, target, 4)
            flow = await _refusal(guarded, sender, probe, packets.stamped(probe.packet, frontend), node)
            assert flow["source"]["pod_name"] == "db3"

    @pytest.mark.parametrize("reason", packets.BAD_STAMPS)
    @both_families
    async def test_a_stamp_that_is_not_right_is_a_drop_with_its_own_reason(
        self, guarded: Lab, reason: str, family: int
    ) -> None:
        probe = _datagram(guarded, "world", "back2", family)
        bad = packets.with_options(probe.packet, bytes.fromhex(packets.BAD_STAMPS[reason][family]))
        before = guarded.nodes["n2"].status()["worker"][reason]

        flow = await _refusal(guarded, "world", probe, bad, "n2")

        assert flow["drop_reason_desc"] == reason
        assert guarded.nodes["n2"].status()["worker"][reason] == before + 1

    @both_families
    async def test_a_stamp_from_where_none_is_believed_is_a_drop(self, guarded: Lab, family: int) -> None:
        probe = _datagram(guarded, "world", "back2", family)
        stamped = packets.stamped(probe.packet, identities(guarded)["front1"])

        flow = await _refusal(guarded, "front1", probe, stamped, "n1")

        assert flow["drop_reason_desc"] == "STAMP_UNTRUSTED"


class TestErrors:
    """An ICMP error is accepted with the flow that it concerns, from any sender."""

    async def test_a_closed_port_of_an_allowed_service_refuses(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        closed = (f"{CLOSED}/UDP",)
        expected = expect("refused", FRONTENDS, BACKENDS, closed) | dropped(["db3"], BACKENDS, ways=closed)

        assert await outcomes(guarded, expected) == expected

    @both_families
    async def test_an_error_passes_with_the_flow_that_it_is_about_and_no_other(
        self, guarded: Lab, policies: Policies, family: int
    ) -> None:
        await policies.apply("back", FRONT_TO_BACK)
        own, foreign = (_datagram(guarded, source, "back2", family) for source in ("front1", "front2"))
        await _arrival(guarded, "front1", own, own.packet, "back2")
        source, target = (str(guarded.address(name, family)) for name in ("rtr", "front1"))

        await _arrival(guarded, "world", own, packets.error(source, target, own.packet), "front1")

        about_foreign, begun = packets.error(source, target, foreign.packet), now()
        async with arrivals(guarded, "front1") as capture:
            await guarded.host("world").send_raw(about_foreign)
            await_flow(guarded.nodes["n1"], begun, verdict="DROPPED", source=source, destination=target)
        assert _with(foreign, capture) == []

    @both_families
    async def test_time_exceeded_comes_back_from_a_router(self, guarded: Lab, policies: Policies, family: int) -> None:
        await policies.apply("db", policy("db", "db", ingress=[from_role("frontend")]))
        probe = _datagram(guarded, "front1", "db3", family)
        short_lived = bytearray(probe.packet)
        short_lived[8 if family == 4 else 7] = 2  # hops: its node, then the router, where it expires

        # in the sender's capture: first the outgoing probe, then the incoming error that quotes it
        error = await _arrival(guarded, "front1", probe, bytes(short_lived), "front1", number=2)

        assert ends(error) == (guarded.address("rtr", family), guarded.address("front1", family))
        assert error[20:22] == bytes((11, 0)) if family == 4 else error[40:42] == bytes((3, 0))


class Datagram(NamedTuple):
    """Datagram with a unique port and payload."""

    packet: bytes
    port: int
    token: bytes


_PORTS = count(20_000)


def _datagram(lab: Lab, source: str, target: str, family: int) -> Datagram:
    port = next(_PORTS)
    token = f"datagram to {port}".encode()
    source, target = (str(lab.address(name, family)) for name in (source, target))
    return Datagram(packets.udp(source, target, port, token), port, token)


def _with(probe: Datagram, capture: Capture) -> list[bytes]:
    return [packet.data for packet in capture.packets() if probe.token in packet.data]


async def _arrival(lab: Lab, sender: str, probe: Datagram, packet: bytes, target: str, number: int = 1) -> bytes:
    """Send a raw packet; return the ``number``-th packet with its payload at the target's interface."""
    async with arrivals(lab, target) as capture:
        await lab.host(sender).send_raw(packet)
        async with asyncio.timeout(PATIENT):
            while len(found := _with(probe, capture)) < number:
                await asyncio.sleep(0.005)  # until tcpdump has written the packet
    return found[number - 1]


async def _refusal(lab: Lab, sender: str, probe: Datagram, packet: bytes, node: str) -> dict[str, Any]:
    """Send a raw packet; return the node's flow that reports its drop. It must not reach its target."""
    begun, target = (
        now(),
        next(name for name in lab.topology.hosts if ends(packet)[1] in lab.topology.machine(name).addresses),
    )
    async with arrivals(lab, target) as capture:
        await lab.host(sender).send_raw(packet)
        flow = await_flow(lab.nodes[node], begun, verdict="DROPPED", port=probe.port)
    assert _with(probe, capture) == []
    return flow
