"""Man pages, one a command, made of the command line's own help: ``python -m nfq_enforcer.cli.man_pages FOLDER``.

They use the macros of man(7), which groff and mandoc read alike; all characters beyond ASCII are escapes.
"""

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from nfq_enforcer import __version__
from nfq_enforcer.cli import output, tree
from nfq_enforcer.errors import BadInput, NfqError

_EXIT = (
    ("0", "Done; for a question, also: allowed, or no difference."),
    ("1", "Refused, denied, or failed; the message on standard error has the reason."),
    ("2", "Bad input; nothing was changed."),
    ("3", "Unknown: the change may have happened, and the message names the command that finds out."),
)
_LINE = 70  # columns of a line of the source
_DATE = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/


def pages(date: str) -> dict[str, str]:
    """Return the source of each page by the name of its file; ``date`` is that of the pages, as in 2026-11-26."""
    return {f"{'-'.join(names)}.1": _page(names, context, date) for names, context in _walk(None, tree.PROGRAM)}


def write(folder: Path) -> int:
    """Write the pages into a folder, which is made if it is missing; return their number."""
    moment = os.environ.get(_DATE)
    date = datetime.fromtimestamp(int(moment), UTC) if moment else datetime.now(UTC)
    sources = pages(date.strftime("%Y-%m-%d"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        (folder / name).write_text(source, encoding="ascii")
    return len(sources)


def _walk(parent: Any, name: str, *, command: Any = None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names and the context of a command, and of all below it."""
    context = typer.Context(command or tree.program(), info_name=name, parent=parent)
    yield tuple(context.command_path.split()), context
    for below, one in _commands(context):
        yield from _walk(context, below, command=one)


def _commands(context: Any) -> list[tuple[str, Any]]:
    commands = getattr(context.command, "commands", {})
    return [(name, one) for name, one in commands.items() if not one.hidden]


def _page(names: tuple[str, ...], context: Any, date: str) -> str:
    command, title = context.command, "-".join(names)
    options, arguments = _records(context, "option"), _records(context, "argument")
    lines = [
        f'.TH "{_escaped(title.upper())}" 1 "{date}" "nfq_enforcer {__version__}" "nfq_enforcer"',
        *_section("NAME", [f"{_escaped(title)} \\- {_escaped(_summary(command))}"]),
        *_section("SYNOPSIS", _usage(names, context)),
        *_section("DESCRIPTION", _paragraphs(command.help or "")),
        *_section("ARGUMENTS", _tagged(arguments)),
        *_section("OPTIONS", _tagged(options)),
        *_section("COMMANDS", _tagged((name, _sentence(one)) for name, one in _commands(context))),
        *_section("EXIT STATUS", _tagged(_EXIT)),
        *_section("EXAMPLES", _verbatim((command.epilog or "").splitlines())),
        *_section("SEE ALSO", _others(names, context)),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Iterable[str]) -> list[str]:
    """Return a section; nothing if it is empty."""
    content = list(lines)
    return [f'.SH "{title}"', *content] if content else []


def _sentence(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return str(command.get_short_help_str(1 << 16))


def _summary(command: Any) -> str:
    return _sentence(command).removesuffix(".")


def _usage(names: tuple[str, ...], context: Any) -> list[str]:
    pieces = [_escaped(piece) for piece in context.command.collect_usage_pieces(context)]
    return [f"\\fB{_escaped(' '.join(names))}\\fR {' '.join(pieces)}"]


def _records(context: Any, kind: str) -> list[tuple[str, str]]:
    """Return the parameters of a kind as the help has them: the name with its values, and the description."""
    parameters = (one for one in context.command.get_params(context) if one.param_type_name == kind)
    return [record for one in parameters if (record := one.get_help_record(context)) is not None]


def _tagged(records: Iterable[tuple[str, str]]) -> Iterator[str]:
    for tag, text in records:
        yield ".TP"
        yield f"\\fB{_escaped(tag)}\\fR"
        yield from _filled(text)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        yield from _filled(paragraph)


def _filled(text: str) -> list[str]:
    """Return a paragraph in lines, none of which is read as a macro."""
    lines = textwrap.wrap(" ".join(text.split()), _LINE, break_long_words=False, break_on_hyphens=False)
    return [line(one) for one in lines]


def _verbatim(lines: Iterable[str]) -> list[str]:
    shown = [line(one) for one in lines]
    return [".nf", *shown, ".fi"] if shown else []


def _others(names: tuple[str, ...], context: Any) -> list[str]:
    below = [(*names, name) for name, _ in _commands(context)]
    others = [*([names[:-1]] if len(names) > 1 else []), *below]
    return [f"\\fB{_escaped('-'.join(other))}\\fR(1){',' if other != others[-1] else ''}" for other in others]


def line(text: str) -> str:
    """Return a line of text; one that begins with a control character of roff gets an empty escape before it."""
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'", "\\(aq")) else escaped


def _escaped(text: str) -> str:
    """Return text without a character that means something to roff, or is not ASCII (groff_char(7))."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    plain = plain.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    return "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in plain)


def main() -> None:
    """Write the pages into the folder that the command line names."""
    arguments = sys.argv[1:]
    if len(arguments) != 1:
        raise BadInput("give the folder for the pages, as in build/man/man1")
    folder = Path(arguments[0])
    try:
        output.line(f"{write(folder)} man pages written to {folder}")
    except OSError as error:
        raise NfqError(f"{folder}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    try:
        main()
    except NfqError as error:
        output.error(str(error))
        sys.exit(error.exit_code)
