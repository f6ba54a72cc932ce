"""How many endpoints a store can take in a second: 50 clients at once, each start a command of its own."""

from statistics import median

from nfq_enforcer.lab.lab import Lab
from tests.bench.simulated import Simulation, simulate

_ENDPOINTS, _KINDS = 10_000, 100
KNOWN, NEW = "labels that are known", "labels that nobody has had"

_KINDS_OF = {KNOWN: _KINDS, NEW: _ENDPOINTS}


async def measure(repetitions: int) -> dict[str, list[float]]:
    """Return how many endpoints were started a second, a figure a repetition."""
    figures: dict[str, list[float]] = {}
    async with Lab() as lab:
        for _ in range(repetitions):
            for name, kinds in _KINDS_OF.items():
                lab.store.restart(empty=True)
                if name is KNOWN:
                    await simulate(lab, "allocate", Simulation(lab.store.url, endpoints=_KINDS, kinds=_KINDS))
                done = await simulate(lab, "allocate", Simulation(lab.store.url, endpoints=_ENDPOINTS, kinds=kinds))
                if done["allocated"] != (0 if name is KNOWN else _ENDPOINTS):
                    raise RuntimeError(f"{done['allocated']} identities are new")
                figures.setdefault(name, []).append(_ENDPOINTS / done["seconds"])
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [(name, f"{median(of):,.0f} ({min(of):,.0f} to {max(of):,.0f})") for name, of in figures.items()]
