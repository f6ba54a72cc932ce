"""Chart of a run's figures: a row for each place, a column for each measure, a bar for each contender."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.figures import BULK, CONNECT_P99, CONNECTIONS, CPU, DATAGRAMS, Figures, Measure
from tests.bench.population import MANY
from tests.bench.variants import DRIVERS

_MEASURES = (CPU, DATAGRAMS, CONNECTIONS, CONNECT_P99, BULK)
_STYLE: Any = {"svg.hashsalt": "nfq_enforcer", "svg.fonttype": "none", "font.size": 8}
_REFERENCE, _COLOURS = "0.6", dict(zip(DRIVERS, ("tab:blue", "tab:orange"), strict=True))
_BAR, _WIDTH, _MARGIN = 0.24, 3.2, 1.2  # inches


def draw(figures: Figures, title: str, file: Path) -> None:
    """Write the chart as SVG; equal figures give equal bytes."""
    places, contenders = figures.places(), figures.contenders()
    height = _MARGIN + len(places) * (_MARGIN + _BAR * len(contenders))
    with mpl.rc_context():
        mpl.rcParams.update(_STYLE)
        chart = Figure(figsize=(_WIDTH * (len(_MEASURES) + 1), height), layout="constrained")
        chart.suptitle(title)
        axes = chart.subplots(len(places), len(_MEASURES), sharey=True, squeeze=False)
        for place, row in zip(places, axes, strict=True):
            for measure, panel in zip(_MEASURES, row, strict=True):
                _panel(panel, figures, contenders, place, measure)
            row[0].set_ylabel(place)
        chart.savefig(file, format="svg", metadata={"Date": None})


def _panel(panel: Axes, figures: Figures, contenders: list[str], place: str, measure: Measure) -> None:
    for number, name in enumerate(contenders):
        spread = figures.get(name, place, measure)
        if spread is None:
            continue
        error = [[spread.median - spread.least], [spread.most - spread.median]]
        hatch = "//" if f"{MANY:,}" in name and name.startswith("nfq") else None
        panel.barh(number, spread.median, xerr=error, color=_colour(name), hatch=hatch, edgecolor="white", ecolor="0.2")
        panel.annotate(f" {spread.median:,.{measure.digits}f}", (spread.most, number), va="center", fontsize=7)
    panel.set_yticks(range(len(contenders)), contenders)
    panel.set_ylim(len(contenders) - 0.5, -0.5)
    panel.margins(x=0.25)
    panel.locator_params(axis="x", nbins=4)
    panel.set_title(f"{measure.title} ({'more' if measure.more_is_better else 'less'} is better)", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    return next((colour for driver, colour in _COLOURS.items() if f", {driver}," in name), _REFERENCE)
