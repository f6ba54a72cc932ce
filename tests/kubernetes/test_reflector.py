"""The reflector and a real API server: pages, versions, restarts, expired history."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nfq_enforcer.tasks import cancel
from nfq_enforcer.workloads.kubernetes.client import ApiClient, ApiError
from nfq_enforcer.workloads.kubernetes.reflector import Name, Reflector, State, Timings
from tests.support.apart import call_in
from tests.support.kubernetes_cluster import Cluster

PATH = "/api/v1/namespaces/maps/configmaps"
MAPS = 120
QUICK = Timings(page=50, first_pause=0.05, longest_pause=0.5, shortest_watch=1, longest_watch=2)
PATIENCE = 60.0


class Mirror:
    """Mirror: a sink with the present state."""

    def __init__(self) -> None:
        self.state: dict[Name, str] = {}
        self.removed: list[str] = []

    def replace(self, objects: Mapping[Name, str], version: str) -> None:
        self.state = dict(objects)

    def put(self, name: Name, value: str) -> None:
        self.state[name] = value

    def remove(self, name: Name, version: str) -> None:
        del self.state[name]
        self.removed.append(name.name)

    @property
    def values(self) -> dict[str, str]:
        return {name.name: value for name, value in self.state.items() if name.name != "kube-root-ca.crt"}


@pytest.fixture
def maps(cluster: Cluster) -> Iterator[Callable[[str, str | None], None]]:
    """Give a function that writes an object, or deletes it; the namespace has MAPS objects."""

    def write(name: str, value: str | None) -> None:
        if value is None:
            assert cluster.api.ask("DELETE", f"{PATH}/{name}").status == 200
            return
        body = {"metadata": {"name": name}, "data": {"value": value}}
        if cluster.api.ask("PUT", f"{PATH}/{name}", body).status == 404:
            assert cluster.api.ask("POST", PATH, body).status == 201

    cluster.api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "maps"}})
    for number in range(MAPS):
        write(f"m{number}", "0")
    yield write
    assert cluster.api.ask("DELETE", PATH).status == 200


class Watcher:
    """Watcher: a reflector that can be stopped and continued with its version."""

    def __init__(self, client: ApiClient) -> None:
        self.mirror = Mirror()
        self.reflector = Reflector(
            client, [PATH], lambda item: item["data"].get("value", ""), self.mirror, timings=QUICK
        )

    @asynccontextmanager
    async def running(self) -> Any:
        task = asyncio.create_task(self.reflector.run())
        try:
            yield
        finally:
            await cancel(task)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.02)


def play(cluster: Cluster, scene: Callable[[Watcher], Coroutine[Any, Any, None]]) -> None:
    async def scene_with_client() -> None:
        client = ApiClient(cluster.api.access())
        try:
            await scene(Watcher(client))
        finally:
            await client.close()

    call_in(cluster.api.namespace, lambda: asyncio.run(scene_with_client()))


def test_pages_and_events(cluster: Cluster, maps: Callable[[str, str | None], None]) -> None:
    async def scene(watcher: Watcher) -> None:
        async with watcher.running():
            await watcher.until(lambda: len(watcher.mirror.values) == MAPS)
            await asyncio.to_thread(maps, "m0", "1")
            await asyncio.to_thread(maps, "new", "2")
            await asyncio.to_thread(maps, "m1", None)
            await watcher.until(lambda: watcher.mirror.removed == ["m1"])
            assert watcher.mirror.values["m0"] == "1"
            assert watcher.mirror.values["new"] == "2"

            watches = watcher.reflector.progress.counts.watches
            await watcher.until(lambda: watcher.reflector.progress.counts.watches > watches)  # the server ends each

        assert watcher.reflector.progress.counts.lists == 1
        assert watcher.reflector.progress.counts.failures == 0

    play(cluster, scene)


def test_a_killed_server_is_watched_again_without_a_list(
    cluster: Cluster, maps: Callable[[str, str | None], None]
) -> None:
    async def scene(watcher: Watcher) -> None:
        async with watcher.running():
            await watcher.until(lambda: len(watcher.mirror.values) == MAPS)
            lists = watcher.reflector.progress.counts.lists
            await asyncio.to_thread(maps, "m0", "before")
            await watcher.until(lambda: watcher.mirror.values["m0"] == "before")
            await asyncio.to_thread(cluster.api.kill_server)
            await watcher.until(lambda: watcher.reflector.progress.state is State.AWAY)
            assert len(watcher.mirror.values) == MAPS
            await asyncio.to_thread(cluster.api.start_server)
            await asyncio.to_thread(maps, "m0", "after")
            await watcher.until(lambda: watcher.mirror.values["m0"] == "after")
            assert watcher.reflector.progress.counts.lists == lists

    play(cluster, scene)


def test_after_an_expired_version_deletions_of_the_gap_are_found(
    cluster: Cluster, maps: Callable[[str, str | None], None]
) -> None:
    async def scene(watcher: Watcher) -> None:
        async with watcher.running():
            await watcher.until(lambda: len(watcher.mirror.values) == MAPS)

        def change() -> None:
            maps("m2", None)
            maps("m3", "changed")
            cluster.api.kill_server()
            cluster.api.compact()
            cluster.api.start_server()
            maps("m4", "changed")

        await asyncio.to_thread(change)
        async with watcher.running():
            await watcher.until(lambda: watcher.mirror.values.get("m4") == "changed")
            await watcher.until(lambda: "m2" not in watcher.mirror.values)
            assert watcher.mirror.values["m3"] == "changed"
        assert watcher.reflector.progress.counts.expired == 1
        assert watcher.reflector.progress.counts.lists == 2

    play(cluster, scene)


def test_an_error_of_the_server_is_a_sentence(cluster: Cluster) -> None:
    async def scene() -> None:
        client = ApiClient(cluster.api.access())
        try:
            with pytest.raises(ApiError, match=r"GET /api/v1/nothing: HTTP 404: the server could not find"):
                await client.get("/api/v1/nothing", {})
        finally:
            await client.close()

    call_in(cluster.api.namespace, lambda: asyncio.run(scene()))
