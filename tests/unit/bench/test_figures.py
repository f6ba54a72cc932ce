"""Figures of a run: medians, ratios, and missing figures."""

import pytest

from tests.bench.figures import BULK, CPU, Figures, Spread


@pytest.fixture
def figures() -> Figures:
    figures = Figures()
    for contender, each in {"one": (1.0, 9.0, 2.0), "other": (4.0, 4.0, 8.0)}.items():
        for figure in each:
            figures.add(contender, "here", BULK, figure)
    return figures


def test_of_repetitions_the_median_counts_and_the_extremes_are_told(figures: Figures) -> None:
    assert figures.get("one", "here", BULK) == Spread(2.0, 1.0, 9.0, (1.0, 9.0, 2.0))


def test_a_ratio_is_one_of_medians(figures: Figures) -> None:
    assert figures.ratio("here", BULK, "one", "other") == 0.5


@pytest.mark.parametrize(("place", "contender"), [("there", "one"), ("here", "nobody")])
def test_what_was_not_measured_has_no_figure_and_no_ratio(figures: Figures, place: str, contender: str) -> None:
    assert figures.get(contender, place, BULK) is None
    assert figures.ratio(place, BULK, contender, "other") is None
    assert figures.ratio(place, BULK, "other", contender) is None


def test_there_is_no_ratio_to_nothing(figures: Figures) -> None:
    figures.add("idle", "here", BULK, 0.0)

    assert figures.ratio("here", BULK, "one", "idle") is None


def test_a_spread_reads_as_median_with_least_and_most() -> None:
    assert Spread.of([1234.56, 1000.0, 2000.0]).text(1) == "1,234.6 (1,000.0 to 2,000.0)"


def test_rows_hold_every_repetition_to_six_digits(figures: Figures) -> None:
    figures.add("one", "here", CPU, 1.23456789)

    assert figures.rows()[-1] == {
        "contender": "one",
        "place": "here",
        "measure": CPU.key,
        "median": 1.23457,
        "min": 1.23457,
        "max": 1.23457,
        "each": [1.23457],
    }


def test_contenders_and_places_come_in_the_order_of_the_run(figures: Figures) -> None:
    figures.add("a late one", "elsewhere", CPU, 1.0)

    assert figures.contenders() == ["one", "other", "a late one"]
    assert figures.places() == ["here", "elsewhere"]
