"""The agent's interface to a store on Redis; the node's ``Session`` holds connection and state.

Documents are written to the store first, and are in force on this node as soon as it has answered. Without the store
the nodes cannot agree on a policy, so policy commands fail until it is back; but an endpoint of this node can start
and stop if its labels have an identity.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from statistics import quantiles
from typing import Any

from nfq_enforcer.cluster.records import (
    Address,
    EndpointRecord,
    EndpointRequest,
    Kind,
    check_document_source,
    check_source,
    document_name,
)
from nfq_enforcer.cluster.source import Applied, ChangeBatch, NodeStatus, Started
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.loader import File
from nfq_enforcer.policy.progress import Progress
from nfq_enforcer.store.redis import backup, schema
from nfq_enforcer.store.redis.commands import Collected, Interrupted, Request
from nfq_enforcer.store.redis.connection import StoreError, Unanswered
from nfq_enforcer.store.redis.mail import StoreMail
from nfq_enforcer.store.redis.session import Session
from nfq_enforcer.tasks import cancel
from nfq_enforcer.text import utc_time

_NAMED = 20  # refused values in the status


class RedisStore:
    """RedisStore: the ``Store`` of a node in a cluster."""

    def __init__(self, session: Session) -> None:
        """Take this node's session, not started yet."""
        self._session = session
        self._mirror = session.mirror
        self.progress = Progress()  # of reading documents
        self._mail = StoreMail(session.node, session.connection, session.reachability, session.timings)
        self._receiving: asyncio.Task[None] | None = None

    @property
    def mail(self) -> StoreMail:
        """Return the messages between the agents."""
        return self._mail

    async def start(self) -> None:
        """Return when a state can be enforced."""
        self._receiving = asyncio.create_task(self._mail.run())
        await self._session.start()

    async def stop(self) -> None:
        """Leave the store, and save the rest of the state."""
        await cancel(self._receiving)
        await self._session.stop()

    async def wait(self) -> None:
        """Return when changes are available."""
        await self._session.wait()

    def poll(self) -> ChangeBatch:
        """Return the changes since the last poll."""
        return self._session.poll()

    def acknowledge(self, batch: ChangeBatch) -> None:
        """Record that a batch is enforced on this node."""
        self._session.acknowledge(batch)

    def set_enforcing(self, *, enforcing: bool) -> None:
        """Record whether this node enforces what was acknowledged."""
        self._session.set_enforcing(enforcing=enforcing)

    async def register(self, addresses: tuple[Address, ...]) -> None:
        """Register this node under other addresses with the next heartbeat, which is due at once."""
        self._session.register(addresses)

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return None: documents are checked before the write, and status names values that cannot be decoded."""
        return None

    @property
    def revision(self) -> int:
        """Return the revision of the policy in this node's mirror."""
        return self._mirror.revision

    async def apply(self, files: Sequence[File], *, ignore_other_kinds: bool = False, source: str = "") -> Applied:
        """Write the documents of files, all or nothing; raise BadInput with every error in them, or StoreError."""
        with self.progress.working("reading documents", time.time()):
            parsed = await asyncio.to_thread(
                loader.parse_all, files, ignore_other_kinds=ignore_other_kinds, progress=self.progress
            )
        documents = loader.group_documents(item.document for item in parsed)
        namespaces = self._mirror.namespaces | {document_name(document): document for document in documents.namespaces}
        records = [
            EndpointRecord.of(document, Identity(0), self._session.node, source) for document in documents.endpoints
        ]
        for record in records:
            check_source(self._mirror.endpoint(record.full_name), source)
        endpoints = [self._mirror.endpoint_request(record, namespaces) for record in records]
        others: tuple[Namespace | PolicyDocument, ...] = (*documents.namespaces, *documents.policies)
        for document in others:
            self._check_document(document_name(document), source)
            document.set_origin(document.origin, document.data, source)
        values = [(Kind.DOCUMENT, document_name(document), schema.encode_document(document)) for document in others]
        if self._session.commands is None and endpoints and not values:
            numbers, new = await self._start_without_store(endpoints), frozenset[Identity]()
        else:
            written = await self._session.writer.write(Request(endpoints, values))
            numbers, new = written.numbers, written.new
        started = (
            Started(request.record.full_name, number, request.labels, number in new)
            for request, number in zip(endpoints, numbers, strict=True)
        )
        names = tuple("/".join(filter(None, item.document.key)) for item in parsed)
        return Applied(names, tuple(started), documents.policies)

    def _check_document(self, name: str, source: str) -> None:
        """Raise BadInput if a document comes from another source. Its content is not decoded for that."""
        check_document_source(name, self._mirror.document_source(name), source)

    async def _start_without_store(self, endpoints: Sequence[EndpointRequest]) -> tuple[Identity, ...]:
        """Start endpoints of this node with an identity that the mirror has a number for."""
        numbers = [self._number_of(request) for request in endpoints]
        await self._session.pending.start(
            request.record._replace(identity=number) for request, number in zip(endpoints, numbers, strict=True)
        )
        return tuple(numbers)

    def _number_of(self, request: EndpointRequest) -> Identity:
        """Return the number of an endpoint's identity; raise StoreError or BadInput if it needs the store."""
        record, unreachable = request.record, self._session.reachability.unreachable
        if record.node != self._session.node:
            raise StoreError(f"{record.full_name} is on node {record.node}, and {unreachable}")
        number = self._mirror.numbers.get(request.labels)
        if number is None:
            raise StoreError(f"no endpoint has had the labels {request.labels} yet, and {unreachable}")
        for other in self._mirror.own.values():
            for address in set(other.addresses).intersection(record.addresses):
                if other.full_name != record.full_name:
                    raise BadInput(f"{ip_address(address)} already belongs to endpoint {other.full_name}")
        return number

    async def delete_policy(self, namespace: str, name: str, *, force: bool = False) -> None:
        """Delete all policies of this name; raise BadInput if no policy has it."""
        keys = [
            key
            for key in self._mirror.entries
            if key[0] is Kind.DOCUMENT and _is_policy(key[1].split("/"), namespace, name)
        ]
        if not keys:
            full_name = f"{namespace}/{name}" if namespace else name
            raise BadInput(f"there is no policy {full_name}; 'nfq-enforcer policy list' shows those there are")
        for key in keys if not force else ():
            self._check_document(key[1], "")
        await self._session.writer.write(Request(deleted=keys))

    async def delete_documents(self, names: Sequence[str], *, source: str) -> None:
        """Delete documents of a source; raise BadInput for one that comes from another source."""
        existing = [name for name in names if (Kind.DOCUMENT, name) in self._mirror.entries]
        for name in existing:
            self._check_document(name, source)
        if existing:
            await self._session.writer.write(Request(deleted=[(Kind.DOCUMENT, name) for name in existing]))

    async def delete_endpoints(self, names: Sequence[str], *, source: str = "") -> list[str]:
        """Delete endpoints; return those that existed; raise BadInput for one that comes from another source."""
        existing = [name for name in names if (Kind.ENDPOINT, name) in self._mirror.entries]
        for name in existing:
            check_source(self._mirror.endpoint(name), source)
        if self._session.commands is None and all(name in self._mirror.own for name in existing):
            await self._session.pending.stop(existing)
        elif existing:
            deleted = [(Kind.ENDPOINT, name) for name in existing]
            await self._session.writer.write(Request(deleted=deleted, hosted_by=self._session.node if source else ""))
        return existing

    async def nodes(self) -> list[NodeStatus]:
        """Return every node; without the store it is unknown which nodes are live."""
        commands = self._session.commands
        if commands is None:
            return [NodeStatus(name, live=None) for kind, name in self._mirror.entries if kind is Kind.NODE]
        seen = await commands.nodes()
        now, live = time.time() + self._session.clock_offset, self._session.timings.live
        names = [name for kind, name in self._mirror.entries if kind is Kind.NODE]
        return [
            NodeStatus(name, now - seen[name][0] < live, *seen[name]) if name in seen else NodeStatus(name, live=False)
            for name in names
        ]

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return the nodes once every live one enforces this policy revision, or after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while True:
            nodes = await self.nodes()
            late = any(node.live and (node.revision or 0) < revision for node in nodes)
            if not late or time.monotonic() > deadline:
                return nodes
            await asyncio.sleep(self._session.timings.enforced_poll)

    async def status(self) -> dict[str, Any]:
        """Return the store's part of the agent's status."""
        session, mirror, counts = self._session, self._mirror, self._mirror.counts()
        lags = [1000 * lag for lag in session.lags]
        return {
            **self.connection(),
            "prefix": session.connection.address.prefix,
            "server": f"{session.info.product} {session.info.version}" if session.info else None,
            "schema": schema.VERSION,
            "position": schema.write_id(mirror.position),
            "policy_revision": mirror.revision,
            "nodes": counts[Kind.NODE],
            "identities": counts[Kind.IDENTITY],
            "endpoints": counts[Kind.ENDPOINT],
            "documents": counts[Kind.DOCUMENT],
            "commands": session.commands_sent,
            "resyncs": mirror.resyncs,
            "lag_ms": {"p50": _percentile(lags, 50), "p99": _percentile(lags, 99)},
            "heartbeat": None if session.heartbeat is None else utc_time(session.heartbeat),
        }

    def connection(self) -> dict[str, Any]:
        """Return the part of the status that needs no count of entries."""
        session, mirror = self._session, self._mirror
        return {
            "store": session.connection.address.redacted,
            "connected": session.commands is not None,
            "since": utc_time(session.reachability.since),
            "error": session.reachability.error,
            "refused": {
                "count": len(mirror.refused) + mirror.foreign_count,
                "values": mirror.described_refusals(_NAMED),
            },
            "pending": [{"endpoint": name, "reason": reason} for name, reason in session.pending.reasons.items()],
            "unsaved": _unsaved(session.save_failure),
        }

    async def changes_kept(self) -> int | None:
        """Return the number of changes in the stream; None while the store is not reachable."""
        return await self._session.commands.changes_kept() if self._session.commands is not None else None

    async def collect(self, grace: float | None) -> Collected:
        """Collect garbage now; ``grace`` in seconds replaces that of the timings.

        Raise StoreError, or Unanswered if the store may have collected. It is not repeated then: the second answer
        would not name the entries that the first collection has removed.
        """
        commands, timings = await self._session.reachability.wait_reachable(), self._session.timings
        kept = timings.grace if grace is None else grace
        try:
            return await commands.collect(timings.lease, kept, timings.retirement, 0)
        except Interrupted as error:
            raise Unanswered(f"the connection was lost before the store's answer: {error}") from error

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield a header, then all identities, documents and endpoints of the cluster; see ``backup``."""
        yield from backup.export(self._mirror, self._session.connection.address.redacted)

    async def import_entries(self, entries: Iterable[Any]) -> dict[str, Any]:
        """Write exported entries to the store; see ``backup``."""
        return await backup.import_entries(self._session, entries)


def _is_policy(key: Sequence[str], namespace: str, name: str) -> bool:
    return key[0] != "Namespace" and list(key[1:]) == [namespace, name]


def _unsaved(failure: tuple[float, str] | None) -> dict[str, str] | None:
    return {"since": utc_time(failure[0]), "error": failure[1]} if failure else None


def _percentile(samples: Sequence[float], percent: int) -> float | None:
    if len(samples) < 2:
        return round(samples[0], 1) if samples else None
    return round(quantiles(samples, n=100)[percent - 1], 1)
