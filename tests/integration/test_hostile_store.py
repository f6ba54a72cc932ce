"""Hostile values in a real store: each is refused and named, none stops a node, and none outlives its removal."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.errors import BadInput
from nfq_enforcer.store.redis.commands import Request
from nfq_enforcer.store.redis.connection import StoreError
from nfq_enforcer.store.redis.schema import MAX_COUNT
from tests.support.members import Node, connection, dump, policy_text, until
from tests.support.redis_servers import RedisServer

BACK = 13255283
Attack = Callable[["Store"], Awaitable[object]]


class Store:
    """Store: writes to a cluster's keys as anyone with the password can."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def change(self, *changes: object, raw: bytes | None = None, **fields: object) -> None:
        """Append an entry to the stream, with the next serial unless ``fields`` has another."""
        if "serial" not in fields:
            fields["serial"] = await self.redis.hincrby("nfqe:meta", "serial", 1)
        data: dict[Any, Any] = {"changes": json.dumps(changes) if raw is None else raw, **fields}
        await self.redis.xadd("nfqe:changes", data)


def endpoint(**changed: Any) -> str:
    """Return the value of an endpoint of another node, with changed fields."""
    name, identity = changed.pop("name", "x"), changed.pop("identity", BACK)
    labels = changed.pop("labels", {"role": "backend"})
    spec = {"node": "n3", "ips": ["10.31.3.77"], **changed}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    document = {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}
    return json.dumps({"v": 1, "identity": identity, "document": document})


def node(**changed: Any) -> str:
    """Return the value of a node with changed fields."""
    return json.dumps({"v": 1, "addresses": ["172.31.0.77"], "version": "1", "datapath": "per-packet", **changed})


def a_change(kind: str, name: str, value: str | None) -> Attack:
    return lambda store: store.change([kind, name, value])


INVALID = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"}, "spec": {"no": 1}}
MANY = {f"k{number}": "v" for number in range(100_000)}
GARBAGE = b"\xff" * 2_000_000
REFUSED: Mapping[str, Attack] = {
    "a foreign field in the stream": lambda store: store.redis.xadd("nfqe:changes", {"hello": "world"}),
    "changes that are not JSON": lambda store: store.change(raw=b"{{{{"),
    "changes nested deeply": lambda store: store.change(raw=b"[" * 200_000),
    "changes of wrong shapes": lambda store: store.change([1, 2, 3], ["endpoint"], "x", {"a": 1}),
    "changes of wrong types": lambda store: store.change(["endpoint", 3, "{}"], ["endpoint", "x", {"a": 1}]),
    "an unknown kind": a_change("virus", "x", "{}"),
    "an endpoint without fields": a_change("endpoint", "default/x", '{"v":1}'),
    "an endpoint of version 2": a_change("endpoint", "default/x", endpoint().replace('"v": 1', '"v": 2')),
    "a reserved identity": a_change("endpoint", "default/x", endpoint(identity=1)),
    "identity true": a_change("endpoint", "default/x", endpoint(identity=True)),
    "identity 1e99": a_change("endpoint", "default/x", endpoint(identity=1e99)),
    "identity 2^80": a_change("endpoint", "default/x", endpoint(identity=2**80)),
    "50,000 addresses": a_change(
        "endpoint",
        "default/x",
        endpoint(ips=[f"10.200.{n // 256 % 256}.{n % 256}" for n in range(50_000)]),
    ),
    **{
        f"address {address}": a_change("endpoint", "default/x", endpoint(ips=[address]))
        for address in ("0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "224.0.0.1", "x", "")
    },
    "100,000 labels": a_change("endpoint", "default/x", endpoint(labels=MANY)),
    "an identity with 100,000 labels": a_change(
        "identity", "70000", json.dumps({"v": 1, "labels": ";".join(sorted(f"k8s:{key}=v" for key in MANY))})
    ),
    "a label of the engine": a_change(
        "endpoint", "default/x", endpoint(labels={"io.kubernetes.pod.namespace": "kube-system"})
    ),
    "a name with control characters": a_change("endpoint", "default/\x1b]0;x\x07\nx", endpoint(name="\x1b]0;x\x07\nx")),
    "an interface with control characters": a_change("endpoint", "default/x", endpoint(interface="\x1b[2J")),
    "a node's name with control characters": a_change("node", "n\x1b[31mX\n", node()),
    "a node's version with control characters": a_change("node", "n7", node(version="\x1b[2J\x1b]0;pwned\x07")),
    "a node's datapath with control characters": a_change("node", "n7", node(datapath="\u202e")),
    "a node's address": a_change("node", "n7", node(addresses=["0.0.0.0"])),
    "an invalid document": a_change(
        "document",
        "CiliumNetworkPolicy/default/x",
        json.dumps({"v": 1, "origin": "x", "document": INVALID}),
    ),
    "serial 2^80": lambda store: store.change(["endpoint", "default/x", None], serial=2**80),
    "revision 2^80": lambda store: store.change(["endpoint", "default/x", None], revision=2**80),
    "revision at the limit": lambda store: store.change(["endpoint", "default/x", None], revision=MAX_COUNT),
    "revision -5": lambda store: store.change(["endpoint", "default/x", None], revision=-5),
    "revision with underscores": lambda store: store.change(["endpoint", "default/x", None], revision="1_0"),
    "2 MB in an endpoint": a_change("endpoint", "default/x", "A" * 2_000_000),
}
SURVIVED: Mapping[str, Attack] = {
    "a serial that runs back": lambda store: store.change(["endpoint", "default/x", None], serial=1),
    "garbage in the hash of endpoints": lambda store: store.redis.hset(
        "nfqe:endpoints", "default/big", b"\xff" * 2_000_000
    ),
    "a field's name that is not text": lambda store: store.redis.hset("nfqe:endpoints", b"\xff\x1b", b"x"),
    "meta: revision 2^80": lambda store: store.redis.hset("nfqe:meta", "revision", str(2**80)),
    "meta: revision at the limit": lambda store: store.redis.hset("nfqe:meta", "revision", str(MAX_COUNT)),
    "meta: revision of words": lambda store: store.redis.hset("nfqe:meta", "revision", "x"),
    "meta: serial 2^80": lambda store: store.redis.hset("nfqe:meta", "serial", str(2**80)),
    "meta: serial of words": lambda store: store.redis.hset("nfqe:meta", "serial", "x"),
    "meta: collected in the future": lambda store: store.redis.hset("nfqe:meta", "collected", "9" * 40),
    "enforced: 2^80": lambda store: store.redis.hset("nfqe:enforced", "n1", str(2**80)),
    "enforced: words": lambda store: store.redis.hset("nfqe:enforced", "n1", "x"),
    "seen: infinity": lambda store: store.redis.zadd("nfqe:seen", {"n1": float("inf")}),
    "seen: a name that is not text": lambda store: store.redis.zadd("nfqe:seen", {b"\xff\xfe": 1.0}),
    "a fork that is none": lambda store: store.redis.rpush("nfqe:forks", "\x1b[2J"),
    "a fork of the far future": lambda store: store.redis.rpush("nfqe:forks", f"abc@{'9' * 20}-0 0-0"),
    "an identity's number 2^80": lambda store: store.redis.hset("nfqe:numbers", "k8s:app=later", str(2**80)),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("hostile")) as server:
        yield server


@asynccontextmanager
async def cluster(server: RedisServer, folder: Path) -> AsyncIterator[tuple[Store, Node, Node]]:
    """Give an empty store, and two nodes with an endpoint and a policy."""
    async with connection(server.url()) as redis:
        await redis.flushall()
        nodes = [Node(name, server.url(), folder) for name in ("n1", "n2")]
        try:
            for one in nodes:
                await one.start()
            await nodes[0].run_endpoint("web", "10.0.0.1")
            await nodes[0].apply(policy_text("p"))
            yield Store(redis), nodes[0], nodes[1]
        finally:
            for one in nodes:
                await one.stop()


async def written(write: Callable[[], Awaitable[object]]) -> None:
    """Write, again if the node is about to join the store anew."""

    async def tried() -> bool:
        try:
            await write()
        except StoreError:
            return False
        return True

    await until(tried, "the store takes the write")


async def works(one: Node, other: Node, ip: str) -> None:
    """Assert that documents reach both nodes, at a revision that rises by one, and that the nodes can be listed."""
    before = one.store.revision
    await written(lambda: one.apply(policy_text("p" + ip.rpartition(".")[2])))
    assert before < one.store.revision <= before + 2
    await written(lambda: one.run_endpoint("later", ip, app="later"))
    await until(lambda: other.connected and "default/later" in other.endpoints, "the other node has the endpoint")
    listed = {status.name: status for status in await one.store.enforced_by(one.store.revision, 10)}
    assert {"n1", "n2"} <= listed.keys()
    assert all(0 <= (status.revision or 0) <= MAX_COUNT for status in listed.values())


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_value_is_refused_and_named(name: str, server: RedisServer, tmp_path: Path) -> None:
    async def attack() -> None:
        async with cluster(server, tmp_path) as (store, one, other):
            await REFUSED[name](store)

            async def named() -> bool:
                return all([(await node.status())["refused"]["count"] > 0 for node in (one, other)])

            await until(named, "both nodes name the value")
            for refused in (await one.status())["refused"]["values"]:
                assert all(text.isprintable() and len(text) < 500 for text in refused.values())
            assert (Kind.ENDPOINT, "default/x") not in one.known
            await works(one, other, "10.0.0.2")

    asyncio.run(attack())


@pytest.mark.parametrize("name", SURVIVED)
def test_a_hostile_key_stops_nothing_now_or_after_a_restart(name: str, server: RedisServer, tmp_path: Path) -> None:
    async def attack() -> None:
        async with cluster(server, tmp_path) as (store, one, other):
            await SURVIVED[name](store)
            await works(one, other, "10.0.0.2")
            for node in (one, other):
                await node.stop()
                await node.start()
            await until(lambda: one.connected and other.connected, "both nodes are connected again")
            await one.store.delete_endpoints(["default/later"])
            await works(one, other, "10.0.0.3")

    asyncio.run(attack())


def test_a_state_saved_with_a_huge_revision_is_read_anew(server: RedisServer, tmp_path: Path) -> None:
    async def attack() -> None:
        async with cluster(server, tmp_path) as (_, one, other):
            one.session.mirror.revision = 2**80
            await one.session.pending.stop([])  # saves the marks
            await one.stop()
            await one.start()
            await until(lambda: one.connected, "the node is connected again")
            assert one.store.revision < 100
            await works(one, other, "10.0.0.2")

    asyncio.run(attack())


def test_a_value_that_no_node_would_accept_is_not_written(server: RedisServer, tmp_path: Path) -> None:
    async def attack() -> None:
        async with cluster(server, tmp_path) as (_, one, other):
            addresses = ", ".join(f"fd00::{number:x}" for number in range(30_000))
            with pytest.raises(Exception, match="endpoint default/huge is too large for the store"):
                await one.run_endpoint("huge", addresses)
            commands = one.session.commands
            assert commands is not None
            for number in ("NaN", str(2**64)):
                values = [(Kind.DOCUMENT, "NetworkPolicy/default/odd", f'{{"v":1,"document":{number}}}')]
                with pytest.raises(BadInput, match="document NetworkPolicy/default/odd cannot be stored: it is not"):
                    await commands.write(Request(values=values))
            await works(one, other, "10.0.0.2")

    asyncio.run(attack())


def test_a_store_of_a_newer_version_is_left_alone_and_the_last_state_stays(server: RedisServer, tmp_path: Path) -> None:
    """Agents of this version meet the schema of a later one: while they are connected, and at their next start."""
    reason = "the store under prefix 'nfqe' has schema version 99, and this program understands 1: upgrade this node"

    async def attack() -> None:
        async with cluster(server, tmp_path) as (store, one, other):
            nodes = (one, other)
            await until(lambda: one.known == other.known, "both nodes know the same")
            known = one.known
            await store.redis.hset("nfqe:meta", "schema", "99")
            await said(nodes)
            before = await dump(server.url())
            with pytest.raises(StoreError, match=reason):
                await one.apply(policy_text("later"))
            for node in nodes:
                await node.stop()
                await node.start()
            await said(nodes)

            assert [node.known for node in nodes] == [known, known]
            assert await dump(server.url()) == before
            await store.redis.hset("nfqe:meta", "schema", "1")
            await works(one, other, "10.0.0.2")

    async def said(nodes: Iterable[Node]) -> None:
        async def told() -> bool:
            found = [await node.status() for node in nodes]
            return all(not one["connected"] and (one["error"] or "").startswith(reason) for one in found)

        await until(told, "both nodes say so")

    asyncio.run(attack())
