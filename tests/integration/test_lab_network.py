"""The lab's network without any policy: every host reaches every other, and the lab is removed without a trace."""

import asyncio
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab import network
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import STATE, LabNetwork, find_command, list_labs, new_run_id, remove
from nfq_enforcer.lab.topology import WORLD, IPAddress, Topology
from nfq_enforcer.lab.traffic_host import AttemptResult, TrafficHost

HTTP, DNS, CLOSED = 80, 53, 81
PATIENT = 10.0  # seconds for an attempt that must succeed, also on a busy machine
EVENT_TIMEOUT_MS = 10_000

Attempt = Callable[[TrafficHost, IPAddress], Coroutine[Any, Any, AttemptResult]]
ATTEMPTS: dict[str, Attempt] = {
    "TCP": lambda host, address: host.connect(address, HTTP, PATIENT),
    "UDP": lambda host, address: host.send_udp(address, DNS, PATIENT),
    "ping": lambda host, address: host.ping(address, PATIENT),
}

both_families = pytest.mark.parametrize("family", [4, 6])


async def serve(lab: Lab) -> None:
    hosts = [lab.host(name) for name in lab.topology.hosts]
    await asyncio.gather(*(host.serve("TCP", HTTP) for host in hosts), *(host.serve("UDP", DNS) for host in hosts))


@pytest.fixture(scope="module")
def lab(lab: Lab, runner: asyncio.Runner) -> Lab:
    """Build the module's lab with a TCP and a UDP server on every host."""
    runner.run(serve(lab))
    return lab


def namespaces_of(run_id: str) -> list[str]:
    output = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in output.splitlines() if line.startswith(f"nfqe-{run_id}-")]


def assert_no_trace(run_id: str) -> None:
    assert namespaces_of(run_id) == []
    assert run_id not in list_labs()
    assert not (STATE / run_id).exists()


class TestTraffic:
    @both_families
    @pytest.mark.parametrize("way", ATTEMPTS)
    def test_every_host_reaches_every_other_under_its_own_address(
        self, lab: Lab, runner: asyncio.Runner, way: str, family: int
    ) -> None:
        pairs = list(permutations(lab.topology.hosts, 2))

        async def attempt_all() -> list[AttemptResult]:
            return await asyncio.gather(*(ATTEMPTS[way](lab.host(a), lab.address(b, family)) for a, b in pairs))

        for (source, target), result in zip(pairs, runner.run(attempt_all()), strict=True):
            assert (source, target, result.status) == (source, target, "ok")
            if way != "ping":
                assert result.answered_by == target
                assert result.seen_as in own_addresses(lab, source)

    @both_families
    def test_a_closed_port_refuses(self, lab: Lab, runner: asyncio.Runner, family: int) -> None:
        address = lab.address("db3", family)

        assert runner.run(lab.host("front1").connect(address, CLOSED, PATIENT)).status == "refused"
        assert runner.run(lab.host("front1").send_udp(address, CLOSED, PATIENT)).status == "refused"

    def test_no_answer_is_a_timeout(self, lab: Lab, runner: asyncio.Runner) -> None:
        unused_on_the_segment = lab.address(WORLD) + 1

        result = runner.run(lab.host("n2").connect(unused_on_the_segment, HTTP, 0.1))

        assert result.status == "timeout"
        assert result.elapsed >= 0.1

    def test_an_endpoint_that_its_node_does_not_have_is_unreachable(self, lab: Lab, runner: asyncio.Runner) -> None:
        unused_on_n2 = lab.address("back2") + 50

        assert runner.run(lab.host(WORLD).connect(unused_on_n2, HTTP, PATIENT)).status == "unreachable"

    def test_a_held_connection_carries_speech_from_both_ends_until_one_closes_it(
        self, lab: Lab, runner: asyncio.Runner
    ) -> None:
        client_end = runner.run(lab.host("front1").hold(lab.address("back2"), HTTP, PATIENT))
        server_end = client_end.other_end(lab.host("back2"))

        assert runner.run(client_end.talk(PATIENT)).answered_by == "back2"
        assert runner.run(server_end.talk(PATIENT)).answered_by == "front1"
        runner.run(server_end.close())
        assert runner.run(client_end.talk(PATIENT)).status == "refused"

    def test_holding_a_connection_that_is_refused_is_an_error(self, lab: Lab, runner: asyncio.Runner) -> None:
        with pytest.raises(NfqError, match=r"front1 cannot hold a connection to 10\.31\.2\.11 port 81: refused"):
            runner.run(lab.host("front1").hold(lab.address("back2"), CLOSED, PATIENT))

    @both_families
    def test_bulk_arrives_whole(self, lab: Lab, runner: asyncio.Runner, family: int) -> None:
        result = runner.run(lab.host("front1").bulk(lab.address("db3", family), HTTP, 3_000_001))

        assert (result.status, result.received, result.intact) == ("ok", 3_000_001, True)

    @both_families
    def test_a_datagram_is_fragmented_unless_that_is_forbidden(
        self, lab: Lab, runner: asyncio.Runner, family: int
    ) -> None:
        front1, db3 = lab.host("front1"), lab.address("db3", family)
        largest = 1500 - lab.topology.stamp_room - (28 if family == 4 else 48)

        def send(size: int, dont_fragment: bool) -> str:
            return runner.run(front1.send_udp(db3, DNS, PATIENT, size=size, dont_fragment=dont_fragment)).status

        assert send(largest, True) == "ok"
        assert send(largest + 1, True) == "too-big"
        assert send(largest + 1, False) == "ok"

    def test_orders_to_a_host_whose_process_died_fail_at_once(self, lab: Lab, runner: asyncio.Runner) -> None:
        host = TrafficHost(lab.network, "front3")
        before = processes_of(lab, "front3")
        assert runner.run(host.ping(lab.address("n3"), PATIENT)).ok
        (pid,) = processes_of(lab, "front3") - before

        async def kill_during_an_attempt() -> AttemptResult:
            attempt = asyncio.create_task(host.connect(lab.address(WORLD) + 1, HTTP, PATIENT))
            await host.ping(lab.address("n3"), PATIENT)  # the host has received the attempt before this ping
            os.kill(pid, signal.SIGKILL)
            return await attempt

        with pytest.raises(NfqError, match="the process of host front3 has ended"):
            runner.run(kill_during_an_attempt())
        with pytest.raises(NfqError, match="the process of host front3 has ended"):
            runner.run(host.ping(lab.address("n3")))
        runner.run(host.stop())


class TestMasquerade:
    @both_families
    def test_the_router_hides_the_source_of_what_it_forwards_onto_the_segment(
        self, lab: Lab, runner: asyncio.Runner, family: int
    ) -> None:
        def seen_as(source: str, target: str) -> str:
            return runner.run(lab.host(source).connect(lab.address(target, family), HTTP, PATIENT)).seen_as

        lab.network.masquerade(True)
        try:
            assert seen_as("db3", "front1") == str(lab.address("rtr", family))
            assert seen_as("front1", "db3") == str(lab.address("front1", family))
        finally:
            lab.network.masquerade(False)
        assert seen_as("db3", "front1") == str(lab.address("db3", family))


class TestCapture:
    @both_families
    @pytest.mark.parametrize("target", ["back2", "db3", "n3"])
    def test_every_packet_between_nodes_is_captured_once(
        self, lab: Lab, runner: asyncio.Runner, target: str, family: int
    ) -> None:
        async def capture_exchanges(number: int) -> Capture:
            front1 = lab.host("front1")
            async with lab.capture() as capture:
                for _ in range(number):
                    assert (await front1.send_udp(lab.address(target, family), DNS, PATIENT)).ok
            return capture

        packets = [packet.data for packet in runner.run(capture_exchanges(50)).packets()]

        assert sum(b"?" in data and addressed(data, lab.address(target, family)) for data in packets) == 50
        assert sum(b"=" in data and addressed(data, lab.address("front1", family)) for data in packets) == 50

    def test_traffic_within_a_node_does_not_cross_the_segment(self, lab: Lab, runner: asyncio.Runner) -> None:
        async def capture_local() -> Capture:
            async with lab.capture() as capture:
                assert (await lab.host("front1").send_udp(lab.address("back1"), DNS, PATIENT)).ok
            return capture

        packets = runner.run(capture_local()).packets()

        assert not any(addressed(packet.data, lab.address("back1")) for packet in packets)

    @both_families
    def test_a_raw_packet_with_a_borrowed_source_arrives_as_it_was_written(
        self, lab: Lab, runner: asyncio.Runner, family: int
    ) -> None:
        forged = udp_packet(lab.address("front1", family), lab.address("back2", family), b"not from front1")

        async def capture_forged() -> Capture:
            async with lab.capture() as capture:
                assert (await lab.host(WORLD).send_raw(forged)).ok
            return capture

        (captured,) = [p.data for p in runner.run(capture_forged()).packets() if b"not from front1" in p.data]

        assert without_checksum(captured) == without_checksum(forged)

    def test_a_capture_on_no_such_interface_says_so(self, lab: Lab, runner: asyncio.Runner) -> None:
        with pytest.raises(NfqError, match=r"the capture on eth9 of n1 did not begin: .*eth9"):
            runner.run(Capture(lab.network, "n1", "eth9").start())


class TestLife:
    def test_two_labs_side_by_side_do_not_disturb_each_other(
        self, lab: Lab, make_lab: Callable[[], Lab], runner: asyncio.Runner
    ) -> None:
        other = make_lab()
        assert {lab.topology.run_id, other.topology.run_id} <= set(list_labs())

        assert runner.run(other.host("front1").connect(lab.address("db3"), HTTP, PATIENT)).status == "refused"
        runner.run(other.down())

        assert_no_trace(other.topology.run_id)
        assert runner.run(lab.host("front1").connect(lab.address("db3"), HTTP, PATIENT)).ok

    def test_a_lab_that_is_there_is_neither_built_again_nor_harmed(self, lab: Lab, runner: asyncio.Runner) -> None:
        with pytest.raises(NfqError, match="is there already: remove it with `nfq-enforcer lab down`"):
            LabNetwork(lab.topology).up()

        assert runner.run(lab.host("front1").ping(lab.address("db3"), PATIENT)).ok

    def test_a_network_that_cannot_be_built_leaves_nothing(self, root: None) -> None:
        topology = Topology(new_run_id(), mtu=20)

        with pytest.raises(NfqError, match=r"the lab's network: .*mtu.*in 'link set \w+ mtu 20"):
            LabNetwork(topology).up()

        assert_no_trace(topology.run_id)

    def test_down_removes_what_a_killed_builder_left(self, root: None) -> None:
        run_id = new_run_id()
        builder, child = build_and_crash(run_id)
        with exit_event(child) as ended:
            assert len(namespaces_of(run_id)) == len(Topology(run_id).machines)
            assert run_id in list_labs()

            remove(run_id)

            assert ended.poll(EVENT_TIMEOUT_MS)
        assert builder == -signal.SIGKILL
        assert_no_trace(run_id)

    def test_down_kills_what_does_not_heed_the_request_to_end(self, root: None) -> None:
        network = LabNetwork(Topology(new_run_id()))
        network.up()
        process = network.in_namespace("n1", ["sh", "-c", "trap '' TERM; echo; read x"], **pipes())
        assert process.stdout is not None
        process.stdout.readline()

        network.down()

        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert_no_trace(network.topology.run_id)

    def test_down_ends_no_process_outside_of_the_lab(self, root: None) -> None:
        network = LabNetwork(Topology(new_run_id()))
        network.up()
        with subprocess.Popen(["cat"], **pipes()) as bystander:
            network.down()

            assert bystander.communicate("still here", timeout=PATIENT)[0] == "still here"

    def test_down_of_a_lab_that_is_not_there_does_nothing(self, root: None) -> None:
        run_id = new_run_id()

        remove(run_id)

        assert_no_trace(run_id)

    def test_a_host_of_a_lab_that_is_not_up_says_so(self, root: None, runner: asyncio.Runner) -> None:
        with pytest.raises(NfqError, match="the lab 'nolab' is not up: see `nfq-enforcer lab up`"):
            runner.run(Lab(Topology("nolab")).host("front1").ping(Topology("nolab").address("db3")))


class TestPrerequisites:
    def test_without_root_a_sentence_says_so(self, root: None) -> None:
        os.seteuid(65534)
        try:
            with pytest.raises(NfqError, match="the lab needs root to make network namespaces: run it with sudo"):
                LabNetwork(Topology("noroot")).up()
        finally:
            os.seteuid(0)

    def test_a_command_that_is_not_there_is_named_with_its_package(self) -> None:
        with pytest.raises(NfqError, match="the lab needs the command `no-such`, which is not there: install no-such"):
            find_command("no-such")


def own_addresses(lab: Lab, machine: str) -> set[str]:
    return {str(a.ip) for interface in lab.topology.machine(machine).interfaces for a in interface.addresses}


def processes_of(lab: Lab, machine: str) -> set[int]:
    command = ["ip", "netns", "pids", lab.topology.namespace(machine)]
    return {int(pid) for pid in subprocess.run(command, capture_output=True, check=True).stdout.split()}


def addressed(packet: bytes, destination: IPAddress) -> bool:
    return destination.packed == (packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])


def udp_packet(source: IPAddress, destination: IPAddress, payload: bytes) -> bytes:
    udp = struct.pack("!HHHH", 4000, DNS, 8 + len(payload), 0) + payload
    ends = source.packed + destination.packed
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + ends + udp
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + ends + udp


def without_checksum(packet: bytes) -> bytes:
    return packet[:10] + packet[12:] if packet[0] >> 4 == 4 else packet


def pipes() -> dict[str, Any]:
    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


BUILDER = """
import os, signal, sys
from nfq_enforcer.lab.network import LabNetwork
from nfq_enforcer.lab.topology import Topology
network = LabNetwork(Topology(sys.argv[1]))
network.up()
print(network.in_namespace("back1", ["sleep", "1000"], stdout=-3).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def build_and_crash(run_id: str) -> tuple[int, int]:
    """Build a lab in a process that then kills itself; return its status, and its child that still runs in the lab."""
    package = Path(__file__).parents[2]
    builder = subprocess.run(
        [sys.executable, "-c", BUILDER, run_id], cwd=package, stdout=subprocess.PIPE, text=True, check=False
    )
    return builder.returncode, int(builder.stdout)


@contextmanager
def exit_event(pid: int) -> Iterator["select.poll"]:
    """Yield a poll object that reports an event at the process's end."""
    pidfd = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        yield ended
    finally:
        os.close(pidfd)


def test_the_last_lab_takes_the_folder_of_all_labs_with_it(
    root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "labs"
    monkeypatch.setattr(network, "STATE", state)
    first, last = LabNetwork(Topology(new_run_id())), LabNetwork(Topology(new_run_id()))
    first.up()
    last.up()

    first.down()
    assert [folder.name for folder in state.iterdir()] == [last.topology.run_id]
    last.down()
    assert not state.exists()
