"""Catch-up: bring a node's mirror from its own position to the store's, and apply the stream from there.

If no change is missing in between, the stream is read on. If changes are missing (the node was away for long, the
stream was trimmed, the server was replaced) all entries are read anew, and the stream is read on from a position before
that read, so that writes during it are not missed. A store that has lost entries gets them back first (``history``).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.commands import Commands, Joined, NotJoined, StreamEntry
from nfq_enforcer.store.redis.history import Fork, deleted, lost, unseen
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, StoreEntry, write_id

_log = logging.getLogger(__name__)
_MAX_STEP = 1 << 32  # revisions between two entries: one each, or as many as a store has lost
_MANY = 100  # changes in one stream entry after which other tasks get to run

Pending = Callable[[], Mapping[str, bytes]]
"""The endpoints of this node, by now, that were not written yet or that the store refused: values, empty if stopped."""


async def bring_up_to_date(mirror: Mirror, commands: Commands, joined: Joined, pending: Pending) -> None:
    """Bring the mirror to the state of the store.

    Pending endpoints are written after the catch-up, as new changes, because no other node has ever had them; they can
    change during the catch-up. Raise StoreError or NotJoined if it fails; the mirror is then as complete as before.
    """
    new_forks = unseen(joined.forks, mirror.forks)
    if new_forks or not await _can_resume(mirror, commands, joined):
        await _replace_all(mirror, commands, joined, new_forks, pending)
    while stream_entries := await commands.read(mirror.position, None):
        for entry in stream_entries:
            await apply(mirror, entry)
    _override_with_pending(mirror, pending())


def may_lack_own_endpoints(mirror: Mirror, joined: Joined) -> bool:
    """Return whether the store may have lost endpoints of this node; only this node can restore those."""
    return not joined.registered or bool(unseen(joined.forks, mirror.forks))


async def apply(mirror: Mirror, entry: StreamEntry) -> None:
    """Apply an entry of the stream; raise NotJoined if the entry before it is missing."""
    if entry.revision is not None and entry.revision > mirror.revision + _MAX_STEP:
        entry.foreign = f"its revision {entry.revision} does not follow {mirror.revision}"
    if entry.foreign or not entry.serial:
        mirror.note_foreign(f"changes {write_id(entry.id)}", entry.foreign or "it is nothing of ours")
        mirror.position = entry.id
        mirror.serial += entry.serial == mirror.serial + 1  # in sequence: written by a newer version of nfq_enforcer
        return
    if entry.serial != mirror.serial + 1:
        raise NotJoined(f"change {mirror.serial + 1} is missing, the next is {entry.serial}")
    mirror.position, mirror.serial = entry.id, entry.serial
    for key, change_id, value in entry.changes:
        if not (entry.collected and mirror.is_own(key)):  # collected when this node's lease had run out; it is live
            mirror.accept(key, change_id, value)
    if entry.revision is not None:
        mirror.revision = max(mirror.revision, entry.revision)
    if len(entry.changes) > _MANY:
        await asyncio.sleep(0)


async def _can_resume(mirror: Mirror, commands: Commands, joined: Joined) -> bool:
    """Return whether the stream has every change after the mirror's position."""
    if not mirror.position:
        return False
    following = await commands.read(mirror.position, None)
    return following[0].serial == mirror.serial + 1 if following else joined.serial == mirror.serial


async def _replace_all(
    mirror: Mirror,
    commands: Commands,
    joined: Joined,
    new_forks: Sequence[Fork],
    pending: Pending,
) -> None:
    """Read all entries of the store into the mirror, after restoring those that the store has lost."""
    stored, bad = await commands.scan()
    # An empty mirror has nothing to restore, and need not read the whole stream.
    rewritten = await commands.written_since(new_forks[0].marker) if new_forks and mirror.entries else None
    if rewritten is not None and mirror.last_id > min(fork.survived for fork in new_forks):
        uncertain = mirror.refused.keys() | {(Kind.ENDPOINT, name) for name in pending()}
        await _restore(mirror, commands, stored, new_forks, rewritten | uncertain)
        stored, bad = await _without_deleted(mirror, commands, new_forks, uncertain)
    for name in mirror.own if may_lack_own_endpoints(mirror, joined) else ():
        key = Kind.ENDPOINT, name
        if key not in stored and key not in (rewritten or ()):
            stored[key] = mirror.entries[key]
    for name, value in pending().items():
        if value:
            stored[Kind.ENDPOINT, name] = StoreEntry(mirror.position, value)
    for _ in mirror.replace_all(stored, bad):
        await asyncio.sleep(0)
    mirror.position, mirror.serial, mirror.revision = joined.last, joined.serial, joined.revision
    mirror.forks = frozenset(fork.name for fork in joined.forks)  # with the position, which is after these forks now


def _override_with_pending(mirror: Mirror, pending: Mapping[str, bytes]) -> None:
    """Set the pending endpoints as they are on this node, where the catch-up has brought an older state of them."""
    for name, value in pending.items():
        key = Kind.ENDPOINT, name
        held = mirror.entries.get(key)
        if value and (held is None or held.value != value):
            mirror.override(key, StoreEntry(mirror.position, value))
        elif not value and name in mirror.own:  # one of this name on another node is another endpoint, and stays
            mirror.override(key, None)


async def _restore(
    mirror: Mirror,
    commands: Commands,
    stored: Mapping[Key, StoreEntry],
    new_forks: Sequence[Fork],
    rewritten: Set[Key],
) -> None:
    """Write the entries that the store has lost, and delete those that an old state has brought back."""
    fork = new_forks[0].name
    missing = lost(mirror.entries, stored, min(fork.survived for fork in new_forks), rewritten)
    returned = deleted(mirror.entries, mirror.position, stored, rewritten)
    if missing or returned:
        _log.warning(
            "the store has lost %d entries and brought back %d deleted ones; restoring its state from this node",
            *(len(missing), len(returned)),
        )
    await commands.restore(missing, returned, mirror.position, labels=mirror.labels, fork=fork)
    if not mirror.refused:  # else a node that can decode the refused values restores more
        await commands.note_restored(fork, mirror.position)


async def _without_deleted(
    mirror: Mirror, commands: Commands, new_forks: Sequence[Fork], uncertain: Set[Key]
) -> tuple[dict[Key, StoreEntry], dict[Key, str]]:
    """Return the store's entries now, without deleted ones that a node which was behind has restored meanwhile."""
    stored, bad = await commands.scan()
    rewritten = await commands.written_since(new_forks[0].marker)
    if rewritten is not None:
        returned = deleted(mirror.entries, mirror.position, stored, rewritten | uncertain)
        left = await commands.restore((), returned, mirror.position, fork=new_forks[0].name)
        for key in set(returned) - left:
            del stored[key]
    return stored, bad
