"""``datapath: per-flow``: what the kernel passes by itself, what it does not, and that any change ends this at once.

The tests share a lab whose documents are files; each starts agents, with each driver, and none runs after it.
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nfq_enforcer import api, inforce
from nfq_enforcer.core.ipcache import Ipcache
from nfq_enforcer.core.packet import parse
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.dataplane import ctnetlink, iptables, marks, pool
from nfq_enforcer.dataplane.nfqueue import in_rows
from nfq_enforcer.dataplane.ruleset import IPV4, IPV6
from nfq_enforcer.dataplane.workers import Workers
from nfq_enforcer.inforce import InForce
from nfq_enforcer.lab.host import Connection
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.store.memory import MemoryStore
from nfq_enforcer.store.replica import NodeSettings, Replica
from tests.apart import enter, run_apart
from tests.integration.conftest import MakeLab
from tests.labs import (
    BRIEF,
    DRIVERS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    PER_FLOW,
    Datapath,
    between,
    expect,
    flows_since,
    from_role,
    identities,
    now,
    outcomes,
    passes,
    policy,
    run_in,
    stamps_on,
    start_all,
    stop_agents,
    to_role,
    until,
)

ROUND = 2**23 - 2  # epochs until marks are used again
NOTHING = Snapshot(1, {}, Ipcache({}))
BULK = 3_000_000
FEW = 20  # packets: a flow's first, and what is on its way when the kernel is told
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
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(mark))
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


@pytest.fixture(scope="module", params=[Datapath(driver, mode=PER_FLOW) for driver in DRIVERS], ids=str)
def datapath(request: pytest.FixtureRequest) -> Datapath:
    given: Datapath = request.param
    return given


@pytest.fixture
def lab(shared: Lab, datapath: Datapath) -> Iterator[Lab]:
    """Give the lab with agents under a policy by which frontends may connect to backends, and nobody else to these."""
    start_all(shared, FRONT_TO_BACK, **datapath.settings)
    yield shared
    stop_agents(shared)


@pytest.fixture
def low_bytes(lab: Lab) -> Iterator[None]:
    """Have an administrator mark all flows of two nodes in the bits that are not ours."""
    rule = ("PREROUTING", "-j", "CONNMARK", "--set-xmark", f"{LOW_BYTE:#x}/0xff")
    for node in ("n1", "n2"):
        run_in(lab, node, "iptables", "-t", "mangle", "-A", *rule)
    yield
    for node in ("n1", "n2"):
        run_in(lab, node, "iptables", "-t", "mangle", "-D", *rule)


def judged(lab: Lab, *nodes: str) -> int:
    """Return how many packets have had their verdict from us, at these nodes or at all."""
    workers = [lab.nodes[name].status()["worker"] for name in nodes or lab.nodes]
    return sum(worker["accepted"] + worker["dropped"] for worker in workers)


async def hold(lab: Lab, server: str, family: int = 4) -> Connection:
    connection = await lab.host("front1").hold(lab.address(server, family), HTTP, PATIENT)
    assert (await connection.talk(PATIENT)).answered_by == server
    return connection


def tracked(lab: Lab, node: str, *wanted: str) -> list[str]:
    """Return what a node's kernel has on record with all of these words."""
    lines = run_in(lab, node, "conntrack", "-L", "-o", "extended").splitlines()
    return [line for line in lines if all(word in line.split() for word in wanted)]


def mark_of(line: str) -> int:
    found = re.search(r" mark=(\d+)", line)
    assert found is not None
    return int(found[1])


@contextmanager
def sink(lab: Lab, name: str, family: int) -> Iterator[None]:
    """Have a host take datagrams at port 9999 and never answer."""
    program = ["python3", "-c", SINK, _number(family)]
    command = lab.network.command(name, program)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as taking:
        assert taking.stdin is not None
        assert taking.stdout is not None
        assert taking.stdout.readline() == "bound\n"
        yield
        taking.stdin.close()


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
            before = judged(lab)
            for _ in range(5):
                assert (await connection.talk(PATIENT)).answered_by == server
                assert (await connection.other_end(lab.host(server)).talk(PATIENT)).answered_by == "front1"
            await connection.close()

            assert judged(lab) == before

    async def test_of_a_bulk_transfer_we_see_the_beginning_and_nothing_is_stamped_later(self, lab: Lab) -> None:
        front, back = lab.address("front1"), lab.address("back2")
        before = judged(lab)
        async with lab.capture() as capture:
            outcome = await lab.host("front1").bulk(back, HTTP, BULK, PATIENT)

        assert (outcome.received, outcome.intact) == (BULK, True)
        assert judged(lab) - before < FEW
        seen = between(capture, [front], [back])
        names, first = identities(lab), {parse(packet).key: packet for packet in reversed(seen)}
        assert sorted(map(stamps_on, first.values())) == sorted([[names["front1"]], [names["back2"]]])
        assert {tuple(stamps_on(packet)) for packet in seen[FEW:]} == {()}

    @pytest.mark.parametrize("family", FAMILIES)
    async def test_datagrams_that_nobody_answers_pass_too_within_a_node(self, lab: Lab, family: int) -> None:
        with sink(lab, "back1", family):
            before = judged(lab)
            send(lab, "front1", "back1", family, 200)

            assert judged(lab) - before < FEW

    @pytest.mark.parametrize("family", FAMILIES)
    async def test_between_nodes_each_of_them_bears_its_stamp(self, lab: Lab, family: int) -> None:
        front, back = lab.address("front1", family), lab.address("back2", family)
        with sink(lab, "back2", family):
            before = judged(lab, "n2")
            async with lab.capture() as capture:
                send(lab, "front1", "back2", family, 200)

            assert judged(lab, "n2") - before < FEW
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
            assert any(mark & marks.MASK for mark in found)


class TestNever:
    async def test_is_a_flow_marked_that_policy_refuses(self, lab: Lab) -> None:
        refused = expect("timeout", ["db3"], ["back1", "back2"])
        assert await outcomes(lab, refused) == refused

        for node in ("n1", "n2"):
            assert [line for line in tracked(lab, node) if str(lab.address("db3")) in line and mark_of(line)] == []

    async def test_is_one_that_only_audit_lets_pass(self, shared: Lab, datapath: Datapath) -> None:
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


def relabelled(lab: Lab, name: str) -> str:
    """Return the documents of all endpoints, one of which has another role."""
    return "\n---\n".join(
        re.sub(r"role: \w+", "role: other", document) if _is_of(document, name) else document
        for document in lab.topology.endpoint_documents().split("\n---\n")
    )


def without(lab: Lab, name: str) -> str:
    """Return the documents of all endpoints but one."""
    documents = lab.topology.endpoint_documents().split("\n---\n")
    return "\n---\n".join(document for document in documents if not _is_of(document, name))


def _is_of(document: str, name: str) -> bool:
    return f"name: {name}\n" in document


class TestChange:
    """What takes a flow's right away takes its mark's power away."""

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
        """Marks stay as they are, and mean nothing."""
        await hold(lab, "back2")
        words = f"src={lab.address('front1')}", f"dst={lab.address('back2')}"
        before = [mark_of(line) for line in tracked(lab, "n2", *words)]
        await lab.apply("policies", policy("db-to-back", "backend", ingress=[from_role("db")]))

        assert [mark_of(line) for line in tracked(lab, "n2", *words)] == before
        rules = run_in(lab, "n2", "iptables", "-t", "security", "-S", "NFQE-MARKED")
        assert not any(f"{mark:#x}/" in rules for mark in before)


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
        self, shared: Lab, datapath: Datapath, server: str
    ) -> None:
        """Frontends are closed to everybody, so a backend that speaks first could not open a connection of its own."""
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
    """The kernel's record, and the rules by which it is used."""

    async def test_a_flow_whose_mark_is_retired_is_judged_again(self, lab: Lab) -> None:
        connection = await hold(lab, "back2")
        before = judged(lab, "n2")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(retire_marks, Path("/run/netns") / lab.topology.namespace("n2")).result()

        assert (await connection.talk(PATIENT)).answered_by == "back2"
        assert 0 < judged(lab, "n2") - before < FEW

    async def test_rules_of_an_administrator_see_no_mark_of_ours_on_what_leaves(self, lab: Lab) -> None:
        rule = ("-t", "mangle", "{}", "POSTROUTING", "-m", "mark", "!", "--mark", f"0/{marks.FIELD:#x}")
        connection = await hold(lab, "back2")
        run_in(lab, "n1", "iptables", *(word.format("-A") for word in rule))
        try:
            await lab.apply("policies", FRONT_TO_BACK + policy("other", "db", ingress=[from_role("frontend")]))
            assert (await connection.talk(PATIENT)).answered_by == "back2"
            lines = run_in(lab, "n1", "iptables", "-t", "mangle", "-S", "POSTROUTING", "-v").splitlines()
        finally:
            run_in(lab, "n1", "iptables", *(word.format("-D") for word in rule))

        assert [line.split("-c ")[1] for line in lines if f"{marks.FIELD:#x}" in line] == ["0 0"]

    async def test_a_packet_that_a_program_has_signed_itself_is_judged_all_the_same(
        self, shared: Lab, datapath: Datapath
    ) -> None:
        """With CAP_NET_RAW, as programs in containers on the host's own network have it, one may do so (socket(7))."""
        start_all(shared, policy("closed", "monitor", egress=[to_role("frontend")]), **datapath.settings)
        try:
            for family in FAMILIES:
                address = str(shared.address("back2", family))
                for mark in (marks.SIGNED, marks.FIELD, marks.FROM_REPLIER):
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


def retire_marks(namespace: Path) -> None:
    enter(namespace)
    ctnetlink.retire_marks()


class TestEpoch:
    """The node's own part, without endpoints: who moves the epoch, and when."""

    def test_flows_show_themselves_from_time_to_time(self, root: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inforce, "_SHOWING", 0.05)

        async def scenario() -> list[int]:
            async with in_force() as one:
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
            rules.install(replace(NOTHING, epoch=1), in_rows(100, 1))
            ends = "-p udp -s 10.0.0.1 -d 10.0.0.2 --sport 1 --dport 2"
            run("conntrack", "-I", *ends.split(), "--timeout", "100", "--mark", "0x1242a")
            before = marks_now()
            rules.move(ROUND)
            return before, marks_now()

        assert run_apart(scenario()) == ([f"{0x1242A}"], [f"{marks.EARLIER | 0x2A}"])

    @pytest.mark.alone
    def test_while_a_worker_has_not_heard_of_an_epoch_no_mark_is_in_force(
        self, root: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "_PATIENCE", 0.5)
        monkeypatch.setattr(inforce, "_SHOWING", 0.2)
        monkeypatch.setattr(inforce, "_RENEWAL", 0.0)

        async def scenario() -> tuple[list[bool], int]:
            async with in_force() as one:
                following = asyncio.create_task(one.in_force.follow())
                stuck = one.workers.each[0].pid
                assert stuck is not None
                os.kill(stuck, signal.SIGSTOP)
                try:
                    await until(lambda: not one.passes())
                    await asyncio.sleep(1.5)  # more attempts, and none is taken
                    closed = [one.passes()]
                finally:
                    os.kill(stuck, signal.SIGCONT)
                await until(one.passes)
                following.cancel()
                return [*closed, stuck == one.workers.each[0].pid], one.workers.restarts

        assert run_apart(scenario()) == ([False, True], 0)


def run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENT).stdout


def marks_now() -> list[str]:
    return re.findall(r" mark=(\d+)", run("conntrack", "-L"))


@dataclass
class Enforcing:
    """An ``InForce`` over a store without documents."""

    in_force: InForce
    workers: Workers

    def epoch(self) -> int:
        """Return the mark by which the kernel's rules pass flows, 0 for none."""
        rules = run("iptables", "-t", "security", "-S", "NFQE-MARKED")
        found = re.search(r"--mark (0x\w+)/.* ESTABLISHED -j ACCEPT", rules)
        return int(found[1], 16) if found else 0

    def passes(self) -> bool:
        return self.epoch() > 0


@asynccontextmanager
async def in_force() -> AsyncIterator[Enforcing]:
    """Give what is in force on a node of its own: store, workers and rules."""
    settings = NodeSettings("n1", (), frozenset(), frozenset())
    store, workers = MemoryStore([], settings), Workers(1, 100, 1000, lambda events: None)
    rules = iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
    enforcing = InForce(store, Replica(settings), workers, rules, "per-flow")
    await store.start()
    try:
        await enforcing.begin()
        yield Enforcing(enforcing, workers)
    finally:
        await enforcing.end()
        await workers.stop()
        await store.stop()
        iptables.remove()


def test_a_node_says_that_another_has_another_datapath(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.store.start()
    for name, node in lab.nodes.items():
        node.start(datapath="per-packet" if name == "n3" else PER_FLOW)
        node.wait_until_ready()
    listed = {one["name"]: one["datapath"] for one in api.call(lab.nodes["n3"].socket, "nodes")}
    stop_agents(lab)

    assert listed == {"n1": PER_FLOW, "n2": PER_FLOW, "n3": "per-packet"}
    warning = "node {} has datapath '{}', and this one '{}'"
    for name in ("n1", "n2"):
        assert warning.format("n3", "per-packet", PER_FLOW) in lab.nodes[name].log.read_text()
        assert warning.format(name, PER_FLOW, "per-packet") in lab.nodes["n3"].log.read_text()
    assert warning.format("n2", PER_FLOW, PER_FLOW) not in lab.nodes["n1"].log.read_text()
