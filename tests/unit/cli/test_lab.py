"""``nfq-enforcer lab down``: without a run id it removes the user's only lab, and asks or refuses in any other case."""

import sys
from io import StringIO

import pytest

from nfq_enforcer.lab import network
from tests.unit.cli.conftest import RunProgram


class Terminal(StringIO):
    """Standard input of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the labs that would be removed."""
    gone: list[str] = []
    monkeypatch.setattr(network, "remove", gone.append)
    return gone


def labs(monkeypatch: pytest.MonkeyPatch, *names: str, own: tuple[str, ...] = ()) -> None:
    monkeypatch.setattr(network, "list_labs", lambda: list(names))
    monkeypatch.setattr(network, "is_own", lambda name: name in own)


def test_the_only_lab_of_the_user_is_removed(
    run: RunProgram, monkeypatch: pytest.MonkeyPatch, removed: list[str]
) -> None:
    labs(monkeypatch, "a", own=("a",))

    assert run("lab", "down") == (0, "lab a is gone\n", "")
    assert removed == ["a"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a",), "there is lab a (not yours)"),
        (("a", "b"), "there are several labs: a (not yours), b"),
    ],
)
def test_without_a_terminal_the_labs_are_named_and_none_is_removed(
    names: tuple[str, ...], sentence: str, run: RunProgram, monkeypatch: pytest.MonkeyPatch, removed: list[str]
) -> None:
    labs(monkeypatch, *names, own=("b",))
    monkeypatch.setattr(sys, "stdin", StringIO("y\n"))

    done = run("lab", "down")

    message = f"{sentence}; name the one to remove with --run-id, or remove every lab with --all"
    assert done == (2, "", f"nfq-enforcer: {message}\n")
    assert removed == []


@pytest.mark.parametrize(("answer", "status", "gone"), [("y\n", 0, ["a", "b"]), ("n\n", 2, []), ("\n", 2, [])])
def test_on_a_terminal_the_user_is_asked(
    answer: str, status: int, gone: list[str], run: RunProgram, monkeypatch: pytest.MonkeyPatch, removed: list[str]
) -> None:
    labs(monkeypatch, "a", "b", own=("a", "b"))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))

    done = run("lab", "down")

    assert done.status == status
    assert "there are several labs: a, b; remove all of them?" in done.out
    assert removed == gone


def test_a_named_lab_and_all_labs_are_removed_without_a_question(
    run: RunProgram, monkeypatch: pytest.MonkeyPatch, removed: list[str]
) -> None:
    labs(monkeypatch, "a", "b")

    assert run("lab", "down", "--run-id", "b").status == 0
    assert run("lab", "down", "--all").status == 0
    assert removed == ["b", "a", "b"]


def test_without_a_lab_it_is_said(run: RunProgram, monkeypatch: pytest.MonkeyPatch, removed: list[str]) -> None:
    labs(monkeypatch)

    assert run("lab", "down") == (1, "", "nfq-enforcer: there is no lab: build one with 'nfq-enforcer lab up'\n")


def test_the_user_behind_sudo_owns_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")

    assert network.current_user() == "1234"
