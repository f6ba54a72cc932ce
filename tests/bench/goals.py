"""Goals, as ratios within one run. Pure computation.

Goals apply to the engine with its first supported driver and with few policies, except the goals for many policies.
A goal at several places has one row for each place.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.bench.contenders import C_ACCEPT, KERNEL, NOTHING
from tests.bench.figures import BULK, CONNECT_P99, CONNECTIONS, CPU, DATAGRAMS, Figures, Measure
from tests.bench.places import FORWARDED, HOST, HOSTS, PLACES, SEGMENTED, STAMPED, Place
from tests.bench.population import FEW, MANY
from tests.bench.variants import DRIVERS, PER_FLOW, PER_PACKET, Variant

_UNSTAMPED = (HOST, FORWARDED)


class Goal(NamedTuple):
    """Goal: a bound on the ratio of the engine to a reference."""

    measure: Measure
    places: tuple[Place, ...]
    datapath: str
    reference: str
    bound: float


class Result(NamedTuple):
    """Result: the ratio of a goal at a place, and its bound."""

    figure: str
    place: str
    ratio: float | None
    bound: float
    at_most: bool

    @property
    def reached(self) -> bool | None:
        """Return whether the goal is reached, None without a measured ratio."""
        if self.ratio is None:
            return None
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


GOALS = (
    Goal(CPU, _UNSTAMPED, PER_PACKET, C_ACCEPT, 1.2),
    Goal(BULK, _UNSTAMPED, PER_PACKET, NOTHING, 0.75),
    Goal(BULK, (STAMPED,), PER_PACKET, NOTHING, 0.35),
    Goal(BULK, (SEGMENTED, HOSTS), PER_PACKET, NOTHING, 0.50),
    Goal(CONNECTIONS, _UNSTAMPED, PER_PACKET, C_ACCEPT, 1.0),
    Goal(CONNECTIONS, _UNSTAMPED, PER_FLOW, NOTHING, 0.75),
    Goal(CONNECT_P99, _UNSTAMPED, PER_PACKET, C_ACCEPT, 1.5),
    Goal(BULK, _UNSTAMPED, PER_FLOW, KERNEL, 0.95),
)
_MANY_BOUND = 0.95
_COMPARED = (CPU, DATAGRAMS, CONNECTIONS, CONNECT_P99, BULK)


def results(figures: Figures, variants: Sequence[Variant]) -> list[Result]:
    """Return the results of all goals; ``variants`` are the supported variants of the engine."""
    supported = {variant.driver for variant in variants}
    driver = next((name for name in DRIVERS if name in supported), DRIVERS[0])
    return [*_single(figures, driver), *_many(figures, driver)]


def _single(figures: Figures, driver: str) -> Iterator[Result]:
    for goal in GOALS:
        name = Variant(driver, goal.datapath, FEW).name
        text = f"{goal.measure.title}, {goal.datapath}, to {goal.reference}"
        for place in goal.places:
            ratio = figures.ratio(place.name, goal.measure, name, goal.reference)
            yield Result(text, place.name, ratio, goal.bound, not goal.measure.more_is_better)


def _many(figures: Figures, driver: str) -> Iterator[Result]:
    """Return the ratios of many policies to few, of few to many for times, so that a ratio below 1 is a loss."""
    many, few = Variant(driver, PER_PACKET, MANY).name, Variant(driver, PER_PACKET, FEW).name
    for measure in _COMPARED:
        pair = (many, few) if measure.more_is_better else (few, many)
        for place in PLACES:
            ratio = figures.ratio(place.name, measure, *pair)
            text = f"{measure.title}, {MANY:,} policies to {FEW}" + ("" if measure.more_is_better else " (inverse)")
            yield Result(text, place.name, ratio, _MANY_BOUND, at_most=False)
