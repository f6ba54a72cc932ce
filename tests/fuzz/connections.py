"""Connections: one exchange with a server over a Unix socket, in an event loop that stays for all inputs."""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

Listen = Callable[[Path], Awaitable[None]]


def exchange(listen: Listen, data: bytes) -> bytes:
    """Return the answer of the server that ``listen`` starts, to a client that sends these bytes and no more."""
    folder, loop = _place()
    path = Path(folder.name) / f"{id(listen):x}.sock"
    if not path.exists():
        loop.run_until_complete(listen(path))
    return loop.run_until_complete(asyncio.wait_for(_exchange(path, data), 5))


@cache
def _place() -> tuple[tempfile.TemporaryDirectory[str], asyncio.AbstractEventLoop]:
    return tempfile.TemporaryDirectory(prefix="nfqe-fuzz-", ignore_cleanup_errors=True), asyncio.new_event_loop()


async def _exchange(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
