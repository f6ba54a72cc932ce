"""Cost of a million flows: memory, and the longest pause of the expiry, of a flow's opening and of an eviction."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from nfq_enforcer.core.context import Interface
from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from tests.support.packets import packed, syn

FLOWS = 1_000_000
_EVICTIONS = 20_000  # flows opened with a full table
_PAGE = 4096
_WEB = {4: "10.0.0.1", 6: "fd00::1"}
_CLIENT = {4: "10.1.0.1", 6: "fd01::1"}
_ETH, _VETH = Interface("eth0", 1500), Interface("veth0", 1500)


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return the figures of all repetitions, each repetition in a process of its own."""
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for version in (4, 6):
            command = [sys.executable, "-m", "tests.bench.flows", str(version)]
            for name, figure in json.loads(subprocess.check_output(command)).items():
                figures.setdefault(f"IPv{version}: {name}", []).append(figure)
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [
        (name, f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})") for name, values in figures.items()
    ]


def _packets(version: int) -> Callable[[int], bytes]:
    """Return a function from a flow's number to its SYN, with its own address, port and identity."""
    first = syn(_CLIENT[version], _WEB[version])
    buffer = bytearray(stamp.write(first, parse(first), Stamp(Identity(300))))
    source, identity, ports = (15, 24, 28) if version == 4 else (23, 46, 56)  # offsets; source: its last byte

    def packet(number: int) -> bytes:
        buffer[source - 2 : source + 1] = (1 << 16 | number % 50_000).to_bytes(3, "big")
        buffer[ports : ports + 2] = (1024 + number // 50_000).to_bytes(2, "big")
        buffer[identity : identity + 4] = (300 + number % 5000).to_bytes(4, "big")
        return bytes(buffer)

    return packet


def _enforcer(version: int) -> Enforcer:
    everything = PolicyMap({}, enforced=False)
    endpoint = LocalEndpoint("default/web", Identity(256), _VETH.name, everything, everything)
    snapshot = Snapshot(1, {packed(_WEB[version]): endpoint}, Ipcache({}), frozenset({_ETH.name}))
    return Enforcer(snapshot, Conntrack(FLOWS, 0.0))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _longest(step: Callable[[int], object], first: int, end: int) -> float:
    """Return the CPU time of the longest of these steps, in milliseconds."""
    longest = 0.0
    for number in range(first, end):
        begun = time.thread_time()
        step(number)
        longest = max(longest, time.thread_time() - begun)
    return longest * 1000


def _sweep(flows: Conntrack) -> float:
    """Expire all flows, in steps of 10 ms; return the CPU time of the longest step, in milliseconds."""
    longest = 0.0
    for step in count():
        if not len(flows):
            break
        longest = max(longest, _longest(partial(_expire, flows), step, step + 1))
    return longest


def _expire(flows: Conntrack, step: int) -> None:
    flows.expire(1 + step / 100)


def _figures(version: int) -> dict[str, float]:
    gc.disable()  # as a worker does
    enforcer, packet, before = _enforcer(version), _packets(version), _resident()
    opened = _longest(lambda number: enforcer.decide(packet(number), _ETH, _VETH, 1.0), 0, FLOWS)
    size = (_resident() - before) / 2**20
    evicted = _longest(lambda number: enforcer.decide(packet(number), _ETH, _VETH, 1.0), FLOWS, FLOWS + _EVICTIONS)
    return {
        "1,000,000 flows, MiB": size,
        "longest opening, ms": opened,
        "longest opening that evicts, ms": evicted,
        "longest expiry step, ms": _sweep(enforcer.flows),
    }


if __name__ == "__main__":
    print(json.dumps(_figures(int(sys.argv[1]))))
