"""HTTP/1.1 for small read-only services: one GET or HEAD per connection (RFC 9110, RFC 9112)."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import NamedTuple

from nfq_enforcer.errors import NfqError
from nfq_enforcer.web.server import Connection, Handler, RequestTooLong, RequestTooSlow

PLAIN = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """Response: status, body and the header fields that depend on them."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = PLAIN
    fields: tuple[str, ...] = ()  # further header fields, as in "Allow: GET"

    def encode(self, *, with_body: bool = True) -> bytes:
        """Encode the response; a response to HEAD has the header fields of the GET, without the body."""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *self.fields,
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*head, "")).encode() + (self.body if with_body else b"")


Get = Callable[[bytes], Awaitable[Response]]


def handler(get: Get) -> Handler:
    """Return a connection handler that passes the path of a GET or HEAD (without its query) to ``get``."""

    async def handle(connection: Connection) -> None:
        try:
            await connection.send(await _respond(connection, get))
        except RequestTooSlow as error:
            await connection.send(refusal(error))
        except RequestTooLong as error:
            await connection.send(refusal(error))
            await connection.discard()

    return handle


def refusal(error: NfqError) -> bytes:
    """Return the response to a request that the server does not read or does not handle."""
    return Response(_STATUS.get(type(error), HTTPStatus.SERVICE_UNAVAILABLE), f"{error}\n".encode()).encode()


_STATUS: dict[type[NfqError], HTTPStatus] = {
    RequestTooLong: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    RequestTooSlow: HTTPStatus.REQUEST_TIMEOUT,
}


async def _respond(connection: Connection, get: Get) -> bytes:
    head = await connection.receive(b"\r\n\r\n")
    if not head.endswith(b"\r\n\r\n"):
        raise EOFError  # the client left
    match head.partition(b"\r\n")[0].split(b" "):
        case [b"GET" | b"HEAD" as method, target, version] if version.startswith(b"HTTP/1."):
            response = await get(target.partition(b"?")[0])
            return response.encode(with_body=method == b"GET")
        case [_, _, version] if version.startswith(b"HTTP/1."):
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, fields=("Allow: GET, HEAD",)).encode()
    return Response(HTTPStatus.BAD_REQUEST).encode()
