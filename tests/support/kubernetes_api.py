"""A small API server for unit tests of the reflector: lists in pages, watches, expired versions, faults on demand.

``tests/kubernetes`` compares the reflector with a real kube-apiserver; this one only answers as that one was seen to.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from nfq_enforcer.workloads.kubernetes.access import Access
from nfq_enforcer.workloads.kubernetes.client import ApiClient

PATH = "/api/v1/pods"


class FakeApi:
    """Fake API: one collection of objects at ``path``."""

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        self.version = 100
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.compacted = 100  # versions before this one are gone
        self.gone_as_event = True
        self.requests: list[dict[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.faults: list[web.Response] = []  # answers to the next requests
        self.raw: list[bytes] = []  # sent by the next watches, before they are cut
        self._pages: dict[str, list[dict[str, Any]]] = {}
        self._changed = asyncio.Condition()
        self._streams: list[web.Request] = []
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ApiClient]:
        """Serve; yield a client."""
        app = web.Application()
        app.router.add_get(self.path, self._get)
        app.router.add_get("/{path:.*}", self._not_found)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = ApiClient(Access(self.url, None))
        try:
            yield client
        finally:
            await client.close()
            await runner.cleanup()

    @property
    def lists(self) -> list[dict[str, str]]:
        """Return the requests of lists so far."""
        return [request for request in self.requests if "watch" not in request]

    @property
    def watches(self) -> list[dict[str, str]]:
        """Return the requests of watches so far."""
        return [request for request in self.requests if "watch" in request]

    async def write(self, name: str, *, namespace: str = "default", deleted: bool = False, **fields: Any) -> None:
        """Create, change or delete an object."""
        async with self._changed:
            self.version += 1
            key = namespace, name
            before = self.objects.pop(key, None)
            item = before if deleted and before else {"metadata": {"name": name, "namespace": namespace}, **fields}
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            if not deleted:
                self.objects[key] = item
            kind = "DELETED" if deleted else "MODIFIED" if before else "ADDED"
            self.history.append((self.version, kind, item))
            self._changed.notify_all()

    async def bookmark(self) -> None:
        """Send a bookmark of a newer version, as writes of other kinds make them."""
        async with self._changed:
            self.version += 10
            self.history.append((self.version, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))
            self._changed.notify_all()

    def compact(self) -> None:
        """Forget the history."""
        self.compacted = self.version

    async def cut(self) -> None:
        """Cut all open watches."""
        for request in list(self._streams):
            if request.transport is not None:
                request.transport.abort()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append(query)
        if self.faults:
            return self.faults.pop(0)
        if "watch" in query:
            return await self._watch(request, int(query["resourceVersion"]))
        return self._list(query)

    async def _not_found(self, _request: web.Request) -> web.Response:
        return web.Response(status=404, text="404 page not found")

    async def _post(self, request: web.Request) -> web.Response:
        if self.faults:
            return self.faults.pop(0)
        self.created.append({"path": request.path, **await request.json()})
        return web.json_response({"kind": "Event"}, status=201)

    def _list(self, query: dict[str, str]) -> web.Response:
        if "continue" in query:
            if query["continue"] not in self._pages:
                return _status(410, "The provided continue parameter is too old")
            rest = self._pages.pop(query["continue"])
        else:
            rest = list(self.objects.values())
        limit = int(query.get("limit", 10**9))
        meta: dict[str, Any] = {"resourceVersion": str(self.version)}
        if rest[limit:]:
            meta["continue"] = f"token-{len(self.requests)}"
            self._pages[meta["continue"]] = rest[limit:]
        return web.json_response({"kind": "PodList", "metadata": meta, "items": rest[:limit]})

    def expire_pages(self) -> None:
        """Forget the rest of lists that have begun."""
        self._pages.clear()

    async def _watch(self, request: web.Request, version: int) -> web.StreamResponse:
        if version < self.compacted and not self.gone_as_event:
            return _status(410, "too old resource version")
        response = web.StreamResponse()
        await response.prepare(request)
        if version < self.compacted:
            await response.write(_line("ERROR", _expired()))
            return response
        if self.raw:
            await response.write(self.raw.pop(0))
            return response
        self._streams.append(request)
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                while True:
                    for number, kind, item in [entry for entry in self.history if entry[0] > version]:
                        await response.write(_line(kind, item))
                        version = number
                    async with self._changed:
                        if self.version == version or not any(entry[0] > version for entry in self.history):
                            await self._changed.wait()
        except (TimeoutError, ConnectionError):
            return response
        finally:
            self._streams.remove(request)


def _line(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _expired() -> dict[str, Any]:
    return {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)"}


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)
