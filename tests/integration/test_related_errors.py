"""ICMP errors about an open flow: from its other end and from routers, not from endpoints that are not in the flow."""

import asyncio
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import IPAddress
from tests.support.labs import (
    FAMILIES,
    FRONT_TO_BACK,
    MODES,
    PATIENT,
    PER_FLOW,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    now,
)
from tests.support.open_flows import is_offloaded, open_flow
from tests.support.packets import PORT_UNREACHABLE, TOO_BIG, datagram, error

DNS = 53


class Stranger(NamedTuple):
    """Stranger: an endpoint that is not in the flow, and the end of the flow that receives its error."""

    name: str
    client: str  # of the flow
    receiver: str
    refused_by: str  # node


STRANGERS = [
    Stranger("back1", "front2", "front2", "n2"),  # a remote endpoint, about a flow of two neighbours
    Stranger("front1", "front2", "front2", "n2"),  # with the labels of the receiver
    Stranger("db3", "front2", "back2", "n2"),
    Stranger("back1", "front1", "front1", "n1"),  # a neighbour, about a flow to another node
    Stranger("front2", "front1", "front1", "n1"),
]


@pytest.fixture(scope="module", params=MODES)
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    return DatapathSettings("netlink", 1, request.param)


def quoted(lab: Lab, client: str, receiver: str, family: int, port: int) -> bytes:
    """Return the packet of the flow from a client to back2 that an error to this end quotes."""
    ends = [(str(lab.address(name, family)), at) for name, at in ((client, port), ("back2", DNS))]
    (src, sport), (dst, dport) = ends if receiver == client else reversed(ends)
    return datagram(src, dst, sport, dport)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: f"{one.name}-{one.client}-{one.receiver}")
@pytest.mark.parametrize("kind", [PORT_UNREACHABLE, TOO_BIG], ids=["unreachable", "too big"])
async def test_an_endpoint_that_is_not_in_the_flow_sends_no_error_about_it(
    guarded: Lab,
    policies: Policies,
    datapath: DatapathSettings,
    stranger: Stranger,
    kind: dict[int, tuple[int, int]],
    family: int,
) -> None:
    """The error of the flow's other end, or of a router, arrives: sent later, and about the same packet."""
    await policies.apply("front-to-back", FRONT_TO_BACK)
    port = open_flow(guarded, stranger.client, "back2", family)
    assert is_offloaded(guarded, "n2", port) == (datapath.mode == PER_FLOW)
    about = quoted(guarded, stranger.client, stranger.receiver, family, port)
    others = ("back2" if stranger.receiver == stranger.client else stranger.client, "world")
    receiver, since = str(guarded.address(stranger.receiver, family)), now()

    async with arrivals(guarded, stranger.receiver) as capture, asyncio.timeout(PATIENT):
        for sender in (stranger.name, *others):
            await guarded.host(sender).send_raw(error(str(guarded.address(sender, family)), receiver, about, kind))
        ends = {"source": str(guarded.address(stranger.name, family)), "destination": receiver}
        node = guarded.nodes[stranger.refused_by]
        await asyncio.to_thread(await_flow, node, since, verdict="DROPPED", reason="POLICY_DENIED", **ends)
        while not {guarded.address(name, family) for name in others} <= senders(capture):
            await asyncio.sleep(0.05)

    assert guarded.address(stranger.name, family) not in senders(capture)


def senders(capture: Capture) -> set[IPAddress]:
    """Return the sources of the ICMP errors that have arrived."""
    return {ip_address(packet.src) for packet in map(parse, (one.data for one in capture.packets())) if packet.error}
