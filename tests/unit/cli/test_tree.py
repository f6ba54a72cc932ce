"""The tree of commands: help with examples that are true, and what it promises of names that are not commands."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from nfq_enforcer import __version__
from nfq_enforcer.cli import run as run_command
from nfq_enforcer.cli import tree
from nfq_enforcer.cli.commands import COMMANDS, EXAMPLES, GROUPS
from tests.unit.cli.conftest import RunProgram

EVERY = {
    "": EXAMPLES,
    **{path: entry.examples for path, entry in COMMANDS.items()},
    **{path: entry.examples for path, entry in GROUPS.items()},
}
EXAMPLES_BY_PATH = [(path, example) for path, examples in EVERY.items() for example in examples]


def parse(words: list[str]) -> tuple[str, Any]:
    """Return the path of the command that these words name, and its context; nothing is run."""
    node: Any = tree.program()
    path: list[str] = []
    while isinstance(node, tree.Group):
        path.append(words.pop(0))
        node = node.commands[path[-1]]
    return " ".join(path), node.make_context(path[-1], words)


def own_words(example: str) -> list[str]:
    """Return the words of the program in a command line, behind its name and before another pipe or a redirection."""
    words = shlex.split(re.sub(r"<\(|\)$", " ", example))
    words = words[words.index(tree.PROGRAM) + 1 :]
    ends = [place for place, word in enumerate(words) if word in {"|", ">"}]
    return words[: ends[0]] if ends else words


def test_every_group_of_a_command_has_an_entry() -> None:
    assert {path.rpartition(" ")[0] for path in COMMANDS} - {""} == set(GROUPS)


@pytest.mark.parametrize(("path", "example"), EXAMPLES_BY_PATH, ids=[example for _, example in EXAMPLES_BY_PATH])
def test_an_example_is_a_command_line_of_its_command(path: str, example: str) -> None:
    found, context = parse(own_words(example))

    assert found == path or found.startswith(f"{path} ") or not path
    assert context.command.name == found.rpartition(" ")[2]


@pytest.mark.parametrize("path", EVERY)
def test_help_ends_with_the_examples_each_on_a_line_of_its_own(
    path: str, run: RunProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")

    done = run(*path.split(), "--help")

    assert EVERY[path]
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("Examples:\n" + "".join(f"  {example}\n" for example in EVERY[path]))


@pytest.mark.parametrize("path", COMMANDS)
def test_help_names_no_types_of_python(path: str, run: RunProgram) -> None:
    assert not re.search(r"<\w|list\[|NoneType", run(*path.split(), "--help").out)


def test_the_help_of_a_group_names_its_commands_with_whole_sentences(run: RunProgram) -> None:
    text = re.sub(r"\s+", " ", run("policy", "--help").out)

    group: Any = tree.program().commands["policy"]
    for command in group.commands.values():
        assert f" {command.name} {command.get_short_help_str(10_000)}" in text


@pytest.mark.parametrize("option", ["--version", "version"])
def test_the_version_is_an_option_and_a_command(option: str, run: RunProgram) -> None:
    assert run(option) == (0, f"{__version__}\n", "")


def test_a_name_that_is_almost_a_command_is_answered_with_that(run: RunProgram) -> None:
    done = run("polisy", "list")

    assert (done.status, done.out) == (2, "")
    assert "Did you mean 'policy'?" in done.err


def options_of_run() -> Iterator[str]:
    for parameter in tree.program().commands["run"].params:
        yield from (name for name in parameter.opts if name.startswith("-"))


def test_run_declares_the_options_that_it_reads_by_itself() -> None:
    text, _, examples = run_command.HELP.partition("Examples:\n")

    assert set(options_of_run()) == set(run_command.OPTIONS)
    assert set(re.findall(r"(?<![\w-])--?[a-z]+", text)) >= set(run_command.OPTIONS)
    assert examples == "".join(f"  {example}\n" for example in COMMANDS["run"].examples)
