"""Stream server: accepts clients on a Unix socket or a TCP address, and limits the cost of each and of all together.

One connection carries one request and its response. A client that exceeds a limit, a client that leaves early and a bug
in the handler end that connection and nothing else. ``stop`` closes the connections of all clients.

The number of clients is limited, so that no number of them takes the descriptors that the rest of the program needs.
At the limit, the oldest client that has not sent its request yet makes room for a new one: clients that connect and
wait cannot lock others out. If every client has sent its request, the new one is refused with a sentence.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.tasks import cancel

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16  # bytes that the server buffers for a client before it counts as one with a large request
_LARGE = 4  # clients that may send a large request at a time; the others wait
_ACCEPTED = 32  # connections that are accepted at a time, before the limit applies to them


@dataclass(frozen=True)
class Limits:
    """Limits of a server: of each connection, and of their number."""

    request: int  # bytes of a request
    time: float | None = None  # s for the request and its response; None: no limit, for streams that have no end
    flush: float = 1.0  # s for the client to read the rest of the response while the connection is being closed
    request_time: float = 10.0  # s for the client to send its request
    send_time: float = 10.0  # s for the client to read enough of the response that the next part can be sent
    clients: int = 64  # connections at a time


class RequestTooLong(BadInput):
    """Request too long: it exceeds the limit of bytes."""


class RequestTooSlow(BadInput):
    """Request too slow: the client has not sent all of it in time."""


class TooManyClients(NfqError):
    """Too many clients: the server has as many connections as it may have."""


class Connection:
    """Connection: one client, with the limits applied to what it sends and reads."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits, large: asyncio.Semaphore
    ) -> None:
        """Set the streams; ``large`` is shared by all connections of the server."""
        self.reader = reader
        self.writer = writer
        self.has_request = False
        self._limits = limits
        self._large = large

    @property
    def peer(self) -> socket.socket:
        """Return the socket of the connection to the client."""
        return cast(socket.socket, self.writer.get_extra_info("socket"))

    async def receive(self, end: bytes) -> bytes:
        """Return the request up to and with ``end``, or up to the end of what the client sends.

        Raise RequestTooLong or RequestTooSlow beyond a limit.
        """
        try:
            async with asyncio.timeout(self._limits.request_time):
                request = await self._receive(end)
        except TimeoutError:
            raise RequestTooSlow(
                f"a request has at most {self._limits.request_time:g} seconds to arrive as a whole"
            ) from None
        self.has_request = True
        return request

    async def _receive(self, end: bytes) -> bytes:
        data, is_large = bytearray(), False
        async with contextlib.AsyncExitStack() as large:
            while chunk := await self.reader.read(_CHUNK):
                start = max(0, len(data) - len(end) + 1)
                data += chunk
                found = data.find(end, start)
                if (len(data) if found < 0 else found + len(end)) > self._limits.request:
                    raise RequestTooLong(f"a request has at most {self._limits.request} bytes")
                if found >= 0:
                    return bytes(data[: found + len(end)])
                if len(data) > _CHUNK and not is_large:
                    await large.enter_async_context(self._large)
                    is_large = True
        return bytes(data)

    async def send(self, data: bytes) -> None:
        """Send a part of the response; raise ConnectionError if the client does not read it in time."""
        self.writer.write(data)
        try:
            async with asyncio.timeout(self._limits.send_time):
                await self.writer.drain()
        except TimeoutError:
            raise ConnectionAbortedError("the client does not read") from None

    async def discard(self) -> None:
        """Read and drop the rest of a refused request: the client reads the response after it has sent everything."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._limits.flush):
                while await self.reader.read(_CHUNK):
                    pass

    async def close(self) -> None:
        """Close; give the client a short time to read the rest of the response."""
        self.writer.close()
        try:
            async with asyncio.timeout(self._limits.flush):
                await self.writer.wait_closed()
        except (OSError, TimeoutError):  # a client that left during the response leaves an error
            self.writer.transport.abort()
        except asyncio.CancelledError:  # the server stops: what the client has not read is lost
            self.writer.transport.abort()
            raise


Handler = Callable[[Connection], Awaitable[None]]
Refuse = Callable[[NfqError], bytes]


class StreamServer:
    """Stream server: runs a handler for each client."""

    def __init__(self, handler: Handler, refuse: Refuse, limits: Limits, subject: str) -> None:
        """Set the handler of a connection, and the function that renders a refusal in the server's protocol.

        ``subject`` names a request in the log, as in "a request to the API".
        """
        self._handler = handler
        self._refuse = refuse
        self._limits = limits
        self._subject = subject
        self._server: asyncio.Server | None = None
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        self._stopped = False
        self._large = asyncio.Semaphore(_LARGE)

    async def listen_unix(self, path: Path) -> None:
        """Listen on a Unix socket; raise OSError if the path cannot be bound."""
        self._server = await asyncio.start_unix_server(self._accept, path, limit=_CHUNK, backlog=_ACCEPTED)

    async def listen_tcp(self, host: str, port: int) -> None:
        """Listen on a TCP address (port 0: any free one); raise OSError if the address cannot be bound."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_CHUNK, backlog=_ACCEPTED)

    @property
    def listening(self) -> bool:
        """Return whether the server was started; it stays true after ``stop``."""
        return self._server is not None

    @property
    def port(self) -> int | None:
        """Return the TCP port on which the server listens; None before it is started."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server else None

    async def stop(self) -> None:
        """Stop listening and close the connections of all clients."""
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        for listening in self._server.sockets:
            loop.remove_reader(listening)
        await asyncio.sleep(0)  # asyncio would leave a client open that it is accepting while the server is closed
        self._server.close()
        self._stopped = True
        await cancel(*self._clients.values())

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client in a task; one that is cancelled before it has begun closes nothing, so its end does."""
        connection = Connection(reader, writer, self._limits, self._large)
        if self._stopped:  # it was accepted meanwhile
            writer.transport.abort()
        elif len(self._clients) >= self._limits.clients and not self._make_room():
            writer.write(self._refusal())
            writer.close()
        else:
            task = asyncio.create_task(self._serve(connection))
            self._clients[connection] = task
            task.add_done_callback(lambda _: writer.close())

    async def _serve(self, connection: Connection) -> None:
        deadline = asyncio.timeout(self._limits.time)
        try:
            async with deadline:
                await self._handler(connection)
        except (ConnectionError, EOFError, asyncio.CancelledError):  # the client left, or the server stops
            pass
        except Exception as error:  # a bug costs this client its response and no other client anything
            if not deadline.expired() and error is not connection.reader.exception():  # the latter: the network failed
                _log.exception("%s failed", self._subject)
        finally:
            self._clients.pop(connection, None)
            await connection.close()

    def _make_room(self) -> bool:
        """Disconnect the oldest client without a request; return whether there was one."""
        for connection, task in self._clients.items():
            if not connection.has_request:
                connection.writer.write(self._refusal())
                del self._clients[connection]
                task.cancel()
                return True
        return False

    def _refusal(self) -> bytes:
        error = TooManyClients(f"too many clients: {self._limits.clients} are connected; try again later")
        _log.warning("%s was refused: %s", self._subject, error)
        return self._refuse(error)
