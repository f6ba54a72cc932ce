"""The agent's API: JSON lines over a Unix socket.

A client sends one line, ``{"method": …, "params": {…}}``, and gets lines back: ``{"result": …}`` once, or one for each
item of a stream, or ``{"error": …}``. The socket belongs to root: who can open it may ask everything.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import BadInput, NfqError

Params = Mapping[str, Any]
Method = Callable[[Params], Awaitable[Any] | AsyncIterator[Any]]

_LIMIT = 1 << 24  # bytes of a line
_TIMEOUT = 10.0


class Server:
    """Answers requests with the methods it is given."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        """Take the socket's path and the methods by name."""
        self._path = path
        self._methods = methods
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raise NfqError if another agent does, or the place cannot be had."""
        if _answers(self._path):
            raise NfqError(f"another agent is listening on {self._path}: stop it, or choose another api.socket")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
            finally:
                os.umask(before)
        except OSError as error:
            raise NfqError(f"cannot listen on {self._path}: {error.strerror}") from None

    async def stop(self) -> None:
        """Hang up on every client and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            line = await reader.readline()
            if line:
                await self._answer(line, reader, writer)
        except (ConnectionError, asyncio.CancelledError, ValueError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = self._call(line)
            if isinstance(answer, AsyncIterator):
                await _stream(answer, reader, writer)
            else:
                await _send(writer, {"result": await answer})
        except NfqError as error:
            await _send(writer, {"error": str(error), "exit_code": error.exit_code})

    def _call(self, line: bytes) -> Awaitable[Any] | AsyncIterator[Any]:
        try:
            request = json.loads(line)
            name, params = request["method"], request.get("params", {})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInput('a request is one line of JSON: {"method": "…", "params": {…}}') from None
        if name not in self._methods:
            raise BadInput(f"unknown method {name!r}; allowed: {', '.join(sorted(self._methods))}")
        return self._methods[name](params)


async def _stream(items: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send items until there are no more, or the client hangs up."""
    sending = asyncio.create_task(_send_all(items, writer))
    hanging_up = asyncio.create_task(reader.read())
    try:
        await asyncio.wait({sending, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, hanging_up):
            task.cancel()
        await asyncio.gather(sending, hanging_up, return_exceptions=True)


async def _send_all(items: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
    async for item in items:
        await _send(writer, {"result": item})


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def call(path: Path, method: str, **params: Any) -> Any:
    """Ask an agent and return its result; raise NfqError if there is none or it refuses."""
    with contextlib.closing(stream(path, method, timeout=_TIMEOUT, **params)) as answers:
        for answer in answers:
            return answer
    raise NfqError(f"the agent at {path} hung up without an answer; its log says why")


def stream(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[Any, None, None]:
    """Ask an agent and yield each result as it comes; ``timeout`` in seconds, for each."""
    with _connect(path) as connection:
        connection.settimeout(timeout)
        connection.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            yield from _results(path, lines)


def _results(path: Path, lines: Any) -> Generator[Any, None, None]:
    try:
        for line in lines:
            answer = json.loads(line)
            if "error" in answer:
                error = BadInput if answer["exit_code"] == BadInput.exit_code else NfqError
                raise error(answer["error"])
            yield answer["result"]
    except TimeoutError:
        raise NfqError(f"the agent at {path} does not answer") from None


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise NfqError(f"no permission to ask the agent at {path}: run this with sudo") from None
        raise NfqError(
            f"no agent is listening on {path}: start one with 'nfq-enforcer agent', or name its socket with --socket"
        ) from None
    return connection
