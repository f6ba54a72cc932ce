"""Report of a run as tables, Markdown and JSON."""

import json
from datetime import date

from tests.bench import report
from tests.bench.contenders import C_ACCEPT, NOTHING
from tests.bench.figures import BULK, CPU, MEMORY, Figures
from tests.bench.goals import Result
from tests.bench.report import Report


def _report(busy: tuple[float, ...] = (0.01,)) -> Report:
    figures = Figures()
    figures.add(NOTHING, "here", BULK, 10.0)
    for cpu, bulk in ((3.0, 2.0), (3.5, 2.5), (4.0, 3.0)):
        figures.add(C_ACCEPT, "here", CPU, cpu)
        figures.add(C_ACCEPT, "here", BULK, bulk)
    figures.add(C_ACCEPT, "here", MEMORY, 1.0)
    results = [Result("bulk", "here", 0.25, 0.5, False), Result("cpu", "here", None, 1.2, True)]
    left_out = {"a driver": "not supported"}
    return Report(date(2026, 1, 2), {"cpu": "some", "cores": "2"}, 3, 1.0, busy, figures, left_out, results)


def test_a_cell_has_median_ratio_and_range_and_a_dash_where_nothing_was_measured() -> None:
    nothing, accepts = report.rows(_report().figures, "here")

    assert nothing == [NOTHING, "–", "–", "–", "–", "–", "10.00 (1.00)\n10.00 to 10.00", "–"]
    assert accepts[1] == "3.50 (1.00)\n3.00 to 4.00"
    assert accepts[6] == "2.50 (0.25)\n2.00 to 3.00"


def test_memory_has_no_ratio() -> None:
    assert report.rows(_report().figures, "here")[1][-1] == "1.0\n1.0 to 1.0"


def test_a_goal_says_what_was_reached_or_that_it_was_not_measured() -> None:
    assert report.goal_rows(_report().results) == [
        ["bulk", "here", "≥ 0.50", "0.25", "no"],
        ["cpu", "here", "≤ 1.20", "not measured", "–"],
    ]


def test_the_document_names_the_machine_what_was_left_out_and_why() -> None:
    text = report.markdown(_report())

    assert "2026-01-02: cpu some, cores 2; interleaved repetitions: 3, of 1 s each." in text
    assert "Not there: a driver (not supported)." in text
    assert "| bulk | here | ≥ 0.50 | 0.25 | no |" in text


def test_a_busy_machine_is_told() -> None:
    assert _report().warning == ""
    assert "(40% of its cores)" in report.markdown(_report(busy=(0.0, 0.4, 0.5)))


def test_json_is_whole_and_has_a_line_for_each_figure() -> None:
    text = report.as_json(_report())
    read = json.loads(text)

    assert read["figures"] == _report().figures.rows()
    assert read["goals"][0]["reached"] is False
    assert all(json.dumps(row, ensure_ascii=False) in text for row in read["figures"])
