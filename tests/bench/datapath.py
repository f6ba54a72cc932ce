"""Cost of the data path, compared with no netfilter, the kernel alone, and minimal queue programs.

One interleaved run: in each repetition every contender has its turn at every place, and the first contender changes, so
that a temporary load of the machine affects all of them. No process is pinned to a core: with the traffic on one of two
cores and the queue's reader on the other, figures were the same, as long as the machine was otherwise idle.
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

_LOAD_CHECK = 0.2  # seconds over which the load of the otherwise idle machine is measured
_WARM_UP = 0.2  # seconds of each kind of traffic before the first measurement


@dataclass(frozen=True)
class Plan:
    """Plan: the contenders and places to measure, the repetitions, and the seconds of each kind of traffic."""

    repetitions: int
    seconds: float
    contenders: str = ""  # only contenders whose name contains this text
    places: str = ""  # only places whose name contains this text

    def selected(self, programs: Programs) -> list[Contender]:
        """Return the selected contenders."""
        chosen = [contender for contender in references(programs) if self.contenders in contender.name]
        return [*chosen, *map(engine, self.variants())]

    def check(self) -> None:
        """Raise BadInput if the plan selects no contender or no place."""
        names = [*REFERENCES, *(variant.name for variant in VARIANTS if refusal(variant) is None)]
        _check("contender", self.contenders, names)
        _check("place", self.places, [place.name for place in PLACES])

    def ways(self) -> list[Place]:
        """Return the selected places."""
        return [place for place in PLACES if self.places in place.name]

    def variants(self) -> list[Variant]:
        """Return the selected variants of the engine that the agent supports."""
        return [variant for variant in VARIANTS if self.contenders in variant.name and refusal(variant) is None]

    def left_out(self) -> dict[str, str]:
        """Return the names of the selected variants that the agent refuses, with its reason."""
        selected = [variant for variant in VARIANTS if self.contenders in variant.name]
        return {variant.name: reason for variant in selected if (reason := refusal(variant))}


def _check(noun: str, part: str, names: Sequence[str]) -> None:
    if not any(part in name for name in names):
        raise BadInput(f"no {noun} has '{part}' in its name; there are: {'; '.join(names)}")


class Run(NamedTuple):
    """Run: the figures of a run, and the load of the machine by other processes."""

    figures: Figures
    busy: list[float]  # shares of all cores used by other processes, measured between the contenders' turns


class Entrant:
    """Entrant: a contender that runs in its lab."""

    def __init__(self, name: str, lab: Lab, processes: Processes) -> None:
        self.name = name
        self.lab = lab
        self._processes = processes

    def at(self, place: Place) -> list[int]:
        """Return the processes that decide the verdicts of a place."""
        return [self._processes[node] for node in place.gates if node in self._processes]


def measure(plan: Plan, console: Console) -> Run:
    """Carry out a plan; remove labs, processes and programs at its end, also after an error."""
    with ExitStack() as stack:
        programs = Programs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entrants = []
        for contender in plan.selected(programs):
            console.print(f"  set up: {contender.name}")
            entrants.append(stack.enter_context(running(contender)))
        for place in plan.ways():
            for entrant in entrants:
                _turn(programs, entrant, place, _WARM_UP)
        return _interleaved(programs, entrants, plan, console)


def _interleaved(programs: Programs, entrants: Sequence[Entrant], plan: Plan, console: Console) -> Run:
    run = Run(Figures(), [])
    for repetition in range(plan.repetitions):
        for place in plan.ways():
            console.print(f"  repetition {repetition + 1} of {plan.repetitions}: {place.name}")
            run.busy.append(busy(_LOAD_CHECK))
            for entrant in _rotated(entrants, repetition):
                for quantity, figure in _turn(programs, entrant, place, plan.seconds).items():
                    run.figures.add(entrant.name, place.name, quantity, figure)
    return run


@contextmanager
def running(contender: Contender) -> Iterator[Entrant]:
    """Run a contender in a lab of its own."""
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
        return turn.measure(programs, entrant.lab, entrant.at(place), place, seconds)
    finally:
        place.leave(entrant.lab)
