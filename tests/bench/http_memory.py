"""Memory of Envoy by its number of slots, and the time and CPU to open them: by the proxy alone, and by whole agents.

Slots of the proxy alone are opened in groups. Through an agent, connections of all new pairs begin at once, each with a
request.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.proxy.proxy import Opening
from tests.bench.http_nodes import with_ports
from tests.bench.processes import cpu, tree_memory
from tests.support.bursts import ask, connect
from tests.support.proxies import ProxyLab, open_slots, rule_set

COUNTS = (0, 100, 1000)
AT_ONCE = (200, 1000)  # new pairs
_TOGETHER = 100  # slots of the proxy that are opened together
_ALLOWED = "/userdata/42"


class Opened(NamedTuple):
    """Opened slots: their number, memory and CPU of a process, and the time to open those since the previous number."""

    slots: int
    memory: float  # MiB
    seconds: float
    cpu: float  # ms a slot; 0 without one


def measure() -> list[Opened]:
    """Return the figures of Envoy for each number of slots, with a rule each."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        lab = ProxyLab(Path(folder, "proxy"))
        try:
            return [_open(lab, count) for count in COUNTS]
        finally:
            lab.close()


def _open(lab: ProxyLab, count: int) -> Opened:
    assert lab.proxy.pid is not None
    begun, before = time.monotonic(), cpu(lab.proxy.pid)
    slots = range(len(lab.proxy.slots) + 1, count + 1)
    for start in range(0, len(slots), _TOGETHER):
        rules = {
            slot: rule_set(HttpMatch("GET", f"/service{slot}/[0-9]+")) for slot in slots[start : start + _TOGETHER]
        }
        lab.node.run(open_slots(lab.proxy, {slot: Opening(each) for slot, each in rules.items()}))
    seconds, spent = time.monotonic() - begun, cpu(lab.proxy.pid) - before
    return Opened(count, tree_memory(lab.proxy.pid), seconds, 1000 * spent / max(len(slots), 1))


def measure_agents() -> list[tuple[Opened, Opened]]:
    """Return the figures of agent and workers without a slot, and after connections of new pairs at once."""
    return [_open_through_agent(count) for count in AT_ONCE]


def _open_through_agent(count: int) -> tuple[Opened, Opened]:
    with with_ports(count) as (lab, ports):
        node = lab.nodes["n1"]
        without = Opened(0, _memory(node), 0.0, 0.0)
        before = cpu(node.pid)

        async def burst() -> float:
            begun = time.monotonic()
            opened = await connect(lab, "front1", "back1", ports)
            if await ask(opened.values(), _ALLOWED) != {200: count}:
                raise NfqError("requests failed")
            for connection in opened.values():
                connection.close()
            return time.monotonic() - begun

        seconds = asyncio.run(burst())
        spent = cpu(node.pid) - before
        return without, Opened(count, _memory(node), seconds, 1000 * spent / count)


def _memory(node: LabNode) -> float:
    """Return the memory of an agent and its workers, without the proxy's."""
    proxy = node.status()["proxy"]
    return tree_memory(node.pid) - (tree_memory(proxy["pid"]) if proxy and proxy["pid"] else 0.0)
