"""Names of addresses: the names to which DNS answers have given each address, and until when.

A worker has the names that all workers of this node have learned. A name counts for new flows until it expires. A flow
that is known, to the worker or to the kernel, keeps the names of its address, expired or not, until the agent forgets
them: a connection may be open for longer than the record of its address was valid.
"""

from collections.abc import Iterable, Iterator
from math import ceil
from typing import NamedTuple

SLACK = 5.0  # s for which an address counts beyond its time to live: a client connects a moment after it has asked
_STEP = 5.0  # s
_PARTS = 256


def expiry(now: float, ttl: float, min_ttl: float) -> float:
    """Return until when a learned address counts for new flows; times to live in s.

    It is rounded up to steps: each answer prolongs the time, and the workers need not hear of each.
    """
    return ceil((now + max(ttl, min_ttl) + SLACK) / _STEP) * _STEP


class NameChange(NamedTuple):
    """Change of names: a name has an address, or no longer."""

    name: str
    address: bytes
    expires: float | None  # None: it has the address no longer


class NameTable:
    """Table of the names of addresses, in many small dicts: a large dict stalls the packet path while it grows."""

    __slots__ = ("_parts",)

    def __init__(self, changes: Iterable[NameChange] = ()) -> None:
        """Apply the first changes to an empty table."""
        self._parts: tuple[dict[bytes, dict[str, float]], ...] = tuple({} for _ in range(_PARTS))
        self.apply(changes)

    def __iter__(self) -> Iterator[NameChange]:
        """Yield the changes that make this table."""
        for part in self._parts:
            for address, names in part.items():
                for name, expires in names.items():
                    yield NameChange(name, address, expires)

    def apply(self, changes: Iterable[NameChange]) -> None:
        """Apply changes, in order."""
        for name, address, expires in changes:
            part = self._parts[hash(address) % _PARTS]
            if expires is not None:
                part.setdefault(address, {})[name] = expires
            elif address in part:
                part[address].pop(name, None)
                if not part[address]:
                    del part[address]

    def is_current(self, name: str, address: bytes, now: float) -> bool:
        """Tell whether a name has an address at this time."""
        return self._parts[hash(address) % _PARTS].get(address, {}).get(name, 0.0) > now

    def current(self, address: bytes, now: float) -> list[str]:
        """Return the names that have this address at this time."""
        names = self._parts[hash(address) % _PARTS].get(address, {})
        return [name for name, expires in names.items() if expires > now]

    def known(self, address: bytes) -> Iterable[str]:
        """Return the names that have this address, or had it lately."""
        return self._parts[hash(address) % _PARTS].get(address, ())
