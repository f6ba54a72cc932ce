"""What becomes of a cluster when its store has come back with less than it had. Pure.

A server that was restarted, or whose replica has taken its place, may have lost the changes that came last: all of
them, if it came back empty. No two runs of a server have the same run id, so the first member that meets another one
notes a *fork*: which changes had survived in it (``survived``), and from where on (``marker``) the stream goes on.
Every member holds the whole cluster as it was at its place in the stream. One that knows more than what survived gives
back what is missing:

- what it knows from a change that was lost, unless that was written anew since the fork;
- and it takes away again what it knows to have gone, but came back with an old dump or from a member that was behind.

Then it notes how far it knew, and what survived is from now on all up to there: to a member that comes later and was
behind, what it misses in the store is not lost but gone. So whatever the order in which they come, it ends in what the
furthest of them knew. What was written since the fork always wins. One that comes so late that the stream does not
reach back to the fork knows no better than the store.
"""

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry, read_id


class Fork(NamedTuple):
    """A point from which the store's history went on otherwise."""

    name: str  # run@marker: no two forks have the same
    marker: int  # id of the entry in the stream that says so
    survived: int  # id of the last change before it that is not lost, or was given back


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


def lost(
    mine: Mapping[Key, StoreEntry], theirs: Mapping[Key, StoreEntry], survived: int, since: Set[Key]
) -> tuple[tuple[Key, StoreEntry], ...]:
    """Return what this member knows and the store has lost, in the order in which it gets it back.

    ``since`` is what was written since the fork.
    """
    return sorted_for_store(
        (key, entry)
        for key, entry in mine.items()
        if entry.id > survived and key not in since and (key not in theirs or theirs[key].id < entry.id)
    )


def gone(
    mine: Mapping[Key, StoreEntry], position: int, theirs: Mapping[Key, StoreEntry], since: Set[Key]
) -> tuple[Key, ...]:
    """Return what is in the store again, and this member, who knows all up to this position, knows to have gone.

    Not identities: one that nobody has is collected, and one that somebody has must stay.
    """
    return tuple(
        key
        for key, entry in theirs.items()
        if entry.id <= position and key not in mine and key not in since and key[0] is not Kind.IDENTITY
    )


_ORDER = (Kind.DOCUMENT, Kind.IDENTITY, Kind.NODE, Kind.ENDPOINT)  # nobody is open before policy is back


def sorted_for_store(entries: Iterable[tuple[Key, StoreEntry]]) -> tuple[tuple[Key, StoreEntry], ...]:
    """Return entries in the order in which a store that has lost them gets them back."""
    return tuple(sorted(entries, key=lambda one: _ORDER.index(one[0][0])))
