"""The reflector: the sink has the objects that the server has, whatever happens to lists, streams and versions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from nfq_enforcer.tasks import cancel
from nfq_enforcer.workloads.kubernetes.access import Access
from nfq_enforcer.workloads.kubernetes.client import ApiClient, Json
from nfq_enforcer.workloads.kubernetes.reflector import Name, Reflector, State, Timings
from tests.support.kubernetes_api import PATH, FakeApi

QUICK = Timings(shortest_watch=30, longest_watch=30, first_pause=0.01, longest_pause=0.05, not_installed=0.05, page=2)
PATIENT = 20.0


class Mirror:
    """Mirror: a sink with the state that it was given, and the calls that gave it."""

    def __init__(self) -> None:
        self.state: dict[Name, Any] = {}
        self.calls: list[tuple[str, str]] = []

    def replace(self, objects: Mapping[Name, Any], version: str) -> None:
        self.state = dict(objects)
        self.calls.append(("replace", version))

    def put(self, name: Name, value: Any) -> None:
        self.state[name] = value
        self.calls.append(("put", str(name)))

    def remove(self, name: Name, version: str) -> None:
        del self.state[name]
        self.calls.append(("remove", str(name)))


def project(item: Json) -> Any:
    return item.get("color")


class Scene:
    """Scene: a fake server, a reflector of it, and its sink."""

    def __init__(self, api: FakeApi, client: ApiClient, timings: Timings = QUICK, paths: tuple[str, ...] = (PATH,)):
        self.api = api
        self.mirror = Mirror()
        self.reflector = Reflector(client, paths, project, self.mirror, timings=timings)

    @property
    def colors(self) -> dict[str, Any]:
        return {name.name: value for name, value in self.mirror.state.items()}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENT):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_colors(self, **colors: Any) -> None:
        await self.until(lambda: self.colors == colors)

    async def until_watching(self, watches: int = 1) -> None:
        await self.until(lambda: len(self.api.watches) >= watches and self.reflector.progress.state is State.WATCHING)


@asynccontextmanager
async def scene(
    *, timings: Timings = QUICK, paths: tuple[str, ...] = (PATH,), run: bool = True, **colors: str
) -> AsyncIterator[Scene]:
    api = FakeApi()
    async with api.serving() as client:
        for name, color in colors.items():
            await api.write(name, color=color)
        made = Scene(api, client, timings, paths)
        task = asyncio.create_task(made.reflector.run()) if run else None
        try:
            yield made
        finally:
            await cancel(task)


async def test_a_list_comes_in_pages_and_is_given_as_one_state() -> None:
    async with scene(a="red", b="green", c="blue", d="white", e="black") as s:
        await s.until_colors(a="red", b="green", c="blue", d="white", e="black")

        assert [request["limit"] for request in s.api.lists] == ["2", "2", "2"]
        assert s.mirror.calls == [("replace", "105")]


async def test_events_are_given_one_by_one_and_only_if_the_projection_changes() -> None:
    async with scene(a="red") as s:
        await s.until_watching()

        await s.api.write("b", color="green")
        await s.api.write("a", color="red", unread=1)
        await s.api.write("b", deleted=True)
        await s.api.write("a", color="blue")
        await s.until_colors(a="blue")

        changes = [("put", "default/b"), ("remove", "default/b"), ("put", "default/a")]
        assert s.mirror.calls == [("replace", "101"), *changes]


async def test_a_cut_watch_continues_at_its_last_version() -> None:
    async with scene(a="red") as s:
        await s.until_watching()
        await s.api.bookmark()
        await s.until(lambda: s.reflector.progress.counts.bookmarks)

        await s.api.cut()
        await s.api.write("b", color="green")
        await s.until_colors(a="red", b="green")

        assert [request["resourceVersion"] for request in s.api.watches] == ["101", "111"]
        assert len(s.api.lists) == 1


@pytest.mark.parametrize("as_event", [True, False])
async def test_after_an_expired_version_the_deletions_of_the_gap_are_found(as_event: bool) -> None:
    async with scene(a="red", b="green") as s:
        s.api.gone_as_event = as_event
        await s.until_watching()
        s.api.faults = [web.Response(status=503) for _ in range(2)]

        await s.api.cut()
        await s.until(lambda: s.reflector.progress.counts.failures == 2)
        await s.api.write("a", deleted=True)
        await s.api.write("c", color="blue")
        s.api.compact()
        await s.until_colors(b="green", c="blue")

        assert s.reflector.progress.counts.expired <= 1


async def test_a_list_of_expired_pages_begins_anew() -> None:
    async with scene(run=False, a="red", b="green", c="blue") as s:
        first = s.api._list

        def expire(query: dict[str, str]) -> web.Response:
            answer = first(query)
            if len(s.api.lists) == 1:
                s.api.expire_pages()
            return answer

        s.api._list = expire  # type: ignore[method-assign]
        task = asyncio.create_task(s.reflector.run())
        await s.until_colors(a="red", b="green", c="blue")
        await cancel(task)

        assert s.reflector.progress.counts.expired == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"no JSON\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {"metadata": {}}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "7"}}}\n',
        b'{"type": "PRETENDED", "object": {"metadata": {"resourceVersion": "7"}}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd is gone"}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVer',
        b"[" * 100_000 + b"\n",
        b"",
    ],
)
async def test_a_stream_of_garbage_is_left_and_the_state_stays_right(raw: bytes) -> None:
    async with scene(run=False, a="red") as s:
        s.api.raw = [raw]
        task = asyncio.create_task(s.reflector.run())
        await s.until(lambda: len(s.api.watches) == 2)
        await s.api.write("b", color="green")
        await s.until_colors(a="red", b="green")
        await cancel(task)


async def test_an_event_in_pieces_is_one_event() -> None:
    async with scene(run=False, a="red") as s:
        line = b'{"type":"ADDED","object":{"metadata":{"name":"b","namespace":"default","resourceVersion":"102"},'
        s.api.raw = [line + b'"color":"green"}}\n{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"109"}}}\n']
        task = asyncio.create_task(s.reflector.run())
        await s.until(lambda: len(s.api.watches) == 2)
        await cancel(task)

        assert s.colors == {"a": "red", "b": "green"}
        assert s.api.watches[1]["resourceVersion"] == "109"


async def test_failures_are_told_and_the_state_stays() -> None:
    async with scene(a="red") as s:
        await s.until_watching()
        refusal = {"message": 'pods is forbidden: User "x" cannot watch resource "pods"'}
        s.api.faults = [web.json_response(refusal, status=403) for _ in range(2)]

        await s.api.cut()
        await s.until(lambda: s.reflector.progress.state is State.AWAY and not s.api.faults)
        error = s.reflector.progress.error

        assert error is not None
        assert error.startswith(f"GET {PATH}: HTTP 403: pods is forbidden")
        assert s.colors == {"a": "red"}
        await s.until(lambda: s.reflector.progress.state is State.WATCHING)


async def test_a_server_that_cannot_be_reached_is_named() -> None:
    client = ApiClient(Access("http://127.0.0.1:1", None))
    s = Scene(FakeApi(), client)
    task = asyncio.create_task(s.reflector.run())
    await s.until(lambda: s.reflector.progress.error)
    await cancel(task)
    await client.close()

    assert str(s.reflector.progress.error).startswith("http://127.0.0.1:1: it cannot be reached: Connection refused")


async def test_after_repeated_failures_of_watches_the_objects_are_listed() -> None:
    async with scene(a="red") as s:
        await s.until_watching()
        s.api.faults = [web.json_response({"message": "Too large resource version"}, status=504) for _ in range(3)]

        await s.api.cut()
        await s.until(lambda: len(s.api.lists) > 1 and s.reflector.progress.state is State.WATCHING)


async def test_a_kind_that_is_not_installed_is_looked_for_again() -> None:
    async with scene(run=False) as s:
        s.api.faults = [web.Response(status=404) for _ in range(3)]
        task = asyncio.create_task(s.reflector.run())
        async with asyncio.timeout(PATIENT):
            await s.reflector.synced.wait()
        assert s.reflector.progress.state is State.NOT_INSTALLED
        assert s.mirror.calls == []

        await s.api.write("a", color="red")
        await s.until_colors(a="red")
        await cancel(task)


async def test_known_objects_stay_when_the_server_no_longer_has_the_kind() -> None:
    async with scene(a="red") as s:
        await s.until_watching()
        s.api.faults = [web.Response(status=404) for _ in range(2)]

        await s.api.cut()
        await s.until(lambda: s.reflector.progress.state is State.AWAY and not s.api.faults)

        assert "the 1 known objects stay in force" in str(s.reflector.progress.error)
        assert s.colors == {"a": "red"}


async def test_the_next_version_of_a_kind_is_tried() -> None:
    async with scene(paths=("/api/v2/pods", PATH), a="red") as s:
        await s.until_colors(a="red")


async def test_the_pause_that_a_server_asks_for_is_kept() -> None:
    timings = Timings(first_pause=0.001, longest_pause=7.0)
    async with scene(run=False, timings=timings) as s:
        error = None
        s.api.faults = [web.Response(status=429, headers={"Retry-After": "3"})]
        try:
            await s.reflector._list()
        except Exception as failure:
            error = failure

        assert s.reflector._pause_after(error, 0) == 3.0  # type: ignore[arg-type]
