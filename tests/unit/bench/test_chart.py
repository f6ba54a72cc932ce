"""Chart of a run."""

from pathlib import Path

from tests.bench import chart
from tests.bench.figures import BULK, CPU, Figures


def _drawn(file: Path) -> str:
    figures = Figures()
    for contender in ("no netfilter", "nfq_enforcer, netlink, per-packet, 10,000 policies"):
        for place in ("here", "there"):
            figures.add(contender, place, BULK, 12.0)
    figures.add("nfq_enforcer, netlink, per-packet, 10,000 policies", "here", CPU, 3.25)
    chart.draw(figures, "what and where", file)
    return file.read_text()


def test_a_chart_names_contenders_places_figures_and_the_machine(tmp_path: Path) -> None:
    drawn = _drawn(tmp_path / "one.svg")

    for text in ("no netfilter", "netlink, per-packet, 10,000 policies", "there", " 12.00", " 3.25", "what and where"):
        assert text in drawn


def test_the_same_figures_make_the_same_chart(tmp_path: Path) -> None:
    assert _drawn(tmp_path / "one.svg") == _drawn(tmp_path / "other.svg")
