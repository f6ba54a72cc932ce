"""Admin interface of Envoy: its statistics, over its Unix socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

_TIMEOUT = 2.0  # s


async def get(path: Path, target: str) -> Any:
    """Return the JSON value of a page; None if Envoy does not respond."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return json.loads(await _get(path, target))
    except (OSError, EOFError, TimeoutError, ValueError):
        return None


async def _get(path: Path, target: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        return b"".join([chunk async for chunk in _chunks(reader)])
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of a body (RFC 9112, section 7.1)."""
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readline()


def counters(statistics: Any) -> dict[str, int]:
    """Return the values of a page of statistics by name; none if it is not one."""
    entries = statistics.get("stats", ()) if isinstance(statistics, dict) else ()
    return {entry["name"]: entry["value"] for entry in entries if isinstance(entry.get("value"), int)}
