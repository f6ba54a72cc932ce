"""The engine at full rate for as long as one likes: whether it grows, and whether it gets slower."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console

from tests.bench import turn
from tests.bench.contenders import engine
from tests.bench.datapath import at_work
from tests.bench.figures import BULK, CONNECTIONS, DATAGRAMS, MEMORY
from tests.bench.generators import Programs
from tests.bench.places import FORWARDED
from tests.bench.population import FEW
from tests.bench.variants import VARIANTS, Variant, refusal

_HEADS = ["minute", "memory, MiB", "UDP packets/s", "new connections/s", "bulk TCP, Gb/s"]
_TURN = 10.0  # seconds of each kind of traffic
NOISE = 0.01  # of the memory: less is not growth


class Sample(NamedTuple):
    """A look at the engine."""

    minute: float
    memory: float  # MiB
    datagrams: float  # a second
    connections: float  # a second
    bulk: float  # Gb/s


class Soaked(NamedTuple):
    """What a soak came to."""

    contender: str
    samples: tuple[Sample, ...]

    @property
    def growth(self) -> float:
        """Return by how many MiB it grew, from the second quarter to the last; the first is for tables to fill."""
        before, after = quarters([one.memory for one in self.samples])
        return after - before

    @property
    def grew(self) -> bool:
        """Say whether that is more than noise."""
        return self.growth > NOISE * quarters([one.memory for one in self.samples])[0]

    @property
    def verdict(self) -> str:
        """Return the sentence that says so."""
        grew = "grew" if self.grew else "did not grow"
        since = "from the second quarter of the time to the last"
        return f"{self.contender}: memory {grew} ({self.growth:+.2f} MiB {since})."


def quarters(figures: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter."""
    size = max(1, len(figures) // 4)
    return median(figures[size : 2 * size] or figures), median(figures[-size:])


def measure(minutes: float, console: Console) -> Soaked:
    """Have all kinds of traffic judged for so many minutes by the first variant that there is."""
    variant = _first()
    with ExitStack() as stack:
        programs = Programs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entrant = stack.enter_context(at_work(engine(variant)))
        console.print("  " + " | ".join(_HEADS))
        samples: list[Sample] = []
        begun = time.monotonic()
        while (minute := (time.monotonic() - begun) / 60) < minutes or not samples:
            taken = turn.take(programs, entrant.lab, entrant.at(FORWARDED), FORWARDED, min(_TURN, minutes * 10))
            samples.append(Sample(minute, *(taken[one] for one in (MEMORY, DATAGRAMS, CONNECTIONS, BULK))))
            console.print("  " + " | ".join(line(samples[-1])))
    return Soaked(variant.name, tuple(samples))


def _first() -> Variant:
    return next(one for one in VARIANTS if one.policies == FEW and refusal(one) is None)


def markdown(soaked: Soaked, about: str) -> str:
    """Return a soak as a document, with about ten looks and the last."""
    looks = dict.fromkeys((*soaked.samples[:: max(1, len(soaked.samples) // 10)], soaked.samples[-1]))
    lines = [_HEADS, ["---"] * len(_HEADS), *map(line, looks)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"# The engine at full rate\n\n{about}; by `--soak` of `make bench`.\n\n{soaked.verdict}\n\n{table}\n"


def line(sample: Sample) -> list[str]:
    """Return what a row of the table has."""
    minute, memory, datagrams, connections, bulk = sample
    return [
        f"{minute:.1f}",
        f"{memory:.2f}",
        f"{datagrams:,.0f}",
        f"{connections:,.0f}",
        f"{bulk:.2f}",
    ]
