"""Daemon of containers: Docker's API by HTTP on a Unix socket, as Docker and Podman offer it.

Requests name no version of the API, so each daemon answers by its newest; the fields that are read have been the same
in all versions since 1.21. aiohttp is imported with the first daemon that the configuration names.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from nfq_enforcer.errors import NfqError
from nfq_enforcer.text import read_json, shorten

_HOST = "http://daemon"  # of no meaning on a Unix socket
_ANSWER = 60.0  # s; a container that starts or stops holds the answer about it
_CONNECT = 5.0  # s
_MAX_ANSWER = 256 << 20  # bytes
_MAX_EVENT = 4 << 20  # bytes; an event has all labels of its container
_NOT_FOUND = 404


class DaemonError(NfqError):
    """Daemon error: the daemon is not reachable, or its answer is no answer; the text is a sentence."""


class Daemon:
    """Daemon: one client session, from ``connected`` on."""

    def __init__(self, session: aiohttp.ClientSession, socket: str) -> None:
        """Take a session with connections to the socket."""
        self._session = session
        self._socket = socket

    async def running(self) -> Any:
        """Return the answer of ContainerList; raise DaemonError."""
        return await self._get("/containers/json")

    async def summary(self, container: str) -> Any:
        """Return the list of the container alone, whatever its state; empty if it does not exist."""
        return await self._get("/containers/json", all="1", filters=json.dumps({"id": [container]}))

    async def inspect(self, container: str) -> Any:
        """Return the answer of ContainerInspect, None for a container that does not exist; raise DaemonError."""
        return await self._get(f"/containers/{container}/json")

    async def network(self, network: str) -> Any:
        """Return the answer of NetworkInspect, None for a network that does not exist; raise DaemonError."""
        return await self._get(f"/networks/{network}")

    @asynccontextmanager
    async def events(self, since: float) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        """Give the events of containers and networks from a time on, in seconds since the epoch; raise DaemonError."""
        filters = json.dumps({"type": ["container", "network"]})
        parameters = {"since": f"{since:.9f}", "filters": filters}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
        try:
            async with self._session.get(f"{_HOST}/events", params=parameters, timeout=timeout) as response:
                await self._check(response)
                yield self._read_events(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._error(error) from None

    async def _read_events(self, response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
        rest = b""
        async for data in response.content.iter_any():
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_EVENT:
                raise DaemonError(f"{self._socket}: an event has more than {_MAX_EVENT} bytes")
            for line in filter(None, lines):
                event = self._value(line)
                if isinstance(event, Mapping):
                    yield event

    async def _get(self, path: str, **parameters: str) -> Any:
        try:
            async with self._session.get(f"{_HOST}{path}", params=parameters) as response:
                if response.status == _NOT_FOUND:
                    return None
                await self._check(response)
                body = bytearray()
                async for data in response.content.iter_any():
                    body += data
                    if len(body) > _MAX_ANSWER:
                        raise DaemonError(f"{self._socket}: an answer has more than {_MAX_ANSWER} bytes")
                return self._value(bytes(body))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._error(error) from None

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            text = (await response.content.read(1000)).decode(errors="replace")
            raise DaemonError(f"{self._socket}: the daemon answers {response.status}: {shorten(text.strip())}")

    def _value(self, text: bytes) -> Any:
        try:
            return read_json(text)
        except ValueError as error:
            raise DaemonError(f"{self._socket}: the answer of the daemon cannot be read: {error}") from None

    def _error(self, error: Exception) -> DaemonError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, TimeoutError):
            reason = "no answer in time"
        elif isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
            reason = "the daemon has ended the connection"
        return DaemonError(f"{self._socket}: {shorten(reason or type(error).__name__)}")


@asynccontextmanager
async def connected(socket: str) -> AsyncIterator[Daemon]:
    """Give a client of the daemon on a socket; nothing is sent before the first request."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER, sock_connect=_CONNECT)
    connector = aiohttp.UnixConnector(path=socket)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Daemon(session, socket)
