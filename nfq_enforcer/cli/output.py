"""Output of a result from the agent: a table for people, JSON or YAML for programs."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from nfq_enforcer.cli.options import DataFormat, Format


def show(result: Any, output: Format, to_table: Callable[[Any], RenderableType]) -> None:
    """Print a result in the chosen format; ``to_table`` renders it for a terminal."""
    if output is Format.TABLE:
        Console().print(to_table(result))
    else:
        print_data(result, output)


def print_data(data: object, output: Format | DataFormat) -> None:
    """Print data as YAML if that is the chosen format, otherwise as JSON."""
    if output == Format.YAML:
        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(data, indent=2, ensure_ascii=False))


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table with a row for each object; in a cell, a list has one line for each item, and None is empty."""
    grid = Table(*(Column(name, overflow="fold") for name in columns), box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*map(_cell, row))
    return grid


def properties(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a table with a row for each property of one object: its name, and its value as in ``table``."""
    grid = Table(box=None, show_header=False)
    for name, value in rows:
        grid.add_row(name, _cell(value))
    return grid


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, list):
        return Text("\n".join(map(str, value)))
    return Text("" if value is None else str(value))
