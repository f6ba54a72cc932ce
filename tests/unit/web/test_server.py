"""Stream server: its end at each step of accepting a client."""

import asyncio
import gc
import socket

import pytest

from nfq_enforcer.web import http
from nfq_enforcer.web.http import Response
from nfq_enforcer.web.server import Limits, StreamServer


async def no_page(_path: bytes) -> Response:
    raise AssertionError("no request is sent")


async def first_answer(steps: int) -> bytes:
    """Return what a client receives from a server that stops after so many steps of the loop."""
    server = StreamServer(http.handler(no_page), http.refusal, Limits(request=1000), "a request for a page")
    await server.listen_tcp("127.0.0.1", 0)
    assert server.port is not None
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        for _ in range(steps):
            await asyncio.sleep(0)
        await server.stop()
        try:
            return await asyncio.to_thread(client.recv, 1)
        except ConnectionResetError:  # it was not accepted yet
            return b""


@pytest.mark.parametrize("steps", range(8))
def test_a_client_is_disconnected_whenever_the_server_stops(steps: int) -> None:
    assert asyncio.run(first_answer(steps)) == b""

    gc.collect()  # a socket that is left open is told as an error of the test
