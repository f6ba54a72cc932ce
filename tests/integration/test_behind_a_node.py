"""The world behind a node's NAT is the world at the next node, and the node itself is ``remote-node`` there.

Node n1 has a NodePort: iptables translates the destination of its port to back2 on n2, and masquerades the source. It
also masquerades a workload that no document declares.
"""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK, WORLD
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    DNS,
    FAMILIES,
    HTTP,
    PATIENT,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    between,
    counters,
    ends,
    from_role,
    kill,
    now,
    policy,
    run_in,
    stamps_on,
    start_all,
    until,
)

NODE_PORT = 30080
UNDECLARED = "rogue"
COMMANDS = {4: "iptables", 6: "ip6tables"}
FROM_WORLD, FROM_NODES = {"fromEntities": ["world"]}, {"fromEntities": ["remote-node"]}


@pytest.fixture(scope="module", params=DATAPATHS, ids=str)
def translating(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a lab with agents, in which n1 translates addresses."""
    settings: DatapathSettings = request.param
    lab = make_served()
    lab.attach(UNDECLARED, "n1")
    for family, command in COMMANDS.items():
        back, node = lab.address("back2", family), lab.address("n1", family)
        to = str(back) if family == 4 else f"[{back}]"
        nat = command, "-w", "-t", "nat", "-A"
        for proto, port in (("tcp", HTTP), ("udp", DNS)):
            match = "-d", str(node), "-p", proto, "--dport", str(NODE_PORT)
            run_in(lab, "n1", *nat, "PREROUTING", *match, "-j", "DNAT", "--to-destination", f"{to}:{port}")
        run_in(lab, "n1", *nat, "POSTROUTING", "-o", UPLINK, "-d", str(back), "-j", "MASQUERADE")
    start_all(lab, **settings.settings)
    yield lab


async def attempt(lab: Lab, source: str, proto: str, family: int, patience: float) -> str:
    """Return the status of an attempt to reach back2: through n1's port, or directly from behind n1 and from n1."""
    host, direct = lab.host(source), source in (UNDECLARED, "n1")
    target = lab.address("back2" if direct else "n1", family)
    if proto == "TCP":
        return (await host.connect(target, HTTP if direct else NODE_PORT, patience)).status
    return (await host.send_udp(target, DNS if direct else NODE_PORT, patience)).status


async def reaching(lab: Lab, *expected: str) -> set[tuple[str, str, int]]:
    """Return the sources that reach back2, by protocol and family; those that are not expected have little time."""
    ways = [
        (source, proto, family)
        for source in (WORLD, UNDECLARED, "n1", "front1", "front3")
        for proto in ("TCP", "UDP")
        for family in FAMILIES
    ]
    results = await asyncio.gather(*(attempt(lab, *way, PATIENT if way[0] in expected else BRIEF) for way in ways))
    return {way for way, status in zip(ways, results, strict=True) if status == "ok"}


def every_way(*sources: str) -> set[tuple[str, str, int]]:
    return {(source, proto, family) for source in sources for proto in ("TCP", "UDP") for family in FAMILIES}


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        pytest.param(FROM_WORLD, (WORLD, UNDECLARED), id="world"),
        pytest.param(FROM_NODES, ("n1",), id="remote-node"),
        pytest.param(from_role("frontend"), ("front1", "front3"), id="frontend"),
    ],
)
async def test_each_source_behind_a_node_counts_as_what_it_is(
    translating: Lab, rule: dict[str, Any], sources: tuple[str, ...]
) -> None:
    policies = Policies(translating)
    await policies.apply("ingress", policy("ingress", "backend", ingress=[rule]))

    assert await reaching(translating, *sources) == every_way(*sources)
    await policies.withdraw_all()


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_wire_says_that_it_is_the_world_and_the_world_gets_no_stamp(translating: Lab, family: int) -> None:
    node, back, world = (translating.address(name, family) for name in ("n1", "back2", WORLD))
    async with translating.capture() as segment, arrivals(translating, WORLD) as outside:
        assert await attempt(translating, WORLD, "TCP", family, PATIENT) == "ok"

    packets = between(segment, [node], [back])
    assert {tuple(stamps_on(packet)) for packet in packets if ends(packet)[0] == node} == {(2,)}
    assert {tuple(stamps_on(packet)) for packet in packets if ends(packet)[0] == back} == {()}
    received = [packet for packet in between(outside, [node], [world]) if ends(packet)[0] == node]
    assert received
    assert {tuple(stamps_on(packet)) for packet in received} == {()}


async def test_a_refusal_names_the_world(translating: Lab) -> None:
    policies, since = Policies(translating), now()
    await policies.apply("ingress", policy("ingress", "backend", ingress=[FROM_NODES]))

    assert await attempt(translating, WORLD, "TCP", 4, BRIEF) == "timeout"
    flow = await asyncio.to_thread(await_flow, translating.nodes["n2"], since, verdict="DROPPED")
    assert flow["source"]["labels"] == ["reserved:world"]
    assert flow["IP"]["source"] == str(translating.address("n1", 4))
    await policies.withdraw_all()


async def test_an_open_connection_lives_through_new_policies_and_workers(translating: Lab) -> None:
    policies = Policies(translating)
    await policies.apply("ingress", policy("ingress", "backend", ingress=[FROM_WORLD]))
    held = await translating.host(WORLD).hold(translating.address("n1", 4), NODE_PORT, PATIENT)

    await policies.apply("more", policy("more", "backend", ingress=[from_role("frontend")]))
    assert (await held.talk(PATIENT)).ok
    for name in ("n1", "n2"):
        before = translating.nodes[name].status()["worker"]
        kill(before["pid"])
        await until(lambda name=name, before=before: restarts(translating, name) > before["restarts"])
        assert (await held.talk(PATIENT)).ok
    await policies.apply("ingress", policy("ingress", "backend", ingress=[FROM_NODES]))
    assert not (await held.talk(BRIEF)).ok
    await held.close()
    await policies.withdraw_all()


def restarts(lab: Lab, name: str) -> int:
    count: int = lab.nodes[name].status()["worker"]["restarts"]
    return count


@pytest.mark.parametrize("family", FAMILIES)
async def test_routed_without_translation_the_world_keeps_its_address(translating: Lab, family: int) -> None:
    network = {4: "10.31.2.10/31", 6: "fd00:31:2::a/127"}[family]  # with back2
    via = str(translating.address("n1", family))
    policies, world = Policies(translating), translating.address(WORLD, family)
    run_in(
        translating, "n1", COMMANDS[family], "-w", "-t", "nat", "-I", "POSTROUTING", "-s", str(world), "-j", "ACCEPT"
    )
    run_in(translating, WORLD, "ip", f"-{family}", "route", "add", network, "via", via)
    host, back = translating.host(WORLD), translating.address("back2", family)

    await policies.apply(
        "ingress", policy("ingress", "backend", ingress=[{"fromCIDR": [f"{world}/{world.max_prefixlen}"]}])
    )
    assert (await host.connect(back, HTTP, PATIENT)).status == "ok"
    await policies.apply(
        "ingress", policy("ingress", "backend", ingress=[{"fromCIDR": [f"{via}/{world.max_prefixlen}"]}])
    )
    assert (await host.connect(back, HTTP, BRIEF)).status == "timeout"
    run_in(translating, WORLD, "ip", f"-{family}", "route", "del", network, "via", via)
    run_in(
        translating, "n1", COMMANDS[family], "-w", "-t", "nat", "-D", "POSTROUTING", "-s", str(world), "-j", "ACCEPT"
    )
    await policies.withdraw_all()


SEND_LARGE = """
import socket, sys
target, port = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.sendto(bytes(1472), (target, int(port)))
"""


async def test_a_first_datagram_that_fills_the_mtu_arrives(translating: Lab) -> None:
    target, before = str(translating.address("n1", 4)), counters(translating, "back2")["UdpInDatagrams"]

    run_in(translating, WORLD, sys.executable, "-c", SEND_LARGE, target, str(NODE_PORT))

    await until(lambda: counters(translating, "back2")["UdpInDatagrams"] > before)


@pytest.mark.parametrize("family", FAMILIES)
async def test_bulk_data_arrives_through_the_translation(translating: Lab, family: int) -> None:
    outcome = await translating.host(WORLD).bulk(translating.address("n1", family), NODE_PORT, 1 << 20)

    assert (outcome.status, outcome.received, outcome.intact) == ("ok", 1 << 20, True)
