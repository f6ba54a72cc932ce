"""Names of addresses: current until they expire, known until they are forgotten."""

from nfq_enforcer.core.tables.names import NameChange, NameTable
from tests.support.packets import packed

ONE, TWO = packed("192.0.2.1"), packed("2001:db8::1")


def test_a_name_has_an_address_until_it_expires() -> None:
    table = NameTable([NameChange("a", ONE, 10.0), NameChange("b", ONE, 20.0), NameChange("a", TWO, 10.0)])

    assert (table.current(ONE, 9.9), table.current(ONE, 10.0), table.current(ONE, 20.0)) == (["a", "b"], ["b"], [])
    assert [table.is_current("a", ONE, now) for now in (9.9, 10.0)] == [True, False]
    assert not table.is_current("c", ONE, 0.0)
    assert list(table.known(ONE)) == ["a", "b"]
    assert (list(table.known(b"none")), table.current(b"none", 0.0)) == ([], [])


def test_a_forgotten_name_is_gone() -> None:
    changes = [NameChange("a", ONE, 10.0), NameChange("b", ONE, 20.0)]
    table = NameTable(changes)
    assert list(table) == changes

    table.apply([NameChange("a", ONE, None), NameChange("c", ONE, None), NameChange("a", TWO, None)])
    assert list(table) == changes[1:]
    table.apply([NameChange("b", ONE, None)])
    assert (list(table), list(table.known(ONE))) == ([], [])
