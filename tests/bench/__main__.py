"""``make bench``: all measurements, as tables. Absolute figures are this machine's; ratios travel."""

import argparse
import asyncio
import os
import platform

from rich.console import Console
from rich.table import Table

from tests.bench import core, datapath, peers, policy


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repetitions", type=int, default=5)
    repetitions = options.parse_args().repetitions
    console = Console(width=140)
    console.print(
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    )

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


if __name__ == "__main__":
    main()
