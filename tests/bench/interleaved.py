"""Interleaved run: in each repetition every contender has its turn at every place, and the first contender changes."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple, Protocol

from rich.console import Console

from tests.bench.figures import Figures
from tests.bench.processes import busy
from tests.bench.report import BUSY

_LOAD_CHECK = 0.2  # seconds over which the load of the otherwise idle machine is measured
_WARM_UP = 1.0


class Turn(Protocol):
    """Turn: a contender at a place."""

    @property
    def place(self) -> str:
        """Return the place's name."""

    def run(self, figures: Figures, seconds: float) -> None:
        """Measure for so many seconds of each kind of traffic, and add the figures."""


class Run(NamedTuple):
    """Run: the figures of traffic, and the load of the machine by other processes."""

    figures: Figures
    busy: list[float]

    @property
    def warning(self) -> str:
        """Return a warning if other processes loaded the machine, else an empty string."""
        share = median(self.busy)
        text = f"Other processes loaded the machine ({share:.0%} of its cores): these figures are not reliable."
        return text if share > BUSY else ""

    def measure(self, turns: Sequence[Turn], repetitions: int, seconds: float, console: Console) -> None:
        """Give each turn its repetitions, after a warm-up, whose figures are not kept."""
        for turn in turns:
            turn.run(Figures(), _WARM_UP)
        for place in dict.fromkeys(turn.place for turn in turns):
            here = [turn for turn in turns if turn.place == place]
            for repetition in range(repetitions):
                console.print(f"  repetition {repetition + 1} of {repetitions}: {place}")
                self.busy.append(busy(_LOAD_CHECK))
                first = repetition % len(here)
                for turn in (*here[first:], *here[:first]):
                    turn.run(self.figures, seconds)
