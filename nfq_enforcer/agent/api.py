"""Server of the agent's API: JSON lines over a Unix socket.

A client sends one line, ``{"method": …, "params": {…}}``, and receives lines: ``{"result": …}`` once, or once for each
item of a stream, or ``{"error": …}``. Only root can open the socket: anyone who can open it can call every method.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.web.server import Limits, StreamServer

Params = Mapping[str, Any]
Method = Callable[[Params], Awaitable[Any] | AsyncIterator[Any]]

LIMITS = Limits(request=1 << 24)
_MAX_PATH_LENGTH = 107  # bytes of a socket's path: unix(7), sun_path without its last byte


class ApiServer:
    """API server: calls a method for each request and sends its result or its error."""

    def __init__(self, path: Path, methods: Mapping[str, Method], limits: Limits = LIMITS) -> None:
        """Set the path of the socket and the methods by name."""
        self._path = path
        self._methods = methods
        self._limits = limits
        self._server = StreamServer(self._handle, limits, "a request to the API")

    async def start(self) -> None:
        """Listen; raise NfqError if another agent listens on the socket, or the path cannot be bound."""
        if (length := len(os.fsencode(self._path))) > _MAX_PATH_LENGTH:
            raise NfqError(
                f"cannot listen on {self._path}: it is {length} bytes long; allowed: at most {_MAX_PATH_LENGTH}"
            )
        try:
            if _is_listening(self._path):
                raise NfqError(f"another agent is listening on {self._path}: stop it, or choose another api.socket")
            if self._path.exists() and not self._path.is_socket():
                raise NfqError(f"cannot listen on {self._path}: it is there and is not a socket")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            umask = os.umask(0o177)
            try:
                await self._server.listen_unix(self._path)
            finally:
                os.umask(umask)
        except OSError as error:
            raise NfqError(f"cannot listen on {self._path}: {error.strerror or error}") from None

    async def stop(self) -> None:
        """Disconnect every client and remove the socket."""
        if self._server.listening:
            await self._server.stop()
            self._path.unlink(missing_ok=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await self._read_line(reader)
            if not line:
                return
            result = self._call(line)
            if isinstance(result, AsyncIterator):
                await _send_stream(result, reader, writer)
            else:
                await _send(writer, {"result": await result})
        except NfqError as error:
            await _send(writer, {"error": str(error), "exit_code": error.exit_code})

    async def _read_line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:
            raise BadInput(f"a request has at most {self._limits.request} bytes") from None

    def _call(self, line: bytes) -> Awaitable[Any] | AsyncIterator[Any]:
        name, params = _parse(line)
        if name not in self._methods:
            raise BadInput(f"unknown method {name!r}; allowed: {', '.join(sorted(self._methods))}")
        return self._methods[name](params)


def _parse(line: bytes) -> tuple[str, Params]:
    with contextlib.suppress(ValueError):
        request = json.loads(line)
        match request:
            case {"method": str(name)} if isinstance(params := request.get("params", {}), dict):
                return name, params
    raise BadInput('a request is one line of JSON: {"method": "…", "params": {…}}')


async def _send_stream(items: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send each item until the stream ends or the client disconnects."""
    sending = asyncio.create_task(_send_all(items, writer))
    disconnect = asyncio.create_task(reader.read())
    try:
        await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # raises the error that ended the stream early
    finally:
        for task in (sending, disconnect):
            task.cancel()
        await asyncio.gather(sending, disconnect, return_exceptions=True)


async def _send_all(items: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
    async for item in items:
        await _send(writer, {"result": item})


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
