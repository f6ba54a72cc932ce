"""Client of the Kubernetes API: JSON over HTTP, one request or one stream of watch events at a time.

Errors of the server and of the way to it are ApiError, with a sentence and, where the server has answered, its status.
An API server that is gone without a word (its host lost power, a firewall forgot the connection) is found by TCP
keepalive within a minute: a watch may be silent for minutes without being broken.
"""

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp

from nfq_enforcer.errors import NfqError
from nfq_enforcer.text import shorten
from nfq_enforcer.workloads.kubernetes.access import Access

Json = Mapping[str, Any]

_REQUEST_TIMEOUT = 60.0  # s, for a page of a list
_CONNECT_TIMEOUT = 10.0  # s
_MAX_LINE = 32 << 20  # bytes of one watch event: etcd takes objects of 1.5 MiB, the API server requests of 3 MiB
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, probes; tcp(7)
_USER_AGENT = "nfq-enforcer"


class ApiError(NfqError):
    """API error: a request that failed; the last state of the watched objects stays in force."""

    def __init__(self, message: str, status: int = 0, pause: float = 0.0) -> None:
        """Set the sentence, the HTTP status (0: no answer), and the seconds that the server asks to wait."""
        super().__init__(message)
        self.status = status
        self.pause = pause


class Gone(ApiError):
    """Gone: the server no longer has the history after a resourceVersion (410), or the rest of a paged list."""


class ApiClient:
    """API client: requests to one API server, on one event loop."""

    def __init__(self, access: Access) -> None:
        """Set address and credentials; nothing is connected before the first request."""
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Return the address of the API server."""
        return self._access.url

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            for _ in range(2):  # turns of the event loop, in which the transports close
                await asyncio.sleep(0)

    async def get(self, path: str, params: Mapping[str, str]) -> Json:
        """Return the object at a path; raise ApiError."""
        async with self._request("GET", path, params=params, timeout=_timeout(_REQUEST_TIMEOUT)) as response:
            return _object(await response.read())

    async def create(self, path: str, body: Json) -> Json:
        """Create an object in the collection at a path; raise ApiError, with status 409 if it exists already."""
        async with self._request("POST", path, json=body, timeout=_timeout(_REQUEST_TIMEOUT)) as response:
            return _object(await response.read())

    async def watch(self, path: str, params: Mapping[str, str], silence: float) -> AsyncGenerator[Json, None]:
        """Yield the events of a watch until the server ends it; raise ApiError.

        ``silence``: seconds without a byte after which the connection counts as broken.
        """
        async with self._request("GET", path, params=params, timeout=_timeout(None, silence)) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    yield _object(line)
                if len(rest) > _MAX_LINE:
                    raise ApiError(f"a watch event of {path} has more than {_MAX_LINE >> 20} MiB")

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_make_socket),
                headers={"User-Agent": _USER_AGENT, "Accept": "application/json"},
                trust_env=False,
            )
        access = self._access
        tls: Any = {"ssl": access.tls, "server_hostname": access.server_name} if access.tls is not None else {}
        try:
            async with self._session.request(
                method, f"{access.url}{path}", headers=access.headers(), allow_redirects=False, **tls, **options
            ) as response:
                if response.status >= 300:
                    raise _refusal(response, await response.content.read(1 << 16))
                with _aborting(response):
                    yield response
        except TimeoutError as error:
            raise ApiError(f"{access.url}: no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"{access.url}: {_reason(error)}") from error


@contextmanager
def _aborting(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Abort the connection if the rest of the answer is not wanted: TLS would first wait for the server's farewell."""
    try:
        yield
    except BaseException:
        if response.connection is not None and response.connection.transport is not None:
            response.connection.transport.abort()
        raise


def _make_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, proto, _, _ = address
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _timeout(total: float | None, silence: float | None = None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, sock_connect=_CONNECT_TIMEOUT, sock_read=silence)


def _object(text: bytes) -> Json:
    """Return the JSON object of a text; raise ValueError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"the answer is no JSON object: {shorten(text[:200].decode('utf-8', 'replace'))}")
    return data


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    try:
        message = str(_object(body).get("message", ""))
    except ValueError:
        message = body.decode("utf-8", "replace")
    sentence = f"{response.method} {response.url.path}: HTTP {response.status}: {shorten(message.strip(), 300)}"
    pause = response.headers.get("Retry-After", "")
    kind = Gone if response.status == 410 else ApiError
    return kind(sentence, response.status, float(pause) if pause.isdecimal() else 0.0)


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):  # its own text has the objects of the connection
        return f"it cannot be reached: {_cause(error.os_error)}"
    return shorten(str(error) or type(error).__name__, 300)


def _cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {str(error.reason or 'the handshake has failed').replace('_', ' ').lower()}"
    number = error.errno or 0
    return os.strerror(number) if number > 0 else "the connection was closed"
