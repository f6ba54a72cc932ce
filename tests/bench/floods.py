"""Cost of floods to others: echoes that an open flow keeps, and new connections, during a flood at full rate."""

import asyncio
from collections.abc import Iterator

from rich.console import Console

from nfq_enforcer.lab.lab import Lab
from tests.support import floods
from tests.support.floods import Outcome
from tests.support.labs import FRONT_TO_BACK, identities, stop_agents

COLUMNS = ("flood", "packets/s", "echoes kept", "connections", "failed", "slowest, s", "memory, MiB", "log lines")


def measure(seconds: float, console: Console) -> list[Outcome]:
    """Return the outcome of each kind of flood, at a lab of its own."""
    return asyncio.run(_measure(seconds, console))


async def _measure(seconds: float, console: Console) -> list[Outcome]:
    outcomes = []
    async with Lab() as lab:
        await lab.host("back2").serve("TCP", floods.SERVER_PORT)
        lab.start_agents()
        try:
            await lab.apply("first", FRONT_TO_BACK)
            for flood in floods.floods(identities(lab)["front1"]):
                outcomes.append(await asyncio.to_thread(floods.measure, lab, flood, seconds))
                console.print(f"  {flood.name}: {outcomes[-1].share_kept:.2%}")
        finally:
            stop_agents(lab)
    return outcomes


def table(outcomes: list[Outcome]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each flood, in the order of ``COLUMNS``."""
    for outcome in outcomes:
        before, after = (size / 1024 for size in outcome.memory)
        yield (
            outcome.flood,
            f"{outcome.packets / outcome.seconds:,.0f}",
            f"{outcome.kept} of {outcome.sent} ({outcome.share_kept:.1%})",
            str(len(outcome.opened)),
            str(outcome.failed),
            f"{max(outcome.opened, default=0):.2f}",
            f"{before:.0f} → {after:.0f}",
            str(outcome.log_lines),
        )
