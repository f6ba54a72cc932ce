"""Sources of workloads on several nodes: their endpoints in a real store, with nodes and servers that fail."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.store.redis.timings import SessionTimings
from nfq_enforcer.workloads.endpoints import make_endpoint
from nfq_enforcer.workloads.publisher import Publisher
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import DOCKER, KUBERNETES
from tests.support.members import Node, endpoint_text, until
from tests.support.redis_servers import RedisServer, valkey_server

TIMINGS = SessionTimings(
    heartbeat=0.1, read_wait=0.3, first_state=0.3, first_pause=0.02, longest_pause=0.1, reconnect=0.1
)


class Host:
    """Node of a cluster with a registrar that writes to its store, in place of an agent."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.replica = Replica(NodeSettings(node.name))
        self.registrar = Registrar(node.name, node.store, lambda: self.replica.hosted, self.reconcile)
        self.registrar.sources = (KUBERNETES, DOCKER)
        self.publisher = Publisher(KUBERNETES, node.store, lambda: self.replica.documents, self.registrar.note_change)
        self.registrar.publisher = self.publisher

    async def reconcile(self) -> None:
        self.replica.apply(self.node.store.poll().changes)

    async def start(self) -> None:
        """Give this node the state of its store."""
        await self.node.pause()  # the host polls by itself
        self.replica = Replica(NodeSettings(self.node.name))
        self.replica.apply(self.node.delivered)
        await self.reconcile()

    async def settle(self) -> None:
        """Write all differences, by the state that this node has by now."""
        await self.reconcile()
        await self.registrar.settle()

    async def seen(self, full_name: str, node: str | None) -> bool:
        """Return whether this node has the endpoint on that node; None: on none."""
        await self.reconcile()
        record = self.replica.endpoints.get(full_name)
        return (record.node if record else None) == node

    async def role(self, name: str) -> str | None:
        """Return the role that a policy of the namespace shop selects; None: this node does not have the policy."""
        await self.reconcile()
        policy = self.replica.documents.get(f"NetworkPolicy/shop/{name}")
        return None if policy is None else policy.data["spec"]["podSelector"]["matchLabels"]["role"]  # type: ignore[index]

    async def selects(self, name: str, role: str | None) -> bool:
        return await self.role(name) == role

    def record(self, full_name: str) -> EndpointRecord:
        return self.replica.endpoints[full_name]


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a server of the test's own, of each product."""
    binary = valkey_server() if request.param == "valkey" else "redis-server"
    with RedisServer(tmp_path / "server", binary=binary) as server:
        yield server


@asynccontextmanager
async def hosts(server: RedisServer, folder: Path) -> AsyncIterator[list[Host]]:
    nodes = [Node(name, server.url(), folder, TIMINGS) for name in ("n1", "n2")]
    try:
        started = [Host(await node.start()) for node in nodes]
        for host in started:
            await host.start()
        yield started
    finally:
        for node in nodes:
            await node.stop()


def play(scene: Callable[[list[Host]], Coroutine[Any, Any, None]], server: RedisServer, folder: Path) -> None:
    async def scene_on_hosts() -> None:
        async with hosts(server, folder) as both:
            await scene(both)

    asyncio.run(scene_on_hosts())


def policy(version: int, role: str = "db", name: str = "p") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "resourceVersion": str(version)}
    spec = {"podSelector": {"matchLabels": {"role": role}}}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def pod(name: str = "web-0", ip: str = "10.0.1.1", role: str = "web") -> Endpoint:
    return make_endpoint("shop", name, {"role": role}, [ip])


async def register_pod(one: Host, two: Host) -> None:
    """Register the pod on the first node; return when the second one has its endpoint."""
    one.registrar.replace(KUBERNETES, [pod()])
    await one.settle()
    await until(lambda: two.seen("shop/web-0", "n1"), "the other node has the endpoint")


def test_an_endpoint_of_a_source_is_known_on_all_nodes_with_its_source(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        await register_pod(one, two)

        assert two.record("shop/web-0").source == one.record("shop/web-0").source == "kubernetes"
        with pytest.raises(BadInput, match="shop/web-0 comes from kubernetes on node n1"):
            await two.node.apply(
                endpoint_text("web-0", "10.0.1.9").replace("name: web-0", "namespace: shop, name: web-0")
            )
        with pytest.raises(BadInput, match="shop/web-0 comes from kubernetes on node n1"):
            await two.node.store.delete_endpoints(["shop/web-0"])

    play(scene, server, tmp_path)


def test_an_endpoint_that_is_on_another_node_by_now_survives_its_end_on_the_first(
    server: RedisServer, tmp_path: Path
) -> None:
    """A pod of a StatefulSet comes back under its name elsewhere before its first node has noted the end."""

    async def scene(both: list[Host]) -> None:
        one, two = both
        await register_pod(one, two)
        two.registrar.replace(KUBERNETES, [pod(ip="10.0.2.1")])
        await two.settle()
        one.registrar.remove(KUBERNETES, "shop/web-0")
        await one.registrar.settle()  # by the state before the move

        await until(lambda: one.seen("shop/web-0", "n2"), "the first node has the endpoint on the other")
        assert await two.seen("shop/web-0", "n2")
        assert (one.registrar.problems, two.registrar.problems) == ({}, {})

    play(scene, server, tmp_path)


@pytest.mark.parametrize("later", [0, 1], ids=["old-node-comes-back-later", "new-node-comes-back-later"])
def test_an_endpoint_that_ended_without_the_store_survives_its_move_meanwhile(
    server: RedisServer, tmp_path: Path, later: int
) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        await register_pod(one, two)
        server.stop()
        await until(lambda: not (one.node.connected or two.node.connected), "both nodes have lost the store")
        one.registrar.replace(KUBERNETES, [])
        two.registrar.replace(KUBERNETES, [pod(ip="10.0.2.1")])
        await asyncio.gather(one.settle(), two.settle())
        await both[later].node.stop()
        server.start()
        await until(lambda: both[1 - later].node.connected, "one node is connected again")
        await both[later].node.start()
        await both[later].start()

        await until(lambda: one.seen("shop/web-0", "n2"), "the first node has the endpoint on the other")
        assert await two.seen("shop/web-0", "n2")

    play(scene, server, tmp_path)


def test_containers_of_two_nodes_can_have_one_address(server: RedisServer, tmp_path: Path) -> None:
    """Each is behind its host. Within a node, and beside any other endpoint, an address belongs to one endpoint."""

    async def scene(both: list[Host]) -> None:
        one, two = both
        one.registrar.replace(DOCKER, [pod("web.n1", "172.17.0.2")])
        await one.settle()
        two.registrar.replace(DOCKER, [pod("web.n2", "172.17.0.2")])
        await two.settle()
        await until(lambda: one.seen("shop/web.n2", "n2"), "the first node has the container of the other")
        assert (one.registrar.problems, two.registrar.problems) == ({}, {})

        one.registrar.put(DOCKER, pod("other.n1", "172.17.0.2"))
        await one.settle()
        belongs = "172.17.0.2 already belongs to endpoint shop/web.n"
        assert one.registrar.problems["shop/other.n1"].startswith(f"{belongs}1")
        with pytest.raises(BadInput, match=f"{belongs}2"):
            await one.node.apply(endpoint_text("host", "172.17.0.2"))

        one.registrar.remove(DOCKER, "shop/web.n1")
        await one.settle()
        await until(lambda: two.seen("shop/other.n1", "n1"), "the other node has the next container")
        assert one.registrar.problems == {}
        two.registrar.remove(DOCKER, "shop/web.n2")
        await two.settle()
        two.registrar.replace(KUBERNETES, [pod("web-0", "172.17.0.3")])
        await two.settle()
        one.registrar.put(DOCKER, pod("third.n1", "172.17.0.3"))
        await one.settle()
        assert one.registrar.problems["shop/third.n1"] == "172.17.0.3 already belongs to endpoint shop/web-0"

    play(scene, server, tmp_path)


def test_containers_of_two_nodes_with_one_address_are_restored(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        for host in both:
            host.registrar.replace(DOCKER, [pod(f"web.{host.node.name}", "172.17.0.2")])
            await host.settle()
        await until(lambda: one.seen("shop/web.n2", "n2"), "the first node has the container of the other")
        server.stop()
        await until(lambda: not (one.node.connected or two.node.connected), "both nodes have lost the store")
        server.start()  # empty

        async def has_both() -> bool:
            stored = await asyncio.to_thread(server.ask, "HKEYS", "nfqe:endpoints")
            return set(stored.split()) == {"shop/web.n1", "shop/web.n2"}

        await until(lambda: one.node.connected and two.node.connected, "both nodes are connected again")
        await until(has_both, "the store has both containers again")
        assert (one.registrar.problems, two.registrar.problems) == ({}, {})

    play(scene, server, tmp_path)


def test_an_address_of_another_node_is_refused_until_it_is_free(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        one.registrar.replace(KUBERNETES, [pod()])
        await one.settle()
        two.registrar.replace(DOCKER, [make_endpoint("default", "db", {}, ["10.0.1.1"])])
        await two.settle()
        refused = dict(two.registrar.problems)
        one.registrar.replace(KUBERNETES, [])
        await one.settle()
        await two.settle()

        assert refused == {"default/db": "10.0.1.1 already belongs to endpoint shop/web-0"}
        assert two.registrar.problems == {} and await two.seen("default/db", "n2")

    play(scene, server, tmp_path)


def test_known_labels_need_no_store_and_new_ones_wait_for_it(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, _ = both
        one.registrar.replace(KUBERNETES, [pod()])
        await one.settle()
        server.stop()
        await until(lambda: not one.node.connected, "the node has lost the store")
        one.registrar.replace(KUBERNETES, [pod(), pod("web-1", "10.0.1.2"), pod("new", "10.0.1.3", "unknown")])
        await one.settle()

        assert await one.seen("shop/web-1", "n1") and await one.seen("shop/new", None)
        assert set(one.registrar.problems) == {"shop/new"}
        assert one.record("shop/web-1").identity == one.record("shop/web-0").identity
        server.start()
        await until(lambda: one.node.connected, "the node is back")
        await one.settle()
        assert await one.seen("shop/new", "n1") and one.registrar.problems == {}

    play(scene, server, tmp_path)


def test_nodes_that_watch_the_same_documents_write_each_change_once(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        for host in both:
            host.publisher.put(policy(5))
            await host.settle()
        revision = one.node.store.revision
        await until(lambda: two.selects("p", "db"), "both have the policy")
        two.publisher.put(policy(6, "web"))
        await two.settle()
        await until(lambda: one.selects("p", "web"), "both have its change")
        one.publisher.put(policy(5))
        await one.settle()
        one.publisher.put(policy(6, "web"))
        await one.settle()

        assert revision == 1 and one.node.store.revision == two.node.store.revision == 2
        assert await one.role("p") == "web"
        assert one.replica.documents["NetworkPolicy/shop/p"].source == "kubernetes"
        with pytest.raises(BadInput, match="NetworkPolicy shop/p comes from kubernetes"):
            await one.node.store.delete_policy("shop", "p")
        two.publisher.remove(policy(7))
        await two.settle()
        await until(lambda: one.selects("p", None), "the policy has ended on both")

    play(scene, server, tmp_path)


def test_a_list_after_a_restart_takes_out_what_ended_meanwhile(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, two = both
        one.publisher.replace("NetworkPolicy", [policy(5), policy(6, name="q")], "7")
        await one.settle()
        await until(lambda: two.selects("q", "db"), "the other node has the policies")
        two.publisher.replace("NetworkPolicy", [policy(6, name="q")], "8")  # the first list of its agent
        await two.settle()

        await until(lambda: one.selects("p", None), "the policy has ended on both")
        assert await one.role("q") == "db"

    play(scene, server, tmp_path)


def test_a_document_waits_for_the_store(server: RedisServer, tmp_path: Path) -> None:
    async def scene(both: list[Host]) -> None:
        one, _ = both
        server.stop()
        await until(lambda: not one.node.connected, "the node has lost the store")
        one.publisher.put(policy(5))
        await one.settle()
        before = await one.role("p")
        server.start()
        await until(lambda: one.node.connected, "the node is back")
        await one.settle()

        assert (before, await one.role("p")) == (None, "db")

    play(scene, server, tmp_path)
