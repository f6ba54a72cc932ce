"""Known identities: the identities of the cluster, without which a stamp proves nothing.

They are numerous and change one by one, like the peers of the ipcache, so a worker holds them in a table of its own and
applies their changes between two packets.
"""

from collections.abc import Iterable, Iterator, MutableSet
from itertools import chain

from nfq_enforcer.core.identity import Identity

IdentityChange = tuple[Identity, bool]
"""Change of the known identities: an identity, and whether the cluster has it from now on."""

_PARTS = 256


class IdentityTable(MutableSet[Identity]):
    """Table of identities, in many small sets: a large set stalls the packet path while it grows."""

    __slots__ = ("_parts",)

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        """Take the initial identities."""
        self._parts: tuple[set[Identity], ...] = tuple(set() for _ in range(_PARTS))
        for identity in identities:
            self.add(identity)

    def __contains__(self, identity: object) -> bool:
        """Tell whether the cluster has this identity."""
        return identity in self._parts[hash(identity) % _PARTS]

    def __iter__(self) -> Iterator[Identity]:
        """Yield all identities."""
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        """Return the number of identities."""
        return sum(map(len, self._parts))

    def add(self, identity: Identity) -> None:
        """Add an identity."""
        self._parts[hash(identity) % _PARTS].add(identity)

    def discard(self, identity: Identity) -> None:
        """Remove an identity, if the table has it."""
        self._parts[hash(identity) % _PARTS].discard(identity)


def apply_changes(identities: MutableSet[Identity], changes: Iterable[IdentityChange]) -> None:
    """Apply changes to the identities, in order."""
    for identity, known in changes:
        if known:
            identities.add(identity)
        else:
            identities.discard(identity)
