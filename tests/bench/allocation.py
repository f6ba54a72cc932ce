"""Rate of endpoint starts that a store sustains: 50 concurrent clients, one command for each start."""

from statistics import median

from nfq_enforcer.lab.lab import Lab
from tests.bench.simulated import Simulation, simulate

_ENDPOINTS, _KINDS = 10_000, 100
KNOWN, NEW = "known labels", "new labels"

_KINDS_OF = {KNOWN: _KINDS, NEW: _ENDPOINTS}


async def measure(repetitions: int) -> dict[str, list[float]]:
    """Return the endpoint starts a second, one figure for each repetition."""
    figures: dict[str, list[float]] = {}
    async with Lab() as lab:
        for _ in range(repetitions):
            for name, kinds in _KINDS_OF.items():
                lab.store.restart(empty=True)
                if name is KNOWN:
                    await simulate(lab, "allocate", Simulation(lab.store.url, endpoints=_KINDS, kinds=_KINDS))
                result = await simulate(lab, "allocate", Simulation(lab.store.url, endpoints=_ENDPOINTS, kinds=kinds))
                if result["allocated"] != (0 if name is KNOWN else _ENDPOINTS):
                    raise RuntimeError(f"{result['allocated']} identities are new")
                figures.setdefault(name, []).append(_ENDPOINTS / result["seconds"])
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [(name, f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})") for name, rates in figures.items()]
