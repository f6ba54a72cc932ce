"""Endpoints of this node that the store does not hold as this node does: pending writes, and conflicts.

Without a store, endpoints with a known identity start and stop all the same; the changes are pending until the store
is back. A conflict is an endpoint that the store refused, for example because an endpoint of another node has one of
its addresses by then. It stays in force on this node, and is written again with each heartbeat.
"""

import logging
from collections.abc import Iterable, Set

from nfq_enforcer.cluster.records import EndpointRecord, Kind
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.change_feed import ChangeFeed
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import StoreEntry
from nfq_enforcer.store.redis.state_saver import StateSaver

_log = logging.getLogger(__name__)


class PendingEndpoints:
    """PendingEndpoints: the endpoints due to be written, and the endpoints that the store refused, by full name."""

    def __init__(self, mirror: Mirror, saver: StateSaver, feed: ChangeFeed) -> None:
        """Start with none."""
        self._mirror = mirror
        self._saver = saver
        self._feed = feed
        self._values: dict[str, bytes] = {}  # of endpoints started without the store; empty: stopped without it
        self._conflicts: dict[str, str] = {}  # the store's reasons

    def load(self, saved: Iterable[tuple[str, bytes]]) -> None:
        """Take the pending endpoints of the last known state."""
        self._values = dict(saved)

    async def start(self, records: Iterable[EndpointRecord]) -> None:
        """Start endpoints of this node without the store."""
        for record in records:
            value = schema.encode_endpoint(record).encode()
            self._mirror.override((Kind.ENDPOINT, record.full_name), StoreEntry(self._mirror.position, value))
            self._values[record.full_name] = value
        await self.save()

    async def stop(self, names: Iterable[str]) -> None:
        """Stop endpoints of this node that the store still has, without the store."""
        for name in names:
            self._mirror.override((Kind.ENDPOINT, name), None)
            self._conflicts.pop(name, None)
            self._values[name] = b""
        await self.save()

    @property
    def reasons(self) -> dict[str, str | None]:
        """Return all pending endpoints, and for a conflict the store's reason."""
        return {name: self._conflicts.get(name) for name in {**self._values, **self._conflicts}}

    def unwritten(self) -> dict[str, bytes]:
        """Return the values of all pending endpoints and of those in conflict, empty for a stopped one."""
        refused = (name for name in self._conflicts if name in self._mirror.own)
        return {name: self._mirror.entries[Kind.ENDPOINT, name].value for name in refused} | self._values

    def due(self, tried: Set[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Return the pending endpoints and their values, except those that were tried already."""
        return [item for item in self._values.items() if item not in tried]

    def note_written(self, name: str, value: bytes) -> None:
        """Remove a pending endpoint that was written with this value, unless it changed meanwhile or is in conflict."""
        if self._values.get(name) == value and name not in self._conflicts:
            del self._values[name]

    def remove_written(self) -> bool:
        """Remove all pending endpoints that are in no conflict; return whether any was removed."""
        written = [name for name in self._values if name not in self._conflicts]
        for name in written:
            del self._values[name]
        return bool(written)

    @property
    def conflicts(self) -> list[str]:
        """Return the names of the endpoints that the store refused."""
        return list(self._conflicts)

    def note_conflict(self, name: str, reason: str) -> None:
        """Record that the store refused an endpoint; log it unless the reason is the same as before."""
        if self._conflicts.get(name) != reason:
            _log.error("the store refuses endpoint %s of this node: %s", name, reason)
        self._conflicts[name] = reason

    def clear_conflict(self, name: str) -> None:
        """Remove a conflict: the endpoint was written, or is stopped."""
        self._conflicts.pop(name, None)

    async def save(self) -> None:
        """Save the pending endpoints, and announce the changes that they made."""
        self._feed.announce()
        await self._saver.save_pending(self._values)
