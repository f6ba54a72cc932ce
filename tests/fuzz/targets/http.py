"""Any bytes on the port of the metrics get one complete HTTP response, or none if they end before a request does."""

from http import HTTPStatus
from pathlib import Path

from nfq_enforcer.web import http
from nfq_enforcer.web.http import Response
from nfq_enforcer.web.server import Limits, StreamServer
from tests.fuzz import connections

_LIMITS = Limits(request=500)
SEEDS = [
    b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    b"GET  /\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"A" * 501,
    b"GET / HTTP/1.1\r\n",
]


def check(data: bytes) -> None:
    answer = connections.exchange(_listen, data)
    if b"\r\n\r\n" not in data and len(data) <= _LIMITS.request:
        assert answer == b""
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    assert HTTPStatus(int(status.split(" ")[1])) < HTTPStatus.INTERNAL_SERVER_ERROR
    length = next(int(field.removeprefix("Content-Length: ")) for field in fields if field.startswith("Content-Length"))
    assert len(body) in (length, 0)
    assert all(line.isprintable() for line in (status, *fields))


async def _page(path: bytes) -> Response:
    return Response(HTTPStatus.OK, b"metrics") if path == b"/metrics" else Response(HTTPStatus.NOT_FOUND, b"nothing")


async def _listen(path: Path) -> None:
    await StreamServer(http.handler(_page), http.refusal, _LIMITS, "a request for metrics").listen_unix(path)
