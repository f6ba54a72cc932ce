"""HTTP over the stream server: one GET or HEAD per connection, and limits that end a connection."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import pytest

from nfq_enforcer.web import http
from nfq_enforcer.web.http import Response
from nfq_enforcer.web.server import Limits, StreamServer

LIMITS = Limits(request=1000, time=10.0)


async def page(path: bytes) -> Response:
    if path == b"/bug":
        raise OSError("a file that is not there")
    if path == b"/slow":
        await asyncio.sleep(60)
    return Response(HTTPStatus.NOT_FOUND, b"nothing at " + path) if path != b"/" else Response(HTTPStatus.OK, b"hello")


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    response = await reader.read()
    writer.close()
    return response


def serving(client: Callable[[int], Awaitable[bytes]], limits: Limits = LIMITS) -> bytes:
    async def run() -> bytes:
        server = StreamServer(http.handler(page), limits, "a request for a page")
        await server.listen_tcp("127.0.0.1", 0)
        assert server.port is not None
        try:
            return await asyncio.wait_for(client(server.port), 10)
        finally:
            await server.stop()

    return asyncio.run(run())


def test_the_path_is_passed_without_its_query() -> None:
    response = serving(lambda port: ask(port, b"GET /x?y=1 HTTP/1.1\r\n\r\n"))

    assert response.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert response.endswith(b"\r\n\r\nnothing at /x")


@pytest.mark.parametrize(("path", "length"), [(b"/", 5), (b"/x", 13)])
def test_a_response_to_head_has_the_length_and_no_body(path: bytes, length: int) -> None:
    response = serving(lambda port: ask(port, b"HEAD " + path + b" HTTP/1.1\r\n\r\n"))

    assert b"Content-Length: %d\r\n" % length in response
    assert response.endswith(b"\r\n\r\n")


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are() -> None:
    assert b"\r\nAllow: GET, HEAD\r\n" in serving(lambda port: ask(port, b"POST / HTTP/1.1\r\n\r\n"))


def test_an_error_of_the_handler_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    assert serving(lambda port: ask(port, b"GET /bug HTTP/1.1\r\n\r\n")) == b""
    assert [record.message for record in caplog.records] == ["a request for a page failed"]


def test_a_response_that_takes_too_long_ends_the_connection_without_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(request=1000, time=0.01)

    assert serving(lambda port: ask(port, b"GET /slow HTTP/1.1\r\n\r\n"), limits) == b""
    assert caplog.records == []


def test_a_server_that_never_listened_can_be_stopped() -> None:
    server = StreamServer(http.handler(page), LIMITS, "a request for a page")

    asyncio.run(server.stop())

    assert (server.listening, server.port) == (False, None)
