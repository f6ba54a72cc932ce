"""What is to be reached, as ratios inside one run. Only computes.

The engine in these is its driver that comes first among those that there are, with few policies, except where a goal is
about many. Where a figure is taken at several places, each is a row of its own.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.bench.contenders import C_ACCEPT, KERNEL, NOTHING
from tests.bench.figures import BULK, CONNECT_P99, CONNECTIONS, CPU, DATAGRAMS, Figures, Measure
from tests.bench.places import FORWARDED, HOST, HOSTS, PLACES, SEGMENTED, STAMPED, Place
from tests.bench.population import FEW, MANY
from tests.bench.variants import DRIVERS, PER_FLOW, PER_PACKET, Variant

_JUDGED = (HOST, FORWARDED)


class Goal(NamedTuple):
    """A ratio that the engine shall reach."""

    measure: Measure
    places: tuple[Place, ...]
    datapath: str
    reference: str
    bound: float


class Result(NamedTuple):
    """What became of a goal at a place."""

    figure: str
    place: str
    ratio: float | None
    bound: float
    at_most: bool

    @property
    def reached(self) -> bool | None:
        """Say whether it was reached, None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


GOALS = (
    Goal(CPU, _JUDGED, PER_PACKET, C_ACCEPT, 1.2),
    Goal(BULK, _JUDGED, PER_PACKET, NOTHING, 0.75),
    Goal(BULK, (STAMPED,), PER_PACKET, NOTHING, 0.35),
    Goal(BULK, (SEGMENTED, HOSTS), PER_PACKET, NOTHING, 0.50),
    Goal(CONNECTIONS, _JUDGED, PER_PACKET, C_ACCEPT, 1.0),
    Goal(CONNECTIONS, _JUDGED, PER_FLOW, NOTHING, 0.75),
    Goal(CONNECT_P99, _JUDGED, PER_PACKET, C_ACCEPT, 1.5),
    Goal(BULK, _JUDGED, PER_FLOW, KERNEL, 0.95),
)
_MANY_BOUND = 0.95
_COMPARED = (CPU, DATAGRAMS, CONNECTIONS, CONNECT_P99, BULK)


def results(figures: Figures, variants: Sequence[Variant]) -> list[Result]:
    """Return what became of every goal; ``variants`` are those of the engine that there are."""
    driver = next((one for one in DRIVERS if any(variant.driver == one for variant in variants)), DRIVERS[0])
    return [*_single(figures, driver), *_many(figures, driver)]


def _single(figures: Figures, driver: str) -> Iterator[Result]:
    for goal in GOALS:
        name = Variant(driver, goal.datapath, FEW).name
        text = f"{goal.measure.title}, {goal.datapath}, to {goal.reference}"
        for place in goal.places:
            ratio = figures.ratio(place.name, goal.measure, name, goal.reference)
            yield Result(text, place.name, ratio, goal.bound, not goal.measure.more_is_better)


def _many(figures: Figures, driver: str) -> Iterator[Result]:
    """Compare many policies with few; for times the other way round, so that less than 1 is always worse."""
    many, few = Variant(driver, PER_PACKET, MANY).name, Variant(driver, PER_PACKET, FEW).name
    for measure in _COMPARED:
        pair = (many, few) if measure.more_is_better else (few, many)
        for place in PLACES:
            ratio = figures.ratio(place.name, measure, *pair)
            text = f"{measure.title}, {MANY:,} policies to {FEW}" + ("" if measure.more_is_better else " (inverse)")
            yield Result(text, place.name, ratio, _MANY_BOUND, at_most=False)
