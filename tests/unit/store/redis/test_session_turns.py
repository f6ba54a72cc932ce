"""Catch-up of a session: other tasks run during it, and changes are announced once and only for news."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfq_enforcer.cluster.records import Address, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.connection import Connection
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, StoreEntry
from nfq_enforcer.store.redis.session import Session
from tests.support.redis_servers import PATIENCE, RedisServer

WEB = EndpointRecord(
    "default", "web", "n1", Identity(300), (bytes(4),), None, Labels.parse({"app": "web"}), "default", frozenset()
)


def make_session(folder: Path, url: str = "redis://127.0.0.1:1") -> Session:
    return Session("n1", NodeRecord(()), Connection(parse(url)), LastState(folder, "cluster"), LabelFilter())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def identities(count: int, number: int = 1) -> dict[Key, StoreEntry]:
    labels = [Labels.parse({"app": str(one)}) for one in range(count)]
    values = [StoreEntry(number, schema.encode_identity(one).encode()) for one in labels]
    return {(Kind.IDENTITY, str(300 + place)): value for place, value in enumerate(values)}


def test_who_has_looked_while_it_settles_waits_until_it_has_settled(tmp_path: Path) -> None:
    async def scenario() -> None:
        session = make_session(tmp_path)
        session._feed.close()
        session._feed.announce()
        assert session.poll().changes == []
        async with asyncio.timeout(0):
            await session.wait()

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())


def test_a_read_without_news_is_none_even_if_earlier_changes_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        session = make_session(tmp_path / "state", server.url())
        await session.start()
        before = session.commands_sent
        await until(lambda: session.commands_sent > before + 3)  # the echo of its own writes has arrived
        session.poll()
        await session.pending.start([WEB])
        before = session.commands_sent
        await until(lambda: session.commands_sent > before + 3)  # two of these are a heartbeat
        await session.stop()

    with RedisServer(tmp_path / "server") as server:
        asyncio.run(scenario())

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_node_registers_under_other_addresses_and_is_no_namesake_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    addresses = [(ip_address(f"10.0.0.{number}"),) for number in range(1, 4)]

    async def register(session: Session, addresses: tuple[Address, ...]) -> None:
        session.register(addresses)
        wanted = schema.encode_node(NodeRecord(addresses)).encode()
        await until(lambda: session.mirror.entries[Kind.NODE, "n1"].value == wanted)

    async def scenario() -> None:
        session = make_session(tmp_path / "state", server.url())
        session.register(addresses[0])  # before the first connection
        await session.start()
        for one in addresses:
            await register(session, one)
        before = session.commands_sent
        await until(lambda: session.commands_sent > before + 3)  # the echo of its own writes has arrived
        await register(session, addresses[-1])
        await session.stop()

    with RedisServer(tmp_path / "server") as server:
        asyncio.run(scenario())

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_entries_are_replaced_in_parts_and_come_to_what_single_changes_come_to() -> None:
    gone = (Kind.IDENTITY, "9000")
    there, anew = identities(10), identities(2500, number=2)
    singly, in_parts = (Mirror("n1", LabelFilter()) for _ in range(2))
    for one in (singly, in_parts):
        deque(one.replace_all({**there, gone: StoreEntry(1, b'{"v":1,"labels":"k8s:app=gone"}')}, {}), 0)

    singly.accept(gone, 2, None)
    for (kind, name), entry in anew.items():
        singly.accept((kind, name), entry.id, entry.value)
    parts = len(list(in_parts.replace_all(anew, {})))

    assert parts == 2
    assert in_parts.entries == anew
    assert in_parts.take_changes() == singly.take_changes()
    assert in_parts.labels == singly.labels
