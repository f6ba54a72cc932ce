"""The store's scripts on real servers: atomic under concurrent calls, and no entry in use is lost."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from nfq_enforcer.cluster.records import Kind, NodeRecord
from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Commands, NotJoined, Request
from nfq_enforcer.store.redis.connection import StoreError
from tests.support.members import connection, dump, endpoint, held_by, placed, store
from tests.support.redis_servers import RedisServer, valkey_server

ALLOCATORS, SETS = 50, 1000
NODE = schema.encode_node(NodeRecord((), "1"))
LONG = 1e6
GRACE = (LONG, 0, LONG, 0)  # all unused identities are collected, and nothing else


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Give a server of each product."""
    binary = valkey_server() if request.param == "valkey" else "redis-server"
    with RedisServer(tmp_path_factory.mktemp(request.param), binary=binary) as server:
        yield server


@pytest.fixture
def url(server: RedisServer, request: pytest.FixtureRequest) -> str:
    """Give the address of an empty cluster."""
    server.ask("FLUSHALL")
    return server.url(path="/0?prefix=test")


def documents(*names: str) -> list[tuple[Kind, str, str]]:
    return [(Kind.DOCUMENT, name, '{"v":1}') for name in names]


async def numbers(url: str) -> dict[str, str]:
    """Return the number of each label set, from the entries of identities."""
    held = await held_by(url)
    return {json.loads(value)["labels"]: name for (kind, name), value in held.items() if kind is Kind.IDENTITY}


class TestAllocation:
    @pytest.mark.parametrize("spread", [1, 97], ids=["all prefer one number", "many prefer each number"])
    async def test_fifty_allocators_give_each_label_set_one_number_and_no_number_to_two(
        self, url: str, spread: int
    ) -> None:
        async def allocate(place: int) -> dict[str, Identity]:
            got: dict[str, Identity] = {}
            async with store(url, f"n{place}") as mine:
                order = [(number * 7 + place * 131) % SETS for number in range(SETS)]
                for start in range(0, SETS, 50):
                    some = [
                        placed(
                            f"e{place}-{one}",
                            f"fd00::{place:x}:{one:x}",
                            f"a{one}",
                            preferred=CLUSTER_MIN + one % spread,
                        )
                        for one in order[start : start + 50]
                    ]
                    written = await mine.write(Request(some))
                    got |= {str(one.labels): number for one, number in zip(some, written.numbers, strict=True)}
            return got

        all_got = await asyncio.gather(*map(allocate, range(ALLOCATORS)))

        assert all(got == all_got[0] for got in all_got)
        assert len(all_got[0]) == len(set(all_got[0].values())) == SETS
        assert await numbers(url) == {labels: str(number) for labels, number in all_got[0].items()}

    async def test_single_starts_of_new_labels_race_and_only_one_is_the_first(self, url: str) -> None:
        async with store(url) as mine:
            some = [placed(f"e{one}", f"10.0.0.{one}", "web") for one in range(1, 100)]
            written = await asyncio.gather(*(mine.write(Request([one])) for one in some))

        assert {one.numbers for one in written} == {(1000,)}
        assert [one.new for one in written].count(frozenset({Identity(1000)})) == 1

    async def test_the_number_that_labels_prefer_is_theirs_if_it_is_free_else_the_next_around_the_range(
        self, url: str
    ) -> None:
        async with store(url) as mine:
            some = [placed(f"e{one}", f"10.0.0.{one}", f"a{one}", preferred=CLUSTER_MAX) for one in range(3)]

            assert (await mine.write(Request(some))).numbers == (CLUSTER_MAX, CLUSTER_MIN, CLUSTER_MIN + 1)


class TestAllOrNothing:
    async def test_an_address_of_another_endpoint_refuses_all_and_changes_nothing(self, url: str) -> None:
        async with store(url) as mine:
            await mine.write(Request([placed("web", "10.0.0.1")]))
            before = await dump(url)
            request = Request(
                [placed("new", "10.0.0.2", "new"), placed("wap", "10.0.0.1", "wap")],
                documents("NetworkPolicy/default/p"),
                [(Kind.DOCUMENT, "x")],
            )

            with pytest.raises(BadInput, match=r"^10\.0\.0\.1 already belongs to endpoint default/web$"):
                await mine.write(request)
            assert await dump(url) == before

    async def test_two_endpoints_of_one_request_cannot_have_one_address(self, url: str) -> None:
        async with store(url) as mine:
            before = await dump(url)

            with pytest.raises(BadInput, match=r"^10\.0\.0\.1 already belongs to endpoint default/web$"):
                await mine.write(Request([placed("web", "10.0.0.1"), placed("wap", "10.0.0.1")]))
            assert await dump(url) == before

    async def test_an_address_moves_within_a_request(self, url: str) -> None:
        async with store(url) as mine:
            await mine.write(Request([placed("a", "10.0.0.1"), placed("b", "10.0.0.2"), placed("c", "10.0.0.3")]))
            swapped = [placed("a", "10.0.0.2"), placed("b", "10.0.0.1"), placed("d", "10.0.0.3")]
            await mine.write(Request(swapped, deleted=[(Kind.ENDPOINT, "default/c")]))

            for ip, name in (("10.0.0.1", "b"), ("10.0.0.2", "a"), ("10.0.0.3", "d")):
                with pytest.raises(BadInput, match=f"^{ip} already belongs to endpoint default/{name}$"):
                    await mine.write(Request([placed("e", ip)]))

    async def test_what_is_written_together_is_one_change_that_everybody_reads_whole(self, url: str) -> None:
        async with store(url) as mine:
            await mine.write(Request([placed("old", "10.0.0.9", "old")], documents("NetworkPolicy/default/old")))
            start = (await mine.join("n1", 0, 0)).last
            written = await mine.write(
                Request(
                    [placed("web", "10.0.0.1"), placed("wap", "10.0.0.2")],
                    documents("NetworkPolicy/default/p"),
                    [(Kind.ENDPOINT, "default/old"), (Kind.DOCUMENT, "NetworkPolicy/default/old"), (Kind.NODE, "n9")],
                )
            )
            (change,) = await mine.read(start, None)

        assert (change.id, change.revision) == (written.id, 2)
        assert [(*key, value is not None) for key, _, value in change.changes] == [
            (Kind.IDENTITY, "1001", True),
            (Kind.ENDPOINT, "default/web", True),
            (Kind.ENDPOINT, "default/wap", True),
            (Kind.DOCUMENT, "NetworkPolicy/default/p", True),
            (Kind.ENDPOINT, "default/old", False),
            (Kind.DOCUMENT, "NetworkPolicy/default/old", False),
        ]
        assert written.missing == ((Kind.NODE, "n9"),)
        assert {value for key, _, value in change.changes if value} <= set((await held_by(url)).values())

    async def test_what_is_so_already_is_not_written_again(self, url: str) -> None:
        async with store(url) as mine:
            request = Request([placed("web", "10.0.0.1")], documents("NetworkPolicy/default/p"))
            first = await mine.write(request)
            before = await dump(url)
            second = await mine.write(request)

            assert (first.revision, second) == (1, first._replace(id=None, new=frozenset()))
            assert await dump(url) == before

    async def test_nobody_writes_before_a_member_has_joined_this_run_of_the_server(self, url: str) -> None:
        async with connection(url) as client:
            stranger = Commands(client, client, "test")
            for command in (
                stranger.write(Request(values=[(Kind.NODE, "n1", NODE)])),
                stranger.restore([], [(Kind.NODE, "n1")]),
                stranger.heartbeat("n1", 0),
                stranger.collect(*GRACE),
            ):
                with pytest.raises(NotJoined, match=r"^it has been emptied, and this node is about to join it anew$"):
                    await command
            await stranger.join("n1", 0, 0)
            await client.hset("test:meta", "run", "0" * 40)
            with pytest.raises(NotJoined, match=r"^it has been restarted or replaced"):
                await stranger.write(Request(values=[(Kind.NODE, "n1", NODE)]))

    async def test_a_store_of_another_version_is_left_alone(self, url: str) -> None:
        async with connection(url) as client:
            await client.hset("test:meta", "schema", "2")
            before = await dump(url)

            with pytest.raises(
                StoreError, match="under prefix 'test' has schema version 2, and this program understands 1"
            ):
                await Commands(client, client, "test").join("n1", 0, 0)
            assert await dump(url) == before


class TestCollection:
    async def start(self, mine: Commands, name: str = "web", app: str = "web", ip: str = "10.0.0.1") -> Identity:
        (number,) = (await mine.write(Request([placed(name, ip, app)]))).numbers
        return number

    async def stop(self, mine: Commands, name: str = "web") -> None:
        await mine.write(Request(deleted=[(Kind.ENDPOINT, f"default/{name}")]))

    async def test_an_identity_that_nobody_has_is_collected_after_the_grace(self, url: str) -> None:
        async with store(url) as mine:
            await self.start(mine)
            assert (await mine.collect(*GRACE)).identities == 0
            await self.stop(mine)
            assert (await mine.collect(LONG, LONG, LONG, 0)).identities == 0
            assert list(await numbers(url)) == ["k8s:app=web"]

            assert (await mine.collect(*GRACE)).identities == 1
            assert await held_by(url) == {}

    async def test_labels_that_come_back_within_the_grace_keep_their_number(self, url: str) -> None:
        async with store(url) as mine:
            number = await self.start(mine)
            await self.stop(mine)
            assert await self.start(mine, "again") == number
            assert (await mine.collect(*GRACE)).identities == 0

    async def test_an_endpoint_with_other_labels_gives_its_identity_up(self, url: str) -> None:
        async with store(url) as mine:
            await self.start(mine)
            other = await self.start(mine, app="other")

            assert (await mine.collect(*GRACE)).identities == 1
            assert await numbers(url) == {"k8s:app=other": str(other)}

    async def test_a_collected_number_goes_to_its_own_labels_at_once_and_to_others_after_its_retirement(
        self, url: str
    ) -> None:
        async with store(url) as mine:
            number = await self.start(mine)
            await self.stop(mine)
            await mine.collect(*GRACE)
            other = await self.start(mine, "other", "other", "10.0.0.2")
            own = await self.start(mine)
            assert (own, other) == (number, number + 1)

            await self.stop(mine)
            await mine.collect(LONG, 0, 0, 0)
            assert await self.start(mine, "third", "third", "10.0.0.3") == number

    async def test_collection_is_done_once_an_interval_whoever_asks(self, url: str) -> None:
        async with store(url) as mine, store(url, "n2") as other:
            await mine.collect(LONG, 0, LONG, LONG)
            await self.start(mine)
            await self.stop(mine)

            assert (await other.collect(LONG, 0, LONG, LONG)).identities == 0
            assert (await other.collect(*GRACE)).identities == 1

    async def test_endpoints_live_as_long_as_their_node_is_heard_of(self, url: str) -> None:
        async with store(url) as mine:
            nodes = [(Kind.NODE, name, NODE) for name in ("n1", "n2")]
            some = [placed(f"e{one}", f"10.0.{one // 250}.{one % 250}", f"a{one}", "n2") for one in range(1100)]
            await mine.write(Request([placed("web", "10.1.0.1"), *some], nodes))
            await mine.heartbeat("n2", 0, ago=1000)
            collected = await mine.collect(500, LONG, LONG, 0)

            assert (collected.nodes, collected.endpoints, collected.identities) == (("n2",), 1100, 0)
            held = await held_by(url)
            assert {name for kind, name in held if kind in (Kind.ENDPOINT, Kind.NODE)} == {"default/web", "n1"}
            assert (await mine.heartbeat("n2", 0)).registered is False
            assert (await mine.heartbeat("n1", 0)).registered is True
            assert set(await mine.nodes()) == {"n1"}
            assert (await mine.collect(*GRACE)).identities == 1100
            await mine.write(Request([placed("wap", "10.0.0.1")]))  # the address is free again

    async def test_whoever_starts_while_others_collect_never_has_an_identity_that_is_not_there(self, url: str) -> None:
        done = False

        async def collect() -> int:
            collected = 0
            async with store(url, "collector") as mine:
                while not done:
                    collected += (await mine.collect(*GRACE)).identities
            return collected

        async def churn(place: int) -> None:
            async with store(url, f"n{place}") as mine:
                for turn in range(60):
                    app, name = f"a{(place + turn) % 5}", f"e{place}"
                    await self.start(mine, name, app, f"10.0.0.{place}")
                    async with connection(url) as client:
                        step = client.pipeline(transaction=True)
                        step.hget("test:endpoints", f"default/{name}")
                        step.hgetall("test:identities")
                        value, identities = await step.execute()
                    number = json.loads(value.partition(b" ")[2])["identity"]
                    assert json.loads(identities[b"%d" % number].partition(b" ")[2])["labels"] == f"k8s:app={app}"
                    await self.stop(mine, name)

        collecting = [asyncio.create_task(collect()) for _ in range(3)]
        try:
            await asyncio.gather(*map(churn, range(12)))
        finally:
            done = True
            collected = await asyncio.gather(*collecting)
        assert sum(collected) > 0

    async def test_labels_whose_identity_was_taken_out_by_hand_get_it_anew(self, url: str) -> None:
        async with store(url) as mine, connection(url) as client:
            number = await self.start(mine)
            await client.hdel("test:identities", str(number))
            assert await self.start(mine, "wap", ip="10.0.0.2") == number
            assert await numbers(url) == {"k8s:app=web": str(number)}

    async def test_labels_whose_number_means_others_by_now_get_one_of_their_own(self, url: str) -> None:
        async with store(url) as mine, connection(url) as client:
            number = await self.start(mine)
            await client.hset("test:identities", str(number), "1-1 no more JSON")
            await self.stop(mine)
            await mine.collect(LONG, 0, 0, 0)
            assert await self.start(mine, "other", "other", "10.0.0.2") == number
            assert await self.start(mine) == number + 1
            assert await numbers(url) == {"k8s:app=other": str(number), "k8s:app=web": str(number + 1)}


class TestRestore:
    async def test_nothing_is_given_back_over_what_another_claims(self, url: str) -> None:
        lost = Labels.parse({"app": "lost"})
        web, wap = (endpoint(name, ip) for name, ip in (("web", "10.0.0.1"), ("wap", "10.0.0.2")))
        back = [
            ((Kind.IDENTITY, "3000"), schema.encode_identity(Labels.parse({"app": "web"}))),
            ((Kind.IDENTITY, "1000"), schema.encode_identity(lost)),
            ((Kind.IDENTITY, "4000"), schema.encode_identity(lost)),
            ((Kind.ENDPOINT, "default/web"), schema.encode_endpoint(web._replace(identity=Identity(4000)))),
            ((Kind.ENDPOINT, "default/wap"), schema.encode_endpoint(wap._replace(identity=Identity(1000)))),
            ((Kind.ENDPOINT, "default/wop"), schema.encode_endpoint(endpoint("wop", "10.0.0.3"))),
        ]
        async with store(url) as mine:
            await mine.write(Request([placed("owner", "10.0.0.1")]))
            await mine.write(Request([placed("wop", "10.0.0.4")]))
            before = await held_by(url)
            entries = [(key, schema.StoreEntry(1, value.encode())) for key, value in back]
            left = await mine.restore(entries, labels={Identity(1000): lost, Identity(4000): lost})

        assert left == {(Kind.IDENTITY, "3000"), (Kind.ENDPOINT, "default/web"), (Kind.ENDPOINT, "default/wap")}
        assert await held_by(url) == before | {(Kind.IDENTITY, "4000"): back[2][1].encode()}

    async def test_what_was_given_back_is_used_as_if_it_had_never_been_lost(self, url: str) -> None:
        async with store(url) as mine:
            await mine.write(Request([placed("web", "10.0.0.1"), placed("wap", "10.0.0.2")]))
            found, _ = await mine.scan()
            async with connection(url) as client:
                await client.flushall()
            await mine.join("n1", max(entry.id for entry in found.values()), 0)
            assert await mine.restore(found.items()) == frozenset()
            assert (await mine.scan())[0] == found

            with pytest.raises(BadInput, match="belongs to endpoint default/web"):
                await mine.write(Request([placed("new", "10.0.0.1")]))
            assert (await mine.write(Request([placed("new", "10.0.0.3")]))).numbers == (1000,)
            assert (await mine.collect(*GRACE)).identities == 0
            await mine.write(Request(deleted=[(Kind.ENDPOINT, f"default/{name}") for name in ("web", "wap", "new")]))
            assert (await mine.collect(*GRACE)).identities == 1

    async def test_whoever_was_behind_brings_nothing_back_once_one_who_knew_more_has_been_there(self, url: str) -> None:
        async with store(url) as mine:
            written = [await mine.write(Request([placed(f"e{one}", f"10.0.0.{one}")])) for one in range(1, 4)]
            found, _ = await mine.scan()
            async with connection(url) as client:
                await client.flushall()
            fork = (await mine.join("n1", written[2].id or 0, 0)).forks[0].name
            of = {one: {(Kind.ENDPOINT, f"default/e{one}"): found[Kind.ENDPOINT, f"default/e{one}"]} for one in (1, 3)}
            await mine.note_restored(fork, written[1].id or 0)
            await mine.restore([*of[1].items(), *of[3].items()], fork=fork)
            assert (await mine.scan())[0] == of[3]
            assert (await mine.join("n1", 0, 0)).forks[0].survived == written[1].id

            await mine.note_restored(fork, written[0].id or 0)  # it never decreases
            assert (await mine.join("n1", 0, 0)).forks[0].survived == written[1].id
            await mine.restore(of[1].items())  # an import names no fork
            assert (await mine.scan())[0] == of[3] | of[1]
