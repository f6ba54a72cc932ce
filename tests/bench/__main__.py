"""``make bench``: all measurements, as tables. Absolute figures depend on this machine; ratios hold on others too."""

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nfq_enforcer.errors import NfqError
from tests.bench import (
    allocation,
    chart,
    churn,
    cidrs,
    core,
    datapath,
    dns,
    documents,
    floods,
    flows,
    goals,
    http,
    interleaved,
    machine,
    peers,
    policy,
    report,
    scale,
    soak,
    startup,
)
from tests.bench.figures import Figures

_PARTS = ("core", "flows", "policy", "peers", "documents", "cidrs", "datapath", "floods", "http", "dns", "cluster")
_DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
_CHURN = 60.0  # seconds
_TRAFFIC = 1.0  # seconds of each kind, in each repetition
_REPETITIONS = 5
_FLOOD = 60.0  # seconds
_SOAK = 30.0  # minutes; shorter soaks are not written to the documentation


def main() -> None:
    """Run the chosen measurements and print them; an interrupt removes everything they created."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _measure(_options())
    except NfqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit("interrupted; labs and processes of the measurements are removed")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    options.add_argument("--only", choices=_PARTS, action="append", help="measure this part; may be repeated")
    options.add_argument("--cluster", action="store_true", help="the same as --only cluster")
    options.add_argument("--repetitions", type=_number(int, 1, 1000), default=_REPETITIONS, help="of each measurement")
    options.add_argument(
        "--seconds",
        type=_number(float, 0.1, 3600),
        help=f"duration of a churn ({_CHURN:g}), of each flood ({_FLOOD:g}), and of each kind of traffic on the data "
        f"path ({_TRAFFIC:g}), with HTTP rules and of DNS",
    )
    options.add_argument(
        "--starts", type=_number(int, 1, 100_000), default=200, help="endpoint starts measured on each path"
    )
    options.add_argument("--contender", default="", help="data path: only contenders whose name contains this text")
    options.add_argument("--place", default="", help="data path: only places whose name contains this text")
    options.add_argument(
        "--soak", type=_number(float, 0.1, 10_000), help="only a soak: the engine at full rate for so many minutes"
    )
    options.add_argument(
        "--output",
        type=Path,
        help=f"folder for the figures of the data path (default for a full run: docs/{_DOCS.name}), HTTP and DNS rules",
    )
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


def _measure(options: argparse.Namespace) -> None:
    console = Console(width=140)
    about = machine.describe()
    console.print(machine.sentence(about))
    if options.soak:
        _soak(console, options, about)
        return
    parts = ["cluster"] if options.cluster else options.only or _PARTS
    if node_parts := {"core", "flows", "policy", "peers", "documents"}.intersection(parts):
        _node(console, options.repetitions, node_parts)
    if "cidrs" in parts:
        _cidrs(console)
    if "datapath" in parts:
        _datapath(console, options, about)
    if "floods" in parts:
        _floods(console, options.seconds or _FLOOD)
    if "http" in parts:
        _http(console, options, about)
    if "dns" in parts:
        _dns(console, options, about)
    if "cluster" in parts:
        _cluster(console, options.repetitions, options.starts, options.seconds or _CHURN)


def _cidrs(console: Console) -> None:
    """Measure and print the cost of many CIDRs to a whole agent, and to the traffic of others."""
    table = Table(
        *cidrs.COLUMNS,
        title=f"{documents.ENDPOINTS:,} endpoints, {cidrs.DOCUMENTS} documents of {cidrs.ENTRIES:,} CIDRs",
    )
    for cells in cidrs.table(cidrs.measure(console)):
        table.add_row(*cells)
    console.print(table)


def _floods(console: Console, seconds: float) -> None:
    """Measure and print the traffic of others during floods."""
    table = Table(*floods.COLUMNS, title=f"Others during a flood of {seconds:g} s")
    for cells in floods.table(floods.measure(seconds, console)):
        table.add_row(*cells)
    console.print(table)


def _datapath(console: Console, options: argparse.Namespace, about: dict[str, str]) -> None:
    """Measure the cost of the data path; print the report, and write it to files for a full run."""
    plan = datapath.Plan(options.repetitions, options.seconds or _TRAFFIC, options.contender, options.place)
    plan.check()
    console.print(f"The data path in the lab, repetitions (interleaved): {plan.repetitions}")
    left_out = plan.left_out()
    for name, reason in left_out.items():
        console.print(f"  left out: {name}: {reason}")
    run = datapath.measure(plan, console)
    result = report.Report(
        datetime.now(UTC).date(),
        about,
        plan.repetitions,
        plan.seconds,
        run.busy,
        run.figures,
        left_out,
        goals.results(run.figures, plan.variants()),
    )
    _print(console, result)
    full = not options.contender and not options.place and plan.repetitions >= _REPETITIONS and not options.seconds
    if folder := options.output or (_DOCS if full else None):
        _write(result, folder)
        console.print(f"written to {folder}: datapath.md, datapath.json, datapath.svg")


def _print(console: Console, result: report.Report) -> None:
    for place in result.figures.places():
        table = Table(*report.columns(), title=f"{place}: median (ratio), least to most", show_lines=True)
        for cells in report.rows(result.figures, place):
            table.add_row(*cells)
        console.print(table)
    goals_table = Table(*report.goal_columns(), title="Goals")
    for cells in report.goal_rows(result.results):
        goals_table.add_row(*cells)
    console.print(goals_table)
    if result.warning:
        console.print(result.warning)


def _write(result: report.Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datapath.json").write_text(report.as_json(result))
    (folder / "datapath.md").write_text(report.markdown(result))
    chart.draw(result.figures, result.about, folder / "datapath.svg")


def _http(console: Console, options: argparse.Namespace, about: dict[str, str]) -> None:
    """Measure and print the cost of HTTP rules; write it to a file only if the options have a folder."""
    console.print(f"HTTP rules, repetitions (interleaved): {options.repetitions}")
    run = http.measure(options.repetitions, options.seconds, console)
    _compared(console, run, http.columns(), http.rows, http.results(run.figures))
    memory = http.measure_memory()
    _lined(console, "Memory", http.MEMORY_COLUMNS, http.memory_rows(memory))
    if folder := options.output:
        _write_text(console, folder, "http.md", http.markdown(run, memory, _run_of(options, about)))


def _dns(console: Console, options: argparse.Namespace, about: dict[str, str]) -> None:
    """Measure and print the cost of DNS rules; write it to a file only if the options have a folder."""
    console.print(f"DNS rules, repetitions (interleaved): {options.repetitions}")
    run = dns.measure(options.repetitions, options.seconds, console)
    _compared(console, run, dns.columns(), dns.rows, dns.results(run.figures))
    learned = dns.measure_learning()
    _lined(console, "Answers with new addresses", dns.LEARNED_COLUMNS, dns.learned_rows(learned))
    if folder := options.output:
        _write_text(console, folder, "dns.md", dns.markdown(run, learned, _run_of(options, about)))


def _compared(
    console: Console,
    run: interleaved.Run,
    headings: Sequence[str],
    rows: Callable[[Figures, str], list[list[str]]],
    results: Sequence[goals.Result],
) -> None:
    """Print the tables of an interleaved run: one for each place, and the goals."""
    for place in run.figures.places():
        _lined(console, f"{place}: median (ratio), least to most", headings, rows(run.figures, place))
    _lined(console, "Goals", report.goal_columns(), report.goal_rows(results))
    if run.warning:
        console.print(run.warning)


def _run_of(options: argparse.Namespace, about: dict[str, str]) -> str:
    return f"{datetime.now(UTC).date()}: {machine.sentence(about)}; repetitions: {options.repetitions}"


def _write_text(console: Console, folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    console.print(f"written to {folder}: {name}")


def _lined(console: Console, title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(*headings, title=title, show_lines=True)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def _soak(console: Console, options: argparse.Namespace, about: dict[str, str]) -> None:
    """Soak the engine; print and write whether its memory grows, and exit with status 1 if it does."""
    result = soak.measure(options.soak, console)
    console.print(result.verdict)
    if folder := options.output or (_DOCS if options.soak >= _SOAK else None):
        run = f"{datetime.now(UTC).date()}: {machine.sentence(about)}; {options.soak:g} minutes"
        _write_text(console, folder, "soak.md", soak.markdown(result, run))
    sys.exit(result.grew)


def _node(console: Console, repetitions: int, parts: Collection[str]) -> None:
    """Measure and print the costs of a single node, without a cluster."""
    suffix = f"{repetitions} repetitions"
    if "core" in parts:
        _show(console, "decision", f"The core alone, {suffix}", core.table(core.measure(repetitions)))
    if "flows" in parts:
        _show(console, "flows", f"{flows.FLOWS:,} flows, {suffix}", flows.table(flows.measure(repetitions)))
    if "policy" in parts:
        _show(console, "policy", f"The compiler at scale, {suffix}", policy.table(policy.measure(repetitions)))
    if "documents" in parts:
        rows = documents.table(documents.measure(min(repetitions, 3)))
        _show(console, "documents", f"Many documents, {min(repetitions, 3)} repetitions", rows)
    if "peers" in parts:
        _show(console, "changes", f"Changes of peers, {suffix}", peers.table(peers.measure(repetitions)))


def _show(console: Console, heading: str, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(heading, "median (min to max)", title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _cluster(console: Console, repetitions: int, starts: int, seconds: float) -> None:
    """Measure and print the costs of a node in a large cluster."""
    start = Table(
        *("path", "store commands a start or stop", "endpoint add, ms", "first packet then, ms", "compiled elsewhere"),
        title="An endpoint with known labels starts: p50 / p99",
    )
    for cells in startup.table(asyncio.run(startup.measure(starts))):
        start.add_row(*cells)
    console.print(start)

    writes = Table("50 concurrent clients", "endpoints a second", title="Rate of the store, median (min to max)")
    for row in allocation.table(asyncio.run(allocation.measure(min(repetitions, 3)))):
        writes.add_row(*row)
    console.print(writes)

    change = Table(
        *("", "by identity", "by address"),
        title="Churn on 200 nodes with 10,000 endpoints, measured on one more node with 50 endpoints",
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
