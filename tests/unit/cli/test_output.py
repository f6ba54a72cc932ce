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
from tests.unit.cli.test_status import status

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
NAME = {
    **{"name": HOSTILE, "endpoint": HOSTILE, "selectors": [HOSTILE]},
    "addresses": [{"address": "10.0.0.1", "expires_in": 1}],
}
HOSTILE_STATUS: dict[str, Any] = {
    **{"node": HOSTILE, "addresses": [HOSTILE], "cluster_interfaces": [HOSTILE], "problems": [HOSTILE]},
    "stuck": [{"part": HOSTILE, "since": HOSTILE, "reason": HOSTILE}],
    "refused": {"since": "", "error": HOSTILE},
    "working": [{"since": "", "activity": HOSTILE, "done": 1, "total": None, "text": HOSTILE}],
}
SIDE = {"identity": 300, "labels": [HOSTILE], "namespace": HOSTILE, "pod_name": HOSTILE}
SEEN = {
    **{"time": "2026-11-26T03:22:18.000000Z", "verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED"},
    **{"source": SIDE, "destination": SIDE, "node_name": HOSTILE, "is_reply": False, "traffic_direction": "INGRESS"},
    **{"Summary": HOSTILE, "ingress_denied_by": [{"namespace": HOSTILE, "name": HOSTILE}]},
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
    (["endpoint", "list", "-o", "wide"], "endpoints", [ENDPOINT]),
    (["fqdn", "list"], "fqdn", [NAME]),
    (["status"], "status", status({"failure": HOSTILE}, **HOSTILE_STATUS)),
    (["status", "-o", "json"], "status", status(**HOSTILE_STATUS)),
    (["observe"], "observe", (SEEN,)),
    (["observe", "-o", "json"], "observe", (SEEN,)),
    (["identity", "list"], "identities", [IDENTITY]),
    (["identity", "get", "300"], "identities", [IDENTITY]),
    (["conntrack", "list"], "conntrack", {"flows": [FLOW], "searched": 1, "total": 2}),
    (["policy", "list", "-o", "table"], "policies", [POLICY]),
    (["policy", "get", "default/x"], "policies", [POLICY]),
    (["policy", "get", "default/x", "-o", "json"], "policies", [POLICY]),
    (["policy", "get", "nobody"], "policies", [POLICY]),
    (["policy", "load", str(Path(__file__).parents[3] / "policies/default-deny.yaml")], "apply", APPLIED),
]


SHORT = [
    ["ENDPOINT", "IDENTITY", "ADDRESSES", "LABELS"],
    ["default/front", "300", "10.1.0.10,fd01::10", f"{LONG},k8s:role=frontend"],
    ["default/back", "301", "<none>", "k8s:role=backend"],
]


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [20, 80, 250])
@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_row_is_one_line_however_wide_the_terminal(
    columns: int, on_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    if on_terminal:
        terminal(monkeypatch, columns)

    output.display(output.table(COLUMNS, [*ROWS, ["default/back", 301, [], [Text("k8s:role=backend", "red")]]]))

    assert [line.split() for line in shown(capsys).splitlines()] == SHORT


def test_columns_begin_at_the_same_place_in_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.display(output.table(("A", "B", "C"), [["x", "日本", "y"], ["xx", None, Text("z", "red")]]))

    assert (
        capsys.readouterr().out == "A   B       C\nx   日本    y\nxx  <none>  z\n"
    )  # a wide character takes two columns


def test_the_header_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.display(output.table(("LONG NAME", "B"), [["x", 1]]), headers=False)

    assert capsys.readouterr().out == "x  1\n"


def test_a_table_without_rows_is_its_header_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    output.display(output.table(("A", "B"), []))
    output.display(output.table(("A", "B"), []), headers=False)

    assert capsys.readouterr().out == "A  B\n"


@pytest.mark.parametrize(
    ("variables", "colours"),
    [
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_are_for_terminals_and_those_who_want_them(
    variables: dict[str, str],
    colours: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    output.display(output.table(("A",), [[Text("x", "red")]]))
    output.display(output.properties([("name", Text("x", "bold red"))]))

    assert ("\x1b[" in capsys.readouterr().out) is colours


@pytest.mark.parametrize(
    ("form", "labels"),
    [(Format.TABLE, ["role=frontend", "container:a=b", "reserved:host"]), (Format.WIDE, None)],
)
def test_labels_are_short_unless_all_are_asked_for(form: Format, labels: list[str] | None) -> None:
    full = [LONG, "k8s:io.kubernetes.pod.namespace=default", "k8s:role=frontend", "container:a=b", "reserved:host"]

    assert output.labels(full, form) == (labels or full)


@pytest.mark.parametrize(("command", "method", "answer"), COMMANDS, ids=[" ".join(c[0][:4:3]) for c in COMMANDS])
@pytest.mark.parametrize("on_terminal", [False, True])
def test_no_command_prints_control_characters(
    command: list[str],
    method: str,
    answer: Any,
    on_terminal: bool,
    run: RunProgram,
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if on_terminal:
        terminal(monkeypatch, 80)

    done = run(*command, "--socket", answering(**{method: answer}).socket)

    printed = re.sub(r"\x1b\[[0-9;]*m", "", done.out + done.err) if on_terminal else done.out + done.err
    assert "pwned" in printed or command[-1] == "nobody"
    for line in printed.split("\n"):
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
