"""How commands print what an agent has answered: a table for people, JSON or YAML for programs."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from nfq_enforcer.cli.options import DataFormat, Format


def show(seen: Any, output: Format, in_words: Callable[[Any], RenderableType]) -> None:
    """Print an answer in the format asked for; ``in_words`` makes the table of it."""
    if output is Format.TABLE:
        Console().print(in_words(seen))
    else:
        print_data(seen, output)


def print_data(data: object, output: Format | DataFormat) -> None:
    """Print data as YAML if that is asked for, else as JSON."""
    if output == Format.YAML:
        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(data, indent=2, ensure_ascii=False))


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a list with a row for each thing; a cell that is a list has a line for each item, and None is empty."""
    made = Table(*(Column(name, overflow="fold") for name in columns), box=box.SIMPLE_HEAD)
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def properties(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a row for each property of one thing: its name, and its value as in ``table``."""
    made = Table(box=None, show_header=False)
    for name, value in rows:
        made.add_row(name, _cell(value))
    return made


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, list):
        return Text("\n".join(map(str, value)))
    return Text("" if value is None else str(value))
