"""``datapath: per-flow``: offloaded and not offloaded flows, and the immediate end of offload at any change.

The tests share a lab with documents in files; each test starts agents, with each driver, and stops them.
"""

import asyncio
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.agent import timings as reconciler_timings
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.core import modes
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.dataplane.queue import ctnetlink
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import connmark, iptables, packet_mark
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS, WorkerTimings
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.traffic_host import HeldConnection
from nfq_enforcer.store.files import FileStore
from tests.integration.conftest import MakeLab
from tests.support.apart import run_apart
from tests.support.labs import (
    BRIEF,
    DRIVERS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    PER_FLOW,
    DatapathSettings,
    between,
    expect,
    flows_since,
    from_role,
    identities,
    now,
    outcomes,
    passes,
    policy,
    relabelled,
    run_in,
    stamps_on,
    start_all,
    stop_agents,
    to_role,
    until,
    without,
)
from tests.support.namespaces import within
from tests.support.processes import stopped

ROUND = 2**20 - 2  # epochs until connmarks repeat
NOTHING = Snapshot(1, {}, Ipcache({}))
BULK = 3_000_000
FEW = 20  # packets: the first of a flow, and those in transit when the flow is offloaded
LOW_BYTE = 0x2A
ASK_AGAIN = """
import socket, struct, sys

family, address, port, times = sys.argv[1:]
for _ in range(int(times)):
    with socket.socket(int(family), socket.SOCK_STREAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asking.settimeout(5)
        asking.bind(("", 34567))
        asking.connect((address, int(port)))
        asking.sendall(b"?\\n")
        print(asking.recv(100).split()[1].decode())
"""
SEND = """
import socket, sys, time

family, address, number = sys.argv[1:]
with socket.socket(int(family), socket.SOCK_DGRAM) as sender:
    for _ in range(int(number)):
        sender.sendto(b"nobody answers", (address, 9999))
        time.sleep(0.002)
"""
SIGN = """
import socket, sys

family, address, port, mark = sys.argv[1:]
with socket.socket(int(family), socket.SOCK_STREAM) as asking:
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(mark).to_bytes(4, sys.byteorder))
    asking.settimeout(0.5)
    try:
        asking.connect((address, int(port)))
        print("open")
    except TimeoutError:
        print("timed out")
"""
SINK = """
import socket, sys

with socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM) as sink:
    sink.bind(("", 9999))
    print("bound", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


DATAPATH_SETTINGS = [DatapathSettings(driver, mode=PER_FLOW) for driver in DRIVERS]


@pytest.fixture
def lab(shared: Lab, datapath: DatapathSettings) -> Iterator[Lab]:
    """Yield the lab with agents and a policy that allows only frontends to connect to backends."""
    start_all(shared, FRONT_TO_BACK, **datapath.settings)
    yield shared
    stop_agents(shared)


@pytest.fixture
def low_bytes(lab: Lab) -> Iterator[None]:
    """Set connmark bits that are not ours on all flows of two nodes, as an administrator's rules may do."""
    rule = ("PREROUTING", "-j", "CONNMARK", "--set-xmark", f"{LOW_BYTE:#x}/0xff")
    for node in ("n1", "n2"):
        run_in(lab, node, "iptables", "-t", "mangle", "-A", *rule)
    yield
    for node in ("n1", "n2"):
        run_in(lab, node, "iptables", "-t", "mangle", "-D", *rule)


def verdicts(lab: Lab, *nodes: str) -> int:
    """Return the number of verdicts of the workers of these nodes, by default of all."""
    workers = [lab.nodes[name].status()["worker"] for name in nodes or lab.nodes]
    return sum(worker["accepted"] + worker["dropped"] for worker in workers)


async def hold(lab: Lab, server: str, family: int = 4) -> HeldConnection:
    connection = await lab.host("front1").hold(lab.address(server, family), HTTP, PATIENT)
    assert (await connection.talk(PATIENT)).answered_by == server
    return connection


def tracked(lab: Lab, node: str, *wanted: str) -> list[str]:
    """Return the lines of a node's conntrack table that contain all of these words."""
    lines = run_in(lab, node, "conntrack", "-L", "-o", "extended").splitlines()
    return [line for line in lines if all(word in line.split() for word in wanted)]


def mark_of(line: str) -> int:
    found = re.search(r" mark=(\d+)", line)
    assert found is not None
    return int(found[1])


@contextmanager
def sink(lab: Lab, name: str, family: int) -> Iterator[None]:
    """Receive datagrams at port 9999 of a host, without a reply."""
    program = ["python3", "-c", SINK, _number(family)]
    command = lab.network.command(name, program)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        yield
        process.stdin.close()


def send(lab: Lab, name: str, target: str, family: int, number: int) -> None:
    address = str(lab.address(target, family))
    run_in(lab, name, "python3", "-c", SEND, _number(family), address, str(number))


def _number(family: int) -> str:
    return str(int(socket.AF_INET if family == 4 else socket.AF_INET6))


class TestBypass:
    @pytest.mark.parametrize("server", ["back1", "back2"])
    async def test_an_open_connection_is_none_of_our_business(self, lab: Lab, server: str) -> None:
        for family in FAMILIES:
            connection = await hold(lab, server, family)
            before = verdicts(lab)
            for _ in range(5):
                assert (await connection.talk(PATIENT)).answered_by == server
                assert (await connection.other_end(lab.host(server)).talk(PATIENT)).answered_by == "front1"
            await connection.close()

            assert verdicts(lab) == before

    async def test_of_a_bulk_transfer_we_see_the_beginning_and_nothing_is_stamped_later(self, lab: Lab) -> None:
        front, back = lab.address("front1"), lab.address("back2")
        before = verdicts(lab)
        async with lab.capture() as capture:
            outcome = await lab.host("front1").bulk(back, HTTP, BULK, PATIENT)

        assert (outcome.received, outcome.intact) == (BULK, True)
        assert verdicts(lab) - before < FEW
        seen = between(capture, [front], [back])
        names, first = identities(lab), {parse(packet).key: packet for packet in reversed(seen)}
        assert sorted(map(stamps_on, first.values())) == sorted([[names["front1"]], [names["back2"]]])
        assert {tuple(stamps_on(packet)) for packet in seen[FEW:]} == {()}

    @pytest.mark.parametrize("family", FAMILIES)
    async def test_datagrams_that_nobody_answers_pass_too_within_a_node(self, lab: Lab, family: int) -> None:
        with sink(lab, "back1", family):
            before = verdicts(lab)
            send(lab, "front1", "back1", family, 200)

            assert verdicts(lab) - before < FEW

    @pytest.mark.parametrize("family", FAMILIES)
    async def test_between_nodes_each_of_them_bears_its_stamp(self, lab: Lab, family: int) -> None:
        front, back = lab.address("front1", family), lab.address("back2", family)
        with sink(lab, "back2", family):
            before = verdicts(lab, "n2")
            async with lab.capture() as capture:
                send(lab, "front1", "back2", family, 200)

            assert verdicts(lab, "n2") - before < FEW
        seen = between(capture, [front], [back])
        assert len(seen) >= 200
        assert {tuple(stamps_on(packet)) for packet in seen} == {(identities(lab)["front1"],)}

    @pytest.mark.parametrize("server", ["back1", "back2"])
    async def test_a_port_that_is_used_again_at_once_is_no_trouble(self, lab: Lab, server: str) -> None:
        for family in FAMILIES:
            address = str(lab.address(server, family))
            program = ("python3", "-c", ASK_AGAIN, _number(family), address, str(HTTP), "8")

            assert run_in(lab, "front1", *program).split() == [server] * 8

    async def test_marks_of_others_stay(self, lab: Lab, low_bytes: None) -> None:
        connection = await hold(lab, "back2")
        await lab.apply("policies", FRONT_TO_BACK + policy("other", "db", ingress=[from_role("frontend")]))

        assert (await connection.talk(PATIENT)).answered_by == "back2"
        for node in ("n1", "n2"):
            found = [mark_of(line) for line in tracked(lab, node) if mark_of(line) & 0xFF]
            assert {mark & 0xFF for mark in found} == {LOW_BYTE}
            assert any(mark & connmark.MASK for mark in found)


class TestNever:
    async def test_is_a_flow_marked_that_policy_refuses(self, lab: Lab) -> None:
        refused = expect("timeout", ["db3"], ["back1", "back2"])
        assert await outcomes(lab, refused) == refused

        for node in ("n1", "n2"):
            assert [line for line in tracked(lab, node) if str(lab.address("db3")) in line and mark_of(line)] == []

    async def test_is_one_that_only_audit_lets_pass(self, shared: Lab, datapath: DatapathSettings) -> None:
        start_all(shared, FRONT_TO_BACK, audit=True, **datapath.settings)
        try:
            for target in ("back1", "back2"):
                audited = passes(["front3", "db3"], [target])
                assert await outcomes(shared, audited) == audited
            db = [line for line in tracked(shared, "n2") if str(shared.address("db3")) in line]
            front = [line for line in tracked(shared, "n2") if str(shared.address("front3")) in line]
        finally:
            stop_agents(shared)

        assert db
        assert {mark_of(line) for line in db} == {0}
        assert any(map(mark_of, front))


def ports_of(line: str) -> tuple[str, ...]:
    """Return protocol and ports of a tracked flow."""
    return line.split(maxsplit=1)[0], *re.findall(r"[sd]port=\d+", line)


class TestChange:
    """A change that takes a flow's permission away also ends its offload."""

    @pytest.mark.parametrize("server", ["back1", "back2"])
    @pytest.mark.parametrize("change", [relabelled, without])
    async def test_of_an_identity_or_the_end_of_an_endpoint_cuts_what_it_had_open(
        self, lab: Lab, server: str, change: Callable[..., str]
    ) -> None:
        connections = [await hold(lab, server, family) for family in FAMILIES]
        others = [await lab.host("front2").hold(lab.address(server, family), HTTP, PATIENT) for family in FAMILIES]

        await lab.apply("endpoints", change(lab, "front1"))
        for connection in connections:
            assert (await connection.talk(BRIEF)).status == "timeout"
            assert (await connection.other_end(lab.host(server)).talk(BRIEF)).status == "timeout"
        for connection in others:
            assert (await connection.talk(PATIENT)).answered_by == server

        await lab.apply("endpoints", lab.topology.endpoint_documents())
        for connection in connections:
            assert (await connection.talk(PATIENT)).answered_by == server

    async def test_of_policy_is_no_walk_over_flows(self, lab: Lab) -> None:
        """Connmarks stay unchanged and no longer match a rule."""
        await hold(lab, "back2")
        words = f"src={lab.address('front1')}", f"dst={lab.address('back2')}"
        before = {ports_of(line): mark_of(line) for line in tracked(lab, "n2", *words)}
        await lab.apply("policies", policy("db-to-back", "backend", ingress=[from_role("db")]))

        after = {ports_of(line): mark_of(line) for line in tracked(lab, "n2", *words)}
        assert after  # flows of earlier tests may have expired
        assert after.items() <= before.items()
        rules = run_in(lab, "n2", "iptables", "-t", "security", "-S", "NFQE-MARKED")
        assert not any(f"{mark:#x}/" in rules for mark in before.values())


class TestWithoutUs:
    async def test_what_was_open_goes_on_while_no_agent_runs_and_nothing_new_begins(self, lab: Lab) -> None:
        connections = {
            (server, family): await hold(lab, server, family) for server in ("back1", "back2") for family in FAMILIES
        }
        for node in lab.nodes.values():
            worker = node.status()["worker"]["pid"]
            node.stop(signal.SIGKILL)
            await until(lambda gone=Path(f"/proc/{worker}"): not gone.exists())

        for (server, _), connection in connections.items():
            assert (await connection.talk(PATIENT)).answered_by == server
            assert (await connection.other_end(lab.host(server)).talk(PATIENT)).answered_by == "front1"
        assert not (await lab.host("front1").connect(lab.address("back1"), HTTP, BRIEF)).ok

    @pytest.mark.parametrize("server", ["back1", "back2"])
    async def test_a_flow_that_is_forgotten_here_is_found_again_whoever_speaks_first(
        self, shared: Lab, datapath: DatapathSettings, server: str
    ) -> None:
        """Frontends accept no new connection, so a packet from a backend is accepted only with the known flow."""
        closed = FRONT_TO_BACK + policy("front", "frontend", ingress=[from_role("nobody")], egress=[to_role("backend")])
        start_all(shared, closed, conntrack={"max": 2}, **datapath.settings)
        try:
            by_server, by_opener = await hold(shared, server), await hold(shared, server, 6)
            for _ in range(3):
                assert (await shared.host("front2").connect(shared.address(server), HTTP, PATIENT)).ok
            begun = now()
            await shared.apply("policies", closed + policy("other", "db", ingress=[from_role("frontend")]))

            assert (await by_server.other_end(shared.host(server)).talk(PATIENT)).answered_by == "front1"
            assert (await by_opener.talk(PATIENT)).answered_by == server
            ends = {str(shared.address(name, family)) for name in ("front1", server) for family in FAMILIES}
            new = [
                flow for node in shared.nodes.values() for flow in flows_since(node, begun) if flow["source"] in ends
            ]
            assert new == []
        finally:
            stop_agents(shared)


class TestMarks:
    """Connmarks in the kernel's conntrack table, and the rules that use them."""

    async def test_a_flow_whose_mark_is_retired_is_judged_again(self, lab: Lab) -> None:
        connection = await hold(lab, "back2")
        before = verdicts(lab, "n2")
        within(lab, "n2", ctnetlink.retire_marks)

        assert (await connection.talk(PATIENT)).answered_by == "back2"
        assert 0 < verdicts(lab, "n2") - before < FEW

    async def test_rules_of_an_administrator_see_no_mark_of_ours_on_what_leaves(self, lab: Lab) -> None:
        rule = ("-t", "mangle", "{}", "POSTROUTING", "-m", "mark", "!", "--mark", f"0/{packet_mark.MASK:#x}")
        connection = await hold(lab, "back2")
        run_in(lab, "n1", "iptables", *(word.format("-A") for word in rule))
        try:
            await lab.apply("policies", FRONT_TO_BACK + policy("other", "db", ingress=[from_role("frontend")]))
            assert (await connection.talk(PATIENT)).answered_by == "back2"
            lines = run_in(lab, "n1", "iptables", "-t", "mangle", "-S", "POSTROUTING", "-v").splitlines()
        finally:
            run_in(lab, "n1", "iptables", *(word.format("-D") for word in rule))

        assert [line.split("-c ")[1] for line in lines if f"{packet_mark.MASK:#x}" in line] == ["0 0"]

    async def test_a_packet_that_a_program_has_signed_itself_is_judged_all_the_same(
        self, shared: Lab, datapath: DatapathSettings
    ) -> None:
        """SO_MARK needs CAP_NET_RAW, which programs in containers on the host's network have (socket(7))."""
        start_all(shared, policy("closed", "monitor", egress=[to_role("frontend")]), **datapath.settings)
        try:
            for family in FAMILIES:
                address = str(shared.address("back2", family))
                for mark in (packet_mark.REQUEST, packet_mark.MASK, packet_mark.FROM_REPLIER):
                    program = ("python3", "-c", SIGN, _number(family), address, str(HTTP), str(mark))
                    assert run_in(shared, "n3", *program).strip() == "timed out"
                program = (
                    "python3",
                    "-c",
                    SIGN,
                    _number(family),
                    str(shared.address("front1", family)),
                    str(HTTP),
                    "7",
                )
                assert run_in(shared, "n3", *program).strip() == "open"
        finally:
            stop_agents(shared)


class TestEpoch:
    """Changes of the epoch by the reconciler, on a node without endpoints."""

    def test_flows_show_themselves_from_time_to_time(self, root: None) -> None:
        async def scenario() -> list[int]:
            async with enforcing(reconciler_timings.ReconcilerTimings(offload_recheck=0.05)) as one:
                seen = [one.epoch()]
                async with asyncio.timeout(PATIENT):
                    while len(seen) < 4:
                        await asyncio.sleep(0.01)
                        seen += [one.epoch()] if one.epoch() != seen[-1] else []
            return seen

        first, *others = run_apart(scenario())
        assert others == sorted(set(others))
        assert min(others) > first

    def test_after_a_round_marks_from_long_ago_are_retired(self, root: None) -> None:
        async def scenario() -> tuple[list[str], list[str]]:
            rules = iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
            rules.install(replace(NOTHING, epoch=1), allocate_queues(100, 1))
            ends = "-p udp -s 10.0.0.1 -d 10.0.0.2 --sport 1 --dport 2"
            run("conntrack", "-I", *ends.split(), "--timeout", "100", "--mark", "0x1242a")
            before = marks_now()
            rules.set_epoch(ROUND)
            return before, marks_now()

        assert run_apart(scenario()) == ([f"{0x1242A}"], [f"{connmark.RETIRED | 0x2A}"])

    @pytest.mark.alone
    def test_while_a_worker_has_not_heard_of_an_epoch_no_mark_is_in_force(self, root: None) -> None:
        async def scenario() -> tuple[list[bool], int]:
            timings = reconciler_timings.ReconcilerTimings(recheck=0.0, offload_recheck=0.2)
            async with enforcing(timings, WorkerTimings(response=0.5, heartbeat=PATIENT)) as one:
                following = asyncio.create_task(one.reconciler.run())
                stuck = one.workers.processes[0].pid
                assert stuck is not None
                with stopped(stuck):
                    await until(lambda: not one.passes())
                    await asyncio.sleep(1.5)  # further attempts, all without success
                    closed = [one.passes()]
                await until(one.passes)
                following.cancel()
                return [*closed, stuck == one.workers.processes[0].pid], one.workers.restarts

        assert run_apart(scenario()) == ([False, True], 0)


class TestFailedChange:
    """Changes of peers in a reconciliation that cannot change the rules."""

    def test_workers_have_new_and_removed_peers_all_the_same(
        self, root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = (tmp_path / name for name in ("first.yaml", "second.yaml"))
        first.write_text(remote_endpoint("first", "10.1.2.1"))

        async def scenario() -> list[set[str]]:
            async with enforcing(reconciler_timings.ReconcilerTimings(), documents=[tmp_path]) as one:
                seen = [one.peers()]
                second.write_text(remote_endpoint("second", "10.1.3.1"))
                first.unlink()
                await one.store.wait()
                with monkeypatch.context() as patch:
                    patch.setattr(iptables.Rules, "set_remote_networks", refuse)
                    with pytest.raises(NfqError, match="refused"):
                        await one.reconciler.reconcile()
                seen.append(one.peers())
                await one.reconciler.reconcile()
                return [*seen, one.peers()]

        assert run_apart(scenario()) == [{"10.1.2.1"}, {"10.1.3.1"}, {"10.1.3.1"}]


def refuse(_rules: iptables.Rules, _networks: object) -> None:
    raise NfqError("the kernel refused the change")


def remote_endpoint(name: str, address: str) -> str:
    return (
        "apiVersion: nfq-enforcer.io/v1\nkind: Endpoint\n"
        f"metadata: {{name: {name}, labels: {{role: web}}}}\nspec: {{node: n2, interface: veth0, ips: [{address}]}}\n"
    )


def run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENT).stdout


def marks_now() -> list[str]:
    return re.findall(r" mark=(\d+)", run("conntrack", "-L"))


@dataclass
class Enforcing:
    """A ``Reconciler`` over a store of files."""

    store: FileStore
    reconciler: Reconciler
    workers: Workers

    def peers(self) -> set[str]:
        """Return the addresses of the peers that the workers have."""
        return {str(ip_address(address)) for address in self.workers.peers}

    def epoch(self) -> int:
        """Return the connmark that the rules accept in both directions, 0 if they accept none."""
        rules = run("iptables", "-t", "security", "-S", "NFQE-MARKED")
        found = re.search(r"--mark (0x\w+)/.* NEW,ESTABLISHED .*-j ACCEPT", rules)
        return int(found[1], 16) if found else 0

    def passes(self) -> bool:
        return self.epoch() > 0


@asynccontextmanager
async def enforcing(
    timings: reconciler_timings.ReconcilerTimings,
    worker_timings: WorkerTimings = DEFAULT_TIMINGS,
    documents: Iterable[Path] = (),
) -> AsyncIterator[Enforcing]:
    """Yield a reconciler with store, workers and rules, on a host without a lab."""
    settings = NodeSettings("n1", (), frozenset(), frozenset())
    store, workers = FileStore(documents, settings), Workers(1, 100, 1000, lambda events: None, timings=worker_timings)
    rules = iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
    reconciler = Reconciler(store, Replica(settings), workers, rules, modes.Datapath.PER_FLOW, timings)
    await store.start()
    try:
        await reconciler.start()
        yield Enforcing(store, reconciler, workers)
    finally:
        await reconciler.stop()
        await workers.stop()
        await store.stop()
        iptables.remove()


def test_a_node_says_that_another_has_another_datapath(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.store.start()
    for name, node in lab.nodes.items():
        node.start(datapath="per-packet" if name == "n3" else PER_FLOW)
        node.wait_until_ready()
    listed = {one["name"]: one["datapath"] for one in client.call(lab.nodes["n3"].socket, "nodes")}
    stop_agents(lab)

    assert listed == {"n1": PER_FLOW, "n2": PER_FLOW, "n3": "per-packet"}
    warning = "node {} has datapath '{}', and this one '{}'"
    for name in ("n1", "n2"):
        assert warning.format("n3", "per-packet", PER_FLOW) in lab.nodes[name].log.read_text()
        assert warning.format(name, PER_FLOW, "per-packet") in lab.nodes["n3"].log.read_text()
    assert warning.format("n2", PER_FLOW, PER_FLOW) not in lab.nodes["n1"].log.read_text()
