"""Output of a command: a table for people, JSON or YAML for programs, and no control character in any of them.

A row of a table is one line, in a pipe and on a terminal, as in kubectl: no cell is cut, and the width of a terminal
changes nothing; the terminal itself wraps longer lines. Colours are for terminals (and where ``FORCE_COLOR`` is set),
unless ``NO_COLOR`` is set and not empty (https://no-color.org).
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from rich.text import Text

from nfq_enforcer.cli.options import DataFormat, Format
from nfq_enforcer.text import dump_json, printable, printable_lines

_NONE = "<none>"  # a cell without a value, so that every row has a word for each column
_GAP = "  "  # between two columns
_DERIVED = ("k8s:io.cilium.", "k8s:io.kubernetes.")  # labels that the program has added, as namespace and cluster
_OWN = "k8s:"  # source of the labels that a user writes

Line = str | Text


class Table(NamedTuple):
    """Table: the names of its columns, and rows of cells; a list in a cell is joined by commas."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]

    def lines(self, *, headers: bool = True) -> Iterator[Line]:
        """Yield a line for each row."""
        rows = [[_cell(value) for value in row] for row in self.rows]
        shown = [list[Line](map(printable, self.columns)), *rows] if headers else rows
        widths = [max(map(_width, column)) for column in zip(*shown, strict=True)]
        for row in shown:
            yield _aligned(row, widths)


class Properties(NamedTuple):
    """Properties of one object: the name of each, and its value in one line or several."""

    rows: Iterable[tuple[str, object]]

    def lines(self, *, headers: bool = True) -> Iterator[Line]:
        """Yield the lines of each property; ``headers`` has no effect, because the names are no header."""
        rows = [(printable(name), list(_values(value))) for name, value in self.rows]
        width = max((_width(name) for name, _ in rows), default=0)
        for name, values in rows:
            for shown, value in zip_longest([name], values, fillvalue=""):
                yield _aligned([shown, value], [width, 0])


def show(result: Any, form: Format, to_table: Callable[[Any], Table | Properties], *, headers: bool = True) -> None:
    """Print a result in the chosen format; ``to_table`` makes the table of it."""
    if form.is_table:
        display(to_table(result), headers=headers)
    else:
        print_data(result, form)


def labels(names: Iterable[str], form: Format) -> list[str]:
    """Return labels for a cell: without the derived ones and the source ``k8s``, or for ``wide`` all in full."""
    if form is Format.WIDE:
        return list(names)
    return [name.removeprefix(_OWN) for name in names if not name.startswith(_DERIVED)]


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
    import yaml  # most commands need none

    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=readable)


def display(content: Table | Properties | Text, *, headers: bool = True) -> None:
    """Print a table, properties or a text."""
    lines = _printable(content).split("\n") if isinstance(content, Text) else content.lines(headers=headers)
    write = _writer()
    for one in lines:
        write(one)


def _writer() -> Callable[[Line], None]:
    """Return the function that prints a line: with colours on a terminal, plain elsewhere."""
    if not _coloured():
        return lambda line: print(line.plain if isinstance(line, Text) else line)

    from rich.console import Console  # takes a while to import

    console = Console()
    return lambda line: console.print(line, soft_wrap=True) if isinstance(line, Text) else print(line)


def _coloured() -> bool:
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return bool(environment.get("FORCE_COLOR")) or sys.stdout.isatty()


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


def script(text: str) -> None:
    """Print lines for a shell to read, with tabs."""
    print("\t".join(map(printable_lines, text.split("\t"))), end="")


def note(text: str) -> None:
    """Print a line beside the output, on standard error."""
    print(f"nfq-enforcer: {printable(text)}", file=sys.stderr)


def warn(sentences: Iterable[str]) -> None:
    """Print each sentence as a warning, on standard error."""
    for sentence in sentences:
        note(f"warning: {sentence}")


def error(text: str) -> None:
    """Print an error, of one line or several, on standard error."""
    print(f"nfq-enforcer: {printable_lines(text)}", file=sys.stderr)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table with a row for each object; a cell with a list has its items, and one without a value says so."""
    return Table(tuple(columns), map(tuple, rows))


def properties(rows: Iterable[tuple[str, object]]) -> Properties:
    """Return the properties of one object: the name of each, and its value in one line or several."""
    return Properties(rows)


def _cell(value: object) -> Line:
    """Return a value in one line; a list has commas between its items."""
    if isinstance(value, list):
        items = [_cell(item) for item in value]
        if any(isinstance(item, Text) for item in items):
            return Text(",").join(Text(item) if isinstance(item, str) else item for item in items)
        return ",".join(map(str, items)) or _NONE
    if isinstance(value, Text):
        return value if value.plain.isprintable() else Text(printable(value.plain), value.style)
    return _NONE if value is None or value == "" else printable(str(value))


def _values(value: object) -> Iterator[Line]:
    """Yield the lines of a property's value."""
    if isinstance(value, list):
        yield from chain.from_iterable(map(_values, value))
    elif isinstance(value, Text):
        yield from _printable(value).split("\n")
    else:
        yield from map(printable, ("" if value is None else str(value)).split("\n"))


def _printable(text: Text) -> Text:
    """Return a text with its line breaks and without other characters that are not printable."""
    shown = printable_lines(text.plain)
    return text if shown == text.plain else Text(shown, text.style)


def _width(cell: Line) -> int:
    """Return the columns that a cell takes on a terminal: an East Asian wide character takes two."""
    if isinstance(cell, Text):
        return cell.cell_len
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _aligned(cells: Sequence[Line], widths: Sequence[int]) -> Line:
    """Return cells in one line, each but the last as wide as its column."""
    gaps = [" " * (width - _width(cell)) + _GAP for cell, width in zip(cells, widths, strict=True)]
    if all(isinstance(cell, str) for cell in cells):
        return "".join(f"{cell}{gap}" for cell, gap in zip(cells, gaps, strict=True)).rstrip()
    line = Text.assemble(*chain.from_iterable(zip(cells, gaps, strict=True)))
    line.rstrip()
    return line
