"""Corpora of the fuzz targets as ordinary tests: no input breaks the promise of its target."""

import pytest

from tests.fuzz import corpus
from tests.fuzz.inputs import Input, string
from tests.fuzz.minimise import covered, minimise

TARGETS = [
    *("agent_messages", "ctnetlink", "decide", "dns", "documents", "http", "nfqueue"),
    *("quotes", "reports", "requests", "stamps", "store_values"),
]


@pytest.mark.parametrize("name", corpus.NAMES)
def test_no_input_breaks_the_promise_of_its_target(name: str) -> None:
    check = corpus.target(name).check

    for data in corpus.read(name):
        check(data)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_no_seed_breaks_the_promise_of_its_target(name: str) -> None:
    check, seeds = corpus.target(name)

    for data in seeds:
        check(data)


def test_each_target_has_a_small_corpus() -> None:
    assert corpus.NAMES == TARGETS
    for name in corpus.NAMES:
        assert 0 < sum(map(len, corpus.read(name))) <= corpus.MAX_BYTES


def test_an_input_is_read_in_order_and_then_gives_zeros() -> None:
    given = Input(b"\x05" + string(b"ab") + b"rest")

    assert (given.choose("abc"), given.string(), given.has_more) == ("c", b"ab", True)
    assert (given.rest(), given.has_more, given.byte(), given.string()) == (b"rest", False, 0, b"")


def test_of_inputs_that_cover_the_same_the_shortest_stays() -> None:
    check = corpus.target("stamps").check
    long, short, nothing = b"\x45" + bytes(30), b"\x45" + bytes(20), b""

    assert covered(check, long) == covered(check, short) != covered(check, nothing)
    assert minimise(check, [long, short], 100) == [short]
