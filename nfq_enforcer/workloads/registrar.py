"""Registrar: keeps the store's endpoints of this node at those that the sources of workloads name.

A source (containers, Kubernetes, processes) names its endpoints, in full or one by one. The registrar compares them
with the endpoints that the store has from this source on this node, and writes the difference: first deletions, so that
a new workload can have the address of an ended one at once. So a state is reached again after any fault, also if
another program has changed the store meanwhile.

A name or an address belongs to one endpoint. The one that has it keeps it, whether it comes from a document or from a
source; the other is refused with a reason, and tried again until it is free. Of sources that name the same endpoint at
once, the order of ``SOURCES`` decides. A source that is away leaves its last state in force; a source that the
configuration no longer has loses its endpoints.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.errors import NfqError
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import File
from nfq_enforcer.tasks import Works
from nfq_enforcer.workloads.publisher import Publisher
from nfq_enforcer.workloads.sources import SOURCES

_log = logging.getLogger(__name__)
_RETRY = 1.0  # s until a refused endpoint is tried again, and the store's state is compared
_UNKNOWN = Identity(0)


Records = Mapping[str, EndpointRecord]
"""Endpoints by full name."""


class Registrar:
    """Registrar: the endpoints that sources of this node name, written to the store."""

    def __init__(
        self, node: str, store: Store, hosted: Callable[[], Records], reconcile: Callable[[], Awaitable[None]]
    ) -> None:
        """Take this node's name, the store, the endpoints on this node, and the reconciliation of a change.

        Nothing is written before ``write``.
        """
        self._node = node
        self._store = store
        self._hosted = hosted
        self._reconcile = reconcile
        self._wanted: dict[str, dict[str, EndpointRecord]] = {}  # by source, of those that have named their endpoints
        self._changed = asyncio.Event()
        self._works = Works()
        self._lock = asyncio.Lock()  # one write at a time
        self.sources: tuple[str, ...] = ()  # of the configuration
        self.publisher: Publisher | None = None  # of documents, which are written before endpoints
        self.problems: dict[str, str] = {}  # reason for each refused endpoint, by full name
        self.away: dict[str, str] = {}  # reason for each source that is away

    # -- by the sources -----------------------------------------------------------------------------------------------

    def replace(self, source: str, endpoints: Iterable[Endpoint]) -> None:
        """Set all endpoints of a source, as after a list of them."""
        records = (self._record(source, endpoint) for endpoint in endpoints)
        self._wanted[source] = {record.full_name: record for record in records}
        self._changed.set()

    def put(self, source: str, endpoint: Endpoint) -> None:
        """Set a new or changed endpoint of a source that has named all its endpoints before."""
        record = self._record(source, endpoint)
        self._wanted[source][record.full_name] = record
        self._changed.set()

    def remove(self, source: str, full_name: str) -> None:
        """Remove an endpoint of a source, by ``namespace/name``; an unknown one is ignored."""
        if self._wanted[source].pop(full_name, None) is not None:
            self._changed.set()

    def note_problem(self, source: str, problem: str | None) -> None:
        """Record that a source is away, with the reason, or that it is back (None); a new reason is logged."""
        if problem is None:
            if self.away.pop(source, None) is not None:
                _log.info("source %s of workloads is back", source)
        elif self.away.get(source) != problem:
            self.away[source] = problem
            self._changed.set()
            _log.error("source %s of workloads is away, its last endpoints stay in force: %s", source, problem)

    def _record(self, source: str, endpoint: Endpoint) -> EndpointRecord:
        return EndpointRecord.of(endpoint, _UNKNOWN, self._node, source)._replace(node=self._node)

    # -- by the agent -------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the number of endpoints that each source of the configuration names."""
        return {source: len(self._wanted.get(source, ())) for source in self.sources}

    async def run(self) -> None:
        """Write whenever a source has changes, and at an interval; never return."""
        while True:
            try:
                async with asyncio.timeout(_RETRY):
                    await self._changed.wait()
            except TimeoutError:
                pass
            await self.settle()

    async def settle(self) -> None:
        """Return once all endpoints that the sources have named so far are in force on this node, or refused."""
        await self._works.run(self._settle())

    async def _settle(self) -> None:
        async with self._lock:
            if await self._write_all():
                try:
                    await self._reconcile()
                except NfqError as error:
                    _log.error("endpoints of workloads are not in force yet: %s", error)

    async def wait_named(self, patience: float) -> None:
        """Return once each source of the configuration has named its endpoints or is away, or after ``patience`` s."""
        try:
            async with asyncio.timeout(patience):
                while not self._wanted.keys() | self.away.keys() >= set(self.sources):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("not all sources of workloads have named their endpoints yet")

    async def write(self) -> None:
        """Write without a reconciliation, for a state that is enforced later."""
        async with self._lock:
            await self._write_all()

    def note_change(self) -> None:
        """Write soon."""
        self._changed.set()

    async def _write_all(self) -> bool:
        """Write documents, then endpoints: identities depend on the labels of namespaces."""
        published = self.publisher is not None and await self.publisher.write()
        return await self._write() or published

    async def _write(self) -> bool:
        """Write the difference between sources and store; return whether anything was written."""
        self._changed.clear()
        present, wanted = self._present(), self._all_wanted()
        ended = {name: record for name, record in present.items() if self._has_ended(record, wanted)}
        due = {name: record for name, record in wanted.items() if present.get(name) != record}
        self.problems = {name: reason for name, reason in self.problems.items() if name in ended or name in due}
        written = False
        for source, records in _by_source(ended.values()).items():
            written |= await self._delete([record.full_name for record in records], source)
        not_deleted = self.problems.keys() & ended.keys()  # their successors wait
        ready = (record for name, record in due.items() if name not in not_deleted)
        for source, records in _by_source(ready).items():
            written |= await self._apply(records, source)
        return written

    def _present(self) -> dict[str, EndpointRecord]:
        """Return the endpoints on this node, without their identities."""
        return {name: record._replace(identity=_UNKNOWN) for name, record in self._hosted().items()}

    def _all_wanted(self) -> dict[str, EndpointRecord]:
        """Return the endpoints that the sources name; an endpoint of two sources is the first one's."""
        wanted: dict[str, EndpointRecord] = {}
        for source in reversed(SOURCES):
            wanted |= self._wanted.get(source, {})
        return wanted

    def _has_ended(self, record: EndpointRecord, wanted: Records) -> bool:
        """Tell whether a source no longer names an endpoint, or the configuration no longer has the source."""
        if not record.source:
            return False
        if record.source not in self.sources:
            return True
        successor = wanted.get(record.full_name)
        return record.source in self._wanted and (successor is None or successor.source != record.source)

    async def _delete(self, names: Sequence[str], source: str) -> bool:
        try:
            deleted = await self._store.delete_endpoints(names, source=source)
        except NfqError as error:
            for name in names:
                self._refuse(name, f"it has ended, and is not deleted yet: {error}")
            return False
        for name in names:
            self.problems.pop(name, None)
        return bool(deleted)

    async def _apply(self, records: Sequence[EndpointRecord], source: str) -> bool:
        """Write endpoints together or, if any is refused, in two halves; return whether any was written."""
        try:
            await self._apply_together(records, source)
        except NfqError as error:
            if len(records) == 1:
                self._refuse(records[0].full_name, str(error))
                return False
            half = len(records) // 2
            return any([await self._apply(part, source) for part in (records[:half], records[half:])])
        for record in records:
            self.problems.pop(record.full_name, None)
        return True

    async def _apply_together(self, records: Sequence[EndpointRecord], source: str) -> None:
        files = [File(f"{source} {record.full_name}", json.dumps(record.document())) for record in records]
        await self._store.apply(files, source=source)

    def _refuse(self, name: str, reason: str) -> None:
        if self.problems.get(name) != reason:
            _log.error("endpoint %s is not in force: %s", name, reason)
        self.problems[name] = reason


def _by_source(records: Iterable[EndpointRecord]) -> dict[str, list[EndpointRecord]]:
    groups: dict[str, list[EndpointRecord]] = {}
    for record in records:
        groups.setdefault(record.source, []).append(record)
    return groups
