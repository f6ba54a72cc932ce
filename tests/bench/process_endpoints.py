"""Cost of a process endpoint: its first packet, by the look-up of its sockets, and the start of its command.

``sudo .venv/bin/python -m tests.bench.process_endpoints`` prints the figures. A connection of a node that is an
endpoint itself (n3 of the lab) gets a verdict as well, without a look-up: its time is the one to compare with.
"""

import asyncio
import socket
import statistics
import subprocess
import time

from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.worker.process_sockets import ProcessSockets
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology
from tests.support.labs import FRONT_TO_BACK, PATIENT, start, stop_agents
from tests.support.process_endpoints import BACKEND_PORT, TRAFFIC, enter, run_options, running

_ROUNDS, _CONNECTIONS, _STARTS, _LOOKUPS = 5, 2000, 30, 20_000


def _lookup() -> tuple[float, float]:
    """Return the median and the 99th percentile of a look-up, in µs."""
    sockets, address = ProcessSockets(), bytes((127, 0, 0, 1))
    times = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        end = address, server.getsockname()[1]
        for _ in range(_LOOKUPS):
            begun = time.perf_counter()
            sockets.find(TCP, end, (address, 1), "lo")
            times.append((time.perf_counter() - begun) * 1e6)
    sockets.close()
    return statistics.median(times), sorted(times)[len(times) * 99 // 100]


def _connect(lab: Lab, node: str, prefix: list[str]) -> tuple[float, float]:
    argv = [*prefix, *TRAFFIC, "clock", str(lab.address(node, 4)), str(BACKEND_PORT), str(_CONNECTIONS)]
    done = subprocess.run(enter(lab, node, argv), stdout=subprocess.PIPE, text=True, check=True, timeout=6 * PATIENT)
    median, late = map(float, done.stdout.split())
    return median, late


def _started(argv: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, check=True)
    return (time.perf_counter() - begun) * 1e3


def _measure(lab: Lab) -> None:
    print("look-up of a socket: median {:.1f} µs, 99 % within {:.1f} µs".format(*_lookup()))
    for name in ("n1", "n3"):
        start(lab, name, documents=FRONT_TO_BACK, enforcement="per-endpoint", queues=1)
    port = str(BACKEND_PORT)
    with running(lab, "n1", "backend", "serve", port), running(lab, "n3", None, "serve", port):
        pairs = [
            (_connect(lab, "n3", []), _connect(lab, "n1", run_options(lab, "n1", "frontend"))) for _ in range(_ROUNDS)
        ]
    for title, place in (("median", 0), ("99 % within", 1)):
        host, process = (statistics.median(one[side][place] for one in pairs) for side in (0, 1))
        print(f"connect: {title} {host:.0f} µs without and {process:.0f} µs with two look-ups")
    plain, run = enter(lab, "n1", ["true"]), enter(lab, "n1", [*run_options(lab, "n1", "frontend"), "true"])
    extra = [_started(run) - _started(plain) for _ in range(_STARTS)]
    print(f"nfq-enforcer run: {statistics.median(extra):.0f} ms over exec, at most {max(extra):.0f} ms of {_STARTS}")


def main() -> None:
    """Print the figures."""
    with asyncio.Runner() as runner:
        lab = Lab(Topology(new_run_id()), memory=True)
        lab.up()
        try:
            _measure(lab)
        finally:
            stop_agents(lab)
            runner.run(lab.down())


if __name__ == "__main__":
    main()
