"""Progress of long work: for a person at a terminal, gone at the end, and nothing of it in a pipe or a file."""

import io
import json
import os
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from nfq_enforcer.cli import progress, store
from nfq_enforcer.store.redis.backup import FORMAT, VERSION
from tests.support.terminals import Terminal
from tests.unit.cli.conftest import Answering, RunProgram

APPLIED = {"documents": ["a"], "revision": 1, "endpoints": [], "warnings": []}
POLICIES = Path(__file__).parents[3] / "policies"
IMPORTED = {"written": 1, "unchanged": 0, "refused": []}


class Screen(io.StringIO):
    """Standard error at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Return a terminal for ``redirect_stderr``; bars are shown from the start."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "_REFRESH", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_a_bar_shows_how_much_is_done(screen: Screen) -> None:
    with redirect_stderr(screen), progress.bar("counting", 4) as advance:
        advance(1)
        advance(2)

    assert "counting" in screen.getvalue()
    assert re.search(r" 75%", screen.getvalue())


def test_quick_work_has_no_bar(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 3600.0)

    with redirect_stderr(screen), progress.bar("counting", 4) as advance:
        advance(4)

    assert screen.getvalue() == ""


def test_work_that_prints_at_the_same_terminal_has_no_bar(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Screen())

    with redirect_stderr(screen), progress.bar("counting", 4, prints=True) as advance:
        advance(1)

    assert screen.getvalue() == ""


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_a_pipe_and_a_dumb_terminal_get_nothing(terminal: str, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", terminal)
    written = screen if terminal == "dumb" else io.StringIO()

    with redirect_stderr(written), progress.waiting("waiting"), progress.bar("counting", 4) as advance:
        advance(1)

    assert written.getvalue() == ""


def test_a_failure_takes_the_bar_away(screen: Screen) -> None:
    with pytest.raises(ValueError, match="no"), redirect_stderr(screen), progress.bar("counting", 4) as advance:
        advance(1)
        raise ValueError("no")

    assert screen.getvalue().endswith("\x1b[2K")  # the line is empty again


@pytest.mark.parametrize(
    ("arguments", "method", "answer"),
    [
        (["policy", "load", str(POLICIES / "default-deny.yaml")], "apply", APPLIED),
        (["policy", "delete", "x"], "delete", APPLIED),
        (["store", "gc"], "store_gc", {"identities": 0, "endpoints": 0, "nodes": []}),
        (["policy", "diff", str(POLICIES), str(POLICIES), "--endpoints", str(POLICIES / "endpoints.yaml")], "x", 1),
        (
            ["policy", "matrix", "--policies", str(POLICIES), "--endpoints", str(POLICIES / "endpoints.yaml")],
            *("x", 1),
        ),
    ],
    ids=lambda one: " ".join(one[:2]) if isinstance(one, list) else "",
)
def test_long_commands_are_silent_in_a_pipe(
    arguments: list[str], method: str, answer: object, run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    agent = answering(**{method: answer})
    options = ["--socket", agent.socket] if method != "x" else []

    assert run(*arguments, *options).err == ""


def test_a_terminal_shows_that_a_load_is_waited_for(answering: Answering, tmp_path: Path) -> None:
    agent = answering(apply=APPLIED)
    program = [str(Path(sys.executable).with_name("nfq-enforcer")), "policy", "load", "--socket", str(agent.socket)]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm"}

    with Terminal([*program, str(POLICIES / "default-deny.yaml")], environment, str(tmp_path)) as terminal:
        terminal.expect("waiting until the change is in force")
        terminal.expect("a applied\r?\nrevision 1 is in force")


def test_an_import_advances_by_its_entries(screen: Screen, answering: Answering, tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_text(f"{json.dumps({FORMAT: VERSION, 'entries': 1})}\n{json.dumps({'kind': 'x'})}\n")

    with redirect_stderr(screen):
        store.import_(file, answering(store_import=IMPORTED).socket)

    assert "writing entries" in screen.getvalue()
    assert "100%" in screen.getvalue()
