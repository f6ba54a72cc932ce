"""Result of a soak: growth, verdict and document."""

from tests.bench.soak import Sample, SoakResult, markdown, quarters


def _result(*memory: float) -> SoakResult:
    return SoakResult("engine", tuple(Sample(minute, one, 1.0, 1.0, 1.0) for minute, one in enumerate(memory)))


def test_the_second_quarter_is_held_against_the_last() -> None:
    assert quarters([0, 1, 10, 12, 50, 60, 70, 74]) == (11, 72)


def test_tables_that_fill_at_first_are_no_growth() -> None:
    result = _result(10, 40, 50, 50, 50, 50, 50, 50.2)

    assert result.growth < 0.2
    assert not result.grew


def test_what_grows_all_the_time_has_grown() -> None:
    assert _result(50, 51, 52, 53, 54, 55, 56, 57).grew


def test_one_look_shows_no_growth() -> None:
    assert _result(50).growth == 0


def test_the_document_has_the_verdict_and_some_looks_with_the_last() -> None:
    text = markdown(_result(*[50.0] * 39, 51.0), "a machine")

    assert "engine: memory did not grow (+0.00 MiB from the second quarter of the time to the last)." in text
    assert "a machine; by `--soak`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 10 + 1
    assert rows[-1] == "| 39.0 | 51.00 | 1 | 1 | 1.00 |"
