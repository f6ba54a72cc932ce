"""Path MTU discovery through two nodes: the MTU that a router announces leaves room for the stamp."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nfq_enforcer.core.wire import stamp
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import ROUTER, UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    FAMILIES,
    SINGLE_QUEUE,
    DatapathSettings,
    await_flow,
    flows_since,
    now,
    run_in,
    start_all,
)
from tests.support.packets import datagram

SEGMENT_MTU, SMALL_MTU = 1500, 1400
PORT = 8000
BYTES = 100_000
RECEIVE = f"""
import socket, sys
family = socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6
with socket.create_server(("", {PORT}), family=family) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    received = 0
    while data := connection.recv(65536):
        received += len(data)
    print(received, flush=True)
"""
SEND = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT}), timeout=10) as connection:
    connection.sendall(bytes({BYTES}))
"""
# A datagram that exceeds the link is lost and answered; the answer sets the path MTU of the connected socket.
DISCOVER = """
import socket, sys, time
family, address, link = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
level, discover, mtu = (socket.IPPROTO_IP, 10, 14) if family == 4 else (socket.IPPROTO_IPV6, 23, 24)
with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
    sender.connect((address, 53))
    sender.setsockopt(level, discover, 2)
    end = time.monotonic() + 10
    while time.monotonic() < end and sender.getsockopt(level, mtu) > link:
        try:
            sender.send(bytes(link))
        except OSError:
            pass
        time.sleep(0.05)
    print(sender.getsockopt(level, mtu))
"""


@pytest.fixture(scope="module", params=SINGLE_QUEUE, ids=str)
def narrow(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a lab in which the link behind the router has a smaller MTU than the nodes' segment."""
    settings: DatapathSettings = request.param
    lab = make_served()
    start_all(lab, **settings.settings)
    run_in(lab, ROUTER, "ip", "link", "set", "far", "mtu", str(SMALL_MTU))
    run_in(lab, "n3", "ip", "link", "set", UPLINK, "mtu", str(SMALL_MTU))
    yield lab


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_tcp_arrives_behind_a_smaller_mtu(narrow: Lab, family: int) -> None:
    receiver = [sys.executable, "-c", RECEIVE, str(family)]
    with narrow.network.in_namespace("db3", receiver, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        run_in(narrow, "front1", sys.executable, "-c", SEND, str(narrow.address("db3", family)))

        assert server.stdout.readline() == f"{BYTES}\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sender_of_datagrams_learns_an_mtu_with_room_for_the_stamp(narrow: Lab, family: int) -> None:
    address = str(narrow.address("front3", family))

    learned = run_in(narrow, "back1", sys.executable, "-c", DISCOVER, str(family), address, str(SMALL_MTU))

    assert int(learned) == SMALL_MTU - stamp.overhead(family)


async def test_the_log_has_the_drop_of_a_long_packet_and_then_its_flow(narrow: Lab) -> None:
    """The stamp makes the first packet of a flow too long for the segment; its sender repeats it shorter."""
    node, since = narrow.nodes["n1"], now()
    ends = str(narrow.address("front1")), str(narrow.address("back2"))
    headers = len(datagram(*ends, 46_000, 53, b""))

    gateway = run_in(narrow, "front1", "ip", "-4", "route", "show", "default").split()[2]
    # a route without room for the stamp, as in an endpoint that nobody has configured for it
    run_in(narrow, "front1", "ip", "route", "replace", ends[1], "via", gateway, "dev", UPLINK, "onlink")
    for size in (SEGMENT_MTU, SEGMENT_MTU - stamp.overhead(4), SEGMENT_MTU - stamp.overhead(4)):
        assert (await narrow.host("front1").send_raw(datagram(*ends, 46_000, 53, bytes(size - headers)))).ok
    await narrow.host("front1").send_raw(datagram(*ends, 46_001, 53))
    await asyncio.to_thread(await_flow, node, since, verdict="FORWARDED", source=ends[0], source_port=46_001)

    flows = [one for one in flows_since(node, since) if one["source_port"] == 46_000]
    assert [(one["verdict"], one["reason"]) for one in flows] == [("DROPPED", "FRAG_NEEDED"), ("FORWARDED", None)]
