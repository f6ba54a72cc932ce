"""Output of a command: a table for people, JSON or YAML for programs, and no control character in any of them.

On a terminal, a column is as wide as its longest word at least; a table that needs more columns than the terminal has
is wider than the terminal. Elsewhere (a pipe, a file) each row is one line, however long.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import yaml
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from nfq_enforcer.cli.options import DataFormat, Format
from nfq_enforcer.text import dump_json, printable, printable_lines

_WIDEST = 1 << 20  # columns for the longest line of a table in a pipe
_PADDING = 3  # columns beside the text of each column: one blank on each side, one line or blank of the box


def show(result: Any, output: Format, to_table: Callable[[Any], RenderableType]) -> None:
    """Print a result in the chosen format; ``to_table`` renders it for a terminal."""
    if output is Format.TABLE:
        display(to_table(result))
    else:
        print_data(result, output)


def print_data(data: object, output: Format | DataFormat) -> None:
    """Print data as YAML if that is the chosen format, otherwise as JSON."""
    if output == Format.YAML:
        print_yaml([data])
    else:
        print(dump_json(data, indent=2))


def print_list(items: Iterable[dict[str, object]], form: Format) -> None:
    """Print as YAML, or as JSON with one item a line, which is quick and readable for thousands of items."""
    if form is Format.YAML:
        print_data(list(items), form)
        return
    before = "["
    for item in items:
        print(f"{before}\n{dump_json(item)}", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def print_yaml(documents: Sequence[object]) -> None:
    """Print YAML documents; if a character is not printable, all beyond ASCII are escaped."""
    text = _yaml(documents, readable=True)
    print(text if all(map(str.isprintable, text.split("\n"))) else _yaml(documents, readable=False), end="")


def _yaml(documents: Sequence[object], *, readable: bool) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=readable)


def display(renderable: RenderableType) -> None:
    """Print a table or a text."""
    console = Console()
    span = Measurement.get(console, console.options.update(width=_WIDEST), renderable)
    if not console.is_terminal:
        console = Console(width=max(1, span.maximum))
    elif isinstance(renderable, Table):
        console = Console(width=max(console.width, span.minimum))
    console.print(_Printable(renderable), soft_wrap=isinstance(renderable, Text))


class OutputClosed(Exception):
    """The reader of the standard output has closed it."""


def line(text: str) -> None:
    """Print a line at once; raise OutputClosed if nobody reads it."""
    lines((text,))


def lines(texts: Iterable[str]) -> None:
    """Print several lines at once; raise OutputClosed if nobody reads them."""
    try:
        print(*map(printable, texts), sep="\n", flush=True)
    except BrokenPipeError:  # click would end with status 1
        raise OutputClosed from None


def note(text: str) -> None:
    """Print a line beside the output, on standard error."""
    print(f"nfq-enforcer: {printable(text)}", file=sys.stderr)


def error(text: str) -> None:
    """Print an error, of one line or several, on standard error."""
    print(f"nfq-enforcer: {printable_lines(text)}", file=sys.stderr)


class _Printable:
    """Renderable: another one, with every character escaped that is not printable."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], frame: box.Box | None = None) -> Table:
    """Return a table with a row for each object; without a ``frame`` it has a line below its head on a terminal.

    A cell with a list has one line for each item, or all items on one line in a pipe; None is empty.
    """
    console = Console()
    separator = Text("\n") if console.is_terminal else Text(",")
    cells = [[_cell(value, separator) for value in row] for row in rows]
    names = list(columns)
    if not console.is_terminal:
        grid = Table(*names, box=frame, pad_edge=frame is not None, padding=(0, 1) if frame else (0, 2, 0, 0))
    else:
        widths = _widths([list(map(Text, names)), *cells], console.width - 1)
        grid = Table(
            *(Column(name, overflow="fold", width=width) for name, width in zip(names, widths, strict=True)),
            box=frame or box.SIMPLE_HEAD,
        )
    for row in cells:
        grid.add_row(*row)
    return grid


def _widths(rows: Sequence[Sequence[Text]], room: int) -> Iterator[int]:
    """Yield the width of each column: its longest word at least, its longest line at most."""
    columns = list(zip(*rows, strict=True))
    console = Console(width=_WIDEST)
    spans = [[Measurement.get(console, console.options, cell) for cell in column] for column in columns]
    least = [max(span.minimum for span in column) for column in spans]
    most = [max(span.maximum for span in column) for column in spans]
    extra = max(0, room - _PADDING * len(columns) - sum(least))
    wanted = sum(most) - sum(least)
    for low, high in zip(least, most, strict=True):
        yield low + (high - low if wanted <= extra else extra * (high - low) // wanted)


def properties(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a table with a row for each property of one object: its name, and its value in one line or several."""
    grid = Table(Column(no_wrap=True), Column(), box=None, show_header=False)
    for name, value in rows:
        lines = value.split("\n") if isinstance(value, str) else value
        grid.add_row(printable(name), _cell(lines, Text("\n")))
    return grid


def _cell(value: object, separator: Text) -> Text:
    if isinstance(value, list):
        return separator.join(_cell(item, separator) for item in value)
    if isinstance(value, Text):
        return value
    return Text("" if value is None else printable(str(value)))
