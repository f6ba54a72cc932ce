"""HTTP rules and server names for endpoints on ports of a bridge, with br_netfilter, as Docker and Kubernetes have it.

Agents and Envoy are real. The bridge comes when the agent of its node already runs, as with Docker.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.integration.test_http_rules import (
    ALLOWED,
    EGRESS,
    INGRESS,
    NAMES,
    TLS,
    check,
    passes,
    reference,
    requests,
)
from tests.support.bridges import ABSENT, BRIDGE, PASSED, bridge, pass_frames, port_of, switch
from tests.support.labs import (
    DATAPATHS,
    FAMILIES,
    OTHER_TCP,
    PATIENT,
    DatapathSettings,
    Policies,
    await_flow,
    endpoint_document,
    ends,
    flows_since,
    now,
    run_in,
    stamps_on,
    until,
)
from tests.support.namespaces import within
from tests.support.tls import TlsServer, listen

NODE, ENDS = "n1", ("front1", "back1")
DATAPATH_SETTINGS = [DATAPATHS[0], DATAPATHS[-1]]


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Give a lab whose agents ran before the endpoints of n1 became ports of a bridge."""
    if not PASSED.exists():
        pytest.skip(ABSENT)
    lab = make_served()
    lab.start_agents(**datapath.settings)
    bridge(lab, NODE, ENDS)
    pass_frames(lab, NODE, on=True)
    return lab


@pytest.fixture(params=["routed", "switched"])
def way(guarded: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """Send packets between the endpoints of n1 by the host, or directly by the bridge."""
    with switch(guarded, *ENDS) if request.param == "switched" else ExitStack():
        yield


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rules", [[INGRESS], [EGRESS], [INGRESS, EGRESS]], ids=["ingress", "egress", "both"])
async def test_requests(guarded: Lab, policies: Policies, rules: list[str]) -> None:
    await policies.apply("http", *rules)

    await check(guarded, reference())


async def test_server_names(guarded: Lab, policies: Policies, tmp_path: Path) -> None:
    await policies.apply("names", NAMES)
    server = TlsServer(tmp_path, lambda: within(guarded, "back1", lambda: listen(TLS)))
    with switch(guarded, *ENDS):
        for family in FAMILIES:
            assert await passes(guarded, "front1", "back1", "good.example", family)
            assert not await passes(guarded, "front1", "back1", "bad.example", family)
    server.close()
    assert server.connections == len(FAMILIES)


async def test_ports_come_and_go(guarded: Lab, policies: Policies) -> None:
    """As containers do: each has a new interface."""
    await policies.apply("http", INGRESS)
    for _ in range(2):
        name = f"late{len(guarded.topology.attached)}"
        guarded.attach(name, NODE)
        run_in(guarded, NODE, "ip", "link", "set", port_of(name), "master", BRIDGE)
        for family in FAMILIES:
            run_in(guarded, NODE, "ip", "route", "replace", str(guarded.address(name, family)), "dev", BRIDGE)
        await guarded.apply(name, endpoint_document(guarded, name, "frontend"))
        with switch(guarded, name, "back1"):
            await check(guarded, reference([name]))
        run_in(guarded, NODE, "ip", "link", "del", port_of(name))


@pytest.mark.usefixtures("way")
async def test_br_netfilter_is_switched_off_and_on(guarded: Lab, policies: Policies) -> None:
    """Without it the ports are no interfaces of the host, and those of endpoints have no packets."""
    await policies.apply("http", EGRESS)
    pass_frames(guarded, NODE, on=False)
    try:
        await check(guarded, dict.fromkeys(requests(["front1"], ["back2"], ALLOWED), "timeout"))
    finally:
        pass_frames(guarded, NODE, on=True)

    await check(guarded, reference(["front1"]))


@pytest.mark.parametrize("command", ["flush chain inet nfq_enforcer bridged_prerouting", "flush ruleset"])
async def test_the_rules_guard_restores_the_redirection(guarded: Lab, policies: Policies, command: str) -> None:
    await policies.apply("http", INGRESS)
    node = guarded.nodes[NODE]
    repairs = node.status()["rules"]["repairs"]

    run_in(guarded, NODE, "nft", *command.split())

    await until(lambda: node.status()["rules"]["repairs"] > repairs)
    with switch(guarded, *ENDS):
        await check(guarded, reference(["front1"]))


async def test_an_agent_that_starts_anew(guarded: Lab, policies: Policies) -> None:
    await policies.apply("http", INGRESS)

    await asyncio.to_thread(guarded.nodes[NODE].start_anew)

    with switch(guarded, *ENDS):
        await check(guarded, reference())


@pytest.mark.usefixtures("way")
async def test_between_two_ports_a_connection_is_judged_once_and_bears_no_stamp(guarded: Lab) -> None:
    node = guarded.nodes[NODE]
    for family in FAMILIES:
        begun = now()
        front, back = (guarded.address(name, family) for name in ENDS)
        async with Capture(guarded.network, NODE, port_of("back1")) as capture:
            assert (await guarded.host("front1").connect(back, OTHER_TCP, PATIENT)).ok
        packets = [packet.data for packet in capture.packets() if ends(packet.data) in {(front, back), (back, front)}]
        await_flow(node, begun, source=str(front), port=OTHER_TCP)

        judged = [flow for flow in flows_since(node, begun) if str(front) in (flow["source"], flow["destination"])]
        assert [(flow["verdict"], flow["port"]) for flow in judged] == [("FORWARDED", OTHER_TCP)]
        assert packets
        assert not any(map(stamps_on, packets))
