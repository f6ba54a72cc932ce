"""Processes with an identity of their own, under real traffic: on one host, between hosts, to and from endpoints."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    FAMILIES,
    PATIENT,
    DatapathSettings,
    between,
    from_role,
    policy,
    stamps_on,
    start_all,
    stop_agents,
    to_role,
)
from tests.support.process_endpoints import BACKEND_PORT, OTHER_PORT, Attempt, check, order, running

POLICIES = (
    policy("backend", "backend", ingress=[from_role("frontend")])
    + policy("locked", "locked", egress=[to_role("backend", (BACKEND_PORT, "TCP"))])
    + policy("backend-of-locked", "backend", ingress=[from_role("locked")])
)
LOOPBACK = ("127.0.0.1", "::1")
PROTOCOLS = ("TCP", "UDP")


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    return make_lab()


@pytest.fixture(params=DATAPATHS, ids=str)
def datapath(lab: Lab, request: pytest.FixtureRequest) -> Iterator[DatapathSettings]:
    """Run agents in one mode, and a backend process on n1."""
    start_all(lab, **request.param.settings, allow_localhost="policy", enforcement="per-endpoint")
    client.call(lab.nodes["n1"].socket, "apply", files=[("policies.yaml", POLICIES)], wait=PATIENT)
    try:
        with running(lab, "n1", "backend", "serve", str(BACKEND_PORT), str(OTHER_PORT), name="store"):
            yield request.param
    finally:
        stop_agents(lab)


def to(lab: Lab, target: str, *ports: int) -> list[Attempt]:
    addresses = [lab.address(target, family) for family in FAMILIES]
    return [Attempt(*one) for one in product(PROTOCOLS, addresses, ports or (BACKEND_PORT,))]


async def test_processes_of_one_host_are_told_apart(lab: Lab, datapath: DatapathSettings) -> None:
    own = [*to(lab, "n1"), *(Attempt(*one) for one in product(PROTOCOLS, LOOPBACK))]

    await check(lab, "n1", "frontend", own, "ok")
    await check(lab, "n1", "other", own, "timeout")
    await check(lab, "n1", None, own, "timeout")  # identity host, with allow_localhost: policy


async def test_a_process_bears_its_identity_to_other_nodes(lab: Lab, datapath: DatapathSettings) -> None:
    async with lab.capture() as capture:
        await check(lab, "n2", "frontend", to(lab, "n1"), "ok", name="far")
    await check(lab, "n2", "other", to(lab, "n1"), "timeout")
    await check(lab, "n2", None, to(lab, "n1"), "timeout")  # identity remote-node

    numbers = {
        one["labels"][-1].partition("=")[2]: one["identity"]
        for one in client.call(lab.nodes["n1"].socket, "identities")
        if any("role=" in label for label in one["labels"])
    }
    n1, n2 = ([lab.address(node, family) for family in FAMILIES] for node in ("n1", "n2"))
    packets = [packet for packet in between(capture, n1, n2) if _protocol(packet) in {6, 17}]
    stamps = {stamp for packet in packets for stamp in stamps_on(packet)}
    assert {numbers["frontend"], numbers["backend"]} <= stamps
    if datapath.mode == "per-packet":
        assert [packet for packet in packets if not stamps_on(packet)] == []


def _protocol(packet: bytes) -> int:
    """Return the protocol of a packet, also behind a header of destination options."""
    if packet[0] >> 4 == 4:
        return packet[9]
    return packet[40] if packet[6] == 60 else packet[6]


async def test_processes_and_endpoints_in_namespaces_meet(lab: Lab, datapath: DatapathSettings) -> None:
    allowed = [lab.host("front1").connect(lab.address("n1", family), BACKEND_PORT, PATIENT) for family in FAMILIES]
    allowed += [lab.host("front2").connect(lab.address("n1", family), BACKEND_PORT, PATIENT) for family in FAMILIES]
    denied = [lab.host("back1").connect(lab.address("n1", family), BACKEND_PORT, BRIEF) for family in FAMILIES]

    assert [one.status for one in await asyncio.gather(*allowed)] == ["ok"] * 4
    assert [one.status for one in await asyncio.gather(*denied)] == ["timeout"] * 2

    with running(lab, "back1", None, "serve", str(OTHER_PORT)):
        targets = [Attempt("TCP", lab.address("back1", family), OTHER_PORT) for family in FAMILIES]
        for node in ("n1", "n2"):
            await check(lab, node, "frontend", targets, "ok")
            await check(lab, node, "other", targets, "timeout")


async def test_egress_of_a_process_is_enforced(lab: Lab, datapath: DatapathSettings) -> None:
    own = [Attempt("TCP", lab.address("n1", family)) for family in FAMILIES]

    await check(lab, "n1", "locked", own, "ok")
    await check(lab, "n1", "locked", [one._replace(port=OTHER_PORT) for one in own], "timeout")
    await check(lab, "n1", "locked", to(lab, "n2"), "timeout")


async def test_a_change_of_policy_cuts_the_connection_of_a_process(lab: Lab, datapath: DatapathSettings) -> None:
    address = str(lab.address("n1", 4))
    with ExitStack() as stack:
        near = stack.enter_context(running(lab, "n1", "frontend", "hold", address, str(BACKEND_PORT)))
        far = stack.enter_context(running(lab, "n2", "frontend", "hold", address, str(BACKEND_PORT)))
        assert order(near, "send") == order(far, "send") == "ok"

        closed = policy("backend", "backend", ingress=[from_role("nobody")])
        client.call(lab.nodes["n1"].socket, "apply", files=[("policies.yaml", closed)], wait=PATIENT)

        assert order(near, "send", timeout=BRIEF) == order(far, "send", timeout=BRIEF) == "timeout"
