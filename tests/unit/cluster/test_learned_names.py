"""Learned names: bounds by endpoint, by name and in all, and the changes that workers get."""

import pytest

from nfq_enforcer.cluster import learned_names
from nfq_enforcer.cluster.learned_names import LearnedName, LearnedNames
from nfq_enforcer.core.tables.names import NameChange, NameTable


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


ONE, TWO = address(1), address(2)


def test_an_address_counts_for_the_longest_time_of_all_endpoints() -> None:
    names = LearnedNames()

    assert names.learn("web", "a", [(ONE, 10.0), (TWO, 10.0)]) == [
        NameChange("a", ONE, 10.0),
        NameChange("a", TWO, 10.0),
    ]
    assert names.learn("web", "a", [(ONE, 5.0)]) == [NameChange("a", ONE, 10.0)]
    assert names.learn("db", "a", [(ONE, 20.0)]) == [NameChange("a", ONE, 20.0)]
    assert (names.names, names.addresses) == (2, 3)
    assert list(names) == [LearnedName("web", "a", {ONE: 10.0, TWO: 10.0}), LearnedName("db", "a", {ONE: 20.0})]


def test_names_are_forgotten_an_hour_after_their_time_or_with_their_endpoint() -> None:
    names = LearnedNames()
    names.learn("web", "a", [(ONE, 10.0)])
    names.learn("db", "a", [(ONE, 20.0)])
    names.learn("db", "b", [(TWO, 100.0)])
    names.learn("db", "empty", [])

    assert names.collect(3600.0, ["web", "db"]) == []
    assert names.collect(3615.0, ["web", "db"]) == [NameChange("a", ONE, 20.0)]
    assert names.collect(3615.0, ["web"]) == [NameChange("a", ONE, None), NameChange("b", TWO, None)]
    assert (names.names, names.addresses, list(names)) == (0, 0, [])


def test_an_endpoint_with_many_names_displaces_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_names, "MAX_NAMES_OF_ENDPOINT", 3)
    names = LearnedNames()
    names.learn("db", "kept", [(ONE, 10.0)])
    for name in ("a", "b", "c", "a"):
        names.learn("web", name, [(TWO, 10.0)])

    assert names.learn("web", "d", [(ONE, 10.0)]) == [NameChange("d", ONE, 10.0), NameChange("b", TWO, None)]
    assert ([learned.name for learned in names], names.evicted) == (["kept", "c", "a", "d"], 1)


def test_a_name_with_many_addresses_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_names, "MAX_ADDRESSES_OF_NAME", 2)
    names = LearnedNames()
    names.learn("web", "a", [(ONE, 10.0), (TWO, 10.0)])

    changes = names.learn("web", "a", [(ONE, 11.0), (address(3), 12.0)])

    assert changes == [NameChange("a", ONE, 11.0), NameChange("a", address(3), 12.0), NameChange("a", TWO, None)]
    assert (names.addresses, names.evicted) == (2, 1)


@pytest.mark.parametrize("bound", ["MAX_NAMES", "MAX_ADDRESSES"])
def test_the_endpoint_with_most_names_gives_way(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_names, bound, 4)
    names = LearnedNames()
    for name in ("a", "b", "c"):
        names.learn("web", name, [(ONE, 10.0)])
    names.learn("db", "x", [(ONE, 10.0)])

    assert names.learn("db", "y", [(TWO, 10.0)]) == [NameChange("y", TWO, 10.0), NameChange("a", ONE, None)]


def test_the_changes_make_the_same_table_as_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_names, "MAX_NAMES_OF_ENDPOINT", 5)
    monkeypatch.setattr(learned_names, "MAX_NAMES", 8)
    monkeypatch.setattr(learned_names, "MAX_ADDRESSES_OF_NAME", 3)
    names, table = LearnedNames(), NameTable()
    for step in range(400):
        endpoint, name = f"e{step % 3}", f"n{step * 7 % 11}"
        table.apply(
            names.learn(endpoint, name, [(address(step * 5 % 13), float(step)), (address(step % 4), step + 9.0)])
        )

    state: dict[tuple[str, bytes], float] = {}
    for learned in names:
        for one, expires in learned.addresses.items():
            state[learned.name, one] = max(expires, state.get((learned.name, one), 0.0))
    assert {(name, one): expires for name, one, expires in table} == state
    assert names.names == len(list(names))
    assert names.addresses == sum(len(learned.addresses) for learned in names)
