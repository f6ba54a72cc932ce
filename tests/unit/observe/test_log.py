"""Flow log: keeps the last flows, and gives new ones to followers without waiting for them."""

import asyncio
from collections.abc import Iterable

from nfq_enforcer.observe import log
from nfq_enforcer.observe.log import FlowLog


def test_the_last_flows_are_kept_oldest_first_and_all_are_counted() -> None:
    flows = FlowLog[int](kept=3)
    for number in range(5):
        flows.add(number)

    assert flows.last() == [2, 3, 4]
    assert flows.seen == 5


def test_as_many_are_kept_as_hubble_keeps() -> None:
    flows = FlowLog[int]()
    for number in range(5000):
        flows.add(number)

    assert flows.last() == list(range(905, 5000))


def test_a_list_of_the_last_flows_stays_as_it_is() -> None:
    flows = FlowLog[int]()
    flows.add(1)
    before = flows.last()
    flows.add(2)

    assert before == [1]


class Packs:
    """Packs of consecutive numbers, and the number of unpacked ones."""

    def __init__(self, flows: FlowLog[int]) -> None:
        self.opened = 0
        self._flows = flows
        self._next = 0

    def add(self, size: int) -> None:
        numbers = range(self._next, self._next + size)
        self._next += size
        self._flows.add_pack(size, lambda: self._open(numbers))

    def _open(self, numbers: Iterable[int]) -> Iterable[int]:
        self.opened += 1
        return numbers


def test_a_pack_that_nobody_reads_is_never_opened() -> None:
    flows = FlowLog[int](kept=10)
    packs = Packs(flows)
    for _ in range(100):
        packs.add(4)

    assert (flows.seen, packs.opened) == (400, 0)
    assert flows.last() == list(range(390, 400))
    assert packs.opened == 3
    assert flows.last() == list(range(390, 400))


def test_packs_and_single_flows_are_kept_in_their_order() -> None:
    flows = FlowLog[int](kept=5)
    packs = Packs(flows)
    flows.add(-1)
    packs.add(2)
    packs.add(1)
    flows.add(100)

    assert flows.last() == [-1, 0, 1, 2, 100]
    packs.add(1)
    assert flows.last() == [0, 1, 2, 100, 3]
    assert flows.seen == 6


def test_packs_can_be_opened_before_things_change() -> None:
    flows = FlowLog[str]()
    name = "before"
    flows.add_pack(1, lambda: [name])
    flows.open()
    name = "after"
    flows.add_pack(1, lambda: [name])

    assert flows.last() == ["before", "after"]


def test_who_follows_gets_what_comes_in_packs() -> None:
    async def following() -> list[int]:
        flows = FlowLog[int]()
        packs = Packs(flows)
        packs.add(2)
        with flows.follow() as follower:
            packs.add(2)
            got = await follower.next()
        return got + flows.last()

    assert asyncio.run(following()) == [2, 3, 0, 1, 2, 3]


def test_each_follower_gets_what_comes_while_it_follows() -> None:
    async def following() -> tuple[list[int], list[int]]:
        flows = FlowLog[int]()
        flows.add(0)
        with flows.follow() as first:
            flows.add(1)
            with flows.follow() as second:
                flows.add(2)
            flows.add(3)
            return await first.next(), await second.next()

    assert asyncio.run(following()) == ([1, 2, 3], [2])


def test_a_follower_waits_for_a_flow_that_has_not_come() -> None:
    async def following() -> list[int]:
        flows = FlowLog[int]()
        with flows.follow() as follower:
            waiting = asyncio.create_task(follower.next())
            asyncio.get_running_loop().call_soon(flows.add, 7)
            return await waiting

    assert asyncio.run(following()) == [7]


def test_a_follower_receives_only_what_it_admits() -> None:
    async def following() -> list[int]:
        flows = FlowLog[int]()
        with flows.follow(lambda number: number % 2 == 0) as follower:
            for number in range(6):
                flows.add(number)
            return await follower.next()

    assert asyncio.run(following()) == [0, 2, 4]


def test_a_follower_takes_a_limited_number_at_once() -> None:
    async def following() -> list[int]:
        flows = FlowLog[int]()
        with flows.follow() as follower:
            for number in range(log._AT_ONCE + 1):
                flows.add(number)
            return [len(await follower.next()), len(await follower.next())]

    assert asyncio.run(following()) == [log._AT_ONCE, 1]


def test_a_follower_that_is_too_slow_loses_the_newest_and_knows_how_many() -> None:
    async def following() -> tuple[list[int], int]:
        flows = FlowLog[int]()
        with flows.follow() as follower:
            for number in range(log._BEHIND + 3):
                flows.add(number)
            taken: list[int] = []
            while len(taken) < log._BEHIND:
                taken += await follower.next()
            return taken, follower.take_lost()

    taken, lost = asyncio.run(following())

    assert taken == list(range(log._BEHIND))
    assert lost == 3


def test_one_slow_follower_costs_another_nothing() -> None:
    async def following() -> int:
        flows = FlowLog[int]()
        with flows.follow(), flows.follow() as quick:
            for number in range(log._BEHIND + 1):
                flows.add(number)
                await quick.next()
            return quick.take_lost()

    assert asyncio.run(following()) == 0
