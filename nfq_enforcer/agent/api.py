"""Server of the agent's API: JSON lines over a Unix socket.

A client sends one line, ``{"method": …, "params": {…}}``, and receives lines: ``{"result": …}`` once, or once for each
item of a stream, or ``{"error": …}``. Only root and the members of the socket's group can open the socket: anyone who
can open it can call every method. A request that is not valid, of whatever kind and size, gets an error as its answer.
"""

import asyncio
import grp
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from nfq_enforcer.agent import defaults, params
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.tasks import cancel
from nfq_enforcer.text import read_json, shorten
from nfq_enforcer.web.server import Connection, Limits, RequestTooLong, StreamServer

_log = logging.getLogger(__name__)

Params = params.Params
Method = Callable[[Params], Awaitable[Any] | AsyncIterator[Any]]

LIMITS = Limits(request=defaults.MAX_REQUEST)
DEFAULT_GROUP = "nfq-enforcer"
_REQUEST = 'a request is one line of JSON: {"method": "…", "params": {…}}'
_MAX_PATH_LENGTH = 107  # bytes of a socket's path: unix(7), sun_path without its last byte


class Batch(tuple[Any, ...]):
    """Batch: several items of a stream, sent together as one result each."""

    __slots__ = ()


class ApiServer:
    """API server: calls a method for each request and sends its result or its error."""

    def __init__(
        self,
        path: Path,
        methods: Mapping[str, Method],
        limits: Limits = LIMITS,
        group: str | None = None,
        *,
        mode: int = 0o600,
        requests: "Requests | None" = None,
    ) -> None:
        """Set the path of the socket, the methods by name, and the group that may open the socket besides root.

        ``group`` None is the default one, if the host has it; an empty one is root alone, or others by ``mode``.
        ``requests`` answers in place of the methods.
        """
        self._path = path
        self._group = group
        self._mode = mode
        handle = (requests or Requests(methods, limits)).handle
        self._server = StreamServer(handle, error_line, limits, "a request to the API")

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
            umask = os.umask(0o777 & ~self._mode)
            try:
                await self._server.listen_unix(self._path)
            finally:
                os.umask(umask)
            try:
                self._open_to_group()
            except BaseException:
                await self.stop()
                raise
        except OSError as error:
            raise NfqError(f"cannot listen on {self._path}: {error.strerror or error}") from None

    async def stop(self) -> None:
        """Disconnect every client and remove the socket."""
        if self._server.listening:
            await self._server.stop()
            self._path.unlink(missing_ok=True)

    def _open_to_group(self) -> None:
        """Let the members of the group open the socket; raise NfqError if a configured group does not exist."""
        group = DEFAULT_GROUP if self._group is None else self._group
        if not group:
            return
        try:
            os.chown(self._path, -1, grp.getgrnam(group).gr_gid)
            self._path.chmod(0o660)
        except KeyError:
            if self._group is not None:
                raise NfqError(
                    f"api.group: this host has no group '{group}': create it, or choose another, or \"\" for root alone"
                ) from None
        except PermissionError:  # without the capability CHOWN the agent must be in the group itself
            if self._group is not None:
                raise NfqError(f"api.group: the agent cannot give its socket to the group '{group}'") from None
            _log.warning("only root can open %s: the agent is not a member of the group %s", self._path, group)


class Requests:
    """Requests: reads the request of each connection, calls its method, and sends its result or its error."""

    def __init__(self, methods: Mapping[str, Method], limits: Limits) -> None:
        """Set the methods by name; half of the clients of the limits may have streams at a time."""
        self._methods = methods
        self._streams = 0
        self._max_streams = max(1, limits.clients // 2)  # the other half of the clients is left for single results

    async def handle(self, connection: Connection) -> None:
        """Answer the request of a connection; raise ConnectionError or EOFError if the client leaves."""
        try:
            await self._answer(connection)
        except RequestTooLong as error:
            await connection.send(error_line(error))
            await connection.discard()
        except NfqError as error:
            await connection.send(error_line(error))
        except (ConnectionError, EOFError):  # the client left
            raise
        except Exception:
            _log.exception("a request to the API failed")
            await connection.send(error_line(NfqError("the agent failed at this request; its log has the reason")))

    async def _answer(self, connection: Connection) -> None:
        line = await connection.receive(b"\n")
        if not line:
            return
        result = self._call(line, connection)
        if isinstance(result, AsyncIterator):
            await self._stream(result, connection)
        else:
            await _send(connection, {"result": await result})

    def _call(self, line: bytes, connection: Connection) -> Awaitable[Any] | AsyncIterator[Any]:
        name, params = parse(line)
        if name not in self._methods:
            raise BadInput(f"unknown method '{shorten(name)}'; allowed: {', '.join(sorted(self._methods))}")
        return self._methods[name](params)

    async def _stream(self, items: AsyncIterator[Any], connection: Connection) -> None:
        self._streams += 1
        try:
            if self._streams > self._max_streams:
                raise NfqError(f"too many clients: {self._max_streams} already follow this agent; try again later")
            await _send_stream(items, connection)
        finally:
            self._streams -= 1
            if isinstance(items, AsyncGenerator):
                await items.aclose()


def parse(line: bytes) -> tuple[str, Params]:
    """Return the method and the parameters of a request; raise BadInput."""
    try:
        request = read_json(line)
    except ValueError as error:
        raise BadInput(f"{error}; {_REQUEST}") from None
    match request:
        case {"method": str(name)} if isinstance(given := request.get("params", {}), dict):
            return name, given
    raise BadInput(_REQUEST)


async def _send_stream(items: AsyncIterator[Any], connection: Connection) -> None:
    """Send each item until the stream ends or the client disconnects."""
    sending = asyncio.create_task(_send_all(items, connection))
    disconnect = asyncio.create_task(_wait_closed(connection))
    try:
        await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # raises the error that ended the stream early
    finally:
        await cancel(sending, disconnect)


async def _send_all(items: AsyncIterator[Any], connection: Connection) -> None:
    async for item in items:
        results = item if isinstance(item, Batch) else (item,)
        await connection.send(b"".join(map(_result, results)))


def _result(item: Any) -> bytes:
    return json.dumps({"result": item}).encode() + b"\n"


async def _wait_closed(connection: Connection) -> None:
    while await connection.reader.read(1 << 16):
        pass


async def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    await connection.send(json.dumps(message).encode() + b"\n")


def error_line(error: NfqError) -> bytes:
    """Return the answer to a request that failed."""
    return json.dumps({"error": str(error), "exit_code": error.exit_code}).encode() + b"\n"


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
