"""``nfq-enforcer store``: status, and an export as lines that is imported as a whole or not at all."""

import errno
import json
import os
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
import yaml

from nfq_enforcer.cli import store
from tests.unit.cli.conftest import Answering, RunProgram

STATUS: dict[str, Any] = {
    "store": "redis://[fd00::9]:6379/0",
    "prefix": "nfqe",
    "connected": True,
    "since": "2026-01-01T00:00:00Z",
    "error": None,
    "server": "redis 7.0.15",
    "schema": 1,
    "position": "1795-0",
    "policy_revision": 7,
    "nodes": 3,
    "identities": 12,
    "endpoints": 0,
    "documents": 4,
    "changes_kept": 120,
    "commands": 1234,
    "resyncs": 0,
    "refused": {"count": 1, "values": [{"key": "endpoints default/x", "reason": "[/red] is no JSON"}]},
    "pending": [{"endpoint": "default/a", "reason": None}, {"endpoint": "default/b", "reason": "its address is taken"}],
    "lag_ms": {"p50": 1.5, "p99": 12.0},
}
HEADER: dict[str, Any] = {"nfq_enforcer_export": 1, "entries": 2, "prefix": "nfqe"}
ENTRIES: list[dict[str, Any]] = [
    {"kind": "identity", "name": "300", "labels": {"k8s:app": "ü\u2028"}},
    {"kind": "node", "name": "n1"},
]
EXPORT = (HEADER, *ENTRIES)
IMPORTED = {"written": 1, "unchanged": 1, "refused": []}


def written(*lines: object) -> str:
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def test_the_status_is_a_table(run: RunProgram, answering: Answering) -> None:
    done = run("store", "status", "--socket", answering(store_status=STATUS).socket)

    assert (done.status, done.err) == (0, "")
    assert done.lines == [
        "store redis://[fd00::9]:6379/0, connected since 2026-01-01T00:00:00Z",
        "store values refused 1",
        "endpoints default/x: [/red] is no JSON",
        "server redis 7.0.15",
        "key prefix nfqe",
        "schema 1",
        "policy revision 7",
        "nodes 3",
        "identities 12",
        "endpoints 0",
        "documents 4",
        "position 1795-0",
        "changes kept 120",
        "commands sent 1234",
        "times read anew 0",
        "waiting to be written default/a",
        "default/b: its address is taken",
        "lag of changes median 1.5 ms, p99 12.0 ms",
    ]


@pytest.mark.parametrize("lag", [None, {"p50": None, "p99": None}])
def test_what_is_not_known_is_left_out(lag: object, run: RunProgram, answering: Answering) -> None:
    away = {"store": "redis://h:6379/0", "connected": False, "error": "refused", "since": "2026-01-01T00:00:00Z"}
    seen = dict.fromkeys(STATUS) | away | {"lag_ms": lag}

    done = run("store", "status", "--socket", answering(store_status=seen).socket)

    assert done.lines == [
        "store redis://h:6379/0, unreachable since 2026-01-01T00:00:00Z (refused); enforcing the last known state"
    ]


def test_the_status_is_to_be_had_for_programs(run: RunProgram, answering: Answering) -> None:
    agent = answering(store_status=STATUS)

    assert json.loads(run("store", "status", "-o", "json", "--socket", agent.socket).out) == STATUS
    assert yaml.safe_load(run("store", "status", "-o", "yaml", "--socket", agent.socket).out) == STATUS


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_node_without_a_store_says_so(form: str, run: RunProgram, answering: Answering) -> None:
    assert run("store", "status", "-o", form, "--socket", answering(store_status=None).socket) == (
        1,
        "",
        "nfq-enforcer: this node has no store to share: its configuration says 'store: memory:'\n",
    )


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_an_export_is_printed_with_an_object_a_line(
    arguments: list[str], run: RunProgram, answering: Answering
) -> None:
    done = run("store", "export", *arguments, "--socket", answering(store_export=EXPORT).socket)

    assert (done.status, done.err) == (0, "")
    assert [json.loads(line) for line in done.out.splitlines()] == list(EXPORT)


@pytest.mark.parametrize("before", [False, True])
def test_an_exports_file_is_its_owners_alone(
    before: bool, run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    if before:
        file.write_text("older")
        file.chmod(0o644)

    done = run("store", "export", file, "--socket", answering(store_export=EXPORT).socket)

    assert done == (0, f"2 entries written to {file}\n", "")
    assert [json.loads(line) for line in file.read_text().splitlines()] == list(EXPORT)
    assert S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (EXPORT[:2], "is not whole: it has 1 of 2 entries"),
        ((), "does not export in a format that is known here: is it of this version?"),
        (({"nfq_enforcer_export": 2},), "does not export in a format that is known here: is it of this version?"),
        (("x",), "does not export in a format that is known here: is it of this version?"),
    ],
)
def test_an_export_that_is_not_whole_leaves_the_file_as_it_was(
    items: tuple[object, ...], expected: str, run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    agent = answering(store_export=items)
    (tmp_path / "exports").mkdir()
    file = tmp_path / "exports" / "export.jsonl"
    file.write_text("older")

    done = run("store", "export", file, "--socket", agent.socket)

    assert (done.status, done.out) == (1, "")
    assert done.err.endswith(f"{agent.socket} {expected}\n")
    assert file.read_text() == "older"
    assert list(file.parent.iterdir()) == [file]


def test_a_header_need_not_say_how_many_entries_there_are(run: RunProgram, answering: Answering) -> None:
    agent = answering(store_export=({"nfq_enforcer_export": 1}, *ENTRIES))

    assert run("store", "export", "--socket", agent.socket).status == 0


@pytest.mark.parametrize(
    ("place", "status", "expected"),
    [
        ("missing/export.jsonl", 1, f"cannot be written: {os.strerror(errno.ENOENT)}"),
        ("", 2, "cannot be written: it is there and is not a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(
    place: str, status: int, expected: str, run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    done = run("store", "export", tmp_path / place, "--socket", answering(store_export=EXPORT).socket)

    assert done == (status, "", f"nfq-enforcer: {tmp_path / place}: {expected}\n")


def test_what_was_exported_can_be_imported(run: RunProgram, answering: Answering, tmp_path: Path) -> None:
    agent = answering(store_export=EXPORT, store_import=IMPORTED)
    file = tmp_path / "export.jsonl"
    run("store", "export", file, "--socket", agent.socket)

    done = run("store", "import", file, "--socket", agent.socket)

    assert done == (0, "1 entries written, 1 were there already\n", "")
    assert agent.calls == [{}, {"entries": ENTRIES}]


def test_an_import_too_long_for_one_request_goes_in_several(
    run: RunProgram, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_BATCH", 60)
    entries = [{"name": "x" * size} for size in (10, 10, 100, 10)]
    file = tmp_path / "export.jsonl"
    file.write_text(written({"nfq_enforcer_export": 1, "entries": 4}, *entries))
    agent = answering(store_import=IMPORTED)

    done = run("store", "import", file, "--socket", agent.socket)

    assert [call["entries"] for call in agent.calls] == [entries[:2], entries[2:3], entries[3:]]
    assert done.out == "3 entries written, 3 were there already\n"


def test_entries_that_are_refused_are_told_each_with_its_reason(
    run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    refused = [{"key": "endpoints default/x", "reason": "no address"}, {"key": "nodes n9", "reason": "schema 2"}]
    file = tmp_path / "export.jsonl"
    file.write_text(written(*EXPORT))

    done = run("store", "import", file, "--socket", answering(store_import=IMPORTED | {"refused": refused}).socket)

    assert (done.status, done.out) == (1, "1 entries written, 1 were there already\n")
    assert done.err.splitlines() == [
        "nfq-enforcer: 2 entries refused:",
        "endpoints default/x: no address",
        "nodes n9: schema 2",
    ]


def test_empty_lines_and_those_of_other_systems_do_not_matter(
    run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(written(*EXPORT).replace("\n", "\r\n\r\n").encode())
    agent = answering(store_import=IMPORTED)

    assert run("store", "import", file, "--socket", agent.socket).status == 0
    assert agent.calls == [{"entries": ENTRIES}]


NOT_OURS = (
    "1:1: not an export of this version; allowed: a file of 'nfq-enforcer store export', "
    'which begins with {"nfq_enforcer_export": 1, …}'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NOT_OURS),
        ('{"a": 1}\n', NOT_OURS),
        ('{"nfq_enforcer_export": 2}\n', NOT_OURS),
        (written(*EXPORT) + '{"kind": "no\n', "4:1: not JSON; an export has one object a line"),
        (written(*EXPORT) + "[" * 100_000, "4:1: not JSON; an export has one object a line"),
        (written(HEADER, 7), "2:1: not a JSON object; an export has one a line"),
        (written(HEADER, ENTRIES[0]), "2:1: the export is not whole: it has 1 of 2 entries"),
        ("kind: Endpoint\n", "1:1: not JSON; an export has one object a line"),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_export_is_refused_with_the_line_and_nothing_is_sent(
    text: str, expected: str, run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text(text)
    agent = answering(store_import=IMPORTED)

    assert run("store", "import", file, "--socket", agent.socket) == (2, "", f"nfq-enforcer: {file}:{expected}\n")
    assert agent.calls == []


def test_a_file_that_is_not_text_is_refused_with_the_line(run: RunProgram, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(written(HEADER).encode() + b"\xff")

    assert run("store", "import", file).err.startswith(f"nfq-enforcer: {file}:2:1: byte 0xff is not UTF-8")


def test_a_file_that_cannot_be_read_is_refused(run: RunProgram, tmp_path: Path) -> None:
    assert run("store", "import", tmp_path) == (
        2,
        "",
        f"nfq-enforcer: {tmp_path}: cannot be read: it is a folder; allowed: a regular file\n",
    )


@pytest.mark.parametrize(("options", "grace"), [([], None), (["--grace", "0"], 0), (["--grace", "900"], 900)])
def test_what_is_not_used_is_removed_after_its_time(
    options: list[str], grace: int | None, run: RunProgram, answering: Answering
) -> None:
    agent = answering(store_gc={"identities": 3, "endpoints": 2, "nodes": ["n3", "n4"]})

    done = run("store", "gc", *options, "--socket", agent.socket)

    assert done == (0, "removed 3 identities, 2 endpoints, 2 nodes (n3, n4)\n", "")
    assert agent.calls == [{"grace": grace}]


def test_that_nothing_was_removed_is_told(run: RunProgram, answering: Answering) -> None:
    done = run("store", "gc", "--socket", answering(store_gc={"identities": 0, "endpoints": 0, "nodes": []}).socket)

    assert done.out == "removed 0 identities, 0 endpoints, 0 nodes\n"
