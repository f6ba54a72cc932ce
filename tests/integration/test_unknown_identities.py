"""Unknown identities: a stamp with a number that nobody in the cluster has is no peer of any rule, on real packets."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import WORLD
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    FAMILIES,
    HTTP,
    PATIENT,
    SINGLE_QUEUE,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    endpoint_document,
    identities,
    kill,
    now,
    policy,
    stamps_on,
    start_all,
    until,
)
from tests.support.packets import TOO_BIG, datagram, error, stamped

NOBODY = 54321
WILDCARDS: dict[str, dict[str, Any]] = {
    "all": {"fromEntities": ["all"]},
    "cluster and world": {"fromEntities": ["cluster", "world"]},
    "any endpoint": {"fromEndpoints": [{}]},
    "no peers": {"toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}, {"port": "80", "protocol": "TCP"}]}]},
}


@pytest.fixture(scope="module", params=SINGLE_QUEUE, ids=str)
def datapath_settings(request: pytest.FixtureRequest) -> DatapathSettings:
    settings: DatapathSettings = request.param
    return settings


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath_settings: DatapathSettings) -> Iterator[Lab]:
    """Give a lab with agents; the host ``world`` is on the segment, so stamps that it sends are believed."""
    lab = make_served()
    start_all(lab, **datapath_settings.settings)
    yield lab


async def arrived(lab: Lab, family: int, *numbers: int, port: int) -> list[int]:
    """Send a datagram to back2 with a stamp of each identity, the last one of a frontend; return those that arrive.

    When the frontend's datagram has arrived, none of the others is on its way any more.
    """
    source, target = (str(lab.address(name, family)) for name in (WORLD, "back2"))
    async with arrivals(lab, "back2") as capture, asyncio.timeout(PATIENT):
        for place, number in enumerate((*numbers, identities(lab)["front2"])):
            plain = datagram(source, target, port + place, 53, f"stamped {number} end".encode())
            await lab.host(WORLD).send_raw(stamp.write(plain, parse(plain), Stamp(Identity(number))))
        last = f"stamped {number} end".encode()
        while not any(last in packet.data for packet in capture.packets()):
            await asyncio.sleep(0.05)
        seen = b"".join(packet.data for packet in capture.packets())
    return [number for number in numbers if f"stamped {number} end".encode() in seen]


@pytest.mark.parametrize("rule", WILDCARDS)
async def test_no_rule_allows_an_identity_that_nobody_has(guarded: Lab, rule: str) -> None:
    policies = Policies(guarded)
    await policies.apply("wildcard", policy("wildcard", "backend", ingress=[WILDCARDS[rule]]))
    known = identities(guarded)["back1"]

    for family in FAMILIES:
        since = now()
        assert await arrived(guarded, family, NOBODY, known, port=41000) == [known]
        flow = await asyncio.to_thread(await_flow, guarded.nodes["n2"], since, verdict="DROPPED")
        assert (flow["drop_reason_desc"], flow["source"]["identity"]) == ("INVALID_IDENTITY", NOBODY)
    await policies.withdraw_all()


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_error_about_an_open_flow_is_not_believed_of_an_identity_that_nobody_has(
    guarded: Lab, family: int
) -> None:
    """The flow is open from back2 to the world; a router's error about it passes, with and without a known stamp."""
    policies = Policies(guarded)
    await policies.apply("closed", policy("closed", "backend", ingress=[{}]))
    world, back2 = (str(guarded.address(name, family)) for name in (WORLD, "back2"))
    about = datagram(back2, world, 47_000, 53)
    unstamped, since = error(world, back2, about, TOO_BIG), now()

    async with arrivals(guarded, "back2") as capture, asyncio.timeout(PATIENT):
        await guarded.host("back2").send_raw(about)
        for packet in (stamped(unstamped, NOBODY), unstamped):
            await guarded.host(WORLD).send_raw(packet)
        while not (seen := [one.data for one in capture.packets() if parse(one.data).error]):
            await asyncio.sleep(0.05)

    assert not any(map(stamps_on, seen))
    wanted = {"verdict": "DROPPED", "reason": "INVALID_IDENTITY", "source": world, "destination": back2}
    await asyncio.to_thread(await_flow, guarded.nodes["n2"], since, **wanted)
    await policies.withdraw_all()


async def test_without_a_policy_every_identity_passes(guarded: Lab) -> None:
    for family in FAMILIES:
        assert await arrived(guarded, family, NOBODY, port=42000) == [NOBODY]


async def test_a_new_worker_knows_the_identities(guarded: Lab) -> None:
    policies, before = Policies(guarded), guarded.nodes["n2"].status()["worker"]
    kill(before["pid"])
    await until(lambda: guarded.nodes["n2"].status()["worker"]["restarts"] > before["restarts"])
    await policies.apply("wildcard", policy("wildcard", "backend", ingress=[WILDCARDS["all"]]))  # the new one has it

    known = identities(guarded)["back1"]
    assert await arrived(guarded, 4, NOBODY, known, port=45000) == [known]
    await policies.withdraw_all()


async def test_without_the_store_the_identities_of_the_last_state_are_known(
    guarded: Lab, datapath_settings: DatapathSettings
) -> None:
    policies = Policies(guarded)
    await policies.apply("wildcard", policy("wildcard", "backend", ingress=[WILDCARDS["all"]]))
    known, node = identities(guarded)["back1"], guarded.nodes["n2"]
    guarded.store.save()
    guarded.store.kill()

    await asyncio.to_thread(node.stop)  # an end in order saves the state, and so the new policy
    node.start(**datapath_settings.settings)
    await asyncio.to_thread(node.wait_until_ready)
    assert not node.status()["store"]["connected"]
    assert await arrived(guarded, 4, NOBODY, known, port=46000) == [known]

    await asyncio.to_thread(guarded.store.restart)
    await until(lambda: all(one.status()["store"]["connected"] for one in guarded.nodes.values()))
    await policies.withdraw_all()


async def test_a_new_identity_is_known_and_unknown_again_after_its_collection(guarded: Lab) -> None:
    policies = Policies(guarded)
    await policies.apply("wildcard", policy("wildcard", "backend", ingress=[WILDCARDS["all"]]))
    first = guarded.nodes["n1"].socket
    guarded.attach("fresh", "n1")
    target = guarded.address("back2", 4)

    for attempt in range(5):  # each time with labels that the cluster has not seen
        document = endpoint_document(guarded, "fresh", f"role{attempt}")
        await asyncio.to_thread(client.call, first, "apply", files=[("fresh.yaml", document)])
        result = await guarded.host("fresh").connect(target, HTTP, PATIENT)
        assert (attempt, result.status) == (attempt, "ok")

    number = identities(guarded)["fresh"]
    assert await arrived(guarded, 4, number, port=43000) == [number]
    await asyncio.to_thread(client.call, first, "delete_endpoints", names=["default/fresh"])
    await asyncio.to_thread(client.call, first, "store_gc", grace=0)
    await until(
        lambda: number not in {one["identity"] for one in client.call(guarded.nodes["n2"].socket, "identities")}
    )
    assert await arrived(guarded, 4, number, port=44000) == []
    await policies.withdraw_all()
