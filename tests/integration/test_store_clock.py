"""The store's wall clock jumps: no live node loses its endpoints to garbage collection."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS
from tests.support.clocks import Clocks
from tests.support.members import Node, held_by, until
from tests.support.redis_servers import RedisServer

HOUR = 3600
OFTEN = replace(DEFAULT_TIMINGS, heartbeat=0.5, collect=0.1)
SELDOM = replace(OFTEN, heartbeat=5.0)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """Return the clock of the programs in this namespace."""
    return Clocks(tmp_path / "clocks", {"here": Path("/proc/self/ns/net")})


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_jump_of_the_stores_clock_removes_no_live_node(tmp_path: Path, clocks: Clocks, jump: int) -> None:
    """The first heartbeat after the jump collects garbage before the other node has sent one."""
    variables = [f"{name}={value}" for name, value in clocks.environment.items()]
    with RedisServer(tmp_path / "server", prefix=("env", *variables)) as server:
        nodes = [
            await Node(name, server.url(), tmp_path, timings).start()
            for name, timings in (("n1", OFTEN), ("n2", SELDOM))
        ]
        for number, node in enumerate(nodes):
            await node.run_endpoint(f"e{number}", f"10.0.0.{number}")
        await until(lambda: all(len(node.endpoints) == 2 for node in nodes), "both nodes have both endpoints")
        sent = nodes[0].session.commands_sent

        clocks.jump("here", jump)
        await until(lambda: nodes[0].session.commands_sent > sent + 20, "n1 has sent heartbeats, and collected")

        assert {name for kind, name in await held_by(server.url()) if kind is Kind.ENDPOINT} == {
            "default/e0",
            "default/e1",
        }
        assert not [change for node in nodes for change in node.delivered if change.record is None]
        await asyncio.gather(*(node.stop() for node in nodes))


async def test_a_node_that_is_gone_is_removed_after_its_lease_whatever_the_clock(
    tmp_path: Path, clocks: Clocks
) -> None:
    timings = replace(OFTEN, heartbeat=0.1, lease=1.0)
    variables = [f"{name}={value}" for name, value in clocks.environment.items()]
    with RedisServer(tmp_path / "server", prefix=("env", *variables)) as server:
        one, gone = [await Node(name, server.url(), tmp_path, timings).start() for name in ("n1", "n2")]
        await gone.run_endpoint("e1", "10.0.0.1")
        await until(lambda: len(one.endpoints) == 1, "n1 has the endpoint of n2")
        await gone.stop()

        clocks.jump("here", HOUR)

        await until(lambda: not one.endpoints, "the endpoint of n2 is removed")
        await one.stop()
