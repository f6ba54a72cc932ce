"""Packets under cover of an open connection: the other end opens nothing by them."""

import asyncio
import socket
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import (
    FAMILIES,
    FRONT_TO_BACK,
    MODES,
    PATIENT,
    DatapathSettings,
    Policies,
    arrivals,
    await_flow,
    now,
)
from tests.support.namespaces import within
from tests.support.packets import ACK, PSH, SYN, icmp, tcp

AF = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 8800
TOKEN = b"under cover"
CLIENT, SERVER = "front1", "back2"


@pytest.fixture(scope="module", params=MODES)
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    return DatapathSettings("netlink", 1, request.param)


class Connection:
    """Connection: both ends of a TCP connection from the client to the server."""

    def __init__(self, lab: Lab, family: int, sockets: ExitStack) -> None:
        """Open it."""
        target = (str(lab.address(SERVER, family)), PORT)
        listener = sockets.enter_context(within(lab, SERVER, lambda: socket.create_server(target, family=AF[family])))
        self._client = sockets.enter_context(within(lab, CLIENT, lambda: socket.create_connection(target, PATIENT)))
        self._server = sockets.enter_context(listener.accept()[0])
        self._server.settimeout(PATIENT)
        self.port: int = self._client.getsockname()[1]

    def talk(self) -> None:
        """Exchange a question and its answer."""
        for sender, receiver in ((self._client, self._server), (self._server, self._client)):
            sender.sendall(b"hello")
            assert receiver.recv(100) == b"hello"


def under_cover(server: str, client: str, port: int) -> dict[str, bytes]:
    """Return the packets of the server to the client of a connection from this port."""
    echo_reply = {4: 0, 6: 129}[ip_address(client).version]
    return {
        "SYN": tcp(server, client, PORT, port, SYN, TOKEN),
        "SYN to another port": tcp(server, client, PORT, port + 1, SYN, TOKEN),
        "SYN-ACK to another port": tcp(server, client, PORT, port + 1, SYN | ACK, TOKEN),
        "data to another port": tcp(server, client, PORT, port + 1, PSH | ACK, TOKEN),
        "echo reply": icmp(server, client, echo_reply, 0, bytes(4) + TOKEN),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", under_cover("::", "::", 0))
async def test_a_server_opens_nothing_under_cover_of_its_clients_connection(
    guarded: Lab, policies: Policies, kind: str, family: int
) -> None:
    """The connection itself goes on."""
    await policies.apply("front-to-back", FRONT_TO_BACK)
    client, server = (str(guarded.address(name, family)) for name in (CLIENT, SERVER))
    with ExitStack() as sockets:
        connection = Connection(guarded, family, sockets)
        for _ in range(3):  # per-flow mode offloads it
            connection.talk()
        since = now()

        async with arrivals(guarded, CLIENT) as capture:
            await guarded.host(SERVER).send_raw(under_cover(server, client, connection.port)[kind])
            wanted = {"verdict": "DROPPED", "source": server, "destination": client}
            await asyncio.to_thread(await_flow, guarded.nodes["n1"], since, **wanted)
            connection.talk()

    assert not any(TOKEN in one.data for one in capture.packets())
