"""DNS name patterns: the names that ``matchName`` and ``matchPattern`` of Cilium's documents stand for.

In a pattern, ``*`` stands for any number of letters, digits, hyphens and underscores, so it stays within a label. A
leading ``**.`` stands for one or more labels, and ``*`` alone for every name; more stars in a row, or the trailing dot,
change neither (upstream's ``pkg/fqdn/matchpattern``). Patterns and names are in lower case without the trailing dot, as
``core.wire.dns`` reads them.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Generic, TypeVar

EVERY_NAME = "*"
_ANY_LABELS = "**."
_IN_LABEL = "[-a-z0-9_]"
_ONLY_STARS = re.compile(r"\*+")
_LEADING_STARS = re.compile(r"^\*{2,}\.")
_MAX_CACHED = 4096  # names

T = TypeVar("T")


def canonical(name: str) -> str:
    """Return a name in lower case without the trailing dot."""
    return name.lower().removesuffix(".")


def normalised(text: str) -> str:
    """Return a name or pattern of a document in lower case without the trailing dot, with its wildcards as above."""
    pattern = canonical(text)
    return EVERY_NAME if _ONLY_STARS.fullmatch(pattern) else _LEADING_STARS.sub(_ANY_LABELS, pattern, count=1)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a name."""
    if "*" not in pattern:
        return pattern == name
    return pattern == EVERY_NAME or _compiled(pattern).fullmatch(name) is not None


class NamePatterns(Generic[T]):
    """Name patterns, each with a value: finds the values of all patterns that match a name.

    Patterns without a star cost one look-up together, the others one match each. The results are cached.
    """

    def __init__(self, patterns: Iterable[tuple[str, T]]) -> None:
        """Take patterns and their values, several for one pattern if need be."""
        self._exact: dict[str, list[T]] = {}
        self._patterns: list[tuple[str, T]] = []
        for pattern, value in patterns:
            if "*" in pattern:
                self._patterns.append((pattern, value))
            else:
                self._exact.setdefault(pattern, []).append(value)
        self._found: dict[str, tuple[T, ...]] = {}

    def __eq__(self, other: object) -> bool:
        """Return whether the other one has the same patterns and values, in the same order."""
        return isinstance(other, NamePatterns) and (self._exact, self._patterns) == (other._exact, other._patterns)

    def __hash__(self) -> int:
        """Return the hash of the names without stars."""
        return hash(tuple(self._exact))

    def __bool__(self) -> bool:
        """Return whether it has any pattern."""
        return bool(self._exact or self._patterns)

    @property
    def values(self) -> tuple[T, ...]:
        """Return all values, each once."""
        exact = (value for values in self._exact.values() for value in values)
        return tuple(dict.fromkeys((*exact, *(value for _, value in self._patterns))))

    def find(self, name: str) -> tuple[T, ...]:
        """Return the values of the patterns that match a name, each once."""
        found = self._found.get(name)
        if found is None:
            if len(self._found) >= _MAX_CACHED:
                self._found.clear()
            matching = (value for pattern, value in self._patterns if matches(pattern, name))
            found = self._found[name] = tuple(dict.fromkeys((*self._exact.get(name, ()), *matching)))
        return found


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the expression of a pattern with stars.

    It takes no exponential time: between two stars, the first place of the text is always a right one, so a match of it
    is never given up (an atomic group).
    """
    any_labels = pattern.startswith(_ANY_LABELS)
    first, *texts = map(re.escape, re.split(r"\*+", pattern.removeprefix(_ANY_LABELS) if any_labels else pattern))
    middle = "".join(f"(?>{_IN_LABEL}*?{text})" for text in texts[:-1])
    last = f"{_IN_LABEL}*{texts[-1]}" if texts else ""
    return re.compile(f"{f'(?:{_IN_LABEL}++[.])+' if any_labels else ''}{first}{middle}{last}")
