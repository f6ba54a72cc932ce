"""Stream server: accepts clients on a Unix socket or a TCP address, and limits the cost of each.

One connection carries one request and its response. A client that exceeds a limit, a client that leaves early and a bug
in the handler end that connection and nothing else. ``stop`` closes the connections of all clients.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Limits of one connection."""

    request: int  # bytes of a request that the reader accepts in one piece; above it the reader raises
    time: float | None = None  # s for the request and its response; None: no limit, for streams that have no end
    flush: float = 1.0  # s for the client to read the rest of the response while the connection is being closed


class StreamServer:
    """Stream server: runs a handler for each client."""

    def __init__(self, handler: Handler, limits: Limits, subject: str) -> None:
        """Set the handler of a connection; ``subject`` names a request in the log, as in "a request to the API"."""
        self._handler = handler
        self._limits = limits
        self._subject = subject
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def listen_unix(self, path: Path) -> None:
        """Listen on a Unix socket; raise OSError if the path cannot be bound."""
        self._server = await asyncio.start_unix_server(self._serve, path, limit=self._limits.request)

    async def listen_tcp(self, host: str, port: int) -> None:
        """Listen on a TCP address (port 0: any free one); raise OSError if the address cannot be bound."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=self._limits.request)

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
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        deadline = asyncio.timeout(self._limits.time)
        try:
            async with deadline:
                await self._handler(reader, writer)
        except (ConnectionError, EOFError, asyncio.CancelledError):  # the client left, or the server stops
            pass
        except Exception as error:  # a bug costs this client its response and no other client anything
            if not deadline.expired() and error is not reader.exception():  # the latter: the network failed
                _log.exception("%s failed", self._subject)
        finally:
            await self._close(writer)
            self._clients.discard(task)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):  # a client that left during the response leaves an error
            async with asyncio.timeout(self._limits.flush):
                await writer.wait_closed()
