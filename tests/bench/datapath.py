"""What the data path costs: the same traffic in the lab with no rule of ours, and with every packet judged."""

from statistics import median, quantiles

from nfq_enforcer.lab.lab import Lab

_BULK = 64 << 20
_CONNECTIONS = 300
_PATHS = {"on one node, judged": ("front1", "back1"), "across nodes, stamped and judged": ("front1", "back2")}

Figures = dict[tuple[str, str], dict[str, list[float]]]
"""By (path, measure): the figures without and with the engine."""


async def measure(repetitions: int) -> Figures:
    """Return figures of interleaved repetitions: each without the agents, then with them."""
    figures: Figures = {}
    async with Lab() as lab:
        for _, target in _PATHS.values():
            await lab.host(target).serve("TCP", 80)
        for _ in range(repetitions):
            await _round(lab, "none", figures)
            lab.start_agents()
            await _round(lab, "engine", figures)
            for node in lab.nodes.values():
                node.stop()
    return figures


async def _round(lab: Lab, engine: str, figures: Figures) -> None:
    for path, (source, target) in _PATHS.items():
        host, address = lab.host(source), lab.address(target)
        await host.connect(address, 80)  # neighbours and flows of the first packet are not what is measured
        bulk = await host.bulk(address, 80, _BULK)
        if not bulk.intact:
            raise RuntimeError(f"{source} to {target}: {bulk}")
        times = [(await host.connect(address, 80)).elapsed * 1e6 for _ in range(_CONNECTIONS)]
        measured = {
            "bulk TCP, Gb/s": _BULK * 8 / bulk.elapsed / 1e9,
            "connect and ask, median µs": median(times),
            "connect and ask, p99 µs": quantiles(times, n=100)[98],
        }
        for name, figure in measured.items():
            figures.setdefault((path, name), {}).setdefault(engine, []).append(figure)


def table(figures: Figures) -> list[tuple[str, str, str, str, str]]:
    """Return rows of path, measure, both medians with their ranges, and the ratio of the medians."""
    return [
        (path, name, _spread(of["none"]), _spread(of["engine"]), f"{median(of['engine']) / median(of['none']):.2f}")
        for (path, name), of in figures.items()
    ]


def _spread(of: list[float]) -> str:
    digits = 2 if max(of) < 100 else 0
    return f"{median(of):.{digits}f} ({min(of):.{digits}f} to {max(of):.{digits}f})"
