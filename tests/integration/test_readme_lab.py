"""The commands of README.md's section on the lab, while a second lab is up: each concerns its own lab, or asks which.

They run on a copy of this host, where the README's run ID is free.
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.copies import Copy

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LAB, OTHER = "mine", "other"  # README's, and the second one


def commands(title: str) -> list[str]:
    """Return the nfq-enforcer commands of a section of README.md."""
    _, _, after = (ROOT / "README.md").read_text().partition(f"## {title}\n")
    section, _, _ = after.partition("\n## ")
    return [line.partition("#")[0].strip() for line in section.splitlines() if line.startswith("nfq-enforcer ")]


class Shell:
    """Shell: runs command lines on the copy, in the folder of the project."""

    def __init__(self, host: Copy) -> None:
        self._host = host

    def __call__(self, line: str) -> tuple[int, str]:
        """Return the exit status of a command line, and its output, in one line."""
        done = self._host.attempt("sh", "-c", f"cd {ROOT}; PATH={BIN}:$PATH; {line}")
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def nodes_with_policies(self, run_id: str) -> list[str]:
        sockets = {name: f"/run/nfq-enforcer-lab/{run_id}/{name}.sock" for name in ("n1", "n2", "n3")}
        return [name for name, path in sockets.items() if "frontend-to-backend" in self(policy_list(path))[1]]


def policy_list(socket: str) -> str:
    return f"nfq-enforcer policy list --socket {socket}"


def without(option: str, line: str) -> str:
    """Return a command line without an option and its value."""
    words = shlex.split(line)
    at = words.index(option)
    return shlex.join(words[:at] + words[at + 2 :])


@pytest.fixture(scope="module")
def shell(root: None) -> Iterator[Shell]:
    """Run the second lab."""
    with Copy() as host:
        shell = Shell(host)
        status, output = shell(f"nfq-enforcer lab up --run-id {OTHER}")
        assert status == 0, output
        yield shell
        assert shell("nfq-enforcer lab down --all")[0] == 0


def test_the_commands_concern_the_lab_that_they_name(shell: Shell) -> None:
    *steps, down = commands("The lab by hand")
    assert (len(steps), down) == (4, f"nfq-enforcer lab down --run-id {LAB}")

    outputs = []
    for line in steps:
        status, output = shell(line)
        assert status == 0, f"{line}: {output}"
        outputs.append(output)

    up, ping, load, observe = outputs
    assert f"lab {LAB} is up" in up
    assert "1 received" in ping
    assert "in force" in load
    assert "front1" in observe
    assert shell.nodes_with_policies(LAB) == ["n1", "n2", "n3"]
    assert shell.nodes_with_policies(OTHER) == []

    for line, option in zip([*steps[1:], down], ["--run-id", "--socket", "--socket", "--run-id"], strict=True):
        status, output = shell(without(option, line))
        assert status in {1, 2}, line
        assert option in output, line
    assert shell(down) == (0, f"lab {LAB} is gone")
    assert shell("nfq-enforcer lab exec front1 -- ping -c 1 10.31.2.11")[0] == 0  # there is only one lab now
    assert shell.nodes_with_policies(OTHER) == []


def test_why_a_packet_was_dropped_is_answered_as_written(shell: Shell) -> None:
    up, _, load, _, down = commands("The lab by hand")
    assert shell(up)[0] == 0
    try:
        assert shell(load)[0] == 0
        ping, last, asked, observe = [shell(line) for line in commands("Why was my packet dropped?")]
    finally:
        assert shell(down)[0] == 0

    assert (ping[0], last[0], asked[0], observe[0]) == (1, 1, 1, 0)
    assert "DROPPED POLICY_DENIED (ICMPv4 type 8 code 0)" in last[1]
    assert "default/frontend-to-backend ingress[0] (policies/frontend-to-backend.yaml:13): " in last[1]
    assert "The smallest change with which it passes:" in last[1]
    assert "+ - type: 8" in last[1]
    assert "default/db3 → default/back2, 5432/TCP" in asked[1]
    assert "+ - port: '5432'" in asked[1]
    assert "DROPPED POLICY_DENIED" in observe[1]


@pytest.mark.parametrize("line", commands("One host, a cluster, virtual machines"))
def test_a_command_for_an_agent_of_this_host_asks_for_a_socket(shell: Shell, line: str) -> None:
    status, output = shell(line)

    assert status == 1, output
    assert output.endswith("or name its socket with --socket")
