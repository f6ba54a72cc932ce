"""``nfq-enforcer policy validate``: counts valid documents, and prints every error of invalid ones with its place."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import RunProgram

ENDPOINT = """\
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, labels: {app: web}}
spec:
  ips: [10.1.0.10]
"""
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
    - toPorts:
        - ports:
            - {port: "80", protocol: TCP}
"""


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_good_documents_are_counted(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "endpoint.yaml", ENDPOINT)
    write(tmp_path, "policy.yaml", f"{POLICY}---\n{POLICY.replace('name: web', 'name: again')}")

    assert run("policy", "validate", tmp_path) == (0, "valid: 2 policies, 1 endpoints\n", "")


def test_files_and_folders_are_taken_together(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file, folder = write(tmp_path, "a.yaml", ENDPOINT), write(tmp_path / "folder", "b.yaml", POLICY).parent

    assert run("policy", "validate", file, folder).out == "valid: 1 policies, 1 endpoints\n"


def give(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Set the program's standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_documents_may_come_by_the_standard_input(
    run: RunProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, POLICY)
    assert run("policy", "validate", "-", write(tmp_path, "a.yaml", ENDPOINT)).out == "valid: 1 policies, 1 endpoints\n"

    give(monkeypatch, POLICY.replace("80", "70000"))
    assert "nfq-enforcer: standard input:9:22: spec.ingress[0].toPorts" in run("policy", "validate", "-").err


def test_the_examples_are_valid(run: RunProgram) -> None:
    done = run("policy", "validate", Path(__file__).parents[3] / "policies")

    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            POLICY.replace("  ingress:", "  descripton: x\n  ingress:"),
            "6:3: spec.descripton: unknown field 'descripton'; did you mean 'description'? allowed: endpointSelector, ",
        ),
        (ENDPOINT.replace("[10.1.0.10]", "10.1.0.10"), "5:8: spec.ips: must be a list, not a string"),
        (
            POLICY.replace('"80"', "80"),
            '9:22: spec.ingress[0].toPorts[0].ports[0].port: must be a string, not a number; quote it: "80"',
        ),
        (
            POLICY.replace("80", "70000"),
            '9:22: spec.ingress[0].toPorts[0].ports[0].port: port 70000 is out of range; allowed: "1" to "65535"',
        ),
        (
            POLICY.replace("CiliumNetworkPolicy", "CiliumNetworkPolice"),
            "2:7: kind: unknown kind 'CiliumNetworkPolice'; did you mean 'CiliumNetworkPolicy'? allowed: Endpoint (nfq",
        ),
        (
            ENDPOINT.replace("app: web", "app: web server"),
            "3:37: metadata.labels.app: 'web server' is not a label value: a value is empty or has 1 to 63 letters",
        ),
        (
            ENDPOINT.replace("app: web", "-app: web"),
            "3:32: metadata.labels[\"-app\"]: '-app' is not a label key: a key is [source:][prefix/]name; ",
        ),
        (ENDPOINT.replace("[10.1.0.10]", "[10.1.0.10"), "6:1: not valid YAML: "),
        (f"{ENDPOINT}spec: {{}}\n", "6:1: duplicate key 'spec'; it is already given in line 4"),
    ],
)
def test_a_bad_document_is_refused_with_file_line_field_and_what_is_allowed(
    text: str, expected: str, run: RunProgram, tmp_path: Path
) -> None:
    file = write(tmp_path, "bad.yaml", text)

    done = run("policy", "validate", tmp_path)

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"nfq-enforcer: {file}:{expected}")
    assert done.err.count("\n") == 1


def test_a_name_that_is_given_twice_is_refused_with_where_it_was_given_first(run: RunProgram, tmp_path: Path) -> None:
    first, second = write(tmp_path, "1.yaml", ENDPOINT), write(tmp_path, "2.yaml", ENDPOINT)

    assert run("policy", "validate", tmp_path) == (
        2,
        "",
        f"nfq-enforcer: {second}:3:18: metadata.name: Endpoint default/web is already defined in {first}:1\n",
    )


def test_a_folder_that_is_not_there_is_refused(run: RunProgram, tmp_path: Path) -> None:
    assert run("policy", "validate", tmp_path / "missing") == (
        2,
        "",
        f"nfq-enforcer: {tmp_path}/missing: cannot be read: {os.strerror(errno.ENOENT)}\n",
    )


def test_every_mistake_is_named_and_one_bad_file_refuses_all(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "good.yaml", ENDPOINT)
    bad = write(tmp_path, "bad.yaml", POLICY.replace('"80"', "80").replace("TCP", "TPC"))

    done = run("policy", "validate", tmp_path)

    assert (done.status, done.out) == (2, "")
    assert [line.removeprefix("nfq-enforcer: ").split(": ")[0] for line in done.err.splitlines()] == [
        f"{bad}:9:22",
        f"{bad}:9:36",
    ]
