"""Slot keeper: gives connections that need the proxy a slot of it, and keeps the rules of all slots up to date.

A worker that meets a connection without a slot asks for one. The slot is of use once the proxy listens and all workers
know it: a connection may meet any worker (docs/decisions/0019-http-by-envoy.md). Slots that are wanted at the same time
are opened together: a change of the proxy's listeners, and one of the workers' slots, costs much whatever its size.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.l7 import ProxyProtocols
from nfq_enforcer.core.tables.slots import MAX_SLOTS, Side, SlotChange, SlotKey, sides
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.status import ProxyStatus
from nfq_enforcer.proxy.proxy import Opening, Proxy, save
from nfq_enforcer.proxy.rule_set import RuleSet
from nfq_enforcer.tasks import Works, cancel

_log = logging.getLogger(__name__)
_PAUSE = 10.0  # s between two searches for slots to free, while all are in use; and that a slot is open before it
_TOGETHER = 100  # slots that are opened together: the proxy listens for none before it has made them all


class SlotKeeper:
    """Slot keeper of a node."""

    def __init__(self, proxy: Proxy, workers: Workers, snapshot: Callable[[], Snapshot], file: Path) -> None:
        """Set the parts; ``snapshot`` returns the one in force, without peers. ``file`` keeps the keys of slots."""
        self.error: str | None = None  # the reason for which the last slot was not made
        self.refused = 0  # connections that found all slots in use, so far
        self._proxy = proxy
        self._workers = workers
        self._snapshot = snapshot
        self._file = file
        self._starting: asyncio.Task[None] | None = None  # of the proxy
        self._slots: dict[SlotKey, int] = {}
        self._keys: dict[int, SlotKey] = {}
        self._rules: dict[SlotKey, tuple[Side, ...]] = {}  # of slots that the proxy has
        self._wanted: dict[SlotKey, int] = {}  # slots to open
        self._opened: dict[SlotKey, float] = {}  # slots in use, with the time of the event loop when they were opened
        self._closing: set[int] = set()  # slots without ends that the proxy has not closed yet
        self._opening: asyncio.Task[None] | None = None
        self._unapplied: set[int] = set()  # slots with rules that the proxy may not have in force
        self._free = list(range(MAX_SLOTS, 0, -1))
        self._next_search = 0.0
        self._works = Works()

    def __len__(self) -> int:
        """Return the number of slots in use."""
        return len(self._slots)

    def key(self, slot: int) -> SlotKey | None:
        """Return the key of a slot."""
        return self._keys.get(slot)

    def rules(self, key: SlotKey) -> tuple[Side, ...]:
        """Return the rules of each side of a slot, as the proxy has them."""
        return self._rules.get(key, ())

    def want(self, key: SlotKey) -> None:
        """Make a slot for these ends, unless they have one."""
        if key in self._slots:
            return
        if not self._free:
            self.refused += 1
            self._search()
            return
        self._want(key, self._free.pop())

    def _want(self, key: SlotKey, slot: int) -> None:
        self._slots[key], self._keys[slot] = slot, key
        self._wanted[key] = slot
        if self._opening is None or self._opening.done():
            self._opening = self._works.start(self._open_wanted())

    async def _open_wanted(self) -> None:
        """Open the slots that are wanted, a number of them at a time."""
        while self._wanted:
            together = dict(islice(self._wanted.items(), _TOGETHER))
            for key in together:
                del self._wanted[key]
            await self._open(together)

    async def _open(self, slots: dict[SlotKey, int]) -> None:
        """Open slots together; free those for which the proxy does not listen."""
        try:
            await self._start_proxy()
            snapshot, endpoints = self._snapshot(), self._endpoints()
            self._rules |= {key: sides(snapshot, endpoints, key) for key in slots}
            await self._set_open(slots, is_open=False)
            # ``update`` may have changed the rules meanwhile
            self._proxy.open({slot: Opening(RuleSet(self._rules[key]), key.protocols) for key, slot in slots.items()})
            while slots:
                found = await self._proxy.listening(slots.values())
                opened = [key for key, slot in slots.items() if slot in found]
                await self._set_open(opened, is_open=True)
                self._opened |= dict.fromkeys(opened, asyncio.get_running_loop().time())
                slots = {key: slot for key, slot in slots.items() if key not in self._opened}
        except (NfqError, TimeoutError) as error:
            self._fail(str(error) or "the proxy does not respond")
            await self._close(slots)
        else:
            self.error = None
        self._save()
        if not self._wanted:
            self._proxy.prepare_slots()

    def _fail(self, error: str) -> None:
        """Log an error once, until a slot is made."""
        if error != self.error:
            _log.error(
                "connections with HTTP rules or server names are dropped, because the proxy has no slot for them: %s",
                error,
            )
        self.error = error

    async def _start_proxy(self) -> None:
        """Start the proxy, unless it has been started; raise EnvoyError if it is not installed."""
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.create_task(self._proxy.start())
        await asyncio.shield(self._starting)

    def _prepare_proxy(self) -> None:
        """Start the proxy in the background if the policy in force needs one, before a connection waits for it."""
        policies = (policy for each in self._snapshot().endpoints.values() for policy in (each.egress, each.ingress))
        if not self._proxy.running and any(policy.proxy_ports for policy in policies):
            self._works.start(self._try_to_start_proxy())

    async def _try_to_start_proxy(self) -> None:
        try:
            await self._start_proxy()
        except NfqError as error:
            self._fail(str(error))
        else:
            self.error = None if self._proxy.running else self.error

    async def update(self) -> None:
        """Send the rules of slots that the policy in force has changed to the proxy, and return when it has them.

        Raise NfqError if it does not take them. A proxy that does not run gets all rules when it starts.
        """
        self._prepare_proxy()
        if not self._rules:
            return
        snapshot, endpoints = self._snapshot(), self._endpoints()
        changed: dict[int, RuleSet] = {}
        for key, known in tuple(self._rules.items()):
            rules = sides(snapshot, endpoints, key)
            if rules != known:
                self._rules[key] = rules
                changed[self._slots[key]] = RuleSet(rules)
        self._proxy.set_rules(changed)
        self._unapplied |= changed.keys()
        if self._proxy.running:
            try:
                await self._proxy.applied(tuple(self._unapplied))
            except TimeoutError:
                raise NfqError(f"the proxy has not put the rules of {len(self._unapplied)} slots in force") from None
        self._unapplied.clear()

    def _endpoints(self) -> Mapping[str, LocalEndpoint]:
        return {endpoint.name: endpoint for endpoint in self._snapshot().endpoints.values()}

    def _search(self) -> None:
        """Free the slots without connections, at an interval."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_search:
            self._next_search = now + _PAUSE
            self._works.start(self._free_unused())

    async def _free_unused(self) -> None:
        """Free slots that have been open for a while and have no connection, those first that were opened first."""
        since = asyncio.get_running_loop().time() - _PAUSE
        await self._release()
        try:
            unused = await self._without_connections(key for key, opened in self._opened.items() if opened <= since)
            await self._free_if_unused(unused[:_TOGETHER])
        except NfqError as error:
            self._fail(f"all {MAX_SLOTS} slots are in use, and {error}")

    async def _without_connections(self, keys: Iterable[SlotKey]) -> list[SlotKey]:
        used = await self._proxy.connections()
        return [key for key in keys if not used.get(self._slots[key])]

    async def _free_if_unused(self, keys: list[SlotKey]) -> None:
        """Free slots; those that have got a connection before the workers stopped to redirect stay."""
        unused: list[SlotKey] = []
        await self._set_open(keys, is_open=False)
        try:
            unused = await self._without_connections(keys)
        finally:
            await self._set_open([key for key in keys if key not in unused], is_open=True)
        _log.warning("all %d slots of the proxy are in use; freeing %d without connections", MAX_SLOTS, len(unused))
        await self._close(unused)
        self._save()

    async def _set_open(self, keys: Iterable[SlotKey], *, is_open: bool) -> None:
        await self._workers.change_slots([SlotChange(key, self._slots[key], is_open) for key in keys])

    async def _close(self, keys: Iterable[SlotKey]) -> None:
        """Free slots: no worker redirects to them any more, the proxy refuses their requests, then removes them."""
        closing = {key: self._slots.pop(key) for key in keys}
        for key, slot in closing.items():
            self._rules.pop(key, None)
            self._opened.pop(key, None)
            self._unapplied.discard(slot)
        with suppress(NfqError):  # a worker that does not respond is replaced, and starts without the slots
            await self._workers.change_slots([SlotChange(key, 0, False) for key in closing])
        self._closing |= set(closing.values())
        await self._release()

    async def _release(self) -> None:
        """Have the proxy close slots, to use them again; those that it does not close are tried at the next search."""
        closing, self._closing = self._closing, set()
        try:
            await self._proxy.close(closing)
        except (NfqError, TimeoutError) as error:
            _log.error("%d slots of the proxy are not free: %s", len(closing), str(error) or "it does not respond")
            self._closing |= closing
            return
        for slot in closing:
            self._keys.pop(slot, None)
        self._free[:0] = closing

    def __iter__(self) -> Iterator[tuple[SlotKey, int]]:
        """Yield each key with its slot."""
        yield from self._slots.items()

    async def status(self, unlogged: int = 0) -> ProxyStatus | None:
        """Return the status of proxy and slots; None if no policy has needed the proxy yet.

        ``unlogged``: requests that did not reach the flow log.
        """
        if self._starting is None:
            return None
        proxy = await self._proxy.status()
        return ProxyStatus(
            running=self._proxy.running,
            pid=proxy.pid,
            version=proxy.version or None,
            error=self.error or (f"{proxy.rejected} updates of rules were rejected" if proxy.rejected else None),
            restarts=proxy.restarts,
            slots=len(self),
            refused=self.refused,
            unlogged=unlogged,
        )

    async def begin(self) -> None:
        """Take over the slots of a proxy that an earlier agent has left running; start one that policy needs.

        Without the proxy, connections that need it are dropped, and the next one tries to start it.
        """
        self._prepare_proxy()
        if saved := self._read():
            try:
                await self._start_proxy()
            except NfqError as error:
                self._fail(str(error))
                return
            for key, slot in saved.items():
                if slot in self._proxy.slots:
                    self._free.remove(slot)
                    self._want(key, slot)
            self._closing = set(self._proxy.slots) - set(saved.values())
            self._free = [slot for slot in self._free if slot not in self._closing]
            self._works.start(self._release())

    async def stop(self, *, leave: bool = False) -> None:
        """End the work that is under way, and the proxy; ``leave`` it running for the agent's successor."""
        await cancel(*self._works.running, self._starting)
        if self._starting is not None:
            await (self._proxy.detach() if leave else self._proxy.stop())

    def _save(self) -> None:
        save(self._file, [(key, slot) for key, slot in self._slots.items() if key in self._rules])

    def _read(self) -> dict[SlotKey, int]:
        """Return the saved slots, none without a file that can be read."""
        with suppress(OSError, ValueError, TypeError):
            rows = json.loads(self._file.read_text())
            return {_key(*fields): int(slot) for fields, slot in rows}
        return {}


def _key(
    client: str,
    server: str,
    source: Identity,
    destination: Identity,
    client_peers: list[Identity],
    server_peers: list[Identity],
    port: int,
    protocols: int,
) -> SlotKey:
    """Return the key with these fields, as JSON has them."""
    peers = tuple(client_peers), tuple(server_peers)
    return SlotKey(client, server, source, destination, *peers, port, ProxyProtocols(protocols))
