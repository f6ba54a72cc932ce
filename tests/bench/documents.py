"""Cost of many documents: 20,000 local endpoints and 1,000,000 CIDRs, from the text to the worker.

Each case runs in a process of its own: reading, records, compilation, and the messages to a worker. Packets wait while
a worker runs its housekeeping; the longest run is measured in a worker that receives all messages at once, and then the
messages that remove the tables again. Housekeeping counts in processor time, too, which other load does not lengthen.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from nfq_enforcer.cluster.records import changes_between, records_of
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.worker.channel import encode
from nfq_enforcer.dataplane.worker.map_transfer import MapSender
from nfq_enforcer.policy import loader
from tests.bench.peers import Housekeeping, longest_housekeeping
from tests.support.apart import run_apart

ENDPOINTS, CIDRS = 20_000, 1_000_000

_ENDPOINT = """---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: e{0}, labels: {{role: r{1}}}}}
spec: {{ips: [10.{2}.{3}.{4}], interface: {5}}}
"""
_POLICY = """---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: many}
spec:
  endpointSelector: {}
  ingress:
  - fromCIDR:
"""


def endpoints(number: int, interface: str = "") -> str:
    """Return documents of endpoints of 20 kinds, each with an interface of its own, or all with this one."""
    return "".join(
        _ENDPOINT.format(n, n % 20, n >> 16, n >> 8 & 255, n & 255, interface or f"v{n}")
        for n in range(1 << 8, (1 << 8) + number)
    )


def cidrs(number: int) -> str:
    """Return an endpoint, and a policy for prefixes that do not touch each other: the largest table."""
    prefixes = (f"{64 + (n >> 14)}.{n >> 6 & 255}.{(n & 63) << 2}.0/24" for n in range(number))
    return endpoints(1) + _POLICY + "".join(f"    - {prefix}\n" for prefix in prefixes)


CASES: dict[str, Callable[[], str]] = {
    f"{ENDPOINTS:,} local endpoints": lambda: endpoints(ENDPOINTS),
    f"{CIDRS:,} CIDRs": lambda: cidrs(CIDRS),
}
READ, COMPILED, MEMORY = "read and checked, s", "compiled, s", "peak memory of the process, MiB"
MESSAGES, TURN, TURN_CPU = "messages, MiB", "longest housekeeping, ms", "the same in processor time, ms"


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return figures for each case, one for each repetition."""
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for case in CASES:
            with ProcessPoolExecutor(1, get_context("spawn")) as child:
                for name, figure in child.submit(_measure, case).result().items():
                    figures.setdefault(f"{case}: {name}", []).append(figure)
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [
        (name, f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})") for name, values in figures.items()
    ]


def _measure(case: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "many.yaml")
        file.write_text(CASES[case]())
        begun = time.perf_counter()
        documents = loader.load([file])
        read = time.perf_counter()
    replica = Replica(NodeSettings("n1"))
    replica.apply(changes_between({}, records_of(documents, "n1")))
    snapshot = replica.view(0).snapshot
    compiled = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    messages, size = _messages(snapshot)
    housekeeping = run_apart(_in_worker(messages))
    return {
        **{READ: read - begun, COMPILED: compiled - read, MEMORY: peak, MESSAGES: size / (1 << 20)},
        **{TURN: housekeeping.longest_ms, TURN_CPU: housekeeping.longest_cpu_ms},
    }


def _messages(snapshot: Snapshot) -> tuple[list[object], int]:
    """Return the messages that bring this snapshot and then an empty one, and their size in bytes."""
    maps, messages = MapSender(), list[object]()
    for one in (snapshot, Snapshot(2, {}, Ipcache({}))):
        messages += [*maps.add(one), maps.refer(one), maps.retain(one)]
    return messages, sum(len(encode(message)) for message in messages)


async def _in_worker(messages: list[object]) -> Housekeeping:
    return longest_housekeeping(messages)
