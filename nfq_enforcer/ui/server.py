"""Server of the service map: one page, its data as JSON, and changes as they come (Server-Sent Events). GET only.

Nothing that the server does changes anything: it calls methods of the agent that read. Every answer has the header
fields of ``access.SECURITY_HEADERS``; all data passes ``details.clean`` on its way out, and the page sets it as text.
The number of streams is bounded, and a reader that does not read is disconnected.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe.service_map import EdgeKey, map_of
from nfq_enforcer.ui import details, filter, static
from nfq_enforcer.ui.access import SECURITY_HEADERS, Listen, Token, host_is_allowed, is_same_origin
from nfq_enforcer.ui.agent_link import AgentLink
from nfq_enforcer.ui.feed import Feed, Feeds
from nfq_enforcer.ui.why import UUID, Why

MAX_STREAMS = 32
_INTERVAL = 0.7  # s between two messages of a stream
_HEARTBEAT = 5.0  # s without a change after which the state is sent again
_SEND_TIME = 10.0  # s for a reader to read enough that the next message can be sent
_NEVER = 1e11  # s since the epoch, after every flow
_TOKEN_NEEDED = "this address needs the token that 'nfq-enforcer ui' has printed"


class MapServer:
    """Map server: the routes of the page."""

    def __init__(self, socket: Path, listen: Listen, token: Token | None) -> None:
        """Set the agent's socket, the address (for the checks of requests) and the token, None if none is needed."""
        self._listen, self._token = listen, token
        self._link = link = AgentLink(socket)
        self._explainer = Why(socket)
        self._feeds = Feeds(link)
        self._streams = 0
        self._assets = static.load()

    def application(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(middlewares=[self._guard, _errors])
        for path in self._assets:
            app.router.add_get(path, self._asset)  # HEAD as well
        for name, handler in (
            ("session", self._session),
            ("stream", self._stream),
            ("map", self._map),
            ("edge", self._edge),
            ("workload", self._workload),
            ("why", self._why),
        ):
            app.router.add_get(f"/api/{name}", handler, allow_head=False)
        app.on_response_prepare.append(_add_headers)
        app.on_cleanup.append(self._stop)
        return app

    async def _stop(self, _app: web.Application) -> None:
        await self._feeds.stop()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests for another host name, of other origins, and for data without the token."""
        if not host_is_allowed(request.headers.get("Host", ""), self._listen):
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, "the service map answers to the address it listens on only")
        is_data = request.path.startswith("/api/")
        if is_data and not is_same_origin(request.headers):
            return _refused(HTTPStatus.FORBIDDEN, "the service map answers to its own page only")
        if is_data and request.path != "/api/session" and not self._has_cookie(request):
            return _refused(HTTPStatus.UNAUTHORIZED, _TOKEN_NEEDED)
        return await handler(request)

    def _has_cookie(self, request: web.Request) -> bool:
        return self._token is None or self._token.is_cookie(request.cookies.get(self._cookie(request), ""))

    def _cookie(self, request: web.Request) -> str:
        """Return the name of the cookie: a browser keeps one jar for all ports of a host."""
        return f"nfq-enforcer-ui-{request.host.rpartition(':')[2]}"

    async def _asset(self, request: web.Request) -> web.Response:
        asset = self._assets[request.path]
        return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8")

    async def _session(self, request: web.Request) -> web.Response:
        """Exchange the token for a cookie, which scripts cannot read and other sites do not send."""
        if self._token is None or self._has_cookie(request):
            return web.json_response({})
        if not self._token.is_bearer(request.headers.get("Authorization", "")):
            return _refused(HTTPStatus.UNAUTHORIZED, _TOKEN_NEEDED)
        response = web.json_response({})
        response.set_cookie(self._cookie(request), self._token.cookie, httponly=True, samesite="Strict", path="/")
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Send the whole map, then its changes at intervals, until the reader leaves."""
        if self._streams >= MAX_STREAMS:
            raise NfqError(f"too many pages are open: {MAX_STREAMS} already follow this map")
        self._streams += 1
        try:
            async with self._feeds.follow(filter.read(request.query.get("filter", ""))) as feed:
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
                await response.prepare(request)
                await _send_changes(feed, response)
                return response
        finally:
            self._streams -= 1

    async def _map(self, request: web.Request) -> web.Response:
        """Return the map of a time span of the log: ``window`` seconds up to ``until``; without, all of it."""
        async with self._feeds.follow(filter.read(request.query.get("filter", ""))) as feed:
            after, until = _span(request.query)
            flows = [flow.seen for flow in feed.between(after, until)]
            made = map_of(reversed(flows), min(until, time.time()))
            return _json({**made.since(0).to_json(), "status": feed.status()})

    async def _edge(self, request: web.Request) -> web.Response:
        """Return the flows of an edge in a time span of the log, and the rules that decided them."""
        query = request.query
        async with self._feeds.follow(filter.read(query.get("filter", ""))) as feed:
            key = EdgeKey(query.get("source", ""), query.get("destination", ""), query.get("verdict", ""))
            after, until = _span(query)
            return _json(details.edge_details(key, feed.between(after, until), min(until, time.time())))

    async def _workload(self, request: web.Request) -> web.Response:
        """Return the policy of an endpoint in both directions, as the agent has compiled it."""
        return _json(await self._link.call("endpoint_policy", name=request.query.get("name", "")))

    async def _why(self, request: web.Request) -> web.Response:
        """Return the explanation of a flow of the log by the documents that the agent has now, or why it has none."""
        uuid = request.query.get("uuid", "")
        if not UUID.fullmatch(uuid):
            raise BadInput("uuid must be that of a flow")
        async with self._feeds.follow(filter.read(request.query.get("filter", ""))) as feed:
            flow = feed.find(uuid)
        if flow is None:
            raise NfqError("the log no longer has this flow")
        try:
            lines = await self._explainer.explain(uuid, flow)
        except NfqError as error:
            lines = str(error).splitlines()
        return _json({"lines": lines})


async def _send_changes(feed: Feed, response: web.StreamResponse) -> None:
    change = 0
    while True:
        version, delta = feed.version, feed.map.since(change)
        change = delta.change
        message = json.dumps(details.clean({**delta.to_json(), "status": feed.status()}))
        try:
            async with asyncio.timeout(_SEND_TIME):
                await response.write(f"data: {message}\n\n".encode())
        except (TimeoutError, ConnectionError):
            return
        await asyncio.sleep(_INTERVAL)
        await feed.changed(version, _HEARTBEAT)


def _span(query: Mapping[str, str]) -> tuple[float, float]:
    """Return the time span of a request: seconds since the epoch, the first one excluded; raise BadInput."""
    until = _number(query, "until", _NEVER)
    return until - _number(query, "window", 2 * _NEVER), until


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    try:
        number = float(query.get(name, default))
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise BadInput(f"{name} must be a number of seconds, 0 or more")
    return number


def _json(data: Any) -> web.Response:
    return web.json_response(details.clean(data))


def _refused(status: HTTPStatus, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer an error of the user, or of the agent, with its sentence."""
    try:
        return await handler(request)
    except BadInput as error:
        return _refused(HTTPStatus.BAD_REQUEST, details.clean(str(error)))
    except NfqError as error:
        return _refused(HTTPStatus.SERVICE_UNAVAILABLE, details.clean(str(error)))


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)
    response.headers.popall("Server", None)
