"""Rows of the table of faults: counts, limits, text."""

from tests.faults.rows import Counts, Limits, Row, markdown

ENDED = {"flows": 2, "cut": 0, "cut_streams": 0, "new": 5, "new_failed": 0, "forbidden": 7, "gap": 0.02}


def counts(*, times: tuple[float, ...] = (), **ended: float) -> Counts:
    """Return the counts of one injection that began at 10 s."""
    found = Counts(since=10.0)
    found.add([{**ENDED, **ended}], [{"times": times, "ends": {"a to b port 1": len(times)} if times else {}}])
    return found


def test_without_limits_nothing_may_pass_and_nothing_may_be_cut() -> None:
    assert Limits().exceeded(counts(), 1) == []
    for found in (counts(times=(10.5,)), counts(cut=1), counts(new_failed=1)):
        assert len(Limits().exceeded(found, 1)) == 1


def test_a_row_without_traffic_shows_nothing_and_fails() -> None:
    assert Limits().exceeded(counts(forbidden=0), 1) == ["there was no traffic"]
    assert Limits().exceeded(counts(flows=0), 1) == ["there was no traffic"]


def test_forbidden_packets_pass_for_a_limited_time_only() -> None:
    limits = Limits(open_for=1.0)

    assert limits.exceeded(counts(times=(10.1, 10.9)), 1) == []
    (sentence,) = limits.exceeded(counts(times=(10.1, 11.5)), 1)
    assert sentence.startswith("2 forbidden packets were accepted, the last 1.500 s after the fault's begin: 2 from a")


def test_a_cut_and_a_refusal_are_allowed_where_they_are_stated() -> None:
    assert Limits(cuts=2).exceeded(counts(cut=6, cut_streams=6), 3) == []
    (sentence,) = Limits(cuts=2).exceeded(counts(cut=7, cut_streams=7), 3)
    assert sentence == "7 of 2 allowed flows were cut in which only the server sends; allowed: 6"
    (sentence,) = Limits(cuts=2).exceeded(counts(cut=1), 3)
    assert sentence == "1 of 2 allowed flows were cut in which the client sends; allowed: 0"
    assert Limits(client_cuts=1).exceeded(counts(cut=1), 1) == []
    assert Limits(refuses=True).exceeded(counts(new_failed=1), 1) == []


def test_injections_add_up_and_the_longest_gap_counts() -> None:
    total = Counts()
    total.merge(counts(gap=0.5, times=(10.1,)))
    total.merge(counts(gap=0.1))
    total.merge(Counts(figures=["3 rules in 2 s"]))

    row = Row("flush", 2, total, Limits(open_for=1.0, why="no rules"))

    assert row.cells() == ["flush", "2", "14", "1, for 100 ms", "0 of 4", "0 of 10", "500"]
    text = markdown([row])
    assert "| flush | 2 | 14 | 1, for 100 ms | 0 of 4 | 0 of 10 | 500 |" in text
    assert "- flush: no rules\n- flush: 3 rules in 2 s\n" in text
