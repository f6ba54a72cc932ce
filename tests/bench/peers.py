"""Cost of peer changes: 100,000 changes at once, the time until all are in force, and the wait of packets meanwhile.

Packets wait while a worker runs its housekeeping. The longest run is measured in the worker: this module is also the
program of a worker that prints it at its end.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from statistics import median
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.worker import worker
from nfq_enforcer.dataplane.worker.channel import PeerChanges, Revision, Setup, Stop, encode, report_decoder
from nfq_enforcer.dataplane.worker.counters import Counters
from nfq_enforcer.dataplane.worker.map_transfer import MapSender, SnapshotReference
from nfq_enforcer.dataplane.worker.reports import Enforced
from nfq_enforcer.dataplane.worker.workers import Workers
from tests.support.apart import run_apart

_PEERS, _IDENTITIES = 100_000, 5_000
_MESSAGE = 500
_ENTRIES = (10_000, 100_000)
_QUEUE = 100
(_QUEUES,) = allocate_queues(_QUEUE, 1)

SENT = f"{_PEERS:,} changes: time of the agent, ms"
IN_FORCE = f"{_PEERS:,} changes: in force after, ms"
STARTED = f"a worker starts with {_PEERS:,} peers, ms"
TURN = f"{_PEERS:,} changes: longest housekeeping, ms"
SNAPSHOTS = {size: f"a snapshot with {size:,} policy map entries: longest housekeeping, ms" for size in _ENTRIES}


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return figures for each case, one for each repetition."""
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for name, figure in run_apart(_all()).items():
            figures.setdefault(name, []).append(figure)
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [
        (name, f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})") for name, values in figures.items()
    ]


async def _all() -> dict[str, float]:
    return await _measure_change() | await _measure_start() | await _measure_housekeeping()


async def _measure_change() -> dict[str, float]:
    """Return the time to send all peers to a worker, and until they are in force."""
    peers = _peers()
    workers = Workers(1, _QUEUE, 1000, lambda events: None)
    await workers.start(_snapshot(1), {}, set())
    begun = time.perf_counter()
    workers.change_peers(peers.items())
    sent = time.perf_counter()
    await workers.renew(2)
    in_force = time.perf_counter()
    await workers.stop()
    return {SENT: (sent - begun) * 1e3, IN_FORCE: (in_force - begun) * 1e3}


async def _measure_start() -> dict[str, float]:
    """Return the time to start a worker, or its replacement, with all peers."""
    peers = _peers()
    workers = Workers(1, _QUEUE, 1000, lambda events: None)
    begun = time.perf_counter()
    await workers.start(_snapshot(1), peers, set())
    started = time.perf_counter()
    await workers.stop()
    return {STARTED: (started - begun) * 1e3}


async def _measure_housekeeping() -> dict[str, float]:
    snapshots = {name: longest_housekeeping(_added_and_removed(size)) for size, name in SNAPSHOTS.items()}
    changes = longest_housekeeping(_changes())
    return {TURN: changes.longest_ms, **{name: one.longest_ms for name, one in snapshots.items()}}


def _added_and_removed(size: int) -> list[object]:
    """Return the messages of a snapshot with so many entries, and of a snapshot without entries."""
    maps, messages = MapSender(), list[object]()
    for snapshot in (_snapshot(0, size), _snapshot(2)):
        messages += [*maps.add(snapshot), maps.refer(snapshot), maps.retain(snapshot)]
    return messages


class Housekeeping(NamedTuple):
    """Housekeeping: the longest run of a worker's housekeeping, which is the longest wait of a packet for it."""

    longest_ms: float
    longest_cpu_ms: float  # in processor time


def longest_housekeeping(messages: Iterable[object]) -> Housekeeping:
    """Return the longest housekeeping of a worker that receives these messages at once."""
    ours, theirs = socket.socketpair()
    memory = Counters.create()
    program = [sys.executable, "-m", "tests.bench.peers", str(theirs.fileno()), str(memory)]
    with ours, theirs:
        process = subprocess.Popen(program, pass_fds=(theirs.fileno(), memory), stdout=subprocess.PIPE, text=True)
        theirs.close()
        ours.sendall(
            encode(
                Setup(
                    Driver.AUTO,
                    _QUEUES,
                    None,
                    False,
                    1000,
                    SnapshotReference(Snapshot(1, {}, Ipcache({}))),
                    {},
                    set(),
                )
            )
        )
        _await_revision(ours, 1)
        ours.sendall(b"".join(map(encode, messages)))
        _await_revision(ours, 2)
        ours.sendall(encode(Stop()))
        longest, _ = process.communicate()
    os.close(memory)
    return Housekeeping(*map(float, longest.split()))


def _await_revision(end: socket.socket, number: int) -> None:
    decoder = report_decoder()
    while Enforced(number) not in list(decoder.feed(end.recv(1 << 18))):
        pass


def _peers() -> dict[bytes, Peer]:
    return {
        (10 << 24 | place).to_bytes(4, "big"): Peer(Identity(300 + place % _IDENTITIES), remote=True)
        for place in range(_PEERS)
    }


def _changes() -> list[object]:
    changes = tuple(_peers().items())
    return [*(PeerChanges(changes[at : at + _MESSAGE]) for at in range(0, _PEERS, _MESSAGE)), Revision(2)]


def _snapshot(revision: int, entries: int = 0) -> Snapshot:
    rule = RuleRef("CiliumNetworkPolicy", "default", "a", Direction.INGRESS, 0)
    keys = (PolicyKey(Identity(300 + number), TCP, 80, 16) for number in range(entries))
    policy = PolicyMap({key: PolicyEntry((rule,)) for key in keys}, enforced=True, enforced_by=(rule,))
    here = LocalEndpoint("default/a", Identity(300), None, policy, PolicyMap({}, enforced=False))
    return Snapshot(revision, {bytes([10, 255, 0, 1]): here}, Ipcache({}))


class _Timed(worker.Worker):
    """Timed: a worker that measures its housekeeping."""

    longest = longest_cpu = 0.0

    def _housekeeping(self, now: float) -> None:
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        super()._housekeeping(now)
        _Timed.longest = max(_Timed.longest, time.perf_counter() - begun)
        _Timed.longest_cpu = max(_Timed.longest_cpu, time.thread_time() - begun_cpu)


if __name__ == "__main__":
    worker.Worker = _Timed  # type: ignore[misc]
    with suppress(SystemExit):
        worker.main()
    print(_Timed.longest * 1e3, _Timed.longest_cpu * 1e3)
