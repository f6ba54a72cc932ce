"""Server of the map, over HTTP: what it serves, to whom, and what it refuses."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nfq_enforcer.errors import NfqError
from nfq_enforcer.ui import feed as feed_module
from nfq_enforcer.ui import server as server_module
from nfq_enforcer.ui.access import SECURITY_HEADERS, Token, parse_listen
from nfq_enforcer.ui.agent_link import AgentLink
from nfq_enforcer.ui.feed import Feeds
from nfq_enforcer.ui.server import MapServer
from tests.support.map_agent import MapAgent, dropped, end, event, restamped

WEB, DB = end("shop", "web-1", role="web"), end("shop", "db-1", role="db")
SECRET = "s" * 40
Message = dict[str, Any]


@pytest.fixture
def agent(tmp_path: Path) -> MapAgent:
    return MapAgent(tmp_path / "agent.sock")


@asynccontextmanager
async def served(path: Path, token: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the map of an agent; give a session whose addresses are relative to it."""
    made = MapServer(path, parse_listen("127.0.0.1:0"), Token(token) if token else None)
    runner = web.AppRunner(made.application(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            yield session
    finally:
        await runner.cleanup()


async def messages(response: aiohttp.ClientResponse) -> AsyncIterator[Message]:
    async with asyncio.timeout(20):
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


async def until_map(session: aiohttp.ClientSession, edges: int, **query: str) -> Message:
    """Return the map of the log once it has so many edges."""
    async with asyncio.timeout(20):
        while True:
            async with session.get("/api/map", params=query) as response:
                answer: Message = await response.json()
                if len(answer.get("edges", ())) == edges:
                    return answer
            await asyncio.sleep(0.05)


async def test_every_answer_has_the_fields_that_protect_the_page(agent: MapAgent) -> None:
    async with served(agent.path) as session:
        for path in ("/", "/assets/page.js", "/api/map", "/api/nothing", "/etc/passwd", "/assets/../server.py"):
            async with session.get(path) as response:
                assert response.headers.items() >= SECURITY_HEADERS.items(), path
                assert "Server" not in response.headers


async def test_the_page_is_served_with_the_types_of_its_files(agent: MapAgent) -> None:
    async with served(agent.path) as session:
        types = {}
        for path in ("/", "/assets/page.js", "/assets/style.css", "/assets/icon.svg"):
            async with session.get(path) as response:
                types[path] = response.status, response.content_type

    assert types == {
        "/": (200, "text/html"),
        "/assets/page.js": (200, "text/javascript"),
        "/assets/style.css": (200, "text/css"),
        "/assets/icon.svg": (200, "image/svg+xml"),
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_there_is_no_method_that_changes_anything(agent: MapAgent, method: str) -> None:
    async with served(agent.path) as session:
        for path in ("/", "/api/map", "/api/stream", "/api/session"):
            async with session.request(method, path) as response:
                assert response.status == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 421),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_other_names_and_other_pages_are_refused(agent: MapAgent, headers: dict[str, str], status: int) -> None:
    with agent.running():
        async with served(agent.path) as session, session.get("/api/map", headers=headers) as response:
            assert response.status == status


async def test_without_the_token_there_is_no_data(agent: MapAgent) -> None:
    with agent.running():
        async with served(agent.path, token=SECRET) as session:
            for path in ("/api/map", "/api/stream", "/api/edge", "/api/workload?name=a/b", "/api/why", "/api/session"):
                for headers in ({}, {"Authorization": f"Bearer {SECRET}x"}, {"Cookie": "nfq-enforcer-ui=x"}):
                    async with session.get(path, headers=headers) as response:
                        assert response.status == 401
                        assert "token" in (await response.json())["error"]


async def test_the_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(agent: MapAgent) -> None:
    with agent.running():
        async with served(agent.path, token=SECRET) as session:
            async with session.get("/api/session", headers={"Authorization": f"Bearer {SECRET}"}) as response:
                cookie = response.headers["Set-Cookie"]
            async with session.get("/api/map") as response:  # with the cookie alone
                assert response.status == 200

    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert SECRET not in cookie


async def test_a_stream_begins_with_the_whole_map_and_goes_on_with_changes(agent: MapAgent) -> None:
    with agent.running(event(WEB, DB, port=5432)):
        async with served(agent.path) as session, session.get("/api/stream") as response:
            assert response.content_type == "text/event-stream"
            stream = messages(response)
            seen: dict[str, Message] = {}
            sent = False
            async for message in stream:
                seen |= {edge["verdict"]: edge for edge in message["edges"]}
                if "FORWARDED" in seen and not sent:
                    agent.add(dropped(DB, WEB, port=22))
                    sent = True
                if "DROPPED" in seen:
                    assert not message["whole"]
                    break

    assert (seen["FORWARDED"]["source"], seen["FORWARDED"]["ports"]) == ("shop/web-1", ["5432/TCP"])
    assert (seen["DROPPED"]["source"], seen["DROPPED"]["ports"]) == ("shop/db-1", ["22/TCP"])


async def test_the_filter_is_that_of_observe_and_the_agent_applies_it(agent: MapAgent) -> None:
    with agent.running(event(WEB, DB), dropped(DB, WEB)):
        async with served(agent.path) as session:
            answer = await until_map(session, 1, filter="--verdict DROPPED --not --to-port 443")
            assert answer["edges"][0]["verdict"] == "DROPPED"
            assert answer["status"]["log"]["flows"] == 1
            async with session.get("/api/map", params={"filter": "--verdict NONE"}) as response:
                assert response.status == 400
                assert (await response.json())["error"].startswith("--verdict 'NONE': ")
            async with session.get("/api/stream", params={"filter": "nonsense"}) as response:
                assert response.status == 400


async def test_a_time_span_of_the_log_has_its_own_map(agent: MapAgent) -> None:
    with agent.running(event(WEB, DB, at=1000.0), dropped(DB, WEB, at=2000.0)):
        async with served(agent.path) as session:
            await until_map(session, 2)
            until = await until_map(session, 1, until="1500")
            window = await until_map(session, 1, until="2000", window="60")
            await until_map(session, 0, until="1900", window="60")
            async with session.get("/api/map", params={"until": "x"}) as response:
                assert response.status == 400

    assert (until["edges"][0]["verdict"], window["edges"][0]["verdict"]) == ("FORWARDED", "DROPPED")


async def test_an_edge_has_its_flows(agent: MapAgent) -> None:
    with agent.running(event(WEB, DB), dropped(DB, WEB)):
        async with served(agent.path) as session:
            await until_map(session, 2)
            query = {"source": "shop/db-1", "destination": "shop/web-1", "verdict": "DROPPED"}
            async with session.get("/api/edge", params=query) as response:
                answer = await response.json()

    assert [flow["reason"] for flow in answer["flows"]] == ["POLICY_DENIED"]


async def test_a_workload_has_the_policy_that_its_agent_has_compiled(agent: MapAgent) -> None:
    agent.policy = {"endpoint": "shop/db-1", "labels": ["a\u202eb"]}
    with agent.running():
        async with served(agent.path) as session:
            async with session.get("/api/workload", params={"name": "shop/db-1"}) as response:
                assert await response.json() == {"endpoint": "shop/db-1", "labels": ["a\\u202eb"]}
            agent.policy = {}
            async with session.get("/api/workload", params={"name": "a/b"}) as response:
                assert response.status == 503
                assert await response.json() == {"error": "no endpoint has the name 'a/b'"}


async def test_an_agent_that_was_away_is_followed_again_and_flows_are_counted_once(
    agent: MapAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_AGAIN", 0.05)
    first, second = event(WEB, DB), dropped(DB, WEB)
    async with served(agent.path) as session, session.get("/api/stream") as response:
        stream = messages(response)
        assert (await anext(stream))["status"]["agent"]["error"]
        with agent.running(first):
            await until_map(session, 1)
        async for message in stream:
            away = message["status"]["agent"]
            if message["status"]["log"]["flows"] and away["error"]:
                assert away["away_since"]
                break
        with agent.running(first, second):  # the log of an agent that was only restarted has the first once more
            answer = await until_map(session, 2)

    assert {edge["verdict"]: edge["flows"] for edge in answer["edges"]} == {"FORWARDED": 1, "DROPPED": 1}
    assert answer["status"]["agent"] == {"error": "", "away_since": None}


async def test_flows_that_the_agent_has_dropped_are_counted(agent: MapAgent) -> None:
    with agent.running(event(WEB, DB)):
        async with served(agent.path) as session:
            await until_map(session, 1)
            agent.add(*restamped([dropped(DB, WEB)] * 12_000))  # at once: more than may wait for a follower
            answer = await until_map(session, 2)

    assert answer["status"]["lost"] == 2_000
    assert sum(edge["flows"] for edge in answer["edges"]) <= 10_001


async def test_what_is_no_flow_is_counted_and_left_out(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b'{"result": {"source": 3, "destination": []}}\n{"result": 7}\nnonsense\n')

    with listening(tmp_path / "agent.sock") as server:
        feeds = Feeds(AgentLink(tmp_path / "agent.sock"))
        async with feeds.follow({}) as feed:
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                answer(connection)
                async with asyncio.timeout(20):
                    while feed.unreadable < 2 or not feed.error:
                        await feed.changed(feed.version, 0.05)
        await feeds.stop()

    assert "not an agent's answer" in feed.error


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


async def test_the_number_of_streams_is_bounded(agent: MapAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    with agent.running():
        async with served(agent.path) as session, session.get("/api/stream") as first:
            assert first.status == 200
            async with session.get("/api/stream") as second:
                assert second.status == 503
                assert "too many pages" in (await second.json())["error"]


async def test_pages_with_the_same_filter_share_one_stream_of_the_agent(tmp_path: Path) -> None:
    feeds = Feeds(AgentLink(tmp_path / "agent.sock"))
    async with feeds.follow({"a": 1}) as one, feeds.follow({"a": 1}) as same, feeds.follow({"a": 2}) as other:
        assert one is same
        assert one is not other
    async with feeds.follow({"a": 1}) as again:  # a page that reloads
        assert again is one
    await feeds.stop()


async def test_the_number_of_filters_is_bounded_and_one_without_a_page_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "MAX_FEEDS", 1)
    feeds = Feeds(AgentLink(tmp_path / "agent.sock"))
    async with feeds.follow({"a": 1}):
        with pytest.raises(NfqError, match="too many filters"):
            async with feeds.follow({"a": 2}):
                pass
    async with feeds.follow({"a": 2}):
        pass
    await feeds.stop()


async def test_a_reader_that_does_not_read_is_disconnected_and_holds_nobody_up(
    agent: MapAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    monkeypatch.setattr(server_module, "_SEND_TIME", 0.2)
    monkeypatch.setattr(server_module, "_INTERVAL", 0.0)
    many = [event(end("shop", f"web-{number}", role="web"), DB) for number in range(1_000)]
    with agent.running(*many), socket.socket() as slow:
        async with served(agent.path) as session:
            await until_map(session, 1_000)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            slow.connect(("127.0.0.1", port_of(session)))
            slow.send(b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await until_status(session, 503)  # the slow one has the only place
            await until_status(session, 200, lambda: agent.add(*restamped(many)))  # its place is free again


def port_of(session: aiohttp.ClientSession) -> int:
    """Return the port of the server of a session."""
    assert session._base_url is not None
    assert session._base_url.port is not None
    return session._base_url.port


async def until_status(session: aiohttp.ClientSession, status: int, act: Callable[[], None] = lambda: None) -> None:
    """Ask for the stream until the answer has this status, with an action before each question."""
    async with asyncio.timeout(30):
        while True:
            act()
            async with session.get("/api/stream") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.02)
