"""Soak: the engine at full rate for a given time, to detect growth of its memory and loss of speed."""

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
from tests.bench.datapath import running
from tests.bench.figures import BULK, CONNECTIONS, DATAGRAMS, MEMORY
from tests.bench.generators import Programs
from tests.bench.places import FORWARDED
from tests.bench.population import FEW
from tests.bench.variants import VARIANTS, Variant, refusal

_HEADINGS = ["minute", "memory, MiB", "UDP packets/s", "new connections/s", "bulk TCP, Gb/s"]
_TURN = 10.0  # seconds of each kind of traffic
NOISE = 0.01  # of the memory; a smaller increase does not count as growth


class Sample(NamedTuple):
    """Sample: the engine's figures at one moment of a soak."""

    minute: float
    memory: float  # MiB
    datagrams: float  # a second
    connections: float  # a second
    bulk: float  # Gb/s


class SoakResult(NamedTuple):
    """SoakResult: the samples of a soak."""

    contender: str
    samples: tuple[Sample, ...]

    @property
    def growth(self) -> float:
        """Return the growth in MiB from the second quarter to the last; tables fill in the first quarter."""
        before, after = quarters([sample.memory for sample in self.samples])
        return after - before

    @property
    def grew(self) -> bool:
        """Return whether the growth exceeds noise."""
        return self.growth > NOISE * quarters([sample.memory for sample in self.samples])[0]

    @property
    def verdict(self) -> str:
        """Return one sentence on the growth."""
        grew = "grew" if self.grew else "did not grow"
        since = "from the second quarter of the time to the last"
        return f"{self.contender}: memory {grew} ({self.growth:+.2f} MiB {since})."


def quarters(figures: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and the last quarter."""
    size = max(1, len(figures) // 4)
    return median(figures[size : 2 * size] or figures), median(figures[-size:])


def measure(minutes: float, console: Console) -> SoakResult:
    """Send all kinds of traffic through the first supported variant for so many minutes."""
    variant = _first()
    with ExitStack() as stack:
        programs = Programs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        entrant = stack.enter_context(running(engine(variant)))
        console.print("  " + " | ".join(_HEADINGS))
        samples: list[Sample] = []
        begun = time.monotonic()
        while (minute := (time.monotonic() - begun) / 60) < minutes or not samples:
            measured = turn.measure(programs, entrant.lab, entrant.at(FORWARDED), FORWARDED, min(_TURN, minutes * 10))
            samples.append(Sample(minute, *(measured[quantity] for quantity in (MEMORY, DATAGRAMS, CONNECTIONS, BULK))))
            console.print("  " + " | ".join(line(samples[-1])))
    return SoakResult(variant.name, tuple(samples))


def _first() -> Variant:
    return next(variant for variant in VARIANTS if variant.policies == FEW and refusal(variant) is None)


def markdown(result: SoakResult, about: str) -> str:
    """Render a soak as a Markdown document, with about ten samples and the last one."""
    samples = dict.fromkeys((*result.samples[:: max(1, len(result.samples) // 10)], result.samples[-1]))
    lines = [_HEADINGS, ["---"] * len(_HEADINGS), *map(line, samples)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"# The engine at full rate\n\n{about}; by `--soak` of `make bench`.\n\n{result.verdict}\n\n{table}\n"


def line(sample: Sample) -> list[str]:
    """Return the cells of a sample's row."""
    minute, memory, datagrams, connections, bulk = sample
    return [
        f"{minute:.1f}",
        f"{memory:.2f}",
        f"{datagrams:,.0f}",
        f"{connections:,.0f}",
        f"{bulk:.2f}",
    ]
