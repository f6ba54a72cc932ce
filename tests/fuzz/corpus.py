"""Corpus of a fuzz target: a text file with one input per line, as a bytes literal of Python."""

import ast
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent
NAMES = sorted(path.stem for path in (ROOT / "targets").glob("[a-z]*.py"))
MAX_BYTES = 6000  # of the inputs of one target


class Target(NamedTuple):
    """Target: the promise of a part of the program, checked for one input."""

    check: Callable[[bytes], None]  # raises for an input that breaks the promise
    seeds: list[bytes]


def target(name: str) -> Target:
    module = import_module(f"tests.fuzz.targets.{name}")
    return Target(module.check, module.SEEDS)


def read(name: str) -> list[bytes]:
    path = ROOT / "corpus" / f"{name}.txt"
    return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(name: str, inputs: Iterable[bytes]) -> None:
    (ROOT / "corpus" / f"{name}.txt").write_text("".join(f"{data!r}\n" for data in sorted(inputs)))
