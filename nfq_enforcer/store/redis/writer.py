"""Writes of this node to the store, and their immediate effect on this node.

The changes that this node writes are in its mirror as soon as the store has answered. The stream brings them a second
time, as an echo: the mirror holds them with the same id then, so the echo changes nothing.
"""

import asyncio
from collections.abc import Iterable

from nfq_enforcer.cluster.records import EndpointRecord, EndpointRequest, Kind
from nfq_enforcer.errors import BadInput
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.change_feed import ChangeFeed
from nfq_enforcer.store.redis.commands import Commands, Interrupted, NotJoined, Request, Written
from nfq_enforcer.store.redis.connection import StoreError, Unanswered
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.pending import PendingEndpoints
from nfq_enforcer.store.redis.reachability import Reachability
from nfq_enforcer.store.redis.schema import Key

_BATCH = 500  # endpoints in one write


class Writer:
    """Writer: sends requests to the store, applies them to the mirror, and keeps this node's own entries right."""

    def __init__(
        self,
        registration: tuple[Kind, str, str],
        mirror: Mirror,
        reachability: Reachability,
        pending: PendingEndpoints,
        feed: ChangeFeed,
        heartbeat_due: asyncio.Event,
    ) -> None:
        """Take this node's entry and the session's parts; ``heartbeat_due`` is set after a write that failed.

        The heartbeat then detects the loss of the connection without waiting for its interval.
        """
        self.registration = registration
        self._mirror = mirror
        self._reachability = reachability
        self._pending = pending
        self._feed = feed
        self._heartbeat_due = heartbeat_due

    async def write(self, request: Request) -> Written:
        """Write as soon as the store is reachable; raise BadInput, StoreError if the store stays unreachable.

        The error is Unanswered if the store may have executed the write.
        """
        try:
            return await self._write(request)
        except Interrupted:
            try:
                return await self._write_again(request)
            except StoreError as error:
                raise Unanswered(f"the connection was lost before the store's answer: {error}") from error
        except NotJoined:
            return await self._write_again(request)

    async def _write_again(self, request: Request) -> Written:
        """Write after another join; the store does not write entries with equal values a second time."""
        self._reachability.set_stale()
        return await self._write(request)

    async def _write(self, request: Request) -> Written:
        commands = await self._reachability.wait_reachable()
        try:
            written = await self._apply(commands, request)
            if any(schema.is_namespace(key) for key in (*request.deleted, *(value[:2] for value in request.values))):
                await self.register(commands, ())
        except StoreError:
            self._heartbeat_due.set()
            raise
        return written

    async def register(self, commands: Commands, endpoints: Iterable[EndpointRecord]) -> None:
        """Write this node's entry, these endpoints of it, and its endpoints with an identity of other labels."""
        due = {record.full_name: record for record in endpoints}
        due |= {name: record for name, record in self._mirror.own.items() if self._mirror.is_mislabelled(record)}
        requests = [self._mirror.endpoint_request(record) for record in due.values()]
        for batch in (requests[start : start + _BATCH] for start in range(0, len(requests), _BATCH)):
            try:
                await self._apply(commands, Request(batch))
            except BadInput:
                for request in batch:
                    await self._apply_or_note_conflict(commands, request)
        # The node's entry is last: as long as it is missing, each heartbeat starts this method again.
        await self._apply(commands, Request(values=[self.registration]))

    async def write_pending(self, commands: Commands) -> None:
        """Write the endpoints that were started and stopped without the store, also those that change meanwhile."""
        tried: set[tuple[str, bytes]] = set()
        while due := self._pending.due(tried):
            for name, value in due:
                record = self._mirror.own.get(name)
                if value and record is not None:
                    await self._apply_or_note_conflict(commands, self._mirror.endpoint_request(record))
                elif not value:
                    await self._apply(
                        commands, Request(deleted=[(Kind.ENDPOINT, name)], hosted_by=self.registration[1])
                    )
                self._pending.note_written(name, value)
            tried.update(due)
            await self._pending.save()

    async def retry_conflicts(self, commands: Commands) -> None:
        """Write the endpoints in conflict again: the addresses may be free by now."""
        for name in self._pending.conflicts:
            if name in self._mirror.own:
                await self._apply_or_note_conflict(commands, self._mirror.endpoint_request(self._mirror.own[name]))
            else:
                self._pending.clear_conflict(name)
        if self._reachability.commands is commands and self._pending.remove_written():
            await self._pending.save()

    async def _apply_or_note_conflict(self, commands: Commands, request: EndpointRequest) -> None:
        """Write an endpoint of this node; if the store refuses it, it stays on this node and status names it."""
        try:
            await self._apply(commands, Request([request]))
        except BadInput as error:
            self._pending.note_conflict(request.record.full_name, str(error))

    async def _apply(self, commands: Commands, request: Request) -> Written:
        """Write to the store, then apply the same changes to the mirror as the stream would."""
        written = await commands.write(request)
        for key in written.missing:
            self._mirror.override(key, None)  # the store refused it before, or another node has deleted it
        for endpoint in request.endpoints:
            self._pending.clear_conflict(endpoint.record.full_name)
        for _, name in request.deleted:
            self._pending.clear_conflict(name)
        if written.id is None:
            return written
        for endpoint, number in zip(request.endpoints, written.numbers, strict=True):
            if number in written.new:
                self._accept((Kind.IDENTITY, str(number)), written.id, schema.encode_identity(endpoint.labels))
            value = schema.encode_endpoint(endpoint.record._replace(identity=number))
            self._accept((Kind.ENDPOINT, endpoint.record.full_name), written.id, value)
        for kind, name, value in request.values:
            self._accept((kind, name), written.id, value)
        for key in set(request.deleted) - written.left:
            self._mirror.accept(key, written.id, None)
        self._mirror.revision = max(self._mirror.revision, written.revision)
        self._feed.announce_own()
        return written

    def _accept(self, key: Key, change_id: int, value: str) -> None:
        held = self._mirror.entries.get(key)
        if held is None or held.value != value.encode():
            self._mirror.accept(key, change_id, value.encode())
