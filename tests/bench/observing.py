"""Cost of readers of the flow log: verdicts without a reader, with ``observe --follow``, and with the map open.

``sudo .venv/bin/python -m tests.bench.observing`` prints the figures of one interleaved run: datagrams of an open flow
at full rate (few events), and connections one after the other (two events each, at both nodes). Then a flood of refused
packets: the memory of the agent, and the time of ``observe --last 20 --verdict DROPPED`` meanwhile.
"""

import argparse
import asyncio
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support import floods
from tests.support.labs import FRONT_TO_BACK, identities, stop_agents

_PROGRAM = (sys.executable, "-m", "nfq_enforcer.cli")
_NODES = ("n1", "n2")
_RATE = 200_000  # datagrams a second, more than the workers decide
_FIRST_PORT = 9970
_CONNECT = """
import socket, sys, time
address, end, count = sys.argv[1], time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    with socket.create_connection((address, 80)):
        count += 1
print(count)
"""


@contextmanager
def _running(*argv: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def _nothing(_lab: Lab) -> Iterator[None]:
    yield


@contextmanager
def _observed(lab: Lab) -> Iterator[None]:
    with ExitStack() as stack:
        for name in _NODES:
            argv = [*_PROGRAM, "observe", "--follow", "--socket", str(lab.nodes[name].socket)]
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        time.sleep(0.5)  # both have begun
        yield


@contextmanager
def _mapped(lab: Lab) -> Iterator[None]:
    with _observed(lab), ExitStack() as stack:
        for place, name in enumerate(_NODES):
            port = str(_FIRST_PORT + place)
            argv = [*_PROGRAM, "ui", "--listen", f"127.0.0.1:{port}", "--socket", str(lab.nodes[name].socket)]
            server = stack.enter_context(_running(*argv))
            assert server.stdout is not None
            server.stdout.readline()
            stack.enter_context(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/stream"))
        yield


STATES = {"no reader": _nothing, "observe --follow": _observed, "observe --follow and the map": _mapped}


def _verdicts(lab: Lab) -> int:
    counts = (lab.nodes[name].status()["worker"] for name in _NODES)
    return sum(one["accepted"] + one["dropped"] for one in counts)


def _datagrams(lab: Lab, seconds: float) -> float:
    """Return verdicts a second on datagrams of one open flow between two nodes, at full rate."""
    flood = next(one for one in floods.floods(identities(lab)["front1"]) if one.name.startswith("UDP of an allowed"))
    before, begun = _verdicts(lab), time.monotonic()
    floods.start(lab, flood, seconds, _RATE).communicate()
    return (_verdicts(lab) - before) / (time.monotonic() - begun)


def _connections(lab: Lab, seconds: float) -> float:
    """Return connections a second, one after the other, from one node to another."""
    argv = [sys.executable, "-c", _CONNECT, str(lab.address("back2")), str(seconds)]
    done = subprocess.run(lab.network.command("front1", argv), stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) / seconds


LOADS: dict[str, Callable[[Lab, float], float]] = {"verdicts/s": _datagrams, "connections/s": _connections}


def _compare(lab: Lab, repetitions: int, seconds: float) -> None:
    figures: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions):
        names = list(STATES)
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            with STATES[name](lab):
                for load, measure in LOADS.items():
                    figures.setdefault((load, name), []).append(measure(lab, seconds))
    for load in LOADS:
        base = figures[load, "no reader"]
        for name in STATES:
            ratios = [one / other for one, other in zip(figures[load, name], base, strict=True)]
            print(f"{load:14} {name:30} {median(figures[load, name]):10,.0f}   ratio {median(ratios):.3f}")


def _flood(lab: Lab, seconds: float) -> None:
    node = lab.nodes["n2"]
    flood = next(one for one in floods.floods(0) if one.name == "SYNs of the world, random sources")
    attack = floods.start(lab, flood, seconds, 150_000)
    times, memory = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(_last_drops(node))
        memory.append(floods.resident(node.pid))
    output, _ = attack.communicate()
    print(
        f"flood: {int(output) / seconds:,.0f} refused packets/s; memory of the agent {max(memory) / 1024:.0f} MiB; "
        f"observe --last 20 --verdict DROPPED: median {median(times):.2f} s, slowest {max(times):.2f} s of {len(times)}"
    )


def _last_drops(node: LabNode) -> float:
    begun = time.monotonic()
    argv = [*_PROGRAM, "observe", "--last", "20", "--verdict", "DROPPED", "--socket", str(node.socket)]
    subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    return time.monotonic() - begun


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    chosen = options.parse_args()
    with asyncio.Runner() as runner:
        lab = Lab(memory=True)
        lab.up()
        try:
            lab.start_agents()
            runner.run(lab.host("back2").serve("TCP", floods.SERVER_PORT))
            runner.run(lab.apply("first", FRONT_TO_BACK))
            _compare(lab, chosen.repetitions, chosen.seconds)
            _flood(lab, 10 * chosen.seconds)
        finally:
            stop_agents(lab)
            runner.run(lab.down())


if __name__ == "__main__":
    main()
