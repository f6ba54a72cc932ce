"""Flows of all nodes: merged by time, limited as a whole, and a note for each node that is missing, and why."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from nfq_enforcer.agent.peers.cluster_flows import ALONE, ClusterFlows
from nfq_enforcer.agent.peers.own_flows import OwnFlows
from nfq_enforcer.agent.peers.protocol import KEPT_END, NodeRefused
from nfq_enforcer.agent.peers.relay import NOTICE, StoreRelay
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe import log as flow_log
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.observe.status import NodeReport
from tests.support.flows import AT, dropped, logged

PATIENCE = 10.0
Item = dict[str, Any]


def report(name: str, *, live: bool | None = True) -> NodeReport:
    return NodeReport(name, [], live, "2026-01-01T00:00:00Z", None, "1.0", "per-packet", 0)


class Mailboxes:
    """Mailboxes: messages between relays in one process, in place of the store."""

    def __init__(self) -> None:
        self.readers: dict[str, Callable[[bytes], None]] = {}
        self.sent = 0

    def of(self, node: str) -> "Mailbox":
        return Mailbox(self, node)


class Mailbox:
    def __init__(self, boxes: Mailboxes, node: str) -> None:
        self._boxes = boxes
        self._node = node

    def receive_by(self, receive: Callable[[bytes], None]) -> None:
        self._boxes.readers[self._node] = receive

    async def send(self, node: str, message: bytes) -> bool:
        await asyncio.sleep(0)
        self._boxes.sent += 1
        if node not in self._boxes.readers:
            return False
        self._boxes.readers[node](message)
        return True


class Cluster:
    """Cluster: nodes n1 to n3 with a flow log each, joined by their relays."""

    def __init__(self, **refusals: str) -> None:
        self.boxes = Mailboxes()
        self.roster = [report("n1"), report("n2"), report("n3")]
        self.logs = {node.name: FlowLog[Logged]() for node in self.roster}
        own = {name: OwnFlows(name, log).batches for name, log in self.logs.items()}
        self.relays = {name: StoreRelay(name, self.boxes.of(name), own[name], refusals.get(name)) for name in self.logs}
        self.flows = ClusterFlows("n1", own["n1"], self._read, self.relays["n1"], 0.01)

    async def _read(self) -> Sequence[NodeReport]:
        return self.roster

    def add(self, node: str, *seconds: float) -> None:
        for second in seconds:
            self.logs[node].add(logged(at=AT + second, node=node))

    async def all(self, **params: Any) -> list[Item]:
        return [item async for item in self.flows.observe(params)]

    def leave(self, node: str) -> Callable[[bytes], None]:
        return self.boxes.readers.pop(node)


def shown(items: list[Item]) -> list[tuple[str, float]]:
    """Return node and second of each flow."""
    return [(item["node_name"], float(item["time"][17:-1]) - 0.125) for item in items if "verdict" in item]


def reasons(items: list[Item]) -> dict[str, tuple[str, str]]:
    found = [item["node_status"] for item in items if "node_status" in item]
    return {status["node_names"][0]: (status["state_change"], status["message"]) for status in found}


async def read_until(items: AsyncGenerator[Item, None], wanted: Callable[[Item], object]) -> list[Item]:
    """Return the items up to and with the first that is wanted."""
    read: list[Item] = []
    async with asyncio.timeout(PATIENCE):
        async for item in items:
            read.append(item)
            if wanted(item):
                return read
    raise AssertionError(f"the stream has ended after {read}")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_kept_flows_are_merged_by_time(cluster: Cluster) -> None:
    cluster.add("n1", 1, 4)
    cluster.add("n2", 6, 2, 3)  # a worker has reported a flow late
    cluster.add("n3", 5)

    items = asyncio.run(cluster.all())

    assert shown(items) == [("n1", 1), ("n2", 2), ("n2", 3), ("n1", 4), ("n3", 5), ("n2", 6)]
    assert items[0] == {"notice": NOTICE}
    assert reasons(items) == {}


@pytest.mark.parametrize(
    ("params", "seconds"),
    [
        ({"last": 2}, [5, 6]),
        ({"first": 2}, [1, 2]),
        ({"last": 0}, []),
        ({"first": 0}, []),
        ({"since": AT + 4}, [4, 5, 6]),
    ],
    ids=str,
)
def test_limits_hold_for_all_nodes_together(params: Item, seconds: list[int], cluster: Cluster) -> None:
    cluster.add("n1", 1, 4)
    cluster.add("n2", 2, 5)
    cluster.add("n3", 3, 6)

    assert [second for _, second in shown(asyncio.run(cluster.all(**params)))] == seconds


def test_more_flows_than_are_under_way_at_a_time_come_whole(cluster: Cluster) -> None:
    for number in range(3000):
        cluster.add(f"n{number % 3 + 1}", number / 100)

    items = shown(asyncio.run(cluster.all()))

    assert len(items) == 3000
    assert items == sorted(items, key=lambda item: item[1])


def test_filters_run_at_each_node(cluster: Cluster) -> None:
    cluster.add("n1", 1)
    cluster.logs["n2"].add(dropped(at=AT + 2, node="n2"))

    assert shown(asyncio.run(cluster.all(allow={"verdict": ["DROPPED"]}))) == [("n2", 2)]


def test_a_node_that_is_not_there_is_a_line_with_the_reason() -> None:
    cluster = Cluster(n3="it is shy")
    cluster.add("n1", 1)
    cluster.leave("n2")
    cluster.roster.append(report("n4", live=False))

    items = asyncio.run(cluster.all())

    assert shown(items) == [("n1", 1)]
    assert reasons(items) == {
        "n2": ("NODE_UNAVAILABLE", "its agent (version 1.0) does not listen for requests at the store"),
        "n3": ("NODE_ERROR", "it is shy"),
        "n4": (
            "NODE_UNAVAILABLE",
            "its agent does not run, or cannot reach the store: last heartbeat 2026-01-01T00:00:00Z",
        ),
    }


def test_a_node_that_does_not_answer_is_missed_after_a_while(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfq_enforcer.agent.peers.relay.FIRST", 0.02)
    cluster.boxes.readers["n3"] = lambda _message: None
    cluster.add("n2", 1)

    items = asyncio.run(cluster.all())

    assert shown(items) == [("n2", 1)]
    assert reasons(items) == {"n3": ("NODE_UNAVAILABLE", "its agent has not answered for 0 seconds")}


def test_without_the_store_the_own_flows_are_shown(cluster: Cluster) -> None:
    async def fail() -> Sequence[NodeReport]:
        raise NfqError("the store is away")

    cluster.add("n1", 1)
    own = OwnFlows("n1", cluster.logs["n1"]).batches
    alone = ClusterFlows("n1", own, fail, None)
    lost = ClusterFlows("n1", own, fail, cluster.relays["n1"])

    async def read(flows: ClusterFlows) -> list[Item]:
        return [item async for item in flows.observe({})]

    for flows, sentence in ((alone, ALONE), (lost, "only this node's flows are shown: the store is away")):
        items = asyncio.run(read(flows))
        assert items[0] == {"notice": sentence}
        assert shown(items) == [("n1", 1)]


def test_a_request_with_a_mistake_is_refused(cluster: Cluster) -> None:
    with pytest.raises(BadInput, match="first and follow exclude each other"):
        asyncio.run(cluster.all(first=1, follow=True))


def test_new_flows_come_by_time_and_a_node_that_returns_joins(cluster: Cluster) -> None:
    async def follow() -> tuple[list[Item], ...]:
        cluster.add("n2", 1)
        items = cluster.flows.observe({"follow": True})
        kept = await read_until(items, lambda item: "verdict" in item)
        cluster.add("n3", 9, 8)
        cluster.add("n1", 7)
        new = await read_until(items, lambda item: shown([item]) == [("n3", 9)])
        await cluster.relays["n2"].stop()
        n2 = cluster.leave("n2")
        gone = await read_until(items, lambda item: "n2" in reasons([item]))
        cluster.boxes.readers["n2"] = n2
        back = await read_until(items, lambda item: "NODE_CONNECTED" in str(item))
        cluster.add("n2", 10)
        last = await read_until(items, lambda item: "verdict" in item)
        await items.aclose()
        return kept, new, gone, back, last

    kept, new, gone, back, last = asyncio.run(follow())

    assert shown(kept) == [("n2", 1)]
    assert shown(new) == [("n1", 7), ("n3", 8), ("n3", 9)]
    assert gone[-1]["node_status"]["state_change"] == "NODE_UNAVAILABLE"
    assert reasons(back)["n2"] == ("NODE_CONNECTED", "its new flows are shown from now on")
    assert shown(last) == [("n2", 10)]


def test_a_reader_that_leaves_ends_all_answers(cluster: Cluster) -> None:
    async def follow() -> None:
        cluster.add("n3", 1)
        items = cluster.flows.observe({"follow": True})
        await read_until(items, lambda item: "verdict" in item)
        await items.aclose()
        async with asyncio.timeout(PATIENCE):
            while any(relay._answers for relay in cluster.relays.values()):
                await asyncio.sleep(0)

    asyncio.run(follow())


def test_a_slow_reader_loses_flows_which_are_counted_and_nothing_waits_in_between(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_log, "_BEHIND", 100)

    async def follow() -> tuple[int, int, int]:
        batches = cluster.relays["n1"].ask(report("n2"), {"follow": True})
        assert await anext(batches) == [KEPT_END]
        before, total = cluster.boxes.sent, 2000
        for number in range(total):
            cluster.add("n2", number / 1000)
            await asyncio.sleep(0)
        waiting = cluster.boxes.sent - before
        shown_flows = lost = 0
        async with asyncio.timeout(PATIENCE):
            while shown_flows + lost < total:
                for item in await anext(batches):
                    lost += item["lost_events"]["num_events_lost"] if "lost_events" in item else 0
                    shown_flows += "verdict" in item
        await batches.aclose()
        return waiting, shown_flows, lost

    waiting, seen, lost = asyncio.run(follow())

    assert waiting <= 3  # messages, while the reader did not read
    assert lost > 0
    assert seen + lost == 2000


def test_a_node_answers_a_bounded_number_of_requests(cluster: Cluster) -> None:
    async def ask() -> list[str]:
        relay, errors = cluster.relays["n1"], []
        asking = [relay.ask(report("n2"), {"follow": True}) for _ in range(10)]
        for batches in asking:
            try:
                await anext(batches)
            except NodeRefused as error:
                errors.append(str(error))
        for batches in asking:
            await batches.aclose()
        return errors

    assert asyncio.run(ask()) == ["it answers 8 requests already; try again later"] * 2


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"kind":"ask"}',
        b'{"kind":"ask","from":"n1","id":1,"params":{}}',
        b'{"kind":"flows","from":"n2","id":"x","flows":[]}',
        b'{"kind":"more","from":"n1","id":"x"}',
        b'{"kind":"stop","from":"n1","id":"x"}',
    ],
)
def test_a_message_that_is_not_valid_is_dropped(message: bytes, cluster: Cluster) -> None:
    cluster.relays["n2"].receive(message)

    assert cluster.boxes.sent == 0


def test_a_wrong_request_gets_its_mistake_as_the_answer(cluster: Cluster) -> None:
    async def ask() -> None:
        async for _ in cluster.relays["n1"].ask(report("n2"), {"first": -1}):
            pass

    with pytest.raises(NodeRefused, match="first must be a whole number"):
        asyncio.run(ask())


def test_an_answer_of_another_node_is_not_believed(cluster: Cluster) -> None:
    async def ask() -> list[Any]:
        asked: list[bytes] = []
        cluster.boxes.readers["n2"] = asked.append
        batches = cluster.relays["n1"].ask(report("n2"), {})
        answer = asyncio.create_task(anext(batches))
        while not asked:
            await asyncio.sleep(0)
        number = asked[0].decode().split('"id":"')[1][:16]
        for node, flows in (("n3", '["forged"]'), ("n2", '["own"]')):
            message = f'{{"kind":"flows","from":"{node}","id":"{number}","flows":{flows}}}'
            cluster.relays["n1"].receive(message.encode())
        first = await answer
        await batches.aclose()
        return list(first)

    assert asyncio.run(ask()) == ["own"]
