"""Completion of command lines: scripts for bash, zsh and fish, and the program's answer to these scripts.

A script runs ``nfq-enforcer __complete WORD…`` with the words behind the program's name up to the cursor, of which the
last one may be empty. The first line of the answer is ``:files`` if the shell is to complete the name of a file, else
``:names``; then comes a line for each candidate: the whole word, a tab, a description. No line has another control
character, and no word one that means something to a shell (``names``). A script evaluates nothing of it.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from nfq_enforcer.cli import output, quick_values, tree
from nfq_enforcer.text import printable

_PATIENCE = 2.0  # s for a whole answer
_FILES, _NAMES = ":files", ":names"
_LONGEST = 200  # characters of a description


class Shell(StrEnum):
    """Shell with a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the script by which a shell completes commands, options, and names that the agent has.

    bash: source <(nfq-enforcer completion bash), in ~/.bashrc. zsh: source <(nfq-enforcer completion zsh), in ~/.zshrc
    behind compinit. fish: nfq-enforcer completion fish | source, in ~/.config/fish/config.fish.
    """
    output.script((files("nfq_enforcer.cli") / "shells" / f"nfq-enforcer.{shell}").read_text(encoding="utf-8"))


def answer(words: Sequence[str]) -> None:
    """Print the answer to a shell; nothing if it takes too long."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    output.script("".join(f"{line}\n" for line in lines(words)))


def lines(words: Sequence[str]) -> list[str]:
    """Return the lines of the answer to these words; without a word, to an empty one."""
    *before, last = words or [""]
    position = _Position(tree.program())
    for word in before:
        position.pass_by(word)
    offered = sorted({(word, printable(text)) for word, text in position.offer(last) if word.startswith(last)})
    kind = _FILES if position.takes_file(last) and not offered else _NAMES
    return [kind, *(f"{word}\t{text}" for word, text in offered)]


class _Position:
    """Position in a command line: the command so far, and the option that waits for its value."""

    def __init__(self, command: Any) -> None:
        self._command = command
        self._given: dict[str, str] = {}
        self._arguments = 0
        self._waiting: Any = None
        self._options_end = False

    def pass_by(self, word: str) -> None:
        """Go on behind a word."""
        if self._waiting is not None:
            self._given[self._waiting.name] = word
            self._waiting = None
        elif self._is_option(word):
            self._pass_option(word)
        elif hasattr(self._command, "commands"):
            self._command = self._command.commands.get(word)
        else:
            self._arguments += 1

    def _is_option(self, word: str) -> bool:
        return word.startswith("-") and not self._options_end

    def _pass_option(self, word: str) -> None:
        name, equals, value = word.partition("=")
        option = self._option(name)
        if word == "--":
            self._options_end = True
        elif option is not None and not option.is_flag:
            if equals:
                self._given[option.name] = value
            else:
                self._waiting = option

    def _option(self, name: str) -> Any:
        return next((one for one in self._parameters("option") if name in [*one.opts, *one.secondary_opts]), None)

    def _parameters(self, kind: str) -> list[Any]:
        if self._command is None:
            return []
        parameters = self._command.get_params(typer.Context(self._command))
        return [one for one in parameters if one.param_type_name == kind and not getattr(one, "hidden", False)]

    def _parameter(self, word: str) -> tuple[Any, str]:
        """Return the parameter of which a word is the value, and the part of the word before the value."""
        if self._waiting is not None:
            return self._waiting, ""
        if self._is_option(word):
            name, equals, _ = word.partition("=")
            return (self._option(name), f"{name}=") if equals else (None, "")
        arguments = self._parameters("argument")
        if self._arguments < len(arguments):
            return arguments[self._arguments], ""
        return (arguments[-1] if arguments and arguments[-1].nargs == -1 else None), ""

    def offer(self, word: str) -> Iterator[tuple[str, str]]:
        """Yield the words that can stand here, with their descriptions; ``word`` is what the user has typed of it."""
        parameter, before = self._parameter(word)
        if parameter is not None:
            context = typer.Context(self._command)
            context.params.update(self._given)
            for item in parameter.shell_complete(context, word.removeprefix(before)):
                yield f"{before}{item.value}", item.help or ""
        elif self._is_option(word):
            yield from self._options()
        else:
            for name, one in getattr(self._command, "commands", {}).items():
                if not one.hidden:
                    yield name, one.get_short_help_str(_LONGEST)

    def _options(self) -> Iterable[tuple[str, str]]:
        for option in self._parameters("option"):
            for name in [*option.opts, *option.secondary_opts]:
                if name.startswith("--"):
                    yield name, option.help or ""

    def takes_file(self, word: str) -> bool:
        """Return whether a name of a file can stand here."""
        parameter, _ = self._parameter(word)
        if parameter is None or self._command.callback is None:
            return False
        kind, _ = quick_values.split(get_type_hints(self._command.callback, include_extras=True).get(parameter.name))
        return kind is Path or get_args(kind) == (Path,)
