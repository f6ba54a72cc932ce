"""Connections of many new pairs at once with HTTP rules: each pair needs a slot of the proxy, up to all of them."""

import asyncio
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.core.tables.slots import MAX_SLOTS
from nfq_enforcer.lab.lab import Lab
from tests.support.bursts import ask, connect, many_ports, serving
from tests.support.http import HttpConnection
from tests.support.labs import Policies, kill, until

NODE = "n2"  # of the server
PORTS = range(20_000, 20_001 + MAX_SLOTS)
RULE = {"method": "GET", "path": "/userdata/[0-9]+"}
ALLOWED, REFUSED = "/userdata/42", "/secret"


async def test_envoy_starts_with_the_first_policy_that_needs_it(guarded: Lab, policies: Policies) -> None:
    assert status(guarded) is None
    await policies.apply("many", many_ports(PORTS[:1], RULE))

    await until(lambda: (status(guarded) or {}).get("running"))
    assert (proxy(guarded)["slots"], proxy(guarded)["error"]) == (0, None)


async def test_connections_of_200_new_pairs_at_once_all_get_slots(guarded: Lab, policies: Policies) -> None:
    ports = PORTS[:200]
    await policies.apply("many", many_ports(ports, RULE))
    with serving(guarded, "back2", ports):
        opened = await connect(guarded, "front1", "back2", ports)
        assert await ask(opened.values(), ALLOWED) == {200: len(ports)}
        assert await ask(opened.values(), REFUSED) == {403: len(ports)}
        close(opened)


async def test_connections_that_wait_for_slots_while_envoy_dies_get_them(guarded: Lab, policies: Policies) -> None:
    ports = PORTS[200:300]
    await policies.apply("many", many_ports(ports, RULE))

    async def request(port: int) -> int:
        while True:  # a connection that has its slot already ends with Envoy
            opened: dict[int, HttpConnection] = {}
            try:
                opened = await connect(guarded, "front1", "back2", [port])
                return await opened[port].ask(ALLOWED)
            except (ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
            finally:
                close(opened)

    with serving(guarded, "back2", ports):
        assert await request(ports[0]) == 200
        before, envoy = proxy(guarded)["slots"], proxy(guarded)["pid"]
        asked = [asyncio.create_task(request(port)) for port in ports[1:]]
        await until(lambda: proxy(guarded)["slots"] > before)
        kill(envoy)
        assert set(await asyncio.gather(*asked)) == {200}


async def test_with_all_slots_in_use_a_new_pair_gets_one_whose_connections_have_ended(
    guarded: Lab, policies: Policies
) -> None:
    await policies.apply("many", many_ports(PORTS, RULE))
    *first, last = PORTS
    with serving(guarded, "back2", PORTS):
        opened = await connect(guarded, "front1", "back2", first)
        assert await ask(opened.values(), ALLOWED) == {200: MAX_SLOTS}
        assert proxy(guarded)["slots"] == MAX_SLOTS

        waiting = asyncio.create_task(connect(guarded, "front1", "back2", [last]))
        await until(lambda: proxy(guarded)["refused"] > 0)
        opened.pop(first[7]).close()
        new = await waiting
        assert await ask(new.values(), ALLOWED) == {200: 1}
        assert await ask(opened.values(), REFUSED) == {403: MAX_SLOTS - 1}
        close(opened | new)


def close(connections: dict[int, HttpConnection]) -> None:
    for connection in connections.values():
        connection.close()


def proxy(lab: Lab) -> dict[str, Any]:
    found = status(lab)
    assert found is not None
    return found


def status(lab: Lab) -> dict[str, Any] | None:
    found: dict[str, Any] | None = client.call(lab.nodes[NODE].socket, "status")["proxy"]
    return found
