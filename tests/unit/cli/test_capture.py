"""``nfq-enforcer capture``: a pcapng file of what the agent streams, which only its owner reads."""

import base64
import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from nfq_enforcer.captures import pcapng
from tests.support.packets import syn
from tests.support.tshark import DISSECTOR
from tests.unit.cli.conftest import Answering, RunProgram
from tests.unit.cli.test_observe import DROPPED

BEGUN = {"begun": {"node": "n1", "snaplen": 128}}
ENDED = {"ended": {"lost": 0}}
DATA = syn("fd01::10", "fd02::10")
PACKET = {
    "packet": {
        "flow": DROPPED,
        "arrived_by": "eth0",
        "leaves_by": None,
        "length": 9000,
        "data": base64.b64encode(DATA).decode(),
    }
}
COMMENT = "DROPPED POLICY_DENIED: no rule allows it; egress on node n1 arrived by eth0; from shop/front1 identity 300"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "drops.pcapng"


def test_the_file_has_the_packets_with_their_comments(run: RunProgram, answering: Answering, file: Path) -> None:
    agent = answering(capture=(BEGUN, PACKET, PACKET, ENDED))

    done = run("capture", "--write", file, "--socket", agent.socket)

    assert (done.status, done.out) == (0, "")
    assert done.err.splitlines() == [
        "nfq-enforcer: capturing dropped packets on node n1",
        "nfq-enforcer: 2 packets captured",
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    read = list(RawPcapNgReader(io.BytesIO(file.read_bytes())))
    assert [(data, found.wirelen, found.tsresol) for data, found in read] == [(DATA, 9000, 1_000_000)] * 2
    assert [(found.tshigh << 32) + found.tslow for _, found in read] == [1_767_225_600_125_000] * 2
    assert all(found.comments[0].decode().startswith(COMMENT) for _, found in read)


def test_lost_packets_are_counted_in_the_file_and_on_the_terminal(
    run: RunProgram, answering: Answering, file: Path
) -> None:
    agent = answering(capture=(BEGUN, PACKET, {"counts": {"lost": 3}}, {"ended": {"lost": 7}}))

    done = run("capture", "-w", file, "--socket", agent.socket)

    assert done.err.endswith("nfq-enforcer: 1 packets captured, 7 more not recorded\n")
    assert b"7 packets were dropped by the node and are not in the capture" in file.read_bytes()
    counts = b"".join(bytes((code, 0, 8, 0)) + value.to_bytes(8, "little") for code, value in ((4, 8), (5, 7)))
    assert counts in file.read_bytes()


def test_an_agent_that_ends_leaves_a_readable_file(run: RunProgram, answering: Answering, file: Path) -> None:
    agent = answering(capture=(BEGUN, PACKET))

    done = run("capture", "-w", file, "--socket", agent.socket)

    assert done.status == 1
    assert done.err.endswith("nfq-enforcer: the agent ended before the capture did\n")
    assert len(list(RawPcapNgReader(io.BytesIO(file.read_bytes())))) == 1


def test_an_agent_that_ends_before_the_capture_begins_leaves_no_file(
    run: RunProgram, answering: Answering, file: Path
) -> None:
    done = run("capture", "-w", file, "--socket", answering(capture=()).socket)

    assert (done.status, done.err) == (1, "nfq-enforcer: the agent ended before the capture began\n")
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ([], {"snaplen": 128}),
        (["--snaplen", "64", "-c", "5", "--duration", "1.5"], {"snaplen": 64, "count": 5, "duration": 1.5}),
        (
            ["--drop-reason", "policy_denied", "--drop-reason", "CT_NO_MATCH", "--verdict", "audit"],
            {"snaplen": 128, "reasons": ["POLICY_DENIED", "CT_NO_MATCH"], "verdicts": ["AUDIT"]},
        ),
    ],
)
def test_the_agent_is_asked_for_what_the_options_say(
    arguments: list[str], params: dict[str, Any], run: RunProgram, answering: Answering, file: Path
) -> None:
    agent = answering(capture=(BEGUN, ENDED))

    assert run("capture", *arguments, "-w", file, "--socket", agent.socket).status == 0
    assert agent.calls == [params]


def test_a_file_that_exists_is_kept(run: RunProgram, answering: Answering, file: Path) -> None:
    file.write_text("kept")

    done = run("capture", "-w", file, "--socket", answering(capture=(BEGUN, ENDED)).socket)

    assert (done.status, done.err) == (2, f"nfq-enforcer: {file} exists: remove it, or choose another name\n")
    assert file.read_text() == "kept"


def test_a_link_is_not_followed(run: RunProgram, answering: Answering, file: Path) -> None:
    file.symlink_to(file.with_name("target"))

    assert run("capture", "-w", file, "--socket", answering(capture=(BEGUN, ENDED)).socket).status == 2
    assert not file.exists()


def test_a_folder_that_does_not_exist_is_an_error(run: RunProgram, answering: Answering, file: Path) -> None:
    done = run("capture", "-w", file / "x", "--socket", answering(capture=(BEGUN, ENDED)).socket)

    assert done.status == 2
    assert done.err == f"nfq-enforcer: {file}/x cannot be written: No such file or directory\n"


def test_the_standard_output_is_the_default(answering: Answering) -> None:
    agent = answering(capture=(BEGUN, PACKET, ENDED))

    done = subprocess.run(
        [sys.executable, "-m", "nfq_enforcer.cli", "capture", "--socket", agent.socket], capture_output=True, check=True
    )

    assert done.stdout.startswith(pcapng.section("", "")[:4])
    assert done.stdout.count(DATA) == 1


def test_a_terminal_is_refused(answering: Answering) -> None:
    agent = answering(capture=(BEGUN, ENDED))
    ours, theirs = pty.openpty()

    done = subprocess.run(
        [sys.executable, "-m", "nfq_enforcer.cli", "capture", "--socket", agent.socket],
        stdout=theirs, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)

    assert done.returncode == 2
    assert done.stderr.startswith("nfq-enforcer: a capture is no text: name a file with --write")


def test_a_reader_that_has_seen_enough_is_no_error(answering: Answering) -> None:
    agent = answering(capture=(BEGUN, *[PACKET] * 1000, ENDED))
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "nfq_enforcer.cli", "capture", "--socket", agent.socket],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_dissector_is_printed_as_it_is(run: RunProgram) -> None:
    assert run("capture", "--print-dissector") == (0, Path(DISSECTOR).read_text(), "")
