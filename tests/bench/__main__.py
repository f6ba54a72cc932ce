"""``make bench``: all measurements, as tables. Absolute figures are this machine's; ratios travel."""

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nfq_enforcer.errors import NfqError
from tests.bench import (
    allocation,
    chart,
    churn,
    core,
    datapath,
    flows,
    goals,
    machine,
    peers,
    policy,
    report,
    scale,
    soak,
    startup,
)

_PARTS = ("core", "flows", "policy", "peers", "datapath", "cluster")
_KEPT = Path(__file__).parents[2] / "docs" / "benchmarks"
_CHURN = 60.0  # seconds
_TRAFFIC = 1.0  # seconds of each kind, in each repetition
_REPETITIONS = 5
_SOAK = 30.0  # minutes that are worth keeping


def main() -> None:
    """Measure and print; what an interrupt leaves behind is nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _measure(_options())
    except NfqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit("interrupted; all that was made for the measurements is removed")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    options.add_argument("--only", choices=_PARTS, action="append", help="a part; may be given more than once")
    options.add_argument("--cluster", action="store_true", help="the same as --only cluster")
    options.add_argument("--repetitions", type=_number(int, 1, 1000), default=_REPETITIONS)
    options.add_argument(
        "--seconds",
        type=_number(float, 0.1, 3600),
        help=f"how long a churn lasts ({_CHURN:g}), and each kind of traffic on the data path ({_TRAFFIC:g})",
    )
    options.add_argument("--starts", type=_number(int, 1, 100_000), default=200, help="endpoints started on each path")
    options.add_argument("--contender", default="", help="data path: only those with this in their name")
    options.add_argument("--place", default="", help="data path: likewise")
    options.add_argument(
        "--soak", type=_number(float, 0.1, 10_000), help="instead: the engine at full rate, in minutes"
    )
    options.add_argument("--output", type=Path, help=f"where the data path's figures go; a whole run: {_KEPT.name}")
    return options.parse_args()


def _number(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {least} to {most}")
        return number

    return read


def _measure(chosen: argparse.Namespace) -> None:
    console = Console(width=140)
    about = machine.describe()
    console.print(machine.sentence(about))
    if chosen.soak:
        _soak(console, chosen, about)
        return
    parts = ["cluster"] if chosen.cluster else chosen.only or _PARTS
    if alone := {"core", "flows", "policy", "peers"}.intersection(parts):
        _node(console, chosen.repetitions, alone)
    if "datapath" in parts:
        _datapath(console, chosen, about)
    if "cluster" in parts:
        _cluster(console, chosen.repetitions, chosen.starts, chosen.seconds or _CHURN)


def _datapath(console: Console, chosen: argparse.Namespace, about: dict[str, str]) -> None:
    """Print what judging packets costs, and keep it."""
    plan = datapath.Plan(chosen.repetitions, chosen.seconds or _TRAFFIC, chosen.contender, chosen.place)
    plan.check()
    console.print(f"The data path in the lab, repetitions (interleaved): {plan.repetitions}")
    left_out = plan.left_out()
    for name, reason in left_out.items():
        console.print(f"  left out: {name}: {reason}")
    run = datapath.measure(plan, console)
    made = report.Report(
        datetime.now(UTC).date(),
        about,
        plan.repetitions,
        plan.seconds,
        run.busy,
        run.figures,
        left_out,
        goals.results(run.figures, plan.variants()),
    )
    _print(console, made)
    whole = not chosen.contender and not chosen.place and plan.repetitions >= _REPETITIONS and not chosen.seconds
    if folder := chosen.output or (_KEPT if whole else None):
        _keep(made, folder)
        console.print(f"kept in {folder}: datapath.md, datapath.json, datapath.svg")


def _print(console: Console, made: report.Report) -> None:
    for place in made.figures.places():
        table = Table(*report.columns(), title=f"{place}: median (ratio), least to most", show_lines=True)
        for cells in report.rows(made.figures, place):
            table.add_row(*cells)
        console.print(table)
    reached = Table(*report.goal_columns(), title="Goals")
    for cells in report.goal_rows(made.results):
        reached.add_row(*cells)
    console.print(reached)
    if made.warning:
        console.print(made.warning)


def _keep(made: report.Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datapath.json").write_text(report.as_json(made))
    (folder / "datapath.md").write_text(report.markdown(made))
    chart.draw(made.figures, made.about, folder / "datapath.svg")


def _soak(console: Console, chosen: argparse.Namespace, about: dict[str, str]) -> None:
    """Print whether the engine grows, and keep it; exit with status 1 if it does."""
    soaked = soak.measure(chosen.soak, console)
    console.print(soaked.verdict)
    if folder := chosen.output or (_KEPT if chosen.soak >= _SOAK else None):
        folder.mkdir(parents=True, exist_ok=True)
        what = f"{datetime.now(UTC).date()}: {machine.sentence(about)}; {chosen.soak:g} minutes"
        (folder / "soak.md").write_text(soak.markdown(soaked, what))
        console.print(f"kept in {folder}: soak.md")
    sys.exit(soaked.grew)


def _node(console: Console, repetitions: int, parts: Collection[str]) -> None:
    """Print what a node costs by itself."""
    said = f"{repetitions} repetitions"
    if "core" in parts:
        _show(console, "decision", f"The core alone, {said}", core.table(core.measure(repetitions)))
    if "flows" in parts:
        _show(console, "flows", f"{flows.FLOWS:,} flows, {said}", flows.table(flows.measure(repetitions)))
    if "policy" in parts:
        _show(console, "policy", f"The compiler at scale, {said}", policy.table(policy.measure(repetitions)))
    if "peers" in parts:
        _show(console, "changes", f"Changes of peers, {said}", peers.table(peers.measure(repetitions)))


def _show(console: Console, what: str, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(what, "median (min to max)", title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


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
