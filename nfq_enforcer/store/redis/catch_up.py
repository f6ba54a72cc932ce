"""Getting up to date with the store, and staying so: from where a member is to where the store is.

Where nothing is missing in between, the stream is read on. Where something is (the member was away for long, the stream
was trimmed, the server was replaced) all entries are taken anew and the stream is read on from before that, so that
what was written meanwhile is not missed. A store that has lost something gets it back first (``merge``).
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.commands import Commands, Joined, NotJoined, Published
from nfq_enforcer.store.redis.history import Fork, gone, lost, unseen
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, StoreEntry, write_id

_log = logging.getLogger(__name__)
_MANY = 100  # changes after which others have a turn


async def get_up_to_date(entries: Mirror, store: Commands, joined: Joined, pending: Mapping[str, bytes]) -> None:
    """Bring the entries to where the store is.

    ``pending`` are endpoints of this node that the store has not been told of, or has not taken: their values, empty
    for those that are gone. They are told later, as news, for nobody else has ever known them. Raise StoreError or
    NotJoined if it fails; the entries are then as whole as they were.
    """
    new = unseen(joined.forks, entries.forks)
    if new or not await _can_resume(entries, store, joined):
        await _take_all(entries, store, joined, new, pending)
    while published := await store.read(entries.position, None):
        for one in published:
            await take(entries, one)


def may_lack_own(entries: Mirror, joined: Joined) -> bool:
    """Say whether the store may have lost endpoints of this node: only this node knows whether they are."""
    return not joined.registered or bool(unseen(joined.forks, entries.forks))


async def take(entries: Mirror, published: Published) -> None:
    """Take an entry of the stream; raise NotJoined if one before it is missing."""
    if published.foreign or not published.serial:
        entries.skip(f"changes {write_id(published.id)}", published.foreign or "it is nothing of ours")
        entries.position = published.id
        entries.serial += published.serial == entries.serial + 1  # ours, but of a version that says more
        return
    if published.serial != entries.serial + 1:
        raise NotJoined(f"change {entries.serial + 1} is missing, the next is {published.serial}")
    entries.position, entries.serial = published.id, published.serial
    for key, number, value in published.changes:
        if not (published.collected and entries.is_own(key)):  # who collected it has lost sight of this node
            entries.accept(key, number, value)
    if published.revision is not None:
        entries.revision = max(entries.revision, published.revision)
    if len(published.changes) > _MANY:
        await asyncio.sleep(0)


async def _can_resume(entries: Mirror, store: Commands, joined: Joined) -> bool:
    """Say whether nothing is missing between what is known and what the stream has."""
    if not entries.position:
        return False
    following = await store.read(entries.position, None)
    return following[0].serial == entries.serial + 1 if following else joined.serial == entries.serial


async def _take_all(
    entries: Mirror,
    store: Commands,
    joined: Joined,
    new: Sequence[Fork],
    pending: Mapping[str, bytes],
) -> None:
    """Hold what the store holds, having given back what it has lost."""
    theirs, bad = await store.scan()
    # who knows nothing has nothing to give back, and need not read the whole stream
    anew = await store.since(new[0].marker) if new and entries.entries else None
    if anew is not None and entries.reach > min(fork.survived for fork in new):
        unclear = entries.refused.keys() | {(Kind.ENDPOINT, name) for name in pending}
        await _give_back(entries, store, theirs, new, anew | unclear)
        theirs, bad = await _without_gone(entries, store, new, unclear)
    for name in entries.own if may_lack_own(entries, joined) else ():
        key = Kind.ENDPOINT, name
        if key not in theirs and key not in (anew or ()):
            theirs[key] = entries.entries[key]
    for name, value in pending.items():
        theirs.pop((Kind.ENDPOINT, name), None)
        if value:
            theirs[Kind.ENDPOINT, name] = StoreEntry(entries.position, value)
    for _ in entries.replacing(theirs, bad):
        await asyncio.sleep(0)
    for name, value in pending.items():  # those, too, that have come up meanwhile
        entries.assume((Kind.ENDPOINT, name), StoreEntry(entries.position, value) if value else None)
    entries.position, entries.serial, entries.revision = joined.last, joined.serial, joined.revision
    entries.forks = frozenset(fork.name for fork in joined.forks)  # with them, for it is on this side of them now


async def _give_back(
    entries: Mirror, store: Commands, theirs: Mapping[Key, StoreEntry], new: Sequence[Fork], since: Set[Key]
) -> None:
    """Give the store what it has lost."""
    fork = new[0].name
    missing = lost(entries.entries, theirs, min(fork.survived for fork in new), since)
    away = gone(entries.entries, entries.position, theirs, since)
    if missing or away:
        _log.warning(
            "the store has come back without %d entries that this node knows, and with %d that had gone; it gets them",
            *(len(missing), len(away)),
        )
    await store.restore(missing, away, entries.position, labels=entries.labels, fork=fork)
    if not entries.refused:  # else: who understands those knows more
        await store.note_restored(fork, entries.position)


async def _without_gone(
    entries: Mirror, store: Commands, new: Sequence[Fork], unclear: Set[Key]
) -> tuple[dict[Key, StoreEntry], dict[Key, str]]:
    """Return what is in the store now, without what a member that was behind has brought back at the same time."""
    theirs, bad = await store.scan()
    anew = await store.since(new[0].marker)
    if anew is not None:
        away = gone(entries.entries, entries.position, theirs, anew | unclear)
        left = await store.restore((), away, entries.position, fork=new[0].name)
        for key in set(away) - left:
            del theirs[key]
    return theirs, bad
