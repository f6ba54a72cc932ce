"""Output of the commands: tables without a broken word, rows of one line in a pipe, and no control characters."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.text import Text

from nfq_enforcer import cli
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import Format
from tests.unit.cli.conftest import Answering, RunProgram

HOSTILE = "\x1b]0;pwned\x07\r\n\x9b2J\u202efdp\u2066"
LONG = "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default"
ROWS: list[list[Any]] = [["default/front", 300, ["10.1.0.10", "fd01::10"], [LONG, "k8s:role=frontend"]]]
COLUMNS = ("ENDPOINT", "IDENTITY", "ADDRESSES", "LABELS")
ENDPOINT: dict[str, Any] = {
    **{"namespace": "default", "name": HOSTILE, "node": HOSTILE, "identity": 300},
    **{"labels": [HOSTILE], "addresses": ["10.1.0.1"], "document": {"metadata": {"name": HOSTILE}}},
}
NODE: dict[str, Any] = {
    **{"name": HOSTILE, "addresses": [], "live": None, "last_seen": HOSTILE},
    **{"revision": 1, "version": HOSTILE, "endpoints": 0, "datapath": HOSTILE},
}
ADDRESS = {"address": HOSTILE, "identity": 1, "node": HOSTILE, "endpoint": HOSTILE, "labels": [HOSTILE]}
POLICY = {
    **{"namespace": "default", "name": "x", "kind": HOSTILE, "origin": HOSTILE},
    "document": {"metadata": {"name": HOSTILE}},
}
APPLIED = {"documents": [HOSTILE], "revision": 1, "endpoints": [], "warnings": [HOSTILE]}
IDENTITY = {"identity": 300, "labels": [HOSTILE], "endpoints": 1}
END = {"address": HOSTILE, "port": 80, "identity": 300}
FLOW = {
    **{"source": END, "destination": END, "protocol": HOSTILE, "state": HOSTILE, "offload": HOSTILE},
    **{"revision": 1, "expires_in": 1, "queue": 100},
}
NEVER_MATCHES = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: x}
spec: {endpointSelector: {}, ingress: [{fromEntities: [kube-apiserver]}]}
"""
COMMANDS: list[tuple[list[str], str, Any]] = [
    (["endpoint", "list"], "endpoints", [ENDPOINT]),
    (["endpoint", "list", "-o", "json"], "endpoints", [ENDPOINT]),
    (["endpoint", "list", "-o", "yaml"], "endpoints", [ENDPOINT]),
    (["endpoint", "delete", HOSTILE], "delete_endpoints", {"deleted": [HOSTILE], "missing": [HOSTILE]}),
    (["node", "list"], "nodes", [NODE]),
    (["ipcache", "list"], "ipcache", [ADDRESS]),
    (["identity", "list"], "identities", [IDENTITY]),
    (["identity", "get", "300"], "identities", [IDENTITY]),
    (["conntrack", "list"], "conntrack", {"flows": [FLOW], "searched": 1, "total": 2}),
    (["policy", "list", "-o", "table"], "policies", [POLICY]),
    (["policy", "get", "default/x"], "policies", [POLICY]),
    (["policy", "get", "default/x", "-o", "json"], "policies", [POLICY]),
    (["policy", "get", "nobody"], "policies", [POLICY]),
    (["policy", "load", str(Path(__file__).parents[3] / "policies/default-deny.yaml")], "apply", APPLIED),
]


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [20, 80, 110, 150, 250])
def test_no_word_is_broken_on_a_terminal_of_any_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch, columns)

    output.display(output.table(COLUMNS, ROWS))

    words = shown(capsys).split()
    assert set(words) >= {*COLUMNS, "default/front", "300", "10.1.0.10", "fd01::10", LONG, "k8s:role=frontend"}


def test_a_sentence_in_a_narrow_table_breaks_between_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch, 40)

    output.display(output.table(("A", "B"), [["one two three four five", "six seven eight nine ten eleven"]]))

    lines = shown(capsys).splitlines()
    assert max(map(len, lines)) <= 40
    assert sorted(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]) == sorted(
        word for line in lines[3:] for word in line.split()
    )


def test_a_row_is_one_line_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "30")

    output.display(output.table(COLUMNS, [*ROWS, ["default/back", 301, [], [Text("k8s:role=backend")]]]))

    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        list(COLUMNS),
        ["default/front", "300", "10.1.0.10,fd01::10", f"{LONG},k8s:role=frontend"],
        ["default/back", "301", "k8s:role=backend"],
    ]


@pytest.mark.parametrize(("command", "method", "answer"), COMMANDS, ids=[" ".join(c[0][:4:3]) for c in COMMANDS])
def test_no_command_prints_control_characters(
    command: list[str], method: str, answer: Any, run: RunProgram, answering: Answering
) -> None:
    done = run(*command, "--socket", answering(**{method: answer}).socket)

    assert "pwned" in done.out + done.err or command[-1] == "nobody"
    for line in (done.out + done.err).split("\n"):
        assert line.isprintable(), line


@pytest.mark.parametrize("form", [Format.JSON, Format.YAML])
def test_data_is_the_same_for_programs(form: Format, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_data([ENDPOINT], form)

    text = capsys.readouterr().out
    assert (json.loads(text) if form is Format.JSON else yaml.safe_load(text)) == [ENDPOINT]


def test_errors_in_documents_are_printed_without_control_characters(run: RunProgram, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text('apiVersion: "v1\\e[2J\\n"\nkind: "Name\\u202espace"\n"\\x9b\\nb.yaml: forged": 1\n')

    done = run("policy", "validate", file)

    assert done.status == 2
    assert all(line.isprintable() for line in done.err.split("\n"))
    assert not any(line.startswith("b.yaml") for line in done.err.split("\n"))


def test_warnings_are_printed_without_control_characters(run: RunProgram, tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[2J.yaml"
    file.write_text(NEVER_MATCHES)

    done = run("policy", "validate", file)

    assert "a\\x1b[2J.yaml" in done.err
    assert all(line.isprintable() for line in done.err.split("\n"))


def test_commands_print_by_the_functions_that_escape_control_characters() -> None:
    modules = Path(cli.__file__).parent.glob("*.py")
    printing = {
        module.name
        for module in modules
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Name) and node.id == "print"
    }
    assert printing == {"output.py"}
