"""Report of a data path run as tables, as Markdown and as JSON. Pure computation."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

from tests.bench.contenders import C_ACCEPT, NOTHING
from tests.bench.figures import CPU, IN_TABLES, MEMORY, Figures, Measure
from tests.bench.goals import Result
from tests.bench.machine import sentence

BUSY = 0.05  # share of the cores; with more load by other processes the figures are not reliable
_METHOD = """\
Each contender has a lab of its own, is loaded once and then measured in turn. C programs (`tests/bench/programs`), each
with both ends of the traffic, send it; no process is pinned to a core. A repetition at a place consists of

- **datagrams** of 64 bytes in one flow at full rate (at most 256 in flight); *CPU a packet* is the CPU time of the
  processes that decide verdicts and of their children meanwhile (`/proc/PID/stat`), divided by the number of queued
  packets. It includes the kernel's work in the context of these processes, from the verdict to the next queue or
  socket; `datapath.json` has the share of the machine's time in softirqs;
- **connections** opened and closed, 16 concurrently, and counted; then, for the same time, one after the other, and
  timed from `connect()` to the established connection. The server accepts and closes, and may lag by 256 connections;
- **bulk TCP** over one connection.

*At the host*: the endpoint is the host itself (INPUT and OUTPUT). *Forwarded*: both endpoints are behind veths of one
node. *Stamped*: two nodes, each with a queue; CPU and memory are means over both. *Offloads off*: `tso gso gro off` on
every interface of the path; a host's own packets are still segmented after its queue. The rules of the C and
NetfilterQueue loops queue every packet and keep no state; those of the engine match an ipset, use the kernel's
connection tracking, and queue the packets from or to a local endpoint. In the mode per-flow few packets are queued, so
CPU a packet is not meaningful there. Memory is PSS."""


@dataclass(frozen=True)
class Report:
    """Report: the figures of a run, with its machine, parameters, load and goals."""

    day: date
    machine: Mapping[str, str]
    repetitions: int
    seconds: float
    busy: Sequence[float]
    figures: Figures
    left_out: Mapping[str, str]  # unsupported contenders, with the reason
    results: Sequence[Result]

    @property
    def about(self) -> str:
        """Return one sentence on the date, the machine and the parameters."""
        parameters = f"interleaved repetitions: {self.repetitions}, of {self.seconds:g} s each"
        return f"{self.day}: {sentence(self.machine)}; {parameters}"

    @property
    def warning(self) -> str:
        """Return a warning if other processes loaded the machine, else an empty string."""
        share = median(self.busy) if self.busy else 0.0
        if share <= BUSY:
            return ""
        return f"Other processes loaded the machine ({share:.0%} of its cores): these figures are not reliable."


def columns() -> list[str]:
    """Return the headings of a place's table."""
    return ["contender", *(measure.title for measure in IN_TABLES)]


def rows(figures: Figures, place: str) -> list[list[str]]:
    """Return the table of a place: median with ratio, and below it minimum to maximum."""
    return compared_rows(figures, place, IN_TABLES, _reference)


def _reference(_contender: str, measure: Measure) -> str | None:
    return {CPU: C_ACCEPT, MEMORY: None}.get(measure, NOTHING)


def compared_rows(
    figures: Figures, place: str, measures: Sequence[Measure], reference: Callable[[str, Measure], str | None]
) -> list[list[str]]:
    """Return a table of a place: median with the ratio to the contender's reference, and minimum to maximum."""
    names = [one for one in figures.contenders() if any(figures.get(one, place, each) for each in measures)]
    return [[one, *(_compared(figures, one, place, each, reference(one, each)) for each in measures)] for one in names]


def _compared(figures: Figures, contender: str, place: str, measure: Measure, reference: str | None) -> str:
    spread = figures.get(contender, place, measure)
    if spread is None:
        return "–"
    ratio = figures.ratio(place, measure, contender, reference) if reference else None
    middle, least, most = (f"{number:,.{measure.digits}f}" for number in spread[:3])
    return f"{middle}{'' if ratio is None else f' ({ratio:.2f})'}\n{least} to {most}"


def goal_columns() -> list[str]:
    """Return the headings of the table of goals."""
    return ["figure", "place", "goal", "reached", ""]


def goal_rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the table of goals."""
    return [
        [goal.figure, goal.place, f"{'≤' if goal.at_most else '≥'} {goal.bound:.2f}", _ratio(goal), _reached(goal)]
        for goal in results
    ]


def _ratio(result: Result) -> str:
    return "not measured" if result.ratio is None else f"{result.ratio:.2f}"


def _reached(result: Result) -> str:
    return {True: "yes", False: "no", None: "–"}[result.reached]


def markdown(report: Report) -> str:
    """Render the run as a Markdown document, which is generated only and not edited by hand."""
    parts = [
        "# Cost of the data path",
        "Written by `make bench`; `datapath.json` has every figure, `datapath.svg` shows them. In brackets: the ratio "
        "to no netfilter, and for CPU the ratio to the C program that accepts every packet.",
        *filter(None, (f"{report.about}.", report.warning)),
        "![Figures of all contenders](datapath.svg)",
        *(f"Not there: {name} ({reason})." for name, reason in report.left_out.items()),
        "## Goals",
        markdown_table(goal_columns(), goal_rows(report.results)),
    ]
    for place in report.figures.places():
        parts += [f"## {place[0].upper()}{place[1:]}", markdown_table(columns(), rows(report.figures, place))]
    return "\n\n".join([*parts, "## Method", _METHOD]) + "\n"


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Render a table as Markdown."""
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join(f"| {' | '.join(cell.replace(chr(10), '<br>') for cell in line)} |" for line in lines)


def as_json(report: Report) -> str:
    """Render the run with every figure as JSON, one line for each contender, place and measure."""
    head = json.dumps(_head(report), indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in report.figures.rows())
    return f'{head},\n "figures": [\n  {lines}\n ]\n}}\n'


def _head(report: Report) -> dict[str, Any]:
    return {
        "day": report.day.isoformat(),
        "machine": dict(report.machine),
        "repetitions": report.repetitions,
        "seconds": report.seconds,
        "busy_with_other_things": median(report.busy) if report.busy else 0.0,
        "left_out": dict(report.left_out),
        "goals": [goal._asdict() | {"reached": goal.reached} for goal in report.results],
    }
