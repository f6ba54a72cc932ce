"""Answers to a shell that completes a command line: by words, with names of the agent, and nothing that is hostile."""

import socket
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cli import completion, names
from nfq_enforcer.cli.commands import COMMANDS
from tests.unit.cli.conftest import Answering, RunProgram

HOSTILE = ["$(id)", "a b", "a;b", "a\tb", "a\nb", "a\x1b[2J", "-x", "'", '"', "a\u202e", "ä", "x" * 600, "a:b"]


def words(*typed: str) -> list[str]:
    """Return the candidates for the last of these words."""
    kind, *lines = completion.lines(typed)
    assert kind == ":names"
    return [line.partition("\t")[0] for line in lines]


def kind(*typed: str) -> str:
    return completion.lines(typed)[0]


@pytest.fixture(autouse=True)
def _agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFQ_ENFORCER_API__SOCKET", str(tmp_path / "agent.sock"))


def endpoint(namespace: str, name: str, **more: Any) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, "labels": ["k8s:role=web"], **more}


def test_the_first_word_is_a_command() -> None:
    assert words("") == words() == sorted({path.split()[0] for path in COMMANDS})
    assert words("po") == ["policy"]
    assert words("policy", "l") == ["list", "load"]


@pytest.mark.parametrize("typed", [("nothing", ""), ("nothing", "--"), ("status", ""), ("status", "--nothing", "")])
def test_where_nothing_fits_nothing_is_offered(typed: tuple[str, ...]) -> None:
    assert words(*typed) == []


def test_options_are_those_of_the_command_so_far() -> None:
    assert words("--") == ["--help", "--version"]
    assert words("node", "list", "--") == ["--help", "--no-headers", "--output", "--socket"]
    assert "--syntax-only" not in words("policy", "validate", "--")  # a hidden one
    assert words("lab", "exec", "host", "--", "--") == []


def test_values_of_an_option_are_its_words() -> None:
    assert words("node", "list", "-o", "") == ["json", "table", "wide", "yaml"]
    assert words("node", "list", "--output", "w") == ["wide"]
    assert words("node", "list", "--output=w") == ["--output=wide"]
    assert words("node", "list", "--output=wide", "--no-") == ["--no-headers"]
    assert words("completion", "") == ["bash", "fish", "zsh"]


@pytest.mark.parametrize(
    "typed",
    [
        ("policy", "load", ""),
        ("policy", "load", "--wait", "a.yaml", "b"),
        ("policy", "load", "--", "-x"),
        ("agent", "--config", ""),
        ("agent", "--config=/etc"),
        ("policy", "matrix", "--endpoints", "a", "--policies", "b", "--probes", ""),
        ("store", "import", ""),
    ],
)
def test_where_a_file_fits_the_shell_is_asked_for_it(typed: tuple[str, ...]) -> None:
    assert kind(*typed) == ":files"


@pytest.mark.parametrize("typed", [("store", "import", "a", ""), ("store", "gc", "--grace", ""), ("policy", "get", "")])
def test_elsewhere_it_is_not(typed: tuple[str, ...]) -> None:
    assert completion.lines(typed) == [":names"]


def test_endpoints_are_offered_with_their_labels(answering: Answering) -> None:
    derived = "k8s:io.kubernetes.pod.namespace=shop"
    answering(endpoints=[endpoint("shop", "web", labels=[derived, "k8s:role=web", "k8s:a=\x1b"])])

    assert completion.lines(["endpoint", "get", ""]) == [":names", "shop/web\trole=web,a=\\x1b"]


def test_an_endpoint_of_the_namespace_default_is_found_by_its_name_alone(answering: Answering) -> None:
    answering(endpoints=[endpoint("default", "web"), endpoint("shop", "web-1")])

    assert words("endpoint", "delete", "") == ["default/web", "shop/web-1"]
    assert words("endpoint", "delete", "w") == ["web"]
    assert words("endpoint", "delete", "default/web", "sh") == ["shop/web-1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_means_something_to_a_shell_is_not_offered(name: str, answering: Answering) -> None:
    answering(endpoints=[endpoint("default", name), endpoint("default", "web")], policies=[], nodes=[{"name": name}])

    offered = completion.lines(["endpoint", "get", "d"])

    safe = ["default/a:b"] if name == "a:b" else ["default/-x"] if name == "-x" else []
    assert [line.partition("\t")[0] for line in offered[1:]] == sorted([*safe, "default/web"])
    assert all(line.replace("\t", "").isprintable() for line in offered)
    assert words("endpoint", "get", "-") == words("endpoint", "get", "--")


def test_filters_of_flows_have_names_of_the_agent(answering: Answering) -> None:
    node = {"name": "n1", "addresses": ["192.0.2.1"]}
    answering(endpoints=[endpoint("shop", "web")], nodes=[node], identities=[{"identity": 300, "labels": []}])

    assert words("observe", "--from-pod", "") == words("observe", "--not", "--pod", "sh") == ["shop/web"]
    assert words("observe", "--follow", "--node-name", "") == ["n1"]
    assert words("observe", "--to-identity=") == ["--to-identity=300"]


def test_the_agent_is_the_one_of_the_command_line(
    answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = answering(nodes=[{"name": "n1", "addresses": ["192.0.2.1"]}])
    monkeypatch.setenv("NFQ_ENFORCER_API__SOCKET", str(tmp_path / "none"))

    assert words("endpoint", "add", "--node", "n") == []
    assert words("endpoint", "add", "--socket", str(agent.socket), "--node", "n") == ["n1"]
    assert words("endpoint", "add", f"--socket={agent.socket}", "--node", "n") == ["n1"]


@pytest.mark.parametrize("answer", [None, 7, [None], [{}], [{"namespace": 1, "name": None, "labels": None}], {"a": 1}])
def test_an_agent_of_another_version_is_as_none(answer: object, answering: Answering) -> None:
    answering(endpoints=answer, policies=answer, identities=answer, nodes=answer)

    for typed in (("endpoint", "get"), ("policy", "get"), ("identity", "get"), ("endpoint", "add", "--node")):
        assert words(*typed, "") == []


def test_an_agent_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "agent.sock"))
        silent.listen()

        assert words("identity", "get", "") == []


def test_at_most_a_thousand_names_are_offered(answering: Answering) -> None:
    answering(endpoints=[endpoint("shop", f"w{number}") for number in range(1500)])

    assert len(words("endpoint", "get", "")) == 1000


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str, run: RunProgram) -> None:
    done = run("completion", shell)

    assert (done.status, done.err) == (0, "")
    script = Path(completion.__file__).parent / "shells" / f"nfq-enforcer.{shell}"
    assert done.out == script.read_text()


def test_another_shell_is_refused(run: RunProgram) -> None:
    assert run("completion", "tcsh").status == 2
