"""HTTP over the stream server: one GET or HEAD per connection, and limits that end a connection."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

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
        server = StreamServer(http.handler(page), http.refusal, limits, "a request for a page")
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


def test_1000_clients_that_wait_are_a_few_descriptors_and_do_not_lock_others_out() -> None:
    async def run() -> tuple[int, bytes, list[bytes]]:
        limits = Limits(request=1000, time=10.0, clients=8)
        server = StreamServer(http.handler(page), http.refusal, limits, "a request for a page")
        await server.listen_tcp("127.0.0.1", 0)
        assert server.port is not None
        refused = []
        most = 0
        try:
            answer = b""
            for _ in range(10):  # 1,000 in all, in portions, because the test needs descriptors for its own ends
                waiting = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
                for _, writer in waiting:
                    writer.write(b"GET /")
                most = max(most, len(list(Path("/proc/self/fd").iterdir())) - len(waiting))
                answer = await ask(server.port, b"GET / HTTP/1.1\r\n\r\n")
                for reader, writer in waiting:
                    writer.close()
                    with contextlib.suppress(OSError):
                        refused.append(await reader.read())
            return most, answer, refused
        finally:
            await server.stop()

    before = len(list(Path("/proc/self/fd").iterdir()))
    most, answer, refused = asyncio.run(run())
    assert answer.endswith(b"hello")
    assert most < before + 120
    assert b"too many clients: 8 are connected; try again later\n" in {
        part.partition(b"\r\n\r\n")[2] for part in refused
    }


def test_a_client_beyond_the_limit_is_refused_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> bytes:
        limits = Limits(request=1000, time=10.0, clients=1)
        server = StreamServer(http.handler(page), http.refusal, limits, "a request for a page")
        await server.listen_tcp("127.0.0.1", 0)
        assert server.port is not None
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /slow HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0.1)
            answer = await ask(server.port, b"")
            writer.close()
            return answer
        finally:
            await server.stop()

    answer = asyncio.run(run())

    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert answer.endswith(b"too many clients: 1 are connected; try again later\n")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_request_that_does_not_end_gets_its_status() -> None:
    limits = Limits(request=1000, time=10.0, request_time=0.05)

    assert serving(lambda port: ask(port, b"GET / HT"), limits).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_server_that_never_listened_can_be_stopped() -> None:
    server = StreamServer(http.handler(page), http.refusal, LIMITS, "a request for a page")

    asyncio.run(server.stop())

    assert (server.listening, server.port) == (False, None)
