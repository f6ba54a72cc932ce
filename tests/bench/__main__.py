"""``make bench``: all measurements, as tables. Absolute figures are this machine's; ratios travel."""

import argparse
import asyncio
import os
import platform

from rich.console import Console
from rich.table import Table

from tests.bench import allocation, churn, core, datapath, peers, policy, scale, startup


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--seconds", type=float, default=60, help="how long a churn lasts")
    options.add_argument("--starts", type=int, default=200, help="endpoints started on each path")
    options.add_argument("--cluster", action="store_true", help="only what a cluster on Redis costs")
    chosen = options.parse_args()
    console = Console(width=140)
    console.print(
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    )
    if not chosen.cluster:
        _node(console, chosen.repetitions)
    _cluster(console, chosen.repetitions, chosen.starts, chosen.seconds)


def _node(console: Console, repetitions: int) -> None:
    """Print what a node costs by itself."""
    cost = Table("decision", "median (min to max)", title=f"The core alone, {repetitions} repetitions")
    for row in core.table(core.measure(repetitions)):
        cost.add_row(*row)
    console.print(cost)

    scale = Table("policy", "median (min to max)", title=f"The compiler at scale, {repetitions} repetitions")
    for row in policy.table(policy.measure(repetitions)):
        scale.add_row(*row)
    console.print(scale)

    changes = Table("changes", "median (min to max)", title=f"Changes of peers, {repetitions} repetitions")
    for row in peers.table(peers.measure(repetitions)):
        changes.add_row(*row)
    console.print(changes)

    path = Table(
        *("path", "measure", "no rules", "engine", "ratio"),
        title=f"The data path in the lab, {repetitions} interleaved repetitions, median (min to max)",
    )
    for cells in datapath.table(asyncio.run(datapath.measure(repetitions))):
        path.add_row(*cells)
    console.print(path)


def _cluster(console: Console, repetitions: int, starts: int, seconds: float) -> None:
    """Print what it costs to be one of many nodes."""
    start = Table(
        *("path", "store commands a start or stop", "endpoint add, ms", "first packet then, ms", "compiled elsewhere"),
        title="An endpoint with known labels starts: p50 / p99",
    )
    for cells in startup.table(asyncio.run(startup.measure(starts))):
        start.add_row(*cells)
    console.print(start)

    writes = Table("50 clients at once", "endpoints a second", title="What the store takes, median (min to max)")
    for row in allocation.table(asyncio.run(allocation.measure(min(repetitions, 3)))):
        writes.add_row(*row)
    console.print(writes)

    change = Table(
        *("", "by identity", "by address"),
        title="Churn on 200 nodes with 10,000 endpoints, as one more node with 50 sees it",
    )
    for costs in churn.table(asyncio.run(churn.measure(seconds))):
        change.add_row(*costs)
    console.print(change)

    size = Table(
        *("", scale.FRESH, scale.AGAIN, scale.GAP),
        title=f"An agent in a cluster of {scale.ENDPOINTS:,} endpoints, median (min to max)",
    )
    for figures in scale.table(asyncio.run(scale.measure(min(repetitions, 2)))):
        size.add_row(*figures)
    console.print(size)


if __name__ == "__main__":
    main()
