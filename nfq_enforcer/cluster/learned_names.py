"""Names learned from DNS answers: which endpoint has learned which addresses of a name, bounded. Pure.

Each endpoint has names of its own here, so that one that asks for many names only displaces its own: the ones that it
has not asked for longest. All endpoints use the names of all: an address that one has learned is known to policy for
each. An address stays for an hour after its name has expired, for the flows that are open (see ``core.tables.names``).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfq_enforcer.core.tables.names import NameChange

MAX_NAMES, MAX_ADDRESSES = 10_000, 100_000  # of all endpoints
MAX_NAMES_OF_ENDPOINT, MAX_ADDRESSES_OF_NAME = 2_000, 1_000
_KEPT = 3600.0  # s after the last address of a name has expired


class LearnedName(NamedTuple):
    """Learned name: the addresses of a name that an endpoint has asked for, with the times at which they expire."""

    endpoint: str
    name: str
    addresses: dict[bytes, float]


class LearnedNames:
    """Learned names of all endpoints of a node; its methods return the changes for the workers."""

    def __init__(self) -> None:
        """Start without names."""
        self._names: dict[str, dict[str, LearnedName]] = {}  # by endpoint and name, oldest use first
        self._endpoints: defaultdict[str, set[str]] = defaultdict(set)  # that have learned a name
        self.names = self.addresses = self.evicted = 0

    def __iter__(self) -> Iterator[LearnedName]:
        """Yield the names of each endpoint, those first that it has not asked for longest."""
        for of_endpoint in self._names.values():
            yield from of_endpoint.values()

    def learn(self, endpoint: str, name: str, addresses: Iterable[tuple[bytes, float]]) -> list[NameChange]:
        """Add addresses of a name, each with the time at which it expires; return the changes."""
        of_endpoint = self._names.setdefault(endpoint, {})
        learned = of_endpoint.pop(name, None)
        if learned is None:
            learned = LearnedName(endpoint, name, {})
            self._endpoints[name].add(endpoint)
            self.names += 1
        of_endpoint[name] = learned  # the newest now
        touched = []
        for address, expires in addresses:
            before = learned.addresses.pop(address, None)
            learned.addresses[address] = expires if before is None else max(before, expires)
            self.addresses += before is None
            touched.append(address)
        while len(learned.addresses) > MAX_ADDRESSES_OF_NAME:
            address = next(iter(learned.addresses))
            del learned.addresses[address]
            self.addresses -= 1
            self.evicted += 1
            touched.append(address)
        changes = self._changes(name, touched)
        if len(of_endpoint) > MAX_NAMES_OF_ENDPOINT:
            changes += self._evict(endpoint)
        while self.names > MAX_NAMES or self.addresses > MAX_ADDRESSES:
            changes += self._evict(max(self._names, key=lambda one: len(self._names[one])))
        return changes

    def collect(self, now: float, endpoints: Iterable[str]) -> list[NameChange]:
        """Remove names that have expired an hour ago, and those of all but these endpoints; return the changes."""
        present = set(endpoints)
        gone = [
            learned
            for learned in self
            if learned.endpoint not in present or max(learned.addresses.values(), default=0.0) + _KEPT < now
        ]
        return [change for learned in gone for change in self._remove(learned)]

    def _evict(self, endpoint: str) -> list[NameChange]:
        self.evicted += 1
        return self._remove(next(iter(self._names[endpoint].values())))

    def _remove(self, learned: LearnedName) -> list[NameChange]:
        endpoint, name, addresses = learned
        del self._names[endpoint][name]
        if not self._names[endpoint]:
            del self._names[endpoint]
        self._endpoints[name].discard(endpoint)
        if not self._endpoints[name]:
            del self._endpoints[name]
        self.names -= 1
        self.addresses -= len(addresses)
        return self._changes(name, addresses)

    def _changes(self, name: str, addresses: Iterable[bytes]) -> list[NameChange]:
        """Return the present state of some addresses of a name: the latest time of all endpoints."""
        holders = [self._names[endpoint][name].addresses for endpoint in self._endpoints.get(name, ())]
        return [
            NameChange(name, address, max((h[address] for h in holders if address in h), default=None))
            for address in addresses
        ]
