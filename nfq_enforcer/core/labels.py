"""Labels: ``source:key=value``, and sets of labels, which make identities.

Syntax is that of Kubernetes labels (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/) with
Cilium's source prefix; a label without a prefix has source ``k8s``, as documents are kubectl-shaped.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

DEFAULT_SOURCE = "k8s"
ANY_SOURCE = "any"

SOURCE = re.compile(r"[a-z][a-z0-9-]*")
_PREFIX = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

NAME_SYNTAX = "a name has 1 to 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit"
KEY_SYNTAX = f"a key is [source:][prefix/]name; {NAME_SYNTAX}"
VALUE_SYNTAX = (
    "a value is empty or has 1 to 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit"
)


class Label(NamedTuple):
    """Label: source, key and value."""

    source: str
    key: str
    value: str

    def __str__(self) -> str:
        """Render as ``source:key=value``, or ``source:key`` for an empty value, as Cilium does."""
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"


def split_key(text: str, default_source: str = DEFAULT_SOURCE) -> tuple[str, str]:
    """Return (source, key) of a written label key; raise ValueError with the allowed syntax."""
    source, colon, key = text.partition(":")
    if not colon:
        source, key = default_source, text
    if not SOURCE.fullmatch(source) or not is_key(key):
        raise ValueError(f"{text!r} is not a label key: {KEY_SYNTAX}")
    return source, key


def is_key(text: str) -> bool:
    """Return whether a text is a label key without a source."""
    prefix, slash, name = text.rpartition("/")
    return _NAME.fullmatch(name) is not None and (not slash or _PREFIX.fullmatch(prefix) is not None)


def check_value(text: str) -> str:
    """Return the label value unchanged; raise ValueError with the allowed syntax."""
    if text and not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a label value: {VALUE_SYNTAX}")
    return text


@lru_cache(maxsize=1 << 14)
def _label(key: str, value: str) -> Label:
    """Return a label; endpoints with equal labels share the object."""
    return Label(*split_key(key), check_value(value))


class Labels:
    """Label set: immutable, at most one value for a (source, key), hashable.

    The number of sets grows with the number of endpoints, and few sets are ever searched: the index is made on first
    use.
    """

    __slots__ = ("_by_key", "_ordered", "_text")

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        """Take labels in any order; the last of several with one source and key counts."""
        self._ordered = tuple(sorted({(label.source, label.key): label for label in labels}.values()))
        self._by_key: dict[str, tuple[Label, ...]] | None = None
        self._text = ";".join(map(str, self._ordered))

    @classmethod
    def parse(cls, written: Mapping[str, str]) -> "Labels":
        """Return the labels of a document's ``labels`` mapping; raise ValueError for a bad key or value."""
        return cls(_label(key, value) for key, value in written.items())

    def find(self, source: str, key: str) -> tuple[Label, ...]:
        """Return the labels with this key and source (``any``: every source)."""
        if self._by_key is None:
            self._by_key = self._indexed()
        found = self._by_key.get(key, ())
        return found if source == ANY_SOURCE else tuple(label for label in found if label.source == source)

    def union(self, other: "Labels") -> "Labels":
        """Return the union; for a key in both sets, the other set's value counts."""
        return Labels((*self, *other))

    def _indexed(self) -> dict[str, tuple[Label, ...]]:
        by_key: dict[str, tuple[Label, ...]] = {}
        for label in self._ordered:
            by_key[label.key] = (*by_key.get(label.key, ()), label)
        return by_key

    def __iter__(self) -> Iterator[Label]:
        """Yield the labels, ordered by source and key."""
        return iter(self._ordered)

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self._ordered)

    def __eq__(self, other: object) -> bool:
        """Compare as sets."""
        return isinstance(other, Labels) and self._text == other._text

    def __hash__(self) -> int:
        """Hash the canonical text."""
        return hash(self._text)

    def __str__(self) -> str:
        """Return the canonical text: sorted ``source:key=value``, joined by ``;``."""
        return self._text

    def __repr__(self) -> str:
        """Show the canonical text."""
        return f"Labels({self._text!r})"
