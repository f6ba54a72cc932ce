"""Restoration of a store that has lost entries: all entries of the furthest node return, and no deleted ones."""

from collections.abc import Iterable, Mapping, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.history import Fork, deleted, lost, read_forks, sorted_for_store, unseen
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry

WEB, DB = (Kind.ENDPOINT, "default/web"), (Kind.ENDPOINT, "default/db")
POLICY, NODE, NUMBER = (Kind.DOCUMENT, "NetworkPolicy/default/p"), (Kind.NODE, "n1"), (Kind.IDENTITY, "300")
NOTHING: frozenset[Key] = frozenset()
R1, R2 = "a" * 40, "b" * 40


class TestForks:
    def test_forks_are_read_as_the_store_lists_them(self) -> None:
        first, second = Fork(f"{R1}@1-0", 1 << 32, 0), Fork(f"{R2}@5-2", 5 << 32 | 2, 4 << 32 | 1)

        assert read_forks("") == ()
        assert read_forks(f"{R1}@1-0 0-0,{R2}@5-2 4-1") == (first, second)
        assert unseen((first, second), {first.name}) == (second,)
        assert unseen((first, second), {first.name, second.name, "older"}) == ()

    @pytest.mark.parametrize("text", ["x", f"{R1} 0-0", f"{R1}@ 0-0", f"{R1}@1-0", f"{R1}@1-0 x", "@x y"])
    def test_what_is_no_fork_is_said(self, text: str) -> None:
        with pytest.raises(SchemaError, match="is not"):
            read_forks(text)


class TestLost:
    def test_what_was_written_after_what_survived_is_lost_if_it_is_not_there(self) -> None:
        assert lost({WEB: StoreEntry(5, b"w"), DB: StoreEntry(6, b"d")}, {}, 5, NOTHING) == ((DB, StoreEntry(6, b"d")),)

    def test_what_is_there_as_it_was_before_is_lost_as_it_was_last(self) -> None:
        assert lost({WEB: StoreEntry(6, b"new")}, {WEB: StoreEntry(3, b"old")}, 5, NOTHING) == (
            (WEB, StoreEntry(6, b"new")),
        )

    def test_what_somebody_has_given_back_is_not_lost(self) -> None:
        assert lost({WEB: StoreEntry(6, b"w")}, {WEB: StoreEntry(6, b"w")}, 5, NOTHING) == ()
        assert lost({WEB: StoreEntry(6, b"w")}, {WEB: StoreEntry(7, b"w")}, 5, NOTHING) == ()

    def test_what_was_written_since_wins(self) -> None:
        assert lost({WEB: StoreEntry(6, b"w"), DB: StoreEntry(6, b"d")}, {WEB: StoreEntry(3, b"x")}, 0, {WEB, DB}) == ()

    def test_policy_comes_back_before_what_it_is_about(self) -> None:
        order = [POLICY, NUMBER, NODE, WEB]
        entries = {key: StoreEntry(1, b"") for key in reversed(order)}

        assert [key for key, _ in lost(entries, {}, 0, NOTHING)] == order
        assert [key for key, _ in sorted_for_store(entries.items())] == order


class TestGone:
    def test_what_came_back_and_had_gone_is_taken_away(self) -> None:
        assert deleted({WEB: StoreEntry(3, b"w")}, 9, {WEB: StoreEntry(3, b"w"), DB: StoreEntry(4, b"d")}, NOTHING) == (
            DB,
        )

    def test_what_is_later_than_what_a_member_knows_stays(self) -> None:
        assert deleted({}, 9, {WEB: StoreEntry(9, b"w"), DB: StoreEntry(10, b"d")}, NOTHING) == (WEB,)

    def test_what_was_written_since_stays(self) -> None:
        assert deleted({}, 9, {WEB: StoreEntry(4, b"w")}, {WEB}) == ()

    def test_identities_stay_for_whoever_has_them_again(self) -> None:
        assert deleted({}, 9, {NUMBER: StoreEntry(4, b"")}, NOTHING) == ()


# -- a cluster, its crash, and the return of one node after the other ------------------------------------------------

Held = dict[Key, StoreEntry]
KEYS = [WEB, DB, POLICY, NODE]
WRITES = st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=12)


def held_after(writes: Iterable[tuple[Key, bool]], base: Mapping[Key, StoreEntry], first: int) -> Held:
    """Return the entries after writes (or removals) with ids from ``first`` on."""
    held = dict(base)
    for number, (key, there) in enumerate(writes, first):
        held.pop(key, None)
        if there:
            held[key] = StoreEntry(number, str(number).encode())
    return held


def rejoin(store: Held, survived: int, since: Set[Key], mine: Held, position: int) -> int:
    """Restore the lost entries from one node, as ``catch_up`` does; return the new ``survived``."""
    if position <= survived:
        return survived
    back, away = lost(mine, store, survived, since), deleted(mine, position, store, since)
    store.update(back)
    for key in away:
        del store[key]
    return position


@given(WRITES, st.data(), WRITES)
def test_whoever_comes_first_the_store_ends_with_what_the_furthest_knew_and_what_was_written_since(
    writes: list[tuple[Key, bool]], data: st.DataObject, later: list[tuple[Key, bool]]
) -> None:
    places = st.integers(0, len(writes))
    survived = data.draw(st.just(0) | places, "survived")
    positions = data.draw(st.lists(places, min_size=1, max_size=4), "positions of the members, as they come")
    store, base, since = held_after(writes[:survived], {}, 1), survived, set[Key]()
    for place, position in enumerate(positions):
        base = rejoin(store, base, since, held_after(writes[:position], {}, 1), position)
        new = later[place::4]  # written between the return of two nodes
        store = held_after(new, store, 100 * (place + 1))
        since |= {key for key, _ in new}

    furthest = held_after(writes[: max(survived, *positions)], {}, 1)
    assert {key: one for key, one in store.items() if key not in since} == {
        key: one for key, one in furthest.items() if key not in since
    }
    for key in since:
        last = [
            there
            for one, there in [write for place in range(len(positions)) for write in later[place::4]]
            if one == key
        ]
        assert (key in store) == last[-1]
