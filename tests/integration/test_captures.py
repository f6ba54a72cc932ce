"""``nfq-enforcer capture``: dropped packets of real traffic in a file that tshark and scapy read."""

import asyncio
import itertools
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
from scapy.utils import rdpcap

from nfq_enforcer.agent import client
from nfq_enforcer.agent.captures import MAX_CAPTURES
from nfq_enforcer.captures.scapy_layer import stamps
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support import packets
from tests.support.labs import (
    BRIEF,
    CLOSED,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    PROGRAM,
    DatapathSettings,
    Policies,
    flood,
    identities,
    kill,
    run_in,
    start_all,
    stop_agents,
    until,
)
from tests.support.tshark import read_fields

DATAPATH_SETTINGS = [DatapathSettings("netlink", 2), DatapathSettings("netfilterqueue")]
BACK = "CiliumNetworkPolicy default/front-to-back ingress[0]"
both_families = pytest.mark.parametrize("family", FAMILIES)
_ports = itertools.count(20_000)


class RunningCapture:
    """Running capture: ``nfq-enforcer capture`` on a node."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.notes = b""

    def read(self, *fields: str, options: Sequence[str] = ()) -> list[dict[str, list[str]]]:
        """Return fields of the packets in the file; ``options`` are those of tshark."""
        return read_fields(self.file, ("frame.comment", *fields), *options)

    async def wait(self) -> int:
        """Wait for its end; return its exit status."""
        async with asyncio.timeout(PATIENT):
            self.notes += (await self.process.communicate())[1]
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def capturing(lab: Lab, node: str, file: Path, *options: str) -> AsyncIterator[RunningCapture]:
    """Run a capture that has begun, and end it with SIGINT unless it ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "capture", "--socket", str(lab.nodes[node].socket), "--write", str(file), *options),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    running = RunningCapture(process, file)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENT):
            running.notes += await process.stderr.readline()
        assert running.notes == f"nfq-enforcer: capturing dropped packets on node {node}\n".encode()
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await running.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "drops.pcapng"


async def send(lab: Lab, sender: str, source: str, family: int, options: bytes = b"") -> int:
    """Send a datagram with options from the address of an endpoint to back2; return its port."""
    port = next(_ports)
    packet = packets.udp(str(lab.address(source, family)), str(lab.address("back2", family)), port, b"a payload")
    await lab.host(sender).send_raw(packets.with_options(packet, options) if options else packet)
    return port


async def test_a_refused_connection_is_there_with_the_reason_and_the_document(
    guarded: Lab, policies: Policies, file: Path
) -> None:
    await policies.apply("first", FRONT_TO_BACK)
    names = identities(guarded)
    labels = file.with_name("identities.json")
    socket = str(guarded.nodes["n2"].socket)
    labels.write_text(run_in(guarded, "n2", *PROGRAM, "identity", "list", "-o", "json", "--socket", socket))

    async with capturing(guarded, "n2", file, "--count", "2") as running:
        for family in FAMILIES:
            await guarded.host("db3").connect(guarded.address("back2", family), HTTP, BRIEF)
        assert await running.wait() == 0

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert running.notes.endswith(b"nfq-enforcer: 2 packets captured\n")
    fields = "ip.dst", "ipv6.dst", "tcp.dstport", "nfqe.identity", "nfqe.labels", "frame.interface_name"
    found = running.read(*fields, options=["-o", f"nfqe.identities:{labels}"])
    assert [(row["ip.dst"], row["ipv6.dst"]) for row in found] == [
        ([str(guarded.address("back2", 4))], []),
        ([], [str(guarded.address("back2", 6))]),
    ]
    for row in found:
        (comment,) = row["frame.comment"]
        assert row["tcp.dstport"] == [str(HTTP)]
        assert row["nfqe.identity"] == [str(names["db3"])]  # as it arrived, with the stamp of its node
        assert "k8s:role=db" in row["nfqe.labels"][0].split(", ")
        assert row["frame.interface_name"] == ["nfq-enforcer"]
        assert comment.startswith("DROPPED POLICY_DENIED: no rule allows it; ingress on node n2 arrived by ")
        assert f"from default/db3 identity {names['db3']} (k8s:role=db" in comment
        assert f"to default/back2 identity {names['back2']} (k8s:role=backend" in comment
        assert comment.endswith(f"; enforced by {BACK}")


async def test_scapy_reads_the_file_and_the_stamps(guarded: Lab, policies: Policies, file: Path) -> None:
    await policies.apply("first", FRONT_TO_BACK)
    sender = identities(guarded)["db3"]

    async with capturing(guarded, "n2", file, "--count", "2") as running:
        for family in FAMILIES:
            await guarded.host("db3").send_udp(guarded.address("back2", family), CLOSED, BRIEF)
        assert await running.wait() == 0

    read = rdpcap(str(file))
    assert [[stamp.identity for stamp in stamps(packet)] for packet in read] == [[sender], [sender]]
    assert all(b"POLICY_DENIED" in b"".join(packet.comments) for packet in read)


@pytest.mark.parametrize("reason", packets.BAD_STAMPS)
@both_families
async def test_a_refused_stamp_is_shown_as_such(guarded: Lab, reason: str, family: int, file: Path) -> None:
    options = bytes.fromhex(packets.BAD_STAMPS[reason][family])

    async with capturing(guarded, "n2", file, "--count", "1", "--drop-reason", reason) as running:
        await send(guarded, "world", "world", family)  # passes, or is dropped for another reason
        port = await send(guarded, "world", "world", family, options)
        assert await running.wait() == 0

    (found,) = running.read(f"nfqe.{reason.lower()}", "udp.dstport", options=["-Y", f"nfqe.{reason.lower()}"])
    assert found["frame.comment"][0].startswith(f"DROPPED {reason}: ")
    assert found["udp.dstport"] == [str(port)]


@both_families
async def test_a_forged_source_that_the_kernel_drops_is_there(guarded: Lab, family: int, file: Path) -> None:
    async with capturing(guarded, "n1", file, "--count", "1", "--drop-reason", "invalid_source_ip") as running:
        port = await send(guarded, "front1", "back1", family)
        assert await running.wait() == 0

    (found,) = running.read("udp.dstport")
    assert found["frame.comment"][0].startswith("DROPPED INVALID_SOURCE_IP: ")
    assert " arrived by veth-front1; " in found["frame.comment"][0]
    assert found["udp.dstport"] == [str(port)]


async def test_the_file_has_the_first_bytes_and_the_length_of_a_packet(
    guarded: Lab, policies: Policies, file: Path
) -> None:
    await policies.apply("first", FRONT_TO_BACK)

    async with capturing(guarded, "n2", file, "--count", "1", "--snaplen", "20") as running:
        await send(guarded, "world", "world", 4)
        assert await running.wait() == 0

    (found,) = running.read("frame.cap_len", "frame.len")
    assert (found["frame.cap_len"], found["frame.len"]) == (["20"], [str(20 + 8 + len(b"a payload"))])


async def test_the_other_end_of_a_pipe_reads_packets_as_they_come(guarded: Lab, policies: Policies) -> None:
    await policies.apply("first", FRONT_TO_BACK)
    reading, writing = os.pipe()
    program = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "capture", "--socket", str(guarded.nodes["n2"].socket)), stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert program.stderr is not None
    async with asyncio.timeout(PATIENT):
        await program.stderr.readline()
    os.set_blocking(reading, False)
    received = b""

    def arrived() -> bool:
        nonlocal received
        try:
            received += os.read(reading, 1 << 16)
        except BlockingIOError:
            return False
        return b"POLICY_DENIED" in received

    await send(guarded, "world", "world", 4)
    await until(arrived)
    os.close(reading)
    await send(guarded, "world", "world", 4)  # to nobody
    async with asyncio.timeout(PATIENT):
        _, errors = await program.communicate()

    assert (program.returncode, errors) == (0, b"")


async def test_of_a_flood_each_packet_is_captured_or_counted_as_lost(guarded: Lab, policies: Policies) -> None:
    await policies.apply("first", FRONT_TO_BACK)
    node, sent = guarded.nodes["n2"], 3000
    before = _denied(node)

    with closing(client.stream(node.socket, "capture", PATIENT, snaplen=64, reasons=["POLICY_DENIED"])) as items:
        assert next(items) == {"begun": {"node": "n2", "snaplen": 64}}
        await flood(guarded, "db3", "back2", 4, sent)
        captured = lost = 0
        for item in items:
            captured += "packet" in item
            lost = item["counts"]["lost"] if "counts" in item else lost
            if "counts" in item and captured + lost == _denied(node) - before:
                break

    assert captured < sent / 2 < lost


async def test_a_worker_that_replaces_another_goes_on_with_the_capture(
    guarded: Lab, policies: Policies, file: Path
) -> None:
    await policies.apply("first", FRONT_TO_BACK)
    node = guarded.nodes["n2"]
    pid, restarts = node.status()["worker"]["pid"], node.status()["worker"]["restarts"]

    async with capturing(guarded, "n2", file, "--count", "1", "--drop-reason", "STAMP_MALFORMED") as running:
        kill(pid)
        await until(lambda: node.status()["worker"]["restarts"] > restarts and node.status()["worker"]["pid"])
        async with asyncio.timeout(PATIENT):
            while running.process.returncode is None:  # until the agent has renewed the capture
                await send(guarded, "world", "world", 4, bytes.fromhex(packets.BAD_STAMPS["STAMP_MALFORMED"][4]))
                await asyncio.sleep(0.05)

    assert [row["frame.comment"][0].split(":")[0] for row in running.read()] == ["DROPPED STAMP_MALFORMED"]


async def test_the_number_of_captures_has_a_limit(guarded: Lab) -> None:
    socket = guarded.nodes["n1"].socket
    with ExitStack() as running:
        for _ in range(MAX_CAPTURES):
            items = running.enter_context(closing(client.stream(socket, "capture", PATIENT, snaplen=64)))
            assert "begun" in next(items)

        with pytest.raises(NfqError, match=f"^{MAX_CAPTURES} captures run already"):
            next(client.stream(socket, "capture", PATIENT, snaplen=64))

    await until(lambda: _may_begin(socket))  # a reader that has left makes room


async def test_audited_packets_are_captured_if_asked_for(auditing: Lab, file: Path) -> None:
    async with capturing(auditing, "n2", file, "--verdict", "audit", "--count", "1") as running:
        assert (await auditing.host("db3").connect(auditing.address("back2"), HTTP, PATIENT)).ok
        assert await running.wait() == 0

    (found,) = running.read("tcp.dstport")
    assert found["frame.comment"][0].startswith("AUDIT POLICY_DENIED: ")
    assert found["tcp.dstport"] == [str(HTTP)]


@pytest.fixture(scope="module")
def auditing(make_served: MakeLab) -> Iterator[Lab]:
    """Return a lab of agents in audit mode."""
    lab = make_served(memory=True)
    start_all(lab, FRONT_TO_BACK, audit=True)
    yield lab
    stop_agents(lab)


def _denied(node: LabNode) -> int:
    return int(node.status()["worker"]["POLICY_DENIED"])


def _may_begin(socket: Path) -> bool:
    try:
        with closing(client.stream(socket, "capture", PATIENT, snaplen=64)) as items:
            return "begun" in next(items)
    except NfqError:
        return False
