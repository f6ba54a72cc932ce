"""Store of the cluster: status, export, import and garbage collection."""

from collections.abc import AsyncIterator
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import seconds
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.status import StoreStatus
from nfq_enforcer.store.redis.store import RedisStore

_LONGEST_GRACE = 10 * 365 * 86400.0  # s


class StoreHandlers:
    """Store handlers: read and maintain the store that the nodes of a cluster share."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read and to change."""
        self._parts = parts

    async def store_status(self, _params: Params) -> dict[str, Any]:
        """Return the status of the store."""
        store = self._redis()
        status = StoreStatus.from_json(await store.status())
        return {**status.to_json(), "changes_kept": await store.changes_kept()}

    async def store_export(self, _params: Params) -> AsyncIterator[dict[str, Any]]:
        """Yield a header, then every entry of the store."""
        for entry in self._redis().export():
            yield entry

    async def store_import(self, params: Params) -> dict[str, Any]:
        """Write exported entries to the store."""
        entries = params.get("entries", [])
        if not isinstance(entries, list):
            raise BadInput("entries must be a list of exported entries")
        imported = await self._redis().import_entries(entries)
        await self._parts.reconcile("the entries are stored")
        return imported

    async def store_gc(self, params: Params) -> dict[str, Any]:
        """Collect garbage now: entries unused for ``grace`` seconds."""
        collected = await self._redis().collect(seconds(params, "grace", _LONGEST_GRACE))
        return {**collected._asdict(), "nodes": list(collected.nodes)}

    def _redis(self) -> RedisStore:
        if not isinstance(self._parts.store, RedisStore):
            raise BadInput("this agent has no store but its own memory (store: memory:)")
        return self._parts.store
