"""Plain values of options and arguments are converted as Typer converts them; others are left to Typer."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from nfq_enforcer.cli import quick_values


class Word(StrEnum):
    ONE = "one"
    TWO = "Two"


class Place(StrEnum):
    HERE = "here"


KINDS: dict[str, Any] = {
    "text": str,
    "path": Path,
    "number": int,
    "limited": int,
    "word": Word,
    "folded": Place,
    "texts": list[str] | None,
    "paths": list[Path] | None,
    "maybe": str | None,
    "flag": bool,
    "real": float,
}
GIVEN: list[dict[str, Any]] = [
    {},
    *({"text": one} for one in ("", "x", "-", "é")),
    *({"path": one} for one in ("", "a/b", "~/x", "-")),
    *(
        {"number": one}
        for one in ("0", "-1", "007", "12", "1_0", " 3", "x", "", "9" * 18, "9" * 19, "9" * 40, "٣", "1.0")
    ),
    *({"limited": one} for one in ("0", "1", "9", "10", "-1")),
    *({"word": one} for one in ("one", "ONE", "Two", "two", "three", "")),
    *({"folded": one} for one in ("here", "HERE", "there")),
    {"texts": ["a", "b"]},
    {"paths": ["a", "b/c"]},
    {"maybe": "x"},
    {"flag": None},
    *({"real": one} for one in ("1.5", "x")),
]
Taken = dict[str, Any]


def command(quick: bool, taken: Taken) -> Any:
    """Return a command that records its values, made by Typer alone or with quick values."""

    def function(
        text: Annotated[str, typer.Option()] = "t",
        path: Annotated[Path, typer.Option()] = Path("p"),
        number: Annotated[int | None, typer.Option()] = None,
        limited: Annotated[int, typer.Option(min=1, max=9)] = 5,
        word: Annotated[Word, typer.Option()] = Word.TWO,
        folded: Annotated[Place | None, typer.Option(case_sensitive=False)] = None,
        texts: Annotated[list[str] | None, typer.Option()] = None,
        paths: Annotated[list[Path] | None, typer.Option()] = None,
        maybe: Annotated[str | None, typer.Option()] = None,
        flag: Annotated[bool, typer.Option("--flag")] = False,
        real: Annotated[float, typer.Option()] = 0.5,
    ) -> None:
        taken.update(locals())

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(function)
    made: Any = typer.main.get_command(app)
    if quick:
        quick_values.set_up(function, made.params)
    return made


def arguments(given: dict[str, Any]) -> list[str]:
    words = []
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is None else [f"--{name}={one}"]
    return words


def outcome(quick: bool, given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[Any, ...]:
    taken: Taken = {}
    with pytest.raises(SystemExit) as ended:
        command(quick, taken)(arguments(given), prog_name="p")
    values = {name: (type(value), value) for name, value in taken.items() if name in KINDS}
    assert set(values) == (set() if ended.value.code else set(KINDS))
    return ended.value.code, values, capsys.readouterr().err


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_value_and_an_error_are_those_of_typer(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(True, given, capsys) == outcome(False, given, capsys)


def test_a_required_argument_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    def function(names: Annotated[list[str], typer.Argument()]) -> None:
        raise AssertionError(names)

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(function)
    made: Any = typer.main.get_command(app)
    quick_values.set_up(function, made.params)

    with pytest.raises(SystemExit) as ended:
        made([], prog_name="p")

    assert ended.value.code == 2
    assert "Missing argument" in capsys.readouterr().err
