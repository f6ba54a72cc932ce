"""Parts of a session without a server: reachability, change feed, pending endpoints, saver of the last known state."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind
from nfq_enforcer.cluster.source import ChangeBatch
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.change_feed import ChangeFeed
from nfq_enforcer.store.redis.commands import Commands
from nfq_enforcer.store.redis.connection import StoreError
from nfq_enforcer.store.redis.last_state import LastState, SavedState
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.pending import PendingEndpoints
from nfq_enforcer.store.redis.reachability import Reachability
from nfq_enforcer.store.redis.schema import StoreEntry
from nfq_enforcer.store.redis.state_saver import StateSaver

WEB = EndpointRecord(
    "default",
    "web",
    "n1",
    Identity(300),
    (bytes((10, 0, 0, 1)),),
    None,
    Labels.parse({"app": "web"}),
    "default",
    frozenset(),
)
NAME, KEY = "default/web", (Kind.ENDPOINT, "default/web")
VALUE = schema.encode_endpoint(WEB).encode()
UNREACHABLE = r"^the store redis://h:1/0 is unreachable since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: "

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Return a coroutine function's test as a function that runs it in a loop of its own."""

    @wraps(test)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        asyncio.run(test(*arguments, **options))

    return run


@pytest.fixture
def mirror() -> Mirror:
    """Give an empty mirror of node ``n1``."""
    return Mirror("n1", LabelFilter())


@pytest.fixture
def feed(mirror: Mirror) -> ChangeFeed:
    """Give the change feed of the mirror."""
    return ChangeFeed(mirror)


class TestReachability:
    @pytest.fixture
    def reachability(self, caplog: pytest.LogCaptureFixture) -> Reachability:
        """Give the reachability of a store, with a wait of no time, before the first connection."""
        caplog.set_level(logging.INFO)
        return Reachability(parse("redis://h:1"), 0.0)

    def test_before_the_first_connection_the_reason_is_that_there_was_none(self, reachability: Reachability) -> None:
        with pytest.raises(StoreError, match=UNREACHABLE + "not connected yet$"):
            asyncio.run(reachability.wait_reachable())

    @in_loop
    async def test_a_joined_server_is_reachable_until_it_is_left(self, reachability: Reachability) -> None:
        commands: Any = object()
        reachability.set_joined(commands)
        reachability.note_connected()
        assert await reachability.wait_reachable() is commands

        reachability.set_left()
        reachability.note_lost("it closed the connection")
        with pytest.raises(StoreError, match=UNREACHABLE + "it closed the connection$"):
            await reachability.wait_reachable()

    @in_loop
    async def test_a_command_waits_for_a_connection_that_is_being_renewed(self) -> None:
        reachability, commands = Reachability(parse("redis://h:1"), 30.0), object.__new__(Commands)
        reachability.note_connected()
        waiting = asyncio.create_task(reachability.wait_reachable())
        await asyncio.sleep(0)
        reachability.set_joined(commands)

        assert await waiting is commands

    def test_each_reason_is_logged_once(self, reachability: Reachability, caplog: pytest.LogCaptureFixture) -> None:
        for reason in ("a", "a", "b"):
            reachability.note_lost(reason)
        for _ in range(2):
            reachability.note_connected()
        for reason in ("c", "c", "d"):
            reachability.note_lost(reason)

        assert [record.getMessage() for record in caplog.records] == [
            "the store is unreachable: a",
            "the store is still unreachable: b",
            "connected to the store redis://h:1/0",
            "the store is unreachable, enforcing the last known state: c",
            "the store is still unreachable: d",
        ]


class TestChangeFeed:
    def test_nothing_is_delivered_while_the_feed_is_closed(self, mirror: Mirror, feed: ChangeFeed) -> None:
        mirror.accept(KEY, 5, VALUE)
        feed.close()
        feed.announce()
        assert feed.poll() == ChangeBatch([], 0)

        feed.open()
        asyncio.run(asyncio.wait_for(feed.wait(), 0.1))
        assert feed.poll() == ChangeBatch([Change(*KEY, WEB)], 0)

    def test_a_batch_has_the_time_of_its_first_write(self, mirror: Mirror, feed: ChangeFeed) -> None:
        for change_id, written in ((5, 100.0), (6, 200.0)):
            mirror.accept(KEY, change_id, VALUE)
            feed.announce(written)

        assert feed.poll().written == 100.0
        assert feed.poll().written is None

    def test_own_changes_are_not_announced_without_a_change_or_during_a_catch_up(
        self, mirror: Mirror, feed: ChangeFeed
    ) -> None:
        feed.announce_own()
        feed.close()
        mirror.accept(KEY, 5, VALUE)
        feed.announce_own()
        feed.open()

        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(feed.wait(), 0.01))

    def test_an_acknowledged_batch_sets_the_enforced_revision_and_a_lag(self, feed: ChangeFeed) -> None:
        assert feed.acknowledge(ChangeBatch([Change(*KEY, None)], 3, 100.0))
        assert not feed.acknowledge(ChangeBatch([], 3))

        assert (feed.enforced, len(feed.lags)) == (3, 1)


class TestPendingEndpoints:
    @pytest.fixture
    def saver(self, mirror: Mirror, tmp_path: Path) -> StateSaver:
        """Give a saver of the mirror in an empty folder."""
        return StateSaver(mirror, LastState(tmp_path, "cluster"), 0.01)

    @pytest.fixture
    def pending(self, mirror: Mirror, saver: StateSaver, feed: ChangeFeed) -> Iterator[PendingEndpoints]:
        """Give no pending endpoints yet."""
        yield PendingEndpoints(mirror, saver, feed)

    @in_loop
    async def test_started_and_stopped_endpoints_are_in_the_mirror_and_in_the_file(
        self, mirror: Mirror, saver: StateSaver, pending: PendingEndpoints, tmp_path: Path
    ) -> None:
        mirror.position = 7
        await pending.start([WEB])
        assert mirror.entries == {KEY: StoreEntry(7, VALUE)}
        assert (pending.reasons, pending.unwritten()) == ({NAME: None}, {NAME: VALUE})

        await pending.stop([NAME])
        assert mirror.entries == {}
        assert pending.unwritten() == {NAME: b""}
        await saver.close()
        assert LastState(tmp_path, "cluster").load() == SavedState({}, {}, [(NAME, b"")])

    @in_loop
    async def test_an_endpoint_that_changed_during_its_write_stays_due(self, pending: PendingEndpoints) -> None:
        await pending.start([WEB])
        ((name, value),) = pending.due(set())
        await pending.stop([NAME])
        pending.note_written(name, value)

        assert pending.due({(name, value)}) == [(NAME, b"")]

    @in_loop
    async def test_a_conflict_stays_until_it_is_cleared_and_is_logged_once_a_reason(
        self, pending: PendingEndpoints, caplog: pytest.LogCaptureFixture
    ) -> None:
        await pending.start([WEB])
        for reason in ("r1", "r1", "r2"):
            pending.note_conflict(NAME, reason)
        pending.note_written(NAME, VALUE)
        assert (pending.remove_written(), pending.reasons, pending.conflicts) == (False, {NAME: "r2"}, [NAME])
        assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["r1", "r2"]

        pending.clear_conflict(NAME)
        assert (pending.remove_written(), pending.reasons) == (True, {})

    def test_a_written_endpoint_in_conflict_is_unwritten_too(self, mirror: Mirror, pending: PendingEndpoints) -> None:
        mirror.accept(KEY, 5, VALUE)
        pending.note_conflict(NAME, "r")

        assert pending.unwritten() == {NAME: VALUE}


class TestStateSaver:
    @in_loop
    async def test_changes_are_saved_with_the_marks_and_loaded_again(self, mirror: Mirror, tmp_path: Path) -> None:
        saver = StateSaver(mirror, LastState(tmp_path, "cluster"), 0.01)
        assert await saver.load() is None
        mirror.accept(KEY, 5, VALUE)
        mirror.position = 5
        await saver.close()

        saved = await StateSaver(Mirror("n1", LabelFilter()), LastState(tmp_path, "cluster"), 0.01).load()
        assert saved == SavedState({KEY: StoreEntry(5, VALUE)}, mirror.marks, [])

    @in_loop
    async def test_a_save_that_waits_for_its_turn_is_made_though_its_caller_is_cancelled(
        self, mirror: Mirror, tmp_path: Path
    ) -> None:
        saver, turn = StateSaver(mirror, LastState(tmp_path, "cluster"), 0.01), threading.Event()
        await saver.load()
        mirror.accept(KEY, 5, VALUE)
        mirror.position = 5
        saver._thread.submit(turn.wait)
        saving = asyncio.create_task(saver.save())
        await asyncio.sleep(0.05)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        turn.set()
        await saver.close()

        assert LastState(tmp_path, "cluster").load() == SavedState({KEY: StoreEntry(5, VALUE)}, mirror.marks, [])

    @in_loop
    async def test_nothing_is_saved_before_the_load_or_during_a_replacement(
        self, mirror: Mirror, tmp_path: Path
    ) -> None:
        saver, other = StateSaver(mirror, LastState(tmp_path, "cluster"), 0.01), LastState(tmp_path, "cluster")
        mirror.accept(KEY, 5, VALUE)
        await saver.save()
        assert not other.path.exists()

        await saver.load()
        mirror.complete = False
        await saver.save()
        assert not other.path.exists()

    @in_loop
    async def test_a_failed_save_is_logged_once_and_the_next_one_replaces_all(
        self, mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        saver = StateSaver(mirror, LastState(tmp_path / "folder" / "state", "cluster"), 0.01)
        await saver.load()
        (tmp_path / "folder").touch()
        for change_id in (5, 6):
            mirror.accept(KEY, change_id, VALUE)
            await saver.save()
        assert len(caplog.records) == 1
        assert saver.failure is not None
        since, reason = saver.failure
        assert abs(since - time.time()) < 60
        assert reason == caplog.records[0].getMessage()

        (tmp_path / "folder").unlink()
        await saver.save()
        assert saver.failure is None
        await saver.close()
        saved = LastState(tmp_path / "folder" / "state", "cluster").load()
        assert saved is not None
        assert saved.entries == {KEY: StoreEntry(6, VALUE)}
