"""A single worker process: effect and order of changes, also when the worker dies or hangs meanwhile."""

import asyncio
import os
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer, PeerChange
from nfq_enforcer.core.tables.policymap import PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import UDP
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import iptables
from nfq_enforcer.dataplane.rules.ruleset import IPV4
from nfq_enforcer.dataplane.worker.channel import (
    PeerChanges,
    Revision,
    Setup,
    Stop,
    WorkerChannel,
    encode,
    report_decoder,
)
from nfq_enforcer.dataplane.worker.counters import Counters
from nfq_enforcer.dataplane.worker.map_transfer import MapReceiver, SnapshotReference
from nfq_enforcer.dataplane.worker.reports import Enforced
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS, WorkerTimings
from nfq_enforcer.dataplane.worker.worker import Worker
from nfq_enforcer.dataplane.worker.workers import Workers
from tests.support.apart import run_apart
from tests.support.labs import PATIENT
from tests.support.packets import packed

QUEUE, PORT = 100, 4242
WEB, ONE, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
ALLOWED, REFUSED = Peer(Identity(500), remote=False), Peer(Identity(501), remote=False)
RULE = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.EGRESS, 0)


def snapshot(revision: int, allowed: int = ALLOWED.identity) -> Snapshot:
    """Return a snapshot in which WEB may send datagrams to a single identity."""
    egress = PolicyMap(
        {PolicyKey(Identity(allowed), UDP, 0, 0): PolicyEntry((RULE,))}, enforced=True, enforced_by=(RULE,)
    )
    web = LocalEndpoint("default/web", Identity(300), None, PolicyMap({}, enforced=False), egress, is_host=True)
    return Snapshot(revision, {packed(WEB): web}, Ipcache({}))


def crowd(number: int, peer: Peer | None = ALLOWED) -> Iterator[PeerChange]:
    """Yield changes of addresses without traffic."""
    return (((10 << 24 | 1 << 16 | place).to_bytes(4, "big"), peer) for place in range(number))


class SingleWorker:
    """Single worker: a worker that the test queries verdict by verdict; only packets from WEB reach its queue."""

    def __init__(self, timings: WorkerTimings) -> None:
        self.worker = Workers(1, QUEUE, 1000, lambda events: None, timings=timings)
        # Datagrams end at an interface without a host behind it: no ICMP error, which would be queued too, comes back.
        ways = (f"route add {address} dev far src {WEB}" for address in (ONE, OTHER))
        hosts = (f"neighbour add {address} lladdr 02:00:00:00:00:01 dev far" for address in (ONE, OTHER))
        lines = ("link add far type veth peer name end", "link set far up", "link set end up", *ways, *hosts)
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((WEB, PORT))

    async def passes(self, address: str) -> bool:
        """Send a datagram, always of the same flow, and return whether it was accepted."""
        before = self.worker.state.counters
        self._socket.sendto(b"?", (address, PORT))
        async with asyncio.timeout(PATIENT):
            while (after := self.worker.state.counters)["accepted"] == before["accepted"]:
                if after["dropped"] > before["dropped"]:
                    return False
                await asyncio.sleep(0.001)
        return True

    async def verdicts(self) -> tuple[bool, bool]:
        """Return whether a datagram to ONE and one to OTHER was accepted."""
        return await self.passes(ONE), await self.passes(OTHER)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self.worker.processes[0].pid
        assert pid is not None
        os.kill(pid, number)

    async def until_replaced(self, times: int) -> None:
        """Return when the worker has died this often; its replacement then starts."""
        async with asyncio.timeout(PATIENT):
            while self.worker.restarts < times:
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self._socket.close()
        await self.worker.stop()


@asynccontextmanager
async def single_worker(
    peers: dict[bytes, Peer], timings: WorkerTimings = DEFAULT_TIMINGS
) -> AsyncIterator[SingleWorker]:
    """Yield a worker with these peers at revision 1, and the rules that queue packets for it."""
    single = SingleWorker(timings)
    try:
        await single.worker.start(snapshot(1), peers, set())
        iptables.Rules((IPV4,), fail_open=False, cluster_mtus={}).install(snapshot(1), single.worker.queues)
        yield single
    finally:
        await single.stop()


def test_changed_peers_count_for_known_flows_with_the_renewal(root: None) -> None:
    async def scenario() -> list[tuple[bool, bool]]:
        async with single_worker({packed(ONE): ALLOWED}) as single:
            verdicts = [await single.verdicts()]
            single.worker.change_peers([(packed(ONE), None), (packed(OTHER), ALLOWED)])
            await single.worker.renew(2)
            verdicts.append(await single.verdicts())
            single.worker.change_peers([(packed(ONE), ALLOWED), (packed(OTHER), REFUSED)])
            await single.worker.renew(3)
            return [*verdicts, await single.verdicts()]

    assert run_apart(scenario(), WEB) == [(True, False), (False, True), (True, False)]


def test_a_snapshot_is_over_the_peers_that_were_changed_before_it(root: None) -> None:
    async def scenario() -> list[tuple[bool, bool]]:
        async with single_worker({packed(ONE): ALLOWED, packed(OTHER): REFUSED}) as single:
            verdicts = [await single.verdicts()]
            await single.worker.enforce(snapshot(2, allowed=REFUSED.identity))
            verdicts.append(await single.verdicts())
            single.worker.change_peers([(packed(ONE), REFUSED), (packed(OTHER), ALLOWED)])
            await single.worker.enforce(snapshot(3, allowed=ALLOWED.identity))
            return [*verdicts, await single.verdicts()]

    assert run_apart(scenario(), WEB) == [(True, False), (False, True), (False, True)]


@pytest.mark.parametrize("number", [499, 500, 501, 20_000])
def test_of_many_changes_the_first_and_the_last_are_in_force_with_the_renewal(root: None, number: int) -> None:
    async def scenario() -> tuple[bool, bool, int]:
        async with single_worker({}) as single:
            single.worker.change_peers([(packed(ONE), ALLOWED), *crowd(number - 2), (packed(OTHER), ALLOWED)])
            await single.worker.renew(2)
            return *await single.verdicts(), len(single.worker.peers)

    assert run_apart(scenario(), WEB) == (True, True, number)


def test_a_worker_that_dies_amid_changes_is_replaced_by_one_that_has_them_all(root: None) -> None:
    async def scenario() -> list[tuple[bool, bool]]:
        async with single_worker({packed(ONE): ALLOWED}) as single:
            verdicts, revision = [await single.verdicts()], count(2)
            for here, there in ((OTHER, ONE), (ONE, OTHER)):
                single.worker.change_peers(crowd(5000))
                single.kill()
                single.worker.change_peers([(packed(here), ALLOWED)])  # without a receiver, or with a dying one
                await single.until_replaced(single.worker.restarts + 1)
                single.worker.change_peers([(packed(there), None), *crowd(5000, None)])  # the replacement is starting
                await single.worker.renew(next(revision))
                verdicts.append(await single.verdicts())
            return verdicts

    assert run_apart(scenario(), WEB) == [(True, False), (False, True), (True, False)]


def test_a_worker_that_reads_nothing_is_replaced_before_all_memory_waits_for_it(root: None) -> None:
    async def scenario() -> tuple[int, bool, bool]:
        async with single_worker({packed(ONE): ALLOWED}, WorkerTimings(unread_bytes=1 << 20)) as single:
            single.kill(signal.SIGSTOP)
            single.worker.change_peers([(packed(ONE), None), *crowd(1 << 16), (packed(OTHER), ALLOWED)])
            single.worker.change_peers(crowd(1 << 16, REFUSED))
            await single.worker.renew(2)
            return single.worker.restarts, *await single.verdicts()

    assert run_apart(scenario(), WEB) == (1, False, True)


def test_messages_that_a_turn_has_no_time_for_are_obeyed_in_the_next_ones_without_a_packet_to_cause_them(
    root: None,
) -> None:
    number = 1000  # half a second each, if the worker waited for the next event
    agent_end, worker_end = socket.socketpair()
    memory, seconds = Counters.create(), count(time.monotonic())

    async def scenario() -> None:
        with warnings.catch_warnings(action="ignore"):  # about the size of the queue's socket buffer
            (queues,) = allocate_queues(QUEUE, 1)
            setup = Setup(
                Driver.AUTO, queues, None, False, 1000, SnapshotReference(Snapshot(1, {}, Ipcache({}))), {}, set()
            )
            Worker(setup, MapReceiver(), WorkerChannel(worker_end), Counters(memory), lambda: next(seconds)).run()

    with agent_end, worker_end:
        agent_end.sendall(b"".join(map(encode, [*[PeerChanges(tuple(crowd(1)))] * number, Revision(2), Stop()])))
        run_apart(scenario())
        worker_end.close()
        decoder, received = report_decoder(), list[object]()
        while data := agent_end.recv(1 << 18):
            received += decoder.feed(data)
    os.close(memory)

    assert received == [Enforced(2)]
