"""Completion in bash, zsh and fish at a terminal: with an agent that answers, with hostile names, without an agent."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cli import completion
from tests.support.terminals import Terminal
from tests.unit.cli.conftest import Answering

SCRIPTS = Path(completion.__file__).parent / "shells"
SHELLS: dict[str, tuple[list[str], str]] = {  # the command, and what one types first
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(nfq-enforcer completion bash)"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -U compinit; compinit -D -u; bindkey -e; source <(nfq-enforcer completion zsh)",
    ),
    "fish": (["fish", "--no-config", "--private", "-i"], "nfq-enforcer completion fish | source"),
}
HOSTILE = ["$(touch pwned)", "`touch pwned`", "a;touch pwned", "a\ntouch pwned", "\x1b]0;pwned\x07", "x'y\"z"]


def endpoint(name: str) -> dict[str, Any]:
    document = {"kind": "Endpoint", "metadata": {"name": name}}
    found = {"namespace": "shop", "name": name, "node": "n1", "identity": 300, "addresses": ["10.1.0.1"]}
    return {**found, "labels": ["k8s:io.kubernetes.pod.namespace=shop", f"k8s:role={name}"], "document": document}


ANSWERS: dict[str, Any] = {
    "endpoints": [endpoint("front1"), *map(endpoint, HOSTILE)],
    "policies": [{"namespace": "shop", "name": "allow-web", "kind": "NetworkPolicy", "document": {}}],
    "nodes": [{"name": "node-7", "addresses": ["192.0.2.7"]}],
    "identities": [{"identity": 12339331, "labels": ["k8s:role=frontend"]}],
}

Complete = Callable[[str], str]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Return the name of each shell that is installed."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def complete(shell: str, tmp_path: Path) -> Iterator[Complete]:
    """Type a command line and a tab in the shell; return the line that the shell has then."""
    command, first = SHELLS[shell]
    home = tmp_path / "home"
    home.mkdir()
    (home / "documents").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **{"HOME": str(home), "PATH": path, "TERM": "xterm", "LC_ALL": "C.UTF-8", "PS1": "", "PROMPT": ""},
        "NFQ_ENFORCER_API__SOCKET": str(tmp_path / "agent.sock"),
    }
    with ExitStack() as running:
        terminal = running.enter_context(Terminal(command, environment, str(home)))
        terminal.type(f"{first}; echo REA''DY\n")
        terminal.expect("READY\r?\n")

        def completed(line: str) -> str:
            terminal.type(f"{line}\t\x01echo 'LI''NE' \n")  # to the begin of the line: show it instead of running it
            return terminal.expect(r"LINE (nfq-enforcer[^\r\n]*?) *\r?\n")[1]

        yield completed


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("nfq-enforcer end", "nfq-enforcer endpoint"),
        ("nfq-enforcer policy val", "nfq-enforcer policy validate"),
        ("nfq-enforcer policy load --ign", "nfq-enforcer policy load --ignore-other-kinds"),
        ("nfq-enforcer endpoint get shop/f", "nfq-enforcer endpoint get shop/front1"),
        ("nfq-enforcer conntrack list --from sh", "nfq-enforcer conntrack list --from shop/front1"),
        ("nfq-enforcer conntrack list --from=sh", "nfq-enforcer conntrack list --from=shop/front1"),
        ("nfq-enforcer policy delete --wait sh", "nfq-enforcer policy delete --wait shop/allow-web"),
        ("nfq-enforcer endpoint add x --node no", "nfq-enforcer endpoint add x --node node-7"),
        ("nfq-enforcer identity get 123", "nfq-enforcer identity get 12339331"),
        ("nfq-enforcer policy validate doc", "nfq-enforcer policy validate documents"),
        ("nfq-enforcer lab exec host -- doc", "nfq-enforcer lab exec host -- doc"),
    ],
)
def test_a_tab_completes_commands_options_files_and_names_of_the_agent(
    line: str, whole: str, complete: Complete, answering: Answering
) -> None:
    answering(**ANSWERS)

    assert complete(line).removesuffix("/") == whole  # zsh takes the slash of a folder back at the next key


@pytest.mark.parametrize("begin", ["", "a", "x", "sh", "shop/"])
def test_a_hostile_name_is_neither_offered_nor_run(
    begin: str, complete: Complete, answering: Answering, tmp_path: Path
) -> None:
    answering(**ANSWERS | {"endpoints": [*map(endpoint, HOSTILE), endpoint("front1")]})

    shown = complete(f"nfq-enforcer endpoint get {begin}\t")

    assert "pwned" not in shown
    assert not list(tmp_path.rglob("pwned"))


def test_without_an_agent_a_tab_changes_nothing(complete: Complete) -> None:
    assert complete("nfq-enforcer endpoint get sho") == "nfq-enforcer endpoint get sho"


def test_the_shells_read_the_scripts(shell: str) -> None:
    script = SCRIPTS / f"nfq-enforcer.{shell}"

    assert subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False).stderr == ""
    if shell == "bash":
        checker = Path(sys.executable).with_name("shellcheck")
        done = subprocess.run([checker, "--shell=bash", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
