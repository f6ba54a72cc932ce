"""Open connections of HTTP/1.1 from hosts of a lab."""

import asyncio
import socket
from types import TracebackType
from typing import Self

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import BRIEF, HTTP, PATIENT
from tests.support.namespaces import within

_KINDS = {4: socket.AF_INET, 6: socket.AF_INET6}


class HttpConnection:
    """HTTP connection: stays open over any number of requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls, lab: Lab, source: str, target: str, family: int = 4, port: int = HTTP, timeout: float = PATIENT
    ) -> Self:
        """Connect from one host to another."""
        made = within(lab, source, lambda: socket.socket(_KINDS[family], socket.SOCK_STREAM))
        made.setblocking(False)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(made, (str(lab.address(target, family)), port))
        return cls(*await asyncio.open_connection(sock=made))

    async def ask(self, path: str, method: str = "GET") -> int:
        """Send a request; return the status code of its answer, or raise ConnectionError."""
        async with asyncio.timeout(PATIENT):
            self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: server\r\n\r\n".encode())
            status = await self._reader.readline()
            if not status:
                raise ConnectionResetError
            length = 0
            while line := (await self._reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            await self._reader.readexactly(length)
            return int(status.split()[1])

    async def fails(self, path: str) -> bool:
        """Return whether a request is refused or gets no answer."""
        try:
            async with asyncio.timeout(BRIEF):
                return await self.ask(path) == 403
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            return True

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
