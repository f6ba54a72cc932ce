"""The program: properties common to all commands, and the messages of commands that fail."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_enforcer import __version__
from tests.unit.cli.conftest import RunProgram

ASKING = [
    ["status"],
    ["observe"],
    ["observe", "--follow"],
    ["endpoint", "list"],
    ["endpoint", "get", "web"],
    ["endpoint", "delete", "web"],
    ["endpoint", "add", "web", "--ip", "10.0.0.1"],
    ["identity", "list"],
    ["identity", "get", "300"],
    ["node", "list"],
    ["ipcache", "list"],
    ["store", "status"],
    ["store", "export"],
    ["store", "gc"],
]


def test_the_version_is_the_packages(run: RunProgram) -> None:
    assert run("version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["policy", "--help"], ["observe", "--help"]])
def test_help_is_to_be_had(arguments: list[str], run: RunProgram) -> None:
    done = run(*arguments)

    assert (done.status, done.err) == (0, "")
    assert " ".join(["nfq-enforcer", *arguments[:-1]]) in done.out


@pytest.mark.parametrize("group", ["policy", "endpoint", "identity", "node", "ipcache", "store", "lab"])
def test_each_group_of_commands_has_its_help(group: str, run: RunProgram) -> None:
    done = run(group, "--help")

    assert done.status == 0
    assert f"nfq-enforcer {group} " in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["status", "--frobnicate"],
        ["status", "-o", "xml"],
        ["observe", "--verdict", "MAYBE"],
        ["observe", "--last", "-1"],
        ["policy", "validate"],
        ["policy", "get", "web", "-o", "table"],
        ["policy", "load", "x.yaml", "--wait", "--timeout", "0"],
        ["endpoint", "delete"],
        ["endpoint", "get", "web", "-o", "table"],
        ["identity", "get", "many"],
        ["store", "gc", "--grace", "-1"],
        ["store", "import"],
    ],
)
def test_a_command_that_is_not_understood_ends_with_2_and_says_so_on_standard_error(
    arguments: list[str], run: RunProgram
) -> None:
    done = run(*arguments)

    assert (done.status, done.out) == (2, "")
    assert "nfq-enforcer" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_without_an_agent_there_is_one_sentence_and_1(arguments: list[str], run: RunProgram, tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"

    assert run(*arguments, "--socket", socket) == (
        1,
        "",
        f"nfq-enforcer: no agent is listening on {socket}: "
        "start one with 'nfq-enforcer agent', or name its socket with --socket\n",
    )


def test_the_socket_can_be_named_by_the_agents_own_variable(
    run: RunProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFQ_ENFORCER_API__SOCKET", str(tmp_path / "other.sock"))

    assert f"no agent is listening on {tmp_path}/other.sock" in run("status").err


@pytest.mark.parametrize("command", ["agent", "cleanup"])
def test_what_needs_root_says_so(command: str, run: RunProgram, nobody: None) -> None:
    assert run(command) == (
        1,
        "",
        "nfq-enforcer: this needs root: it changes iptables rules and binds a queue; run it with sudo\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the missing privilege is reported first")
@pytest.mark.parametrize("command", ["agent", "cleanup"])
def test_what_needs_iptables_names_what_is_missing(
    command: str, run: RunProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for tool in ("iptables", "ip6tables"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run(command) == (1, "", "nfq-enforcer: nft not found in PATH: install the package nftables\n")


def test_the_agent_refuses_a_wrong_configuration_before_anything_else(run: RunProgram, tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("fail: ajar\n")

    assert run("agent", "--config", file) == (
        2,
        "",
        f"nfq-enforcer: {file}:1:7: fail: 'ajar' is not allowed; allowed: 'closed' or 'open'\n",
    )


def test_the_configuration_can_be_named_by_a_variable(
    run: RunProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFQ_ENFORCER_CONFIG", str(tmp_path / "missing.yaml"))

    assert run("agent") == (
        2,
        "",
        f"nfq-enforcer: {tmp_path}/missing.yaml: no such file; name a configuration with --config\n",
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_sentence_and_1(unbuffered: str) -> None:
    """With and without buffering of standard output in Python."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nfq_enforcer.cli", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )

    assert (done.returncode, done.stderr) == (
        1,
        f"nfq-enforcer: {os.strerror(errno.ENOSPC)}\n",
    )


def test_a_wrong_variable_is_refused_by_its_name(run: RunProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFQ_ENFORCER_QUEUES", "0")

    assert run("agent", "--config", "/dev/null") == (
        2,
        "",
        "nfq-enforcer: environment variable NFQ_ENFORCER_QUEUES: queues: "
        "0 is not allowed; allowed: 'auto', or 1 to 256\n",
    )


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    run = subprocess.run(
        [sys.executable, "-m", "nfq_enforcer.cli", "version"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        check=False,
    )
    os.close(writer)

    assert (run.returncode, run.stderr) == (0, "")
