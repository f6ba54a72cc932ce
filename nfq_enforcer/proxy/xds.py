"""xDS server: Envoy gets its listeners and route configurations by long polling, as JSON over a Unix socket.

Envoy sends a request with the version that it has (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol);
the response waits for another one. A version that Envoy seems to refuse is offered again after a pause, since a
response may also have been lost on its way. Versions differ between two agents, so an Envoy that outlives its agent
gets the complete state of the next one at once. A resource that has not been set yet has no response: Envoy keeps its
own. Each request describes Envoy with all of its extensions, in 80 KB: it is not read, and requests are held for long.
"""

import asyncio
import json
import logging
import os
import random
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from nfq_enforcer.proxy.resources import REQUEST_TIMEOUT
from nfq_enforcer.tasks import cancel

_log = logging.getLogger(__name__)
_HOLD = REQUEST_TIMEOUT * 0.9  # s that a request without news is held, at most
_PAUSE = 1.0  # s until a refused version is offered again
_LARGEST = 1 << 20  # bytes of a request
_HEAD_END = b"\r\n\r\n"
_NODE = re.compile(rb'"node":\{.*\},(?="resource_names":|"type_url":)', re.DOTALL)  # Envoy's description of itself

Json = dict[str, Any]
Key = tuple[str, str]  # type URL; name of the resource, or "" for all of the type


class Versioned(NamedTuple):
    """Versioned resources: the JSON texts of a subscription's resources, and their version."""

    version: str
    resources: tuple[str, ...]


class XdsServer:
    """XdsServer: holds the resources and responds to Envoy's requests for them."""

    def __init__(self, on_refusal: Callable[[Key], None]) -> None:
        """Start without resources; ``on_refusal`` receives the key of resources that Envoy has refused twice."""
        self._on_refusal = on_refusal
        self._refused: dict[Key, str] = {}
        self._run = secrets.token_hex(4)
        self._versions = count(1)
        self._current: dict[Key, Versioned] = {}
        self._sent: dict[Key, str] = {}
        self._accepted: dict[Key, str] = {}
        self._changed: dict[Key, asyncio.Event] = {}
        self._progress: dict[Key, asyncio.Event] = {}  # of subscriptions whose acceptance is waited for
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path, uid: int) -> None:
        """Listen on a Unix socket that only this user, and root, can connect to; raise OSError if that fails."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_LARGEST, backlog=1024)
        path.chmod(0o600)
        os.chown(path, uid, -1)

    async def stop(self) -> None:
        """Stop listening, and end all connections."""
        if self._server is not None:
            self._server.close()
        await cancel(*self._clients)

    def set(self, key: Key, resources: tuple[str, ...]) -> None:
        """Set the resources of a subscription; nothing happens if they are the current ones."""
        current = self._current.get(key)
        if current is None or current.resources != resources:
            self._current[key] = Versioned(f"{self._run}-{next(self._versions)}", resources)
            self._event(key).set()

    def remove(self, key: Key) -> None:
        """Remove the resources of a subscription; its requests have no response any more."""
        for held in (self._current, self._sent, self._accepted, self._refused):
            held.pop(key, None)
        self._note_progress(key)

    def forget_client(self) -> None:
        """Forget the state of an Envoy that has ended, and its requests."""
        self._sent.clear()
        self._accepted.clear()
        for client in self._clients:
            client.cancel()

    def is_accepted(self, key: Key) -> bool:
        """Return whether Envoy has the current version of a subscription's resources."""
        current = self._current.get(key)
        return current is not None and self._accepted.get(key) == current.version

    async def wait_accepted(self, key: Key) -> None:
        """Return when Envoy has the current version of a subscription's resources."""
        while key in self._current and not self.is_accepted(key):
            await self._progress.setdefault(key, asyncio.Event()).wait()

    def _note_progress(self, key: Key) -> None:
        if event := self._progress.pop(key, None):
            event.set()

    def _event(self, key: Key) -> asyncio.Event:
        return self._changed.setdefault(key, asyncio.Event())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while True:
                writer.write(await self._respond(await _receive(reader)))
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError) as error:
            if isinstance(error, ValueError):
                _log.warning("xDS: a request is not valid: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _respond(self, request: Json) -> bytes:
        """Return the response to a request for resources, when there is news for Envoy."""
        names = request.get("resource_names") or [""]
        key, version = (request["type_url"], names[0]), request.get("version_info", "")
        current = self._current.get(key)
        if current is not None and current.version == version:
            self._accepted[key] = version
            self._note_progress(key)
        elif current is not None and self._sent.get(key) == current.version:
            await self._refuse(key, current.version)
        offered = await self._news(key, version)
        if offered is None:
            return _encode(304, b"")
        self._sent[key] = offered.version
        head = json.dumps({"version_info": offered.version, "type_url": key[0]}).removesuffix("}")
        return _encode(200, f'{head}, "resources": [{",".join(offered.resources)}]}}'.encode())

    async def _refuse(self, key: Key, version: str) -> None:
        """Note a version that Envoy does not accept; return after a pause, or at another version."""
        if self._refused.get(key) == version:
            self._on_refusal(key)
        self._refused[key] = version
        event = self._event(key)
        event.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE):
                await event.wait()

    async def _news(self, key: Key, version: str) -> Versioned | None:
        """Return the current resources as soon as their version is another; None if that takes too long."""
        event = self._event(key)
        with suppress(TimeoutError):
            async with asyncio.timeout(_HOLD * random.uniform(0.5, 1)):  # requests of one burst end at different times
                while True:
                    current = self._current.get(key)
                    if current is not None and current.version != version:
                        return current
                    event.clear()
                    await event.wait()
        return None


async def _receive(reader: asyncio.StreamReader) -> Json:
    """Return the JSON object of the next request; raise ValueError if it is none."""
    head = (await reader.readuntil(_HEAD_END)).decode("latin-1").lower()
    _, found, rest = head.partition("\r\ncontent-length:")
    length = int(rest.partition("\r\n")[0]) if found else 0
    if not 0 <= length <= _LARGEST:
        raise ValueError(f"a body of {length} bytes")
    request = json.loads(_NODE.sub(b"", await reader.readexactly(length), count=1))
    if not isinstance(request, dict) or not isinstance(request.get("type_url"), str):
        raise ValueError("it has no type_url")
    return request


def _encode(status: int, body: bytes) -> bytes:
    reason = {200: "OK", 304: "Not Modified"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
