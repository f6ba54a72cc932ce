"""Sessions of several nodes on real servers: after any failure of the server they agree on one state."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import yaml

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.address import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.catch_up import bring_up_to_date
from nfq_enforcer.store.redis.commands import Commands, Request
from nfq_enforcer.store.redis.connection import CLIENT_NAME, Connection, StoreError, Unanswered
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.timings import SessionTimings
from tests.support.members import (
    Node,
    agreed,
    endpoint,
    endpoint_text,
    held_by,
    namespace_text,
    placed,
    policy_text,
    store,
    until,
)
from tests.support.processes import stopped
from tests.support.redis_servers import LOOPBACK, RedisServer, Sentinel, valkey_server, wait_until

NAMES = ("n1", "n2", "n3")
SECRET = "geheim-s3cret"
STRESS_TURNS = 6
SLOW = SessionTimings(heartbeat=60, first_pause=0.02, longest_pause=0.1, command_timeout=0.5, reconnect=0.5)
LATE = "NetworkPolicy/default/late"
PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")
TIMINGS = SessionTimings(heartbeat=0.1, read_wait=0.3, first_state=0.3, first_pause=0.02, longest_pause=0.1)


@pytest.fixture(scope="module", params=["redis", "valkey"])
def binary(request: pytest.FixtureRequest) -> str:
    """Give the server's binary, of each product."""
    return valkey_server() if request.param == "valkey" else "redis-server"


@pytest.fixture(autouse=True)
def no_internal_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert after every test that no session, and no task of one, has logged an exception."""
    caplog.set_level(logging.DEBUG, "nfq_enforcer")
    yield
    gc.collect()  # asyncio logs the exception of a task that was not retrieved when the task is collected
    records = [record for phase in PHASES for record in caplog.get_records(phase)]
    assert [record.getMessage() for record in records if record.exc_info] == []


@pytest.fixture
def server(binary: str, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a server of the test's own; its data end with it unless it has saved them."""
    with RedisServer(tmp_path / "server", binary=binary) as server:
        yield server


@asynccontextmanager
async def cluster(url: str, folder: Path, names: tuple[str, ...] = NAMES) -> AsyncIterator[list[Node]]:
    """Give started nodes."""
    nodes = [Node(name, url, folder, TIMINGS) for name in names]
    try:
        yield [await node.start() for node in nodes]
    finally:
        for node in nodes:
            await node.stop()


async def populated(url: str, nodes: list[Node]) -> dict[str, Any]:
    """Start endpoints with several label sets on all nodes and load a policy; return the endpoints once all agree."""
    for place, node in enumerate(nodes):
        for number in range(3):
            await node.run_endpoint(f"{node.name}-{number}", f"10.0.{place}.{number}", f"app{number}")
    await nodes[0].apply(policy_text("p"), namespace_text(""))
    await agreed(url, nodes)
    assert len(nodes[0].endpoints) == 3 * len(nodes)
    return nodes[0].endpoints


def documents(node: Node) -> set[str]:
    return {name for kind, name in node.known if kind is Kind.DOCUMENT}


def delivered_endpoints(node: Node) -> set[str]:
    return {change.name for change in node.delivered if change.kind is Kind.ENDPOINT}


async def cut(nodes: list[Node]) -> None:
    """Return when no node is connected any more."""
    await until(lambda: not any(node.connected for node in nodes), "all nodes notice that the server has gone")


class TestFollowing:
    async def test_a_member_that_was_away_resumes_where_it_stopped(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, _):
            await populated(server.url(), [one, two])
            await two.stop()
            await one.run_endpoint("new", "10.9.0.1")
            await one.store.delete_endpoints(["default/n1-0"])
            await two.start()
            await agreed(server.url(), [one, two])

            assert two.session.mirror.resyncs == 0
            assert "default/new" in two.endpoints
            assert "default/n1-0" not in two.endpoints

    async def test_where_the_stream_was_trimmed_all_is_taken_anew(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, _):
            await populated(server.url(), [one, two])
            await two.stop()
            await one.store.delete_endpoints(["default/n1-0"])
            await one.run_endpoint("new", "10.9.0.1")
            server.ask("XTRIM", "nfqe:changes", "MAXLEN", "1")
            await two.start()
            await agreed(server.url(), [one, two])

            assert two.session.mirror.resyncs == 1
            gone = {change.name for change in two.delivered if change.record is None}
            assert gone == {"default/n1-0"}  # and no endpoint that still exists

    async def test_what_comes_while_a_node_is_busy_is_handed_over_at_once(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path, ("n1",)) as (one,):
            await one.pause()
            async with store(server.url(), "n9") as other:
                some = [placed(f"e{place}", f"10.{place >> 8}.{place & 255}.1", node="n9") for place in range(1000)]
                written = await asyncio.gather(*(other.write(Request([each])) for each in some))
            last = max(each.id or 0 for each in written)
            await until(lambda: one.session.mirror.position >= last, "all changes have come")
            await one.store.wait()
            batch = one.store.poll()

            assert [change.kind for change in batch.changes].count(Kind.ENDPOINT) == 1000
            assert one.store.poll().changes == []

    async def test_what_a_node_writes_counts_there_at_once(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, _):
            number = await one.run_endpoint("web", "10.0.0.1")
            assert one.endpoints == {"default/web": number}
            assert await two.run_endpoint("wap", "10.0.0.2") == number
            with pytest.raises(BadInput, match=r"^10\.0\.0\.1 already belongs to endpoint default/web$"):
                await two.run_endpoint("wop", "10.0.0.1")

    async def test_changed_labels_of_a_namespace_give_its_endpoints_other_identities(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, three):
            before = await populated(server.url(), [one, two])
            await three.apply(namespace_text("team: red"))
            await until(
                lambda: all(one.endpoints.get(name) not in (None, number) for name, number in before.items()),
                "all endpoints have other identities",
            )
            await agreed(server.url(), [one, two, three])
            after = one.endpoints
            assert after.keys() == before.keys()
            assert len(set(after.values())) == len(set(before.values())) == 3
            for number in after.values():
                assert "team=red" in str(one.session.mirror.labels[number])

            await three.apply(namespace_text(""))
            await until(lambda: one.endpoints == before, "they have the identities of before")
            await agreed(server.url(), [one, two, three])


Damage = Callable[[RedisServer], None]


def killed(server: RedisServer) -> None:
    server.restart(empty=True)


def flushed(server: RedisServer) -> None:
    server.ask("FLUSHALL")


class TestLoss:
    @pytest.mark.parametrize("damage", [killed, flushed])
    async def test_a_store_that_is_empty_gets_everything_back(
        self, server: RedisServer, tmp_path: Path, damage: Damage
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            before = await populated(server.url(), nodes)
            known = nodes[0].known
            for node in nodes:
                node.delivered.clear()
            damage(server)
            await agreed(server.url(), nodes)

            assert nodes[0].endpoints == before
            assert nodes[0].known == known
            assert [change for node in nodes for change in node.delivered if change.record is None] == []
            assert await nodes[1].run_endpoint("again", "10.9.0.1", "app0") == before["default/n1-0"]

    async def test_an_old_dump_is_brought_up_to_date(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            await populated(server.url(), nodes)
            server.save()
            await nodes[0].store.delete_endpoints(["default/n1-0", "default/n2-0"])
            await nodes[0].store.delete_policy("default", "p")
            await nodes[1].run_endpoint("new", "10.9.0.1", "new")
            await nodes[2].apply(endpoint_text("n3-1", "10.0.2.77", "app1"), policy_text("q"))
            held = await agreed(server.url(), nodes)
            server.restart()
            await agreed(server.url(), nodes)

            assert await held_by(server.url()) == held
            assert nodes[0].known == held

    async def test_a_member_that_was_behind_undoes_nothing_and_one_that_was_away_forgets_nothing(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, three):
            await populated(server.url(), [one, two, three])
            await three.stop()
            await one.store.delete_endpoints(["default/n1-0"])
            await one.store.delete_policy("default", "p")
            await two.run_endpoint("new", "10.9.0.1", "new")
            held = await agreed(server.url(), [one, two])
            server.restart(empty=True)
            await agreed(server.url(), [one, two])
            await three.start()
            await agreed(server.url(), [one, two, three])

            assert three.known == held

    async def test_a_member_that_was_behind_and_comes_first_is_put_right_by_those_who_knew_more(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, three):
            await populated(server.url(), [one, two, three])
            await three.stop()
            await one.store.delete_endpoints(["default/n1-0"])
            await one.store.delete_policy("default", "p")
            await two.run_endpoint("new", "10.9.0.1", "new")
            held = await agreed(server.url(), [one, two])
            await one.stop()
            await two.stop()
            server.restart(empty=True)
            await three.start()
            await until(lambda: three.connected, "the one that was behind is back")
            await one.start()
            await two.start()
            await agreed(server.url(), [one, two, three])

            assert one.known == held

    async def test_what_is_written_after_the_fork_wins(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, three):
            before = await populated(server.url(), [one, two, three])
            await one.stop()
            await two.stop()
            server.restart(empty=True)
            await agreed(server.url(), [three])
            await three.apply(endpoint_text("n3-0", "10.0.2.99", "other"))
            await three.store.delete_policy("default", "p")
            await one.start()
            await two.start()
            held = await agreed(server.url(), [one, two, three])

            assert "NetworkPolicy/default/p" not in documents(one)
            assert json.loads(held[Kind.ENDPOINT, "default/n3-0"])["document"]["spec"]["ips"] == ["10.0.2.99"]
            assert {**one.endpoints, "default/n3-0": 0} == {**before, "default/n3-0": 0}

    async def test_two_losses_in_a_row_and_a_member_that_was_away_during_both(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as (one, two, three):
            await populated(server.url(), [one, two, three])
            await three.stop()
            server.restart(empty=True)
            await agreed(server.url(), [one, two])
            await one.store.delete_endpoints(["default/n1-1"])
            await two.run_endpoint("new", "10.9.0.1", "new")
            held = await agreed(server.url(), [one, two])
            server.restart(empty=True)
            await agreed(server.url(), [one, two])
            await three.start()
            await agreed(server.url(), [one, two, three])

            assert three.known == held

    async def test_a_failover_that_loses_the_last_changes(self, binary: str, tmp_path: Path) -> None:
        with ExitStack() as stack:
            primary = stack.enter_context(RedisServer(tmp_path / "primary", binary=binary))
            replica = stack.enter_context(RedisServer(tmp_path / "replica", binary=binary, replica_of=primary))
            sentinels = [stack.enter_context(Sentinel(tmp_path / f"sentinel{n}", primary)) for n in range(3)]
            wait_until(lambda: all(map(knows_all, sentinels)), "the Sentinels know each other and the replica")
            hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in sentinels)
            url = f"redis+sentinel://{hosts}/main"
            async with cluster(url, tmp_path) as nodes:
                await populated(url, nodes)
                wait_until(lambda: in_step(replica), "the replica has everything")
                replica.ask("REPLICAOF", LOOPBACK, "1")  # from here on it misses all writes
                await nodes[0].store.delete_endpoints(["default/n1-0"])
                await nodes[1].run_endpoint("new", "10.9.0.1", "new")
                held = await agreed(url, nodes)
                primary.kill()
                await until(
                    lambda: all(len(n.session.mirror.forks) > 1 and n.connected for n in nodes),
                    "all are at the replica",
                )
                await agreed(url, nodes)

                assert nodes[2].known == held
                assert replica.ask("ROLE").startswith("master")


def knows_all(sentinel: Sentinel) -> bool:
    info = sentinel.ask("INFO", "sentinel")
    return "slaves=1" in info and "sentinels=3" in info


def in_step(replica: RedisServer) -> bool:
    info = replica.ask("INFO", "replication")
    return "master_link_status:up" in info and "master_sync_in_progress:0" in info


class TestWithoutTheStore:
    async def test_a_member_restarts_from_its_last_state_and_tells_the_store_later(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            one, two, three = nodes
            before = await populated(server.url(), nodes)
            server.save()
            server.kill()
            await cut(nodes)
            await one.stop()
            await one.start()
            assert one.endpoints == before
            await until(lambda: delivered_endpoints(one) == set(before), "the last known state is handed over")

            assert await one.run_endpoint("new", "10.9.0.1", "app0") == before["default/n1-0"]
            assert await one.store.delete_endpoints(["default/n1-1"]) == ["default/n1-1"]
            await one.stop()
            await one.start()
            assert one.endpoints.keys() ^ before.keys() == {"default/new", "default/n1-1"}
            pending = {item["endpoint"] for item in (await one.status())["pending"]}
            assert pending == {"default/new", "default/n1-1"}

            server.start()
            await agreed(server.url(), nodes)
            assert two.endpoints == one.endpoints
            assert three.endpoints.keys() ^ before.keys() == {"default/new", "default/n1-1"}
            assert (await one.status())["pending"] == []

    @pytest.mark.parametrize("empty", [False, True], ids=["with an old dump", "empty"])
    async def test_what_started_without_the_store_is_news_to_one_that_has_lost_something(
        self, server: RedisServer, tmp_path: Path, empty: bool
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            await populated(server.url(), nodes)
            server.save()
            await nodes[0].run_endpoint("late", "10.9.0.9", "app1")
            before = await agreed(server.url(), nodes)
            server.kill()
            await cut(nodes)
            for place, node in enumerate(nodes):
                await node.run_endpoint(f"new{place}", f"10.9.0.{place}", "app0")
                await node.store.delete_endpoints([f"default/{node.name}-2"])
            server.restart(empty=empty)
            held = await agreed(server.url(), nodes)

            new = {(Kind.ENDPOINT, f"default/new{place}") for place in range(3)}
            old = {(Kind.ENDPOINT, f"default/{name}-2") for name in NAMES}
            assert {key for key in held.keys() ^ before.keys() if key[0] is not Kind.IDENTITY} == new | old

    @pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "all read anew"])
    @pytest.mark.parametrize("node", ["n1", "n2"])
    async def test_a_catch_up_keeps_the_endpoints_that_this_node_has_changed_meanwhile(
        self, server: RedisServer, resumed: bool, node: str
    ) -> None:
        """An endpoint of the name on another node (n2) is another one: its end here is none there."""
        mirror = Mirror("n1", LabelFilter())
        async with store(server.url()) as commands:
            if resumed:
                await bring_up_to_date(mirror, commands, await commands.join("n1", 0, 0), dict)
            for name, ip in (("started", "10.0.0.1"), ("stopped", "10.0.0.2")):
                await commands.write(Request([placed(name, ip, node=node)]))
            started = endpoint("started", "10.9.0.1")._replace(identity=Identity(1000))
            pending = {"default/started": schema.encode_endpoint(started).encode(), "default/stopped": b""}
            await bring_up_to_date(mirror, commands, await commands.join("n1", 0, 0), lambda: pending)

        ended = mirror.endpoint("default/stopped")
        assert mirror.endpoint("default/started") == started
        assert (ended and ended.node) == (None if node == "n1" else "n2")

    async def test_what_needs_the_store_is_refused_with_a_sentence(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            await populated(server.url(), nodes)
            server.kill()
            await cut(nodes)
            one, since = nodes[0], f"the store {server.url(path='/0')} is unreachable since "
            await until(lambda: "refused" in (one.session.reachability.error or ""), "the reason is known")
            known = one.known
            for command, sentence in (
                (lambda: one.apply(policy_text("q")), since),
                (lambda: one.store.delete_policy("default", "p"), since),
                (
                    lambda: one.run_endpoint("new", "10.9.0.1", "unheard"),
                    f"no endpoint has had the labels .*, and {since}",
                ),
                (
                    lambda: one.apply(endpoint_text("x", "10.9.0.1", "app0", "n2")),
                    f"default/x is on node n2, and {since}",
                ),
                (lambda: one.store.delete_endpoints(["default/n2-0"]), since),
                (lambda: one.store.collect(None), since),
            ):
                with pytest.raises(StoreError, match=f"^{sentence}.*: it cannot be reached: Connection refused$"):
                    await command()
            with pytest.raises(BadInput, match=r"^10\.0\.0\.1 already belongs to endpoint default/n1-1$"):
                await one.run_endpoint("new", "10.0.0.1", "app0")
            assert one.known == known

    async def test_an_address_that_others_took_meanwhile_is_named_until_it_is_free(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            one, two, _ = nodes
            await populated(server.url(), nodes)
            server.save()
            server.kill()
            await cut(nodes)
            await one.run_endpoint("mine", "10.9.0.1", "app0")
            await two.run_endpoint("yours", "10.9.0.1", "app0")
            server.start()
            await until(lambda: all(node.connected for node in nodes), "all are back")
            loser = one if one.session.pending.reasons else two
            name = "default/mine" if loser is one else "default/yours"
            await until(lambda: loser.session.pending.reasons.get(name) is not None, "the conflict is named")

            (item,) = (await loser.status())["pending"]
            assert item["endpoint"] == name
            assert item["reason"].startswith("10.9.0.1 already belongs to endpoint default/")
            assert name in loser.endpoints
            await loser.store.delete_endpoints([name])
            await agreed(server.url(), nodes)
            await until(lambda: loser.session.pending.reasons == {}, "it has nothing left to tell")
            assert name not in loser.endpoints

    async def test_what_the_store_did_not_take_is_taken_once_the_address_is_free(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            one, two, _ = nodes
            await populated(server.url(), nodes)
            server.save()
            server.kill()
            await cut(nodes)
            await one.run_endpoint("mine", "10.9.0.1", "app0")
            await two.run_endpoint("yours", "10.9.0.1", "app0")
            server.start()
            await until(lambda: all(node.connected for node in nodes), "all are back")
            await until(
                lambda: bool(one.session.pending.reasons or two.session.pending.reasons), "one of both is not taken"
            )
            winner, name = (two, "default/yours") if one.session.pending.reasons else (one, "default/mine")
            await winner.store.delete_endpoints([name])
            held = await agreed(server.url(), nodes)

            assert len({"default/mine", "default/yours"} & {name for _, name in held}) == 1
            await until(
                lambda: one.session.pending.reasons == two.session.pending.reasons == {},
                "nobody has anything left to tell",
            )


class TestSlowStore:
    """A server that answers late executes writes that their callers have given up: their outcome is unknown."""

    async def test_a_write_without_an_answer_is_unknown_and_happens_later(self, server: RedisServer) -> None:
        web = (Kind.ENDPOINT, "default/web")
        values = [(Kind.DOCUMENT, LATE, json.dumps(yaml.safe_load(policy_text("late"))))]
        for request, is_done in (
            (Request(values=values), lambda: "late" in server.ask("HKEYS", "nfqe:documents")),
            (Request([placed("web", "10.0.0.1")]), lambda: "web" in server.ask("HKEYS", "nfqe:endpoints")),
            (Request(deleted=[(Kind.DOCUMENT, LATE)]), lambda: "late" not in server.ask("HKEYS", "nfqe:documents")),
            (Request(deleted=[web]), lambda: "web" not in server.ask("HKEYS", "nfqe:endpoints")),
        ):
            async with impatient(server.url()) as commands:
                await commands.write(Request())  # from now on the server has the script, and executes it at once
                with stopped(server.pid), pytest.raises(Unanswered) as caught:
                    await commands.write(request)
            assert str(caught.value) == "the store has not answered: it did not answer in time"
            assert caught.value.exit_code == 3
            await until(is_done, "the change takes effect")

    async def test_a_write_of_a_session_without_an_answer_is_unknown(self, server: RedisServer, tmp_path: Path) -> None:
        node = await Node("n1", server.url(), tmp_path, SLOW).start()
        try:
            for write in (lambda: node.apply(policy_text("late")), lambda: node.store.collect(None)):
                await until(lambda: node.connected, "the node is connected")
                with stopped(server.pid), pytest.raises(StoreError) as caught:
                    await write()
                # another command may have been under way, and then the write was certainly not sent
                assert isinstance(caught.value, Unanswered) or "is unreachable since" in str(caught.value)
        finally:
            await node.stop()

    async def test_a_collection_whose_connection_is_closed_meanwhile_is_unknown(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        node = await Node("n1", server.url(), tmp_path, SLOW).start()
        try:
            await until(lambda: node.connected, "the node is connected")
            commands = await node.session.reachability.wait_reachable()
            with stopped(server.pid):
                sent, collection = commands.sent, asyncio.create_task(node.store.collect(None))
                await until(lambda: commands.sent > sent, "the collection is sent")
                await commands.close()
                with pytest.raises(Unanswered, match="the connection was lost before the store's answer"):
                    await collection
        finally:
            await node.stop()

    async def test_connections_are_closed_though_the_caller_is_cancelled_meanwhile(self, server: RedisServer) -> None:
        connection = Connection(parse(server.url()))
        address = await connection.locate()
        client, reader = (connection.client(*address, timeout=0.5) for _ in range(2))
        commands = Commands(client, reader, "nfqe")
        await asyncio.gather(commands.join("n1", 0, 0), reader.ping())

        closing = asyncio.create_task(commands.close())
        await asyncio.sleep(0)  # it has begun
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

        assert CLIENT_NAME not in server.ask("CLIENT", "LIST")

    async def test_a_write_to_a_store_that_is_gone_is_refused(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path, ("n1",)) as (node,):
            server.kill()
            await cut([node])
            with pytest.raises(StoreError, match="is unreachable since") as caught:
                await node.apply(policy_text("late"))
            assert caught.value.exit_code == 1


@asynccontextmanager
async def impatient(url: str) -> AsyncIterator[Commands]:
    """Give the commands of a joined node that waits half a second for an answer."""
    connection = Connection(parse(url))
    client = connection.client(*await connection.locate(), timeout=0.5)
    commands = Commands(client, client, "nfqe")
    await commands.join("n1", 0, 0)
    try:
        yield commands
    finally:
        await commands.close()


class TestLease:
    async def test_a_node_that_was_taken_for_gone_comes_back_with_its_endpoints(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            one, two, three = nodes
            before = await populated(server.url(), nodes)
            own = {name for name in before if name.startswith("default/n3-")}
            await three.stop()
            async with store(server.url(), "n9") as other:
                await until(lambda: collected(other, "n3"), "the node is taken for gone")
            await until(lambda: not own & one.endpoints.keys(), "its endpoints are gone")
            await three.start()
            held = await agreed(server.url(), nodes)

            assert two.endpoints == before
            assert (Kind.NODE, "n3") in held
            assert [change for change in three.delivered if change.name in own and change.record is None] == []

    async def test_a_node_that_is_collected_while_it_is_there_goes_on(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            before = await populated(server.url(), nodes)
            for node in nodes:
                node.delivered.clear()
            async with store(server.url(), "n9") as other:
                collected = await other.collect(-60, 0, 0, 0)
            assert set(collected.nodes) == set(NAMES)
            await until(lambda: all(set(n.endpoints) == set(before) for n in nodes), "all endpoints are back")
            await agreed(server.url(), nodes)

            assert nodes[0].endpoints == before
            for node in nodes:
                gone = {
                    change.name for change in node.delivered if change.record is None and change.kind is Kind.ENDPOINT
                }
                assert not {name for name in gone if name.startswith(f"default/{node.name}-")}


async def collected(other: Any, node: str) -> bool:
    await other.heartbeat(node, 0, ago=1000.0)
    return node in (await other.collect(500.0, 1e6, 1e6, 0)).nodes


class TestForeign:
    async def test_values_that_nobody_understands_are_named_and_what_was_known_stays(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        async with cluster(server.url(), tmp_path, ("n1", "n2")) as nodes:
            one, two = nodes
            before = await populated(server.url(), nodes)
            known = two.known
            number = str(before["default/n1-0"])
            await two.stop()
            bad = {
                "nodes n1": "no entry",
                "documents NetworkPolicy/default/p": '1-1 {"v":2}',
                f"identities {number}": "1-1 [",
                "endpoints default/n1-0": '1-1 {"v":1,"identity":1}',
                "endpoints stranger": "\N{PILE OF POO}",
            }
            for key, value in bad.items():
                name, _, field = key.partition(" ")
                server.ask("HSET", f"nfqe:{name}", field, value)
            await one.run_endpoint("seen", "10.9.0.9", "new")
            server.ask("XTRIM", "nfqe:changes", "MAXLEN", "0")
            await one.run_endpoint("new", "10.9.0.1", "new")
            await two.start()
            await until(lambda: two.connected and "default/new" in two.endpoints, "it follows all the same")

            refused = (await two.status())["refused"]
            assert {one["key"] for one in refused["values"]} == set(bad)
            assert all(one["reason"] for one in refused["values"])
            assert refused["count"] == len(bad)
            assert {key: value for key, value in two.known.items() if key in known} == known
            await one.run_endpoint("newer", "10.9.0.2", "new")
            await until(lambda: "default/newer" in two.endpoints, "it goes on following")

    async def test_foreign_entries_of_the_stream_are_skipped_and_named(
        self, server: RedisServer, tmp_path: Path
    ) -> None:
        foreign = [
            ("changes", "no JSON"),
            ("changes", '[["pod","x","y"]]', "serial", "x"),
            ("changes", "[" * 5000),
            ("hello", "world"),
            ("serial", "99999"),
            ("serial", "99999", "changes", "{"),
        ]
        async with cluster(server.url(), tmp_path, ("n1", "n2")) as nodes:
            one, two = nodes
            await populated(server.url(), nodes)
            for fields in foreign:
                server.ask("XADD", "nfqe:changes", "*", *fields)
                await one.run_endpoint("new", f"10.9.0.{foreign.index(fields)}", "new")
                await agreed(server.url(), nodes)
            await until(lambda: two.connected, "it is still there")
            assert (await two.status())["refused"]["count"] >= len(foreign) - 1

    async def test_a_newer_version_s_change_does_not_break_the_row(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path, ("n1", "n2")) as nodes:
            await populated(server.url(), nodes)
            resyncs = nodes[1].session.mirror.resyncs
            serial = server.ask("HINCRBY", "nfqe:meta", "serial", "1").strip()
            server.ask("XADD", "nfqe:changes", "*", "serial", serial, "changes", '[["pod","x","y"]]')
            await nodes[0].run_endpoint("new", "10.9.0.1", "new")
            await agreed(server.url(), nodes)

            assert nodes[1].session.mirror.resyncs == resyncs

    @pytest.mark.parametrize("key", ["endpoints", "changes", "ipcache", "meta"])
    async def test_a_key_of_another_type_is_named_and_what_is_known_goes_on(
        self, server: RedisServer, tmp_path: Path, key: str
    ) -> None:
        async with cluster(server.url(), tmp_path, ("n1",)) as (one,):
            await populated(server.url(), [one])
            known = one.known
            server.ask("SET", f"nfqe:{key}", "x")
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await one.run_endpoint("new", "10.9.0.1", "new")
            assert one.known == known

            server.ask("FLUSHALL")
            forks = one.session.mirror.forks
            await until(lambda: one.connected and one.session.mirror.forks != forks, "it goes on")
            assert await agreed(server.url(), [one]) == known


class TestTransfer:
    async def test_what_is_exported_is_the_same_after_an_import(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path) as nodes:
            await populated(server.url(), nodes)
            exported = json.loads(json.dumps(list(nodes[0].store.export())))
            held = {key: value for key, value in nodes[0].known.items() if key[0] is not Kind.NODE}
        head, *entries = exported
        assert (head["schema"], head["entries"]) == (1, len(entries))

        async with cluster(server.url(path="/0?prefix=other"), tmp_path, ("n9",)) as (fresh,):
            imported = await fresh.store.import_entries(entries)
            assert imported == {"written": len(held), "unchanged": 0, "refused": []}
            assert {key: value for key, value in fresh.known.items() if key[0] is not Kind.NODE} == held
            again = await fresh.store.import_entries(entries)
            assert again == {"written": 0, "unchanged": len(held), "refused": []}

    async def test_damaged_lines_are_named_and_the_rest_is_taken(self, server: RedisServer, tmp_path: Path) -> None:
        async with cluster(server.url(), tmp_path, ("n1",)) as (one,):
            await populated(server.url(), [one])
            entries = list(one.store.export())[1:]
        async with cluster(server.url(path="/0?prefix=other"), tmp_path, ("n9",)) as (fresh,):
            damaged = [{**item, "value": {"v": 1}} if item["name"] == "default/n1-0" else item for item in entries]
            imported = await fresh.store.import_entries(damaged)
            assert imported["written"] == len(entries) - 1
            assert [item["key"] for item in imported["refused"]] == ["endpoints default/n1-0"]
            with pytest.raises(BadInput, match=r"^entry 2 is not one of an export: it has no kind, name and value$"):
                await fresh.store.import_entries([entries[0], {"kind": "pod", "name": "x", "value": {}}])
            with pytest.raises(BadInput, match=r"^entry 1 is not one of an export"):
                await fresh.store.import_entries(["x"])


async def test_no_password_is_in_what_is_logged_said_or_written_down(
    binary: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "password").write_text(SECRET)
    with RedisServer(tmp_path / "locked", binary=binary, password=SECRET) as server:
        urls = [server.url(login=f":{SECRET}"), server.url(path=f"?password_file={tmp_path}/password")]
        for place, url in enumerate(urls):
            async with cluster(url, tmp_path / str(place), ("n1",)) as (one,):
                await one.run_endpoint("web", f"10.0.0.{place}", "web")
                texts = json.dumps([await one.status(), list(one.store.export())])
                server.kill()
                await cut([one])
                with pytest.raises(StoreError) as caught:
                    await one.apply(policy_text("p"))
                texts += str(caught.value) + json.dumps(await one.status())
                server.start()
                await until(lambda one=one: one.connected, "it is back")  # type: ignore[misc]
            saved = b"".join(file.read_bytes() for file in (tmp_path / str(place)).rglob("*.state*"))
            assert SECRET not in texts
            assert saved
            assert SECRET.encode() not in saved
    assert SECRET not in caplog.text


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_all_agree_in_the_end_and_nothing_is_missing(
    server: RedisServer, tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    async with cluster(server.url(), tmp_path) as nodes:
        running = await populated(server.url(), nodes)
        numbers = {name: (number, nodes[0].session.mirror.labels[number]) for name, number in running.items()}
        removed: set[str] = set()
        for turn in range(STRESS_TURNS):
            must = set(await agreed(server.url(), nodes)) - {(Kind.ENDPOINT, name) for name in removed}
            writing = [write(node, random, turn, removed) for node in nodes]
            ended = await asyncio.gather(*writing, damage(server, random), return_exceptions=True)
            assert ended == [None] * len(ended)
            await until(lambda: all(node.connected for node in nodes), "all are back")
            held = await agreed(server.url(), nodes)

            missing = {key for key in must - held.keys() if key[0] is not Kind.IDENTITY} - {
                (Kind.ENDPOINT, name) for name in removed
            }
            assert missing == set(), f"turn {turn}"
        for name, (number, labels) in numbers.items():
            if name in nodes[0].endpoints:
                assert (nodes[0].endpoints[name], nodes[0].session.mirror.labels[number]) == (number, labels)


async def write(node: Node, random: Random, turn: int, removed: set[str]) -> None:
    """Start and stop endpoints of this node; ignore the errors of an unreachable store."""
    octet = 20 + NAMES.index(node.name)
    for place in range(12):
        try:
            if random.random() < 0.7:
                await node.run_endpoint(f"{node.name}-{turn}-{place}", f"10.{octet}.{turn}.{place}", f"app{place % 4}")
            else:
                own = sorted(name for name in node.endpoints if name.startswith(f"default/{node.name}-"))
                some = random.sample(own, min(1, len(own)))
                removed.update(some)
                await node.store.delete_endpoints(some)
        except StoreError:  # the write may have been done or not
            await asyncio.sleep(0.01)


async def damage(server: RedisServer, random: Random) -> None:
    """Kill the server at a random time, and restart it with a part of its data or none."""
    await asyncio.sleep(random.random() * 0.1)
    if random.random() < 0.5:
        await asyncio.to_thread(server.save)
        await asyncio.sleep(random.random() * 0.05)
    server.kill()
    await asyncio.sleep(random.random() * 0.3)
    await asyncio.to_thread(server.restart, empty=random.random() < 0.6)
