"""``nfq-enforcer run``: its arguments, the agent's answer, and the execution of the command."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfq_enforcer.cli import run
from nfq_enforcer.cli.run import Order, RunError

PROGRAM = (sys.executable, "-P", "-m", "nfq_enforcer.cli", "run")


def test_options_and_command_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFQ_ENFORCER_API__SOCKET", raising=False)
    order = run.parse(["-l", "role=batch", "--label=tier=", "--name", "n", "-n", "shop", "--", "ls", "--name", "--"])

    assert order == Order(["ls", "--name", "--"], {"role": "batch", "tier": ""}, "n", "shop", run._DEFAULT)
    assert run.parse(["--help"]) is None


def test_the_command_may_follow_the_options_without_a_mark() -> None:
    order = run.parse(["--label", "a=b", "/usr/bin/My_Job", "-x"])

    assert order is not None
    assert (order.command, order.name) == (["/usr/bin/My_Job", "-x"], f"my-job-{os.getpid()}")
    assert run.default_name("/bin/__") == f"process-{os.getpid()}"


def test_the_socket_is_beside_that_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFQ_ENFORCER_API__SOCKET", "/run/x/agent.sock")
    order = run.parse(["true"])
    assert order is not None
    assert order.socket == "/run/x/agent-run.sock"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "run: give the command behind '--'"),
        (["--label", "a=b", "--"], "run: give the command behind '--'"),
        (["--color", "x", "--", "ls"], "run: no such option: --color"),
        (["--label"], "run: option --label needs a value"),
        (["--label", "role", "--", "ls"], "--label: 'role' is not a label; allowed: KEY=VALUE"),
        (["-l", "a=b", "-l", "a=c", "--", "ls"], "--label: 'a' has two values, 'b' and 'c'"),
        (["--name", "a", "--name", "b", "--", "ls"], "--name: it is given 2 times; one is allowed"),
    ],
)
def test_wrong_arguments_are_said(arguments: list[str], says: str) -> None:
    with pytest.raises(RunError) as caught:
        run.parse(arguments)

    assert says in str(caught.value)
    assert caught.value.status == 2


@contextmanager
def agent(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one request on a socket; give the requests."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                asked.append(lines.readline())
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


def call(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [*PROGRAM, "--socket", str(path), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def test_the_command_is_executed_once_the_agent_agrees(tmp_path: Path) -> None:
    with agent(tmp_path / "s", b'{"result": {}}\n') as asked:
        done = call(tmp_path / "s", "-l", "role=batch", "--name", "job", "--", "sh", "-c", "echo done; exit 7")

    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 7)
    params = {"name": "job", "namespace": "default", "labels": {"role": "batch"}}
    assert json.loads(asked[0]) == {"method": "run", "params": params}


@pytest.mark.parametrize(
    ("answer", "says", "status"),
    [
        (b'{"error": "no", "exit_code": 1}\n', "no", 1),
        (b'{"error": "bad label", "exit_code": 2}\n', "bad label", 2),
        (b"", "the agent has closed the connection", 1),
        (b"no JSON\n", "cannot be asked: ", 1),
    ],
)
def test_the_command_is_not_executed_if_the_agent_refuses(
    tmp_path: Path, answer: bytes, says: str, status: int
) -> None:
    with agent(tmp_path / "s", answer):
        done = call(tmp_path / "s", "--", "echo", "executed")

    assert (done.stdout, done.returncode) == ("", status)
    assert done.stderr.startswith("nfq-enforcer: ")
    assert says in done.stderr


def test_an_agent_that_does_not_run_is_said(tmp_path: Path) -> None:
    done = call(tmp_path / "none", "--", "true")

    said = f"no agent is listening on {tmp_path}/none: start it, or name its socket with --socket"
    assert done.stderr == f"nfq-enforcer: {said}\n"


@pytest.mark.parametrize(("command", "says", "status"), [("/none", "command not found", 127), ("/", "denied", 126)])
def test_a_command_that_cannot_be_executed_is_said(tmp_path: Path, command: str, says: str, status: int) -> None:
    with agent(tmp_path / "s", b'{"result": {}}\n'):
        done = call(tmp_path / "s", "--", command)

    assert says in done.stderr
    assert done.returncode == status


def test_an_inherited_network_socket_is_closed_and_said(tmp_path: Path) -> None:
    with agent(tmp_path / "s", b'{"result": {}}\n'), socket.socket() as inherited:
        argv = [*PROGRAM, "--socket", str(tmp_path / "s"), "--", "ls", "/proc/self/fd"]
        done = subprocess.run(argv, capture_output=True, text=True, pass_fds=[inherited.fileno()], check=True)

        number = inherited.fileno()

    assert f"closed descriptor {number}: a network socket" in done.stderr
    assert str(number) not in done.stdout.split()


def test_no_control_character_of_the_agents_error_is_printed(tmp_path: Path) -> None:
    with agent(tmp_path / "s", b'{"error": "no \\u001b[2J\\n", "exit_code": 1}\n'):
        argv = [*PROGRAM, "--socket", str(tmp_path / "s"), "--", "true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "nfq-enforcer: no \\x1b[2J\\n\n")


def test_a_network_socket_as_standard_input_is_refused(tmp_path: Path) -> None:
    with socket.socket() as inherited:
        argv = [*PROGRAM, "--", "true"]
        done = subprocess.run(argv, stdin=inherited.fileno(), capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "descriptor 0 is a network socket of another process" in done.stderr


def test_help_is_that_of_the_command_in_both_ways() -> None:
    for argv in ([*PROGRAM, "--help"], [*PROGRAM[:-1], "--help"]):
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert "Run a command with an identity of its own" in done.stdout
