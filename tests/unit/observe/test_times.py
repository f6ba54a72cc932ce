"""Times on the command line: ages, and points in time."""

import time
from collections.abc import Iterator

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.times import parse_duration, parse_time

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z, 02:00 in the zone of the tests


@pytest.fixture(autouse=True)
def two_hours_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "XXX-2")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("500ms", 0.5),
        ("2025-12-31T23:00:00Z", 3600),
        ("2025-12-31T23:00:00+00:00", 3600),
        ("2025-12-31T23:00:00.500Z", 3599.5),
        ("2026-01-01T01:00", 3600),
        ("2026-01-01", 7200),
        ("01:00", 3600),
        ("01:59:30", 30),
    ],
)
def test_a_time_is_an_age_or_a_point_in_time(text: str, before: float) -> None:
    assert parse_time(text, NOW) == pytest.approx(NOW - before)


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5x", "m", "-5m", "5 m", "25:00", "2026-13-01"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no time; allowed: an age such as 90s, 5m or 1h30m, or a time such as"):
        parse_time(text, NOW)


def test_a_duration_is_an_age() -> None:
    assert parse_duration("1h30m") == 5400

    with pytest.raises(BadInput, match="'09:30' is no duration"):
        parse_duration("09:30")
