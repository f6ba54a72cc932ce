"""Restoration of a cluster after its store has come back with fewer changes than it had. Pure.

A restarted server, or a replica promoted in its place, may have lost the last changes, or all of them if it came back
empty. No two runs of a server have the same run id, so the first node that meets another run records a *fork*: the
last change that had survived in it (``survived``), and the stream entry from which the stream goes on (``marker``).
Every node's mirror holds the whole cluster as of its position in the stream. A node with a mirror later than
the surviving changes restores the difference:

- it writes the entries of lost changes, unless they were written anew since the fork;
- it deletes the entries that it has seen deleted, and that an old dump or a node that was behind has brought back.

Then it records its position as the fork's ``survived``: for a node that comes later and was behind, an entry missing in
the store is not lost but deleted. So in whichever order the nodes come back, the store ends with the entries of the
node that was furthest. Writes since the fork always win. A node that comes back when the stream no longer reaches to
the fork restores nothing and takes the store's state.
"""

from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry, read_id


class Fork(NamedTuple):
    """Fork: a point at which the store went on as another run of the server."""

    name: str  # run@marker, unique
    marker: int  # id of the stream entry that records it
    survived: int  # id of the last change before it that was not lost, or was restored


def read_forks(text: str) -> tuple[Fork, ...]:
    """Return the forks of a store's list, oldest first; raise SchemaError for a text that is none."""
    return tuple(_fork(item) for item in text.split(",") if item)


def _fork(text: str) -> Fork:
    name, _, survived = text.partition(" ")
    _, at, marker = name.partition("@")
    if not at:
        raise SchemaError(f"{text!r} is not a fork")
    return Fork(name, read_id(marker), read_id(survived))


def unseen(forks: Iterable[Fork], seen: Set[str]) -> tuple[Fork, ...]:
    """Return the forks that a node has not seen, oldest first; ``seen`` are the names of the others."""
    return tuple(fork for fork in forks if fork.name not in seen)


def lost(
    held: Mapping[Key, StoreEntry], stored: Mapping[Key, StoreEntry], survived: int, rewritten: Set[Key]
) -> tuple[tuple[Key, StoreEntry], ...]:
    """Return the entries that a node holds and the store has lost, in the order in which to restore them.

    ``rewritten`` are the keys of entries written since the fork.
    """
    return sorted_for_store(
        (key, entry)
        for key, entry in held.items()
        if entry.id > survived and key not in rewritten and (key not in stored or stored[key].id < entry.id)
    )


def deleted(
    held: Mapping[Key, StoreEntry], position: int, stored: Mapping[Key, StoreEntry], rewritten: Set[Key]
) -> tuple[Key, ...]:
    """Return the keys that the store has again, and that a node with all changes up to ``position`` no longer holds.

    Identities are never among them: an unused one is collected later, and a used one must stay.
    """
    return tuple(
        key
        for key, entry in stored.items()
        if entry.id <= position and key not in held and key not in rewritten and key[0] is not Kind.IDENTITY
    )


_ORDER = (Kind.DOCUMENT, Kind.IDENTITY, Kind.NODE, Kind.ENDPOINT)  # policies first: no endpoint is open without them


def sorted_for_store(entries: Iterable[tuple[Key, StoreEntry]]) -> tuple[tuple[Key, StoreEntry], ...]:
    """Return entries in the order in which to restore them."""
    return tuple(sorted(entries, key=lambda item: _ORDER.index(item[0][0])))
