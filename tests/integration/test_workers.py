"""Several workers on one node: the worker of each packet, and the fate of flows when one worker fails."""

import asyncio
import os
import select
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.packet import parse, reply_key
from nfq_enforcer.dataplane.queue import drivers
from nfq_enforcer.dataplane.queue.library_queue import LibraryQueue
from nfq_enforcer.dataplane.queue.protocol import QUEUE_MAXLEN, QueueNumbers, allocate_queues, backlog
from nfq_enforcer.dataplane.rules import iptables
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK, IPAddress
from nfq_enforcer.lab.traffic_host import TrafficHost
from tests.integration.conftest import MakeLab
from tests.support.apart import enter, run_apart
from tests.support.labs import (
    BACKENDS,
    BRIEF,
    CLOSED,
    DNS,
    ENDPOINTS,
    FAMILIES,
    FRONT_TO_BACK,
    FRONTENDS,
    HTTP,
    PATIENT,
    Attempt,
    dropped,
    expect,
    flood,
    from_role,
    kill,
    outcomes,
    passes,
    policy,
    run_in,
    start,
    start_all,
    stop_agents,
    until,
)
from tests.support.packets import packed
from tests.support.processes import stopped

ELSEWHERE = ("front2", "back2", "front3", "db3", "n3", "world")
FIRST = 100  # number of a queue
LIBRARY_QUEUES = QueueNumbers(FIRST, FIRST, FIRST, FIRST + 48, FIRST + 49)
NOTHING = Snapshot(1, {}, Ipcache({}))
REFUSED = """
import runpy
from nfq_enforcer.dataplane.queue import netlink
netlink.GSO = 1 << 20
runpy.run_module("nfq_enforcer.dataplane.worker.worker", run_name="__main__", alter_sys=True)
"""
SERVICE = 8088  # a port without a listener, translated by DNAT


class ObservedPacket(NamedTuple):
    """Observed packet: a packet and the worker that it reached."""

    worker: int
    key: bytes
    flow: frozenset[bytes]  # the keys of both directions
    error: bool


class Observers:
    """Observers: the queues of several workers of a node, in one thread; they accept and record every packet."""

    def __init__(self, lab: Lab, node: str, number: int) -> None:
        self.packets: list[ObservedPacket] = []
        self._namespace = Path("/run/netns") / lab.topology.namespace(node)
        self._snapshot = _snapshot(lab, node)
        self._numbers = allocate_queues(FIRST, number)
        self._stop, self._stopper = socket.socketpair()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._observe)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Queue all packets from and to the node's endpoints."""
        self._thread.start()
        try:
            assert self._ready.wait(PATIENT)
            yield
        finally:
            self._stopper.close()
            self._thread.join()
            self._stop.close()

    def _observe(self) -> None:
        enter(self._namespace)
        queues = [
            drivers.bind(Driver.NETLINK, numbers, partial(self._record, index), fail_open=False)
            for index, numbers in enumerate(self._numbers)
        ]
        try:
            rules = iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={UPLINK: 1500})
            rules.install(self._snapshot, self._numbers)
            self._ready.set()
            poll = select.poll()
            for descriptor in (self._stop.fileno(), *(number for queue in queues for number in queue.filenos)):
                poll.register(descriptor, select.POLLIN)
            while self._stop.fileno() not in (ready := dict(poll.poll())):
                for queue in queues:
                    queue.process_ready(ready)
        finally:
            iptables.remove()
            for queue in queues:
                queue.close()

    def _record(self, worker: int, payload: bytes, _indev: int, _outdev: int, _skb: int) -> Verdict:
        packet = parse(payload)
        self.packets.append(
            ObservedPacket(worker, packet.key, frozenset({packet.key, reply_key(packet.key)}), packet.error)
        )
        return Verdict.ACCEPT

    def flows(self) -> dict[frozenset[bytes], set[int]]:
        """Return the flows with packets in both directions, and the workers that any of their packets reached."""
        keys = {packet.key for packet in self.packets if not packet.error}
        found: dict[frozenset[bytes], set[int]] = {}
        for packet in self.packets:
            if not packet.error and packet.flow <= keys:
                found.setdefault(packet.flow, set()).add(packet.worker)
        return found


def _snapshot(lab: Lab, node: str) -> Snapshot:
    free = PolicyMap({}, enforced=False)
    return Snapshot(
        1,
        {
            packed(str(address)): LocalEndpoint(f"default/{e.name}", Identity(300), e.interface, free, free)
            for e in lab.topology.endpoints
            if e.node == node
            for address in e.addresses
        },
        Ipcache({}),
    )


@contextmanager
def translated(lab: Lab, node: str) -> Iterator[None]:
    """Configure NAT on a node: masquerade its endpoints, and translate SERVICE of the node to one of them (DNAT)."""
    commands = {4: "iptables-restore", 6: "ip6tables-restore"}
    try:
        for family, command in commands.items():
            here, there = lab.address(node, family), lab.address("back1", family)
            rules = [
                f"-A PREROUTING -p {proto} -d {here} --dport {SERVICE} -j DNAT --to-destination {_at(there, port)}"
                for proto, port in (("tcp", HTTP), ("udp", DNS))
            ]
            hidden = f"-A POSTROUTING -o {UPLINK} -j MASQUERADE"
            run_in(lab, node, command, text="\n".join(["*nat", hidden, *rules, "COMMIT", ""]))
        yield
    finally:
        for command in commands.values():
            run_in(lab, node, command, text="*nat\nCOMMIT\n")


def _at(address: IPAddress, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Return the module's lab."""
    return make_served(memory=True)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Yield the lab without agents; stop the test's agents at the end."""
    yield shared
    stop_agents(shared)


class TestWhose:
    """The kernel spreads packets by their addresses: all packets of a flow reach one worker, at every hook."""

    def check(self, observers: Observers, least: int) -> None:
        flows = observers.flows()
        assert len(flows) >= least
        assert {len(workers) for workers in flows.values()} == {1}
        assert {worker for workers in flows.values() for worker in workers} == set(range(3))

    @pytest.mark.parametrize(("node", "own"), [("n1", ("front1", "back1")), ("n3", ("db3", "front3", "n3"))])
    @pytest.mark.parametrize("masqueraded", [False, True])
    async def test_a_flow_within_a_node_or_between_nodes(
        self, lab: Lab, node: str, own: tuple[str, ...], masqueraded: bool
    ) -> None:
        """With ``masqueraded`` a router on the path replaces the source addresses of n3's endpoints."""
        observers = Observers(lab, node, 3)
        expected = passes(own, ENDPOINTS) | passes((*ENDPOINTS, "world"), own)
        lab.masquerade(masqueraded)
        try:
            with observers.running():
                assert await outcomes(lab, expected) == expected
        finally:
            lab.masquerade(False)

        self.check(observers, len(expected))

    async def test_a_flow_whose_addresses_the_node_itself_translates(self, lab: Lab) -> None:
        """FORWARD is after DNAT and before SNAT; for replies it is after SNAT is reversed and before DNAT is."""
        observers, clients = Observers(lab, "n1", 3), ("front1", "world", "front2", "db3")
        outward = passes(("front1", "back1"), ELSEWHERE)
        with translated(lab, "n1"), observers.running():
            assert await outcomes(lab, outward) == outward
            through = [
                attempt(lab.host(client), lab.address("n1", family))
                for client in clients
                for family in FAMILIES
                for attempt in (_ask_tcp, _ask_udp)
            ]
            answered = await asyncio.gather(*through)

        assert answered == ["back1"] * len(through)
        self.check(observers, len(outward) + len(through))

    async def test_every_icmp_error_meets_the_first(self, lab: Lab) -> None:
        observers = Observers(lab, "n1", 3)
        expected = expect("refused", ("front1", "back1"), ELSEWHERE, [f"{CLOSED}/UDP"])
        with observers.running():
            assert await outcomes(lab, expected) == expected

        errors = [packet.worker for packet in observers.packets if packet.error]
        assert len(errors) >= len(expected)
        assert set(errors) == {0}


async def _ask_tcp(host: TrafficHost, address: IPAddress) -> str:
    return (await host.connect(address, SERVICE, PATIENT)).answered_by


async def _ask_udp(host: TrafficHost, address: IPAddress) -> str:
    return (await host.send_udp(address, SERVICE, PATIENT)).answered_by


class TestErrors:
    """An ICMP error is accepted with the flow that it concerns, whichever worker has that flow."""

    @pytest.mark.parametrize("queues", [2, 3])
    async def test_a_closed_port_refuses_whoever_asks(self, lab: Lab, queues: int) -> None:
        start_all(lab, FRONT_TO_BACK, queues=queues)
        closed = [f"{CLOSED}/UDP"]
        expected = expect("refused", FRONTENDS, BACKENDS, closed) | dropped(["db3", "n3"], BACKENDS, closed)

        assert await outcomes(lab, expected) == expected
        assert [node.status()["worker"]["lost"] for node in lab.nodes.values()] == [0, 0, 0]

    @pytest.mark.parametrize("queues", [2, 3])
    async def test_a_router_tells_whoever_sends_what_does_not_fit(self, lab: Lab, queues: int) -> None:
        """The router's address is not one of the flow's, so the hash of addresses may select another worker."""
        start_all(lab, FRONT_TO_BACK, queues=queues)
        senders = ("front1", "back1", "front2", "back2")

        with narrow(lab, senders):
            results = await asyncio.gather(
                *(
                    lab.host(sender).send_udp(lab.address(target, family), DNS, PATIENT, size=1400, dont_fragment=True)
                    for sender in senders
                    for target in ("db3", "front3", "n3")
                    for family in FAMILIES
                )
            )

        assert {outcome.status for outcome in results} == {"too-big"}


@contextmanager
def narrow(lab: Lab, senders: Iterable[str]) -> Iterator[None]:
    """Lower the MTU behind the router to 1,400 bytes; at the end restore it and flush the senders' path MTU cache."""
    run_in(lab, "rtr", "ip", "link", "set", "far", "mtu", "1400")
    try:
        yield
    finally:
        run_in(lab, "rtr", "ip", "link", "set", "far", "mtu", "1500")
        for sender in senders:
            for family in ("-4", "-6"):
                run_in(lab, sender, "ip", family, "route", "flush", "cache")


class TestOneOfTwo:
    """A failure of one worker does not affect the flows of the other."""

    async def test_that_dies_is_replaced_alone_and_its_flows_go_on_whoever_speaks_first(self, lab: Lab) -> None:
        closed = policy("front", "frontend", ingress=[from_role("db")])
        start_all(lab, closed, enforcement="per-endpoint", queues=2)
        node = lab.nodes["n1"]
        ends = [
            (source, target, family)
            for source in ("front1", "back1")
            for target in ("back2", "db3", "n3", "world")
            for family in FAMILIES
        ]
        connections = [
            await lab.host(source).hold(lab.address(target, family), HTTP, PATIENT) for source, target, family in ends
        ]
        stays, dies = (worker["pid"] for worker in node.status()["workers"])
        with stopped(dies):
            results = await asyncio.gather(*(connection.talk(BRIEF) for connection in connections))
            assert {outcome.status for outcome in results} == {"ok", "timeout"}
            others = [one for one, outcome in zip(connections, results, strict=True) if outcome.ok]

            kill(dies)

            for outcome in await asyncio.gather(*(connection.talk(PATIENT) for connection in others)):
                assert outcome.ok

        await until(lambda: node.status()["workers"][1]["pid"] not in (None, dies))
        far_ends = [one.other_end(lab.host(target)) for one, (_, target, _) in zip(connections, ends, strict=True)]
        for outcome in await asyncio.gather(*(connection.talk(PATIENT) for connection in (*far_ends, *connections))):
            assert outcome.ok
        first, second = node.status()["workers"]
        assert (first["pid"], first["restarts"], second["restarts"]) == (stays, 0, 1)
        assert node.status()["worker"]["restarts"] == 1

    @pytest.mark.parametrize("fail", ["closed", "open"])
    async def test_whose_queues_are_full_loses_what_is_its_own_or_lets_it_pass(self, lab: Lab, fail: str) -> None:
        node = start(lab, "n1", queues=2, fail=fail, openings={"budgets": False})
        pairs = [Attempt("front1", target, "53/UDP", family) for target in ELSEWHERE for family in FAMILIES]
        worker = node.status()["workers"][1]["pid"]
        with stopped(node.pid), stopped(worker):  # a running agent replaces the worker
            own = [pair for pair, answered in zip(pairs, await _answered(lab, pairs), strict=True) if not answered]
            assert own
            assert len(own) < len(pairs)

            for pair in own:  # known flows of other addresses may have another queue
                await flood(lab, "front1", pair.target, pair.family, 2 * QUEUE_MAXLEN)
                await flood(lab, pair.target, "front1", pair.family, 2 * QUEUE_MAXLEN)
            answered = await _answered(lab, pairs)
        await until(lambda: node.status()["worker"]["lost"] >= QUEUE_MAXLEN)
        await until(lambda: node.status()["workers"][1]["accepted"] >= QUEUE_MAXLEN)

        assert answered == [fail == "open" or pair not in own for pair in pairs]
        expected = dict.fromkeys(pairs, "ok")
        assert await outcomes(lab, expected) == expected
        assert [one["restarts"] for one in node.status()["workers"]] == [0, 0]


async def _answered(lab: Lab, pairs: Iterable[Attempt]) -> list[bool]:
    """Return for each pair whether a datagram is answered, with a long timeout, so that the result is reliable."""
    asked = (lab.host(pair.source).send_udp(lab.address(pair.target, pair.family), DNS, 5 * BRIEF) for pair in pairs)
    return [outcome.ok for outcome in await asyncio.gather(*asked)]


class TestTogether:
    """Workers without rules, which receive the same messages."""

    def test_a_snapshot_is_in_force_when_it_is_so_in_each(self, root: None) -> None:
        async def scenario() -> tuple[bool, bool]:
            async with working(Workers(2, FIRST, 1000, lambda events: None)) as workers:
                first, second = workers.processes
                assert second.pid is not None
                with stopped(second.pid):
                    enforcing = asyncio.create_task(workers.enforce(NOTHING.with_revision(2)))
                    await first.wait_enforced(2)
                    before = enforcing.done()
                await enforcing
                await second.wait_enforced(2)
                return before, enforcing.done()

        assert run_apart(scenario()) == (False, True)

    def test_numbers_that_are_taken_are_told_whichever_workers_they_are(self, root: None) -> None:
        async def scenario() -> tuple[str, object]:
            workers = Workers(3, FIRST, 1000, lambda events: None)
            other = LibraryQueue(FIRST + 5, _drop)
            try:
                with pytest.raises(NfqError) as refused:
                    await workers.start(NOTHING, {}, set())
            finally:
                await workers.stop()
                other.close()
            return str(refused.value), backlog(*range(FIRST, FIRST + 150))

        assert run_apart(scenario()) == (
            "queue 105 is taken by another program: stop it, or choose other numbers with first_queue in the "
            "configuration",
            None,
        )

    def test_the_library_gets_one_worker_whatever_the_machine_is(self, root: None) -> None:
        async def scenario() -> tuple[str, tuple[QueueNumbers, ...]]:
            workers = Workers(None, FIRST, 1000, lambda events: None, driver=Driver.NETFILTERQUEUE)
            async with working(workers):
                return workers.driver, workers.queues

        assert run_apart(scenario()) == ("netfilterqueue", (LIBRARY_QUEUES,))

    @pytest.fixture
    def refusing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Start worker processes by a program that makes them request a flag that no kernel has."""
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c \'{REFUSED}\' "$4" "$5"\n')
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    def test_where_the_kernel_refuses_the_better_driver_there_is_one_worker(
        self, root: None, refusing: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

        async def scenario() -> tuple[int, tuple[str, tuple[QueueNumbers, ...]], list[int]]:
            workers = Workers(None, FIRST, 1000, lambda events: None)
            before = len(workers.processes)
            async with working(workers):
                bound = [number for number in range(FIRST, FIRST + 50) if backlog(number)]
                return before, (workers.driver, workers.queues), bound

        assert run_apart(scenario()) == (4, ("netfilterqueue", (LIBRARY_QUEUES,)), sorted(LIBRARY_QUEUES.all))

    def test_where_it_refuses_that_driver_several_workers_are_not_to_be_had(self, root: None, refusing: None) -> None:
        async def scenario() -> None:
            async with working(Workers(2, FIRST, 1000, lambda events: None)):
                pass

        with pytest.raises(NfqError) as refused:
            run_apart(scenario())
        assert str(refused.value) == (
            "this kernel's NFQUEUE cannot do what the driver 'netlink' needs, and 'netfilterqueue' has no more than "
            "one worker, not 2: choose queues 'auto' or 1"
        )


def _drop(payload: bytes, indev: int, outdev: int, skb: int) -> Verdict:
    return Verdict.DROP


@asynccontextmanager
async def working(workers: Workers) -> AsyncIterator[Workers]:
    """Start workers, and stop them at the end."""
    try:
        await workers.start(NOTHING, {}, set())
        yield workers
    finally:
        await workers.stop()
