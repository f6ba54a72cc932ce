"""Counts of TLS connections with server names, by verdict, reason and documents that decided. Pure."""

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.verdict import DropReason, FlowVerdict
from nfq_enforcer.observe.http_counts import MAX_COUNTS, OTHER
from nfq_enforcer.observe.status import TlsConnectionCount


class TlsCounts:
    """TLS counts: a bounded number of them. Later documents are counted together."""

    def __init__(self, at_most: int = MAX_COUNTS) -> None:
        """Begin without connections."""
        self._at_most = at_most
        self._connections: dict[tuple[str, str, str], int] = {}

    def add(self, event: FlowEvent) -> None:
        """Count the connection of an event."""
        documents = dict.fromkeys(rule.document for rule in event.allowed_by or event.enforced_by)
        key = (",".join(documents), str(event.verdict), str(event.reason or ""))
        if key not in self._connections and len(self._connections) >= self._at_most:
            key = (OTHER, *key[1:])
        self._count(key)

    def add_other(self, reason: DropReason | None) -> None:
        """Count a connection without its documents."""
        verdict = FlowVerdict.DROPPED if reason else FlowVerdict.FORWARDED
        self._count((OTHER, str(verdict), str(reason or "")))

    def _count(self, key: tuple[str, str, str]) -> None:
        self._connections[key] = self._connections.get(key, 0) + 1

    def read(self) -> list[TlsConnectionCount]:
        """Return the counts."""
        return [TlsConnectionCount(*key, connections) for key, connections in self._connections.items()]
