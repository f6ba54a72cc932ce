"""The tree of ``commands`` as Typer's objects, each made when it is needed."""

import re
from collections import UserDict
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from nfq_enforcer import __version__
from nfq_enforcer.cli import output, quick_values
from nfq_enforcer.cli.commands import COMMANDS, EXAMPLES, GROUPS

PROGRAM = "nfq-enforcer"
_PACKAGE = "nfq_enforcer.cli"
_HELP = "Network policy by identity, for plain Linux hosts."
_WIDTH = 120  # columns of a help text at most
_UNCUT = 10_000  # characters of a sentence
_TYPE = re.compile(r"<(?:list\[)?(?P<type>.*?)(?: range)?\]?>")
_VALUES = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "Path": "PATH", "path": "PATH"}


def _write_examples(command: TyperCommand | TyperGroup, formatter: Any) -> None:
    """Write the examples at the end of a help text, each in one line."""
    with formatter.section("Examples"):
        for example in (command.epilog or "").splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _quick_flag(option: Any) -> Any:
    """Return an option, if one is given, that is False by default: Typer would have None converted by pydantic."""
    if option is not None:
        option.default = False
    return option


class Command(TyperCommand):
    """Command: a function, with its options and arguments; the epilog has the examples."""

    rewrite: Callable[[list[str]], list[str]] | None = None  # applied to the arguments before they are parsed

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, args if self.rewrite is None else self.rewrite(args))

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _quick_flag(super().get_help_option(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(self, formatter)


class Group(TyperGroup):
    """Group of commands, each of which is made when it is needed; the epilog has the examples."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _quick_flag(super().get_help_option(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(self, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the name of each command, and the first sentence of its help."""
        commands = ((name, self.commands[name]) for name in self.commands)
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(_UNCUT)) for name, one in commands if not one.hidden])


class _Commands(UserDict[str, Any]):
    """Commands of a group by name; a path (``policy list``) stands for a command that is not made yet."""

    def __getitem__(self, name: str) -> Any:
        one = self.data[name]
        if isinstance(one, str):
            one = self.data[name] = _group(one) if one in GROUPS else _command(one)
        return one


def program() -> Group:
    """Return the program as a command: the whole tree, of which no command is made yet."""
    app = typer.Typer(
        name=PROGRAM,
        cls=Group,
        help=_HELP,
        epilog="\n".join(EXAMPLES),
        no_args_is_help=True,
        context_settings={"max_content_width": _WIDTH},
        add_completion=False,
        rich_markup_mode=None,
    )
    app.callback()(_program)
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    group.commands = _children("")
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        output.line(__version__)
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _children(path: str) -> _Commands:
    """Return the commands and groups directly below a path; ``""`` is that of the program."""
    above = path.split()
    below = (words for words in map(str.split, COMMANDS) if words[: len(above)] == above)
    names = dict.fromkeys(words[len(above)] for words in below)
    return _Commands({name: " ".join([*above, name]) for name in names})


def _group(path: str) -> Group:
    entry = GROUPS[path]
    name = path.rpartition(" ")[2]
    group = Group(
        name=name, help=entry.help, epilog="\n".join(entry.examples), no_args_is_help=True, rich_markup_mode=None
    )
    group.commands = _children(path)
    return group


def _command(path: str) -> Command:
    entry = COMMANDS[path]
    module, _, name = entry.place.partition(":")
    function = getattr(import_module(f"{_PACKAGE}.{module}"), name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"cls": Command, "epilog": "\n".join(entry.examples), **entry.settings}
    app.command(path.rpartition(" ")[2], **settings)(function)
    command = typer.main.get_command(app)
    assert isinstance(command, Command)
    command.rewrite = getattr(function, "rewrite", None)
    quick_values.set_up(function, command.params)
    parameters: list[Any] = command.params
    for parameter in parameters:
        is_option = isinstance(parameter, TyperOption)
        parameter.display_type = partial(_value, parameter.display_type) if is_option else _nothing
    return command


def _value(by_typer: Callable[[Any], str], context: Any) -> str:
    """Return the word of a help text for the value of an option, which Typer names by its type."""
    found = _TYPE.fullmatch(by_typer(context))
    assert found is not None
    return _VALUES.get(found["type"], found["type"])


def _nothing(_context: Any) -> str:
    return ""
