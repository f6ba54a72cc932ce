"""Nodes of a cluster on real servers, without agents: the content of each mirror, and of the store."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from nfq_enforcer.cluster.records import Change, EndpointRecord, EndpointRequest, Kind, NodeRecord
from nfq_enforcer.cluster.source import Started
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.redis.commands import Commands
from nfq_enforcer.store.redis.connection import Connection
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.schema import Key, StoreEntry
from nfq_enforcer.store.redis.session import Session
from nfq_enforcer.store.redis.store import RedisStore
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS, SessionTimings

PATIENCE = 40.0
LOOK = 0.01
TIMEOUT = 30.0


async def until(condition: Callable[[], bool | Awaitable[bool]], promise: str) -> None:
    """Return once the condition holds; fail if it does not for long."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {promise}"
        await asyncio.sleep(LOOK)


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Redis]:
    """Give a client of a server."""
    deployment = Connection(parse(url))
    client = deployment.client(*await deployment.locate(), timeout=TIMEOUT)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def store(url: str, node: str = "n1") -> AsyncIterator[Commands]:
    """Give a cluster's store, joined as the node of this name."""
    address = parse(url)
    async with connection(url) as client, connection(url) as reader:
        commands = Commands(client, reader, address.prefix)
        await commands.join(node, 0, 0)
        yield commands


def endpoint(name: str, ip: str, app: str = "web", node: str = "n1") -> EndpointRecord:
    """Return an endpoint in the namespace ``default``, without a number."""
    labels = Labels.parse({"app": app})
    packed = (ip_address(ip).packed,)
    return EndpointRecord("default", name, node, Identity(0), packed, None, labels, "default", frozenset())


def placed(name: str, ip: str, app: str = "web", node: str = "n1", preferred: int = 1000) -> EndpointRequest:
    """Return an endpoint to be written, with its ``app`` as the only relevant label."""
    return EndpointRequest(endpoint(name, ip, app, node), Labels.parse({"app": app}), Identity(preferred))


def endpoint_text(name: str, ip: str, app: str = "web", node: str = "") -> str:
    """Return the document of an endpoint."""
    on = f"node: {node}, " if node else ""
    metadata = f"{{name: {name}, labels: {{app: {app}}}}}"
    return f"apiVersion: nfq-enforcer.io/v1\nkind: Endpoint\nmetadata: {metadata}\nspec: {{{on}ips: [{ip}]}}\n"


def policy_text(name: str, app: str = "web") -> str:
    """Return a policy that allows no ingress."""
    metadata, spec = f"{{name: {name}}}", f"{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress]}}"
    return f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {metadata}\nspec: {spec}\n"


def namespace_text(labels: str) -> str:
    """Return the namespace ``default`` with these labels."""
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{{labels}}}}}\n"


class Node:
    """Node: a session in place of a node's agent, which can stop and start again."""

    def __init__(self, name: str, url: str, folder: Path, timings: SessionTimings = DEFAULT_TIMINGS) -> None:
        """Take name, store and timings; the last known state is in ``folder``, in a folder of the node's name."""
        self.name = name
        self._connection = Connection(parse(url), timings)
        self._timings = timings
        self._folder = folder / name
        self.delivered: list[Change] = []  # all changes delivered since the last start
        self._begin()

    def _begin(self) -> None:
        state = LastState(self._folder, self._connection.address.cluster)
        record = NodeRecord((ip_address("192.0.2.1"),), "1")
        self.session = Session(self.name, record, self._connection, state, LabelFilter(), self._timings)
        self.store = RedisStore(self.session)
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> "Node":
        """Start the session as an agent does, and keep polling its changes."""
        self._begin()
        self.delivered = []
        await self.store.start()
        self._polling = asyncio.create_task(self._poll())
        return self

    async def stop(self) -> None:
        """Stop the session as an agent does."""
        if self._polling is not None:
            await self.pause()
            self._polling = None
            await self.store.stop()

    async def pause(self) -> None:
        """Stop polling changes."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

    async def _poll(self) -> None:
        while True:
            await self.store.wait()
            batch = self.store.poll()
            self.delivered += batch.changes
            self.store.acknowledge(batch)

    async def apply(self, *texts: str) -> tuple[Started, ...]:
        """Load documents at this node; return the endpoints among them."""
        return (await self.store.apply([File("x.yaml", "---\n".join(texts))])).endpoints

    async def run_endpoint(self, name: str, ip: str, app: str = "web") -> Identity:
        """Start an endpoint on this node; return its number."""
        (started,) = await self.apply(endpoint_text(name, ip, app))
        return started.identity

    @property
    def connected(self) -> bool:
        """Return whether the session is connected and caught up."""
        return self.session.commands is not None

    @property
    def known(self) -> dict[Key, bytes]:
        """Return all values of the mirror."""
        return {key: entry.value for key, entry in self.session.mirror.entries.items()}

    @property
    def endpoints(self) -> dict[str, Identity]:
        """Return the endpoints of the mirror, with their numbers."""
        return numbers_of(self.session.mirror.entries)

    async def status(self) -> dict[str, Any]:
        """Return the store's part of the agent's status."""
        return await self.store.status()


def numbers_of(entries: Mapping[Key, StoreEntry]) -> dict[str, Identity]:
    """Return the number of each endpoint among entries."""
    return {
        name: Identity(json.loads(entry.value)["identity"])
        for (kind, name), entry in entries.items()
        if kind is Kind.ENDPOINT
    }


async def held_by(url: str) -> dict[Key, bytes]:
    """Return all values of the store."""
    async with connection(url) as client:
        found, bad = await Commands(client, client, parse(url).prefix).scan()
    assert not bad
    return {key: entry.value for key, entry in found.items()}


async def dump(url: str) -> dict[bytes, bytes | None]:
    """Return every key of the cluster with its content in the form of DUMP."""
    async with connection(url) as client:
        keys = [key async for key in client.scan_iter(f"{parse(url).prefix}:*")]
        return {key: await client.dump(key) for key in sorted(keys)}


async def agreed(url: str, nodes: Iterable[Node]) -> dict[Key, bytes]:
    """Return the values of the store, once all nodes hold the same."""
    everyone = list(nodes)
    held: dict[Key, bytes] = {}

    async def equal() -> bool:
        nonlocal held
        held, fork = await held_by(url), await last_fork(url)
        return all(node.connected and fork in node.session.mirror.forks and node.known == held for node in everyone)

    try:
        await until(equal, "all nodes have joined the server as it is now, and hold what it holds")
    except AssertionError as error:
        for node in everyone:
            keys = {key for key in node.known.keys() | held.keys() if node.known.get(key) != held.get(key)}
            error.add_note(f"{node.name}: connected {node.connected}, pending {node.session.pending.reasons}")
            error.add_note("\n".join(f"{key}: {node.known.get(key)!r}, store {held.get(key)!r}" for key in keys))
        raise
    return held


async def last_fork(url: str) -> str:
    """Return the name of the store's last fork."""
    async with connection(url) as client:
        found: Any = await client.lindex(f"{parse(url).prefix}:forks", -1)
    return (found or b"").decode().partition(" ")[0]
