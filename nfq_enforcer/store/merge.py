"""What becomes of a cluster when its store has come back with less than it had. Pure.

A server that was restarted, or whose replica has taken its place, may have lost the changes that came last: all of
them, if it came back empty. No two runs of a server have the same run id, so the first member that meets another one
notes a *fork*: which changes had survived in it (``survived``), and from where on (``marker``) the stream goes on.
Every member holds the whole cluster. One that had come further than what survived gives back what is missing:

- what it knows from a change that was lost, unless that was written anew since the fork;
- and it takes away again what it knows to have gone, but came back with an old dump.

What was written since the fork always wins. A member that was not as far knows no better than the store. So does one
that comes so late that the stream does not reach back to the fork.
"""

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from nfq_enforcer.store.records import Kind
from nfq_enforcer.store.schema import Entry, Key, SchemaError, read_id


class Fork(NamedTuple):
    """A point from which the store's history went on otherwise."""

    name: str  # run@marker: no two forks have the same
    marker: int  # id of the entry in the stream that says so
    survived: int  # id of the last change before it that is not lost


def read_forks(text: str) -> tuple[Fork, ...]:
    """Return the forks that a store knows, oldest first; raise SchemaError if they are none."""
    return tuple(_fork(one) for one in text.split(",") if one)


def _fork(text: str) -> Fork:
    name, _, survived = text.partition(" ")
    _, at, marker = name.partition("@")
    if not at:
        raise SchemaError(f"{text!r} is not a fork")
    return Fork(name, read_id(marker), read_id(survived))


def unseen(forks: Iterable[Fork], known: Set[str]) -> tuple[Fork, ...]:
    """Return the forks that a member has not seen, oldest first."""
    return tuple(fork for fork in forks if fork.name not in known)


class Loss(NamedTuple):
    """What to give back to the store."""

    missing: tuple[tuple[Key, Entry], ...]  # ours, lost by the store
    gone: tuple[Key, ...]  # gone, and there again


def compare(mine: Mapping[Key, Entry], theirs: Mapping[Key, Entry], survived: int, since: Set[Key]) -> Loss:
    """Return what the store has lost, by what this member knows; ``since``: what was written since the fork."""
    missing = tuple(
        (key, entry)
        for key, entry in mine.items()
        if entry.id > survived and key not in since and (key not in theirs or theirs[key].id < entry.id)
    )
    gone = tuple(
        key
        for key, entry in theirs.items()
        if entry.id <= survived and key not in mine and key not in since and key[0] is not Kind.IDENTITY
    )
    return Loss(sorted_for_store(missing), gone)


_ORDER = (Kind.DOCUMENT, Kind.IDENTITY, Kind.NODE, Kind.ENDPOINT)  # nobody is open before policy is back


def sorted_for_store(entries: Iterable[tuple[Key, Entry]]) -> tuple[tuple[Key, Entry], ...]:
    """Return entries in the order in which a store that has lost them gets them back."""
    return tuple(sorted(entries, key=lambda one: _ORDER.index(one[0][0])))
