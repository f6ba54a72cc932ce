"""What the data path costs, beside no netfilter, the kernel alone, and what others would write.

One interleaved run: in each repetition every contender has its turn at every place, and which begins changes, so that
what disturbs the machine for a while disturbs all. Nothing is pinned to a core: with the traffic on one of two cores
and the queue's reader on the other, figures were the same, as long as the machine had nothing else to do.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from nfq_enforcer.errors import BadInput
from nfq_enforcer.lab.lab import Lab
from tests.bench import turn
from tests.bench.contenders import REFERENCES, Contender, Processes, engine, references
from tests.bench.figures import Figures, Measure
from tests.bench.generators import Programs
from tests.bench.places import PLACES, Place
from tests.bench.processes import busy
from tests.bench.variants import VARIANTS, Variant, refusal

_LISTEN = 0.2  # seconds for which one looks whether the machine is busy with other things
_WARM_UP = 0.2  # seconds of each kind of traffic before any is measured


@dataclass(frozen=True)
class Plan:
    """What to run."""

    repetitions: int
    seconds: float
    contenders: str = ""  # only those whose name has this in it
    places: str = ""  # likewise

    def wanted(self, programs: Programs) -> list[Contender]:
        """Return all contenders that are wanted."""
        named = [one for one in references(programs) if self.contenders in one.name]
        return [*named, *map(engine, self.variants())]

    def check(self) -> None:
        """Raise BadInput if nothing is wanted that there is."""
        names = [*REFERENCES, *(one.name for one in VARIANTS if refusal(one) is None)]
        _check("contender", self.contenders, names)
        _check("place", self.places, [place.name for place in PLACES])

    def ways(self) -> list[Place]:
        """Return the places that are wanted."""
        return [place for place in PLACES if self.places in place.name]

    def variants(self) -> list[Variant]:
        """Return the engine's variants that are wanted and that there are."""
        return [one for one in VARIANTS if self.contenders in one.name and refusal(one) is None]

    def left_out(self) -> dict[str, str]:
        """Return the names of the engine's variants that there are not, and why."""
        return {one.name: reason for one in VARIANTS if self.contenders in one.name and (reason := refusal(one))}


def _check(what: str, wanted: str, names: Sequence[str]) -> None:
    if not any(wanted in name for name in names):
        raise BadInput(f"no {what} has '{wanted}' in its name; there are: {'; '.join(names)}")


class Run(NamedTuple):
    """What a run came to."""

    figures: Figures
    busy: list[float]  # shares of all cores that others took, as seen between the contenders' turns


class Entrant:
    """A contender at work in its lab."""

    def __init__(self, name: str, lab: Lab, processes: Processes) -> None:
        self.name = name
        self.lab = lab
        self._processes = processes

    def at(self, place: Place) -> list[int]:
        """Return the processes that judge what passes there."""
        return [self._processes[node] for node in place.gates if node in self._processes]


def measure(plan: Plan, console: Console) -> Run:
    """Return what a run came to; labs, processes and programs are gone when it ends, however it ends."""
    with ExitStack() as stack:
        programs = Programs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entrants = []
        for contender in plan.wanted(programs):
            console.print(f"  begins: {contender.name}")
            entrants.append(stack.enter_context(at_work(contender)))
        for place in plan.ways():
            for entrant in entrants:
                _turn(programs, entrant, place, _WARM_UP)
        return _interleaved(programs, entrants, plan, console)


def _interleaved(programs: Programs, entrants: Sequence[Entrant], plan: Plan, console: Console) -> Run:
    run = Run(Figures(), [])
    for repetition in range(plan.repetitions):
        for place in plan.ways():
            console.print(f"  repetition {repetition + 1} of {plan.repetitions}: {place.name}")
            run.busy.append(busy(_LISTEN))
            for entrant in _rotated(entrants, repetition):
                for one, figure in _turn(programs, entrant, place, plan.seconds).items():
                    run.figures.note(entrant.name, place.name, one, figure)
    return run


@contextmanager
def at_work(contender: Contender) -> Iterator[Entrant]:
    """Give a contender that is at work in a lab of its own."""
    lab = Lab()
    try:
        lab.up()
        yield Entrant(contender.name, lab, contender.begin(lab))
    finally:
        asyncio.run(lab.down())


def _rotated(entrants: Sequence[Entrant], by: int) -> list[Entrant]:
    by %= len(entrants)
    return [*entrants[by:], *entrants[:by]]


def _turn(programs: Programs, entrant: Entrant, place: Place, seconds: float) -> dict[Measure, float]:
    place.enter(entrant.lab)
    try:
        return turn.take(programs, entrant.lab, entrant.at(place), place, seconds)
    finally:
        place.leave(entrant.lab)
