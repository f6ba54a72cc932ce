"""The store that the nodes of a cluster share, as this node's agent uses it: ``member`` keeps connection and state.

Whatever is loaded goes to the store first and counts here at once. Without a store nothing can be agreed on, so
policies wait until it is back; but an endpoint of this node whose labels have an identity can start and stop.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from statistics import quantiles
from typing import Any

from nfq_enforcer.cluster.records import EndpointRecord, Kind, Placed, document_name
from nfq_enforcer.cluster.source import Applied, ChangeBatch, NodeStatus, Started
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import enforceable, loader
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.redis import backup, schema
from nfq_enforcer.store.redis.commands import Collected, Request
from nfq_enforcer.store.redis.connection import StoreError
from nfq_enforcer.store.redis.session import GRACE, LEASE, LIVE, RETIREMENT, Session
from nfq_enforcer.text import utc_time

_LOOK = 0.05  # seconds between two looks at what other nodes enforce
_NAMED = 20  # refused values that status names


class RedisStore:
    """The ``Store`` of a node in a cluster."""

    def __init__(self, member: Session) -> None:
        """Take this node's membership."""
        self._member = member
        self._entries = member.entries

    async def start(self) -> None:
        """Return when there is a state to enforce."""
        await self._member.start()

    async def stop(self) -> None:
        """Leave the store, and save what is not saved."""
        await self._member.stop()

    async def wait(self) -> None:
        """Return when there are changes to take."""
        await self._member.wait()

    def poll(self) -> ChangeBatch:
        """Return the changes since the last time."""
        return self._member.poll()

    def acknowledge(self, handed: ChangeBatch) -> None:
        """Note that what was handed over is in force on this node."""
        self._member.acknowledge(handed)

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return None: what gets into the store has been checked, and what is there all the same is named in status."""
        return None

    @property
    def revision(self) -> int:
        """Return the revision of the policy, as far as this node knows."""
        return self._member.entries.revision

    async def apply(self, files: Sequence[File]) -> Applied:
        """Take files of documents, all or nothing; raise BadInput for all that is wrong with them, or StoreError."""
        parsed = await asyncio.to_thread(loader.parse_all, files)
        documents = loader.group_documents(one.document for one in parsed)
        enforceable.check(documents.policies)
        namespaces = self._entries.namespaces | {document_name(one): one for one in documents.namespaces}
        placed = [
            self._entries.placed(EndpointRecord.of(one, Identity(0), self._member.node), namespaces)
            for one in documents.endpoints
        ]
        others: tuple[Namespace | PolicyDocument, ...] = (*documents.namespaces, *documents.policies)
        values = [(Kind.DOCUMENT, document_name(one), schema.encode_document(one)) for one in others]
        if self._member.store is None and placed and not values:
            numbers, new = await self._start_alone(placed), frozenset[Identity]()
        else:
            written = await self._member.write(Request(placed, values))
            numbers, new = written.numbers, written.new
        started = (
            Started(one.record.called, number, one.labels, number in new)
            for one, number in zip(placed, numbers, strict=True)
        )
        return Applied(tuple("/".join(filter(None, one.document.key)) for one in parsed), tuple(started))

    async def _start_alone(self, placed: Sequence[Placed]) -> tuple[Identity, ...]:
        """Start endpoints of this node whose identity the store has said before it went away."""
        numbers = [self._number_alone(one) for one in placed]
        await self._member.start_alone(
            one.record._replace(identity=number) for one, number in zip(placed, numbers, strict=True)
        )
        return tuple(numbers)

    def _number_alone(self, one: Placed) -> Identity:
        if one.record.node != self._member.node:
            raise StoreError(f"{one.record.called} is on node {one.record.node}, and {self._member.unreachable}")
        number = self._entries.numbers.get(one.labels)
        if number is None:
            raise StoreError(f"no endpoint has had the labels {one.labels} yet, and {self._member.unreachable}")
        for other in self._entries.own.values():
            for address in set(other.addresses).intersection(one.record.addresses):
                if other.called != one.record.called:
                    raise BadInput(f"{ip_address(address)} already belongs to endpoint {other.called}")
        return number

    async def delete_policy(self, namespace: str, name: str) -> None:
        """Take a policy out; raise BadInput if there is none of this name."""
        keys = [
            key
            for key in self._entries.entries
            if key[0] is Kind.DOCUMENT and _names_policy(key[1].split("/"), namespace, name)
        ]
        if not keys:
            called = f"{namespace}/{name}" if namespace else name
            raise BadInput(f"there is no policy {called}; 'nfq-enforcer policy list' shows those there are")
        await self._member.write(Request(gone=keys))

    async def delete_endpoints(self, names: Sequence[str]) -> list[str]:
        """Take endpoints out, and return those that there were."""
        known = [name for name in names if (Kind.ENDPOINT, name) in self._entries.entries]
        if self._member.store is None and all(name in self._entries.own for name in known):
            await self._member.stop_alone(known)
        elif known:
            await self._member.write(Request(gone=[(Kind.ENDPOINT, name) for name in known]))
        return known

    async def nodes(self) -> list[NodeStatus]:
        """Return every node; without the store nobody knows who lives."""
        store = self._member.store
        if store is None:
            return [NodeStatus(name, live=None) for kind, name in self._entries.entries if kind is Kind.NODE]
        seen = await store.nodes()
        now = time.time() + self._member.offset
        names = [name for kind, name in self._entries.entries if kind is Kind.NODE]
        return [
            NodeStatus(name, now - seen[name][0] < LIVE, *seen[name]) if name in seen else NodeStatus(name, live=False)
            for name in names
        ]

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return the nodes once every live one enforces this revision of the policy, or patience has run out."""
        deadline = time.monotonic() + patience
        while True:
            nodes = await self.nodes()
            late = any(node.live and (node.revision or 0) < revision for node in nodes)
            if not late or time.monotonic() > deadline:
                return nodes
            await asyncio.sleep(_LOOK)

    async def status(self) -> dict[str, Any]:
        """Return the store's part of the agent's status."""
        member, counts = self._member, self._entries.counts()
        lags = [1000 * lag for lag in member.lags]
        return {
            "store": member.server.address.redacted,
            "prefix": member.server.address.prefix,
            "connected": member.store is not None,
            "since": utc_time(member.since),
            "error": member.error,
            "server": f"{member.info.product} {member.info.version}" if member.info else None,
            "schema": schema.VERSION,
            "position": schema.write_id(member.entries.position),
            "policy_revision": member.entries.revision,
            "nodes": counts[Kind.NODE],
            "identities": counts[Kind.IDENTITY],
            "endpoints": counts[Kind.ENDPOINT],
            "documents": counts[Kind.DOCUMENT],
            "commands": member.commands,
            "resyncs": member.entries.resyncs,
            "refused": {
                "count": len(self._entries.refused) + self._entries.skips,
                "values": self._entries.described_refusals(_NAMED),
            },
            "pending": [{"endpoint": name, "reason": reason} for name, reason in member.pending.items()],
            "lag_ms": {"p50": _percentile(lags, 50), "p99": _percentile(lags, 99)},
        }

    async def kept(self) -> int | None:
        """Return how many changes the stream still has; None without a store."""
        return await self._member.store.kept() if self._member.store is not None else None

    async def collect(self, grace: float | None) -> Collected:
        """Collect garbage now; ``grace`` in seconds instead of the usual."""
        store = await self._member.reachable()
        return await store.collect(LEASE, GRACE if grace is None else grace, RETIREMENT, 0)

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield a header, then all that the cluster has agreed on."""
        member = self._member
        yield from backup.export(self._entries, member.server.address.redacted)

    async def take_in(self, entries: Iterable[Any]) -> dict[str, Any]:
        """Give the store what was exported; see ``transfer``."""
        return await backup.take_in(self._member, entries)


def _names_policy(key: Sequence[str], namespace: str, name: str) -> bool:
    return key[0] != "Namespace" and list(key[1:]) == [namespace, name]


def _percentile(of: Sequence[float], percent: int) -> float | None:
    if len(of) < 2:
        return round(of[0], 1) if of else None
    return round(quantiles(of, n=100)[percent - 1], 1)
