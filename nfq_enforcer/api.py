"""The agent's API: JSON lines over a Unix socket.

A client sends one line, ``{"method": …, "params": {…}}``, and gets lines back: ``{"result": …}`` once, or one for each
item of a stream, or ``{"error": …}``. The socket belongs to root: who can open it may ask everything.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import BadInput, NfqError

Params = Mapping[str, Any]
Method = Callable[[Params], Awaitable[Any] | AsyncIterator[Any]]

_log = logging.getLogger(__name__)
_GOODBYE = 1.0  # seconds for a client to take what it has been sent, when it is hung up on
_LIMIT = 1 << 24  # bytes of a line
_LONGEST_PATH = 107  # bytes of a socket's path: unix(7), sun_path without its last byte
TIMEOUT = 10.0  # seconds that a call waits for its answer, unless it says otherwise


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
        if (length := len(os.fsencode(self._path))) > _LONGEST_PATH:
            raise NfqError(
                f"cannot listen on {self._path}: it is {length} bytes long; allowed: at most {_LONGEST_PATH}"
            )
        try:
            if _answers(self._path):
                raise NfqError(f"another agent is listening on {self._path}: stop it, or choose another api.socket")
            if self._path.exists() and not self._path.is_socket():
                raise NfqError(f"cannot listen on {self._path}: it is there and is not a socket")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
            finally:
                os.umask(before)
        except OSError as error:
            raise NfqError(f"cannot listen on {self._path}: {error.strerror or error}") from None

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
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception:  # a bug must cost this client its answer, and nobody else anything
            _log.exception("a request to the API failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):  # who has hung up meanwhile leaves an error to be taken
                async with asyncio.timeout(_GOODBYE):
                    await writer.wait_closed()
            self._clients.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await _line(reader)
            if not line:
                return
            answer = self._call(line)
            if isinstance(answer, AsyncIterator):
                await _stream(answer, reader, writer)
            else:
                await _send(writer, {"result": await answer})
        except NfqError as error:
            await _send(writer, {"error": str(error), "exit_code": error.exit_code})

    def _call(self, line: bytes) -> Awaitable[Any] | AsyncIterator[Any]:
        name, params = _parse(line)
        if name not in self._methods:
            raise BadInput(f"unknown method {name!r}; allowed: {', '.join(sorted(self._methods))}")
        return self._methods[name](params)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        raise BadInput(f"a request has at most {_LIMIT} bytes") from None


def _parse(line: bytes) -> tuple[str, Params]:
    with contextlib.suppress(ValueError):
        request = json.loads(line)
        match request:
            case {"method": str(name)} if isinstance(params := request.get("params", {}), dict):
                return name, params
    raise BadInput('a request is one line of JSON: {"method": "…", "params": {…}}')


async def _stream(items: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send items until there are no more, or the client hangs up."""
    sending = asyncio.create_task(_send_all(items, writer))
    hanging_up = asyncio.create_task(reader.read())
    try:
        await asyncio.wait({sending, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # raises what has ended it early
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


def call(path: Path, method: str, timeout: float | None = None, **params: Any) -> Any:
    """Ask an agent and return its result; raise NfqError if there is none within the time, or it refuses."""
    patience = TIMEOUT if timeout is None else timeout
    with contextlib.closing(stream(path, method, timeout=patience, **params)) as answers:
        for answer in answers:
            return answer
    raise _hung_up(path)


def stream(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[Any, None, None]:
    """Ask an agent and yield each result as it comes; ``timeout`` in seconds, for each."""
    request = json.dumps({"method": method, "params": params}).encode() + b"\n"
    with _connect(path) as connection:
        connection.settimeout(timeout)
        try:
            connection.sendall(request)
            with connection.makefile("rb") as lines:
                for line in lines:
                    yield _result(path, line)
        except TimeoutError:
            raise NfqError(f"the agent at {path} does not answer") from None
        except ConnectionError:
            raise _hung_up(path) from None


def _result(path: Path, line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if "error" not in answer:
            return answer["result"]
        error = BadInput if answer["exit_code"] == BadInput.exit_code else NfqError
        message = answer["error"]
    except (ValueError, TypeError, KeyError):
        raise NfqError(f"what came from {path} is not an agent's answer: is it an agent of this version?") from None
    raise error(message)


def _hung_up(path: Path) -> NfqError:
    return NfqError(f"the agent at {path} hung up without an answer; its log says why")


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
