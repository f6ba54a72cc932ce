"""A run of the data path as tables, as Markdown and as JSON. Only computes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

from tests.bench.contenders import C_ACCEPT, NOTHING
from tests.bench.figures import CPU, IN_TABLES, MEMORY, Figures, Measure
from tests.bench.goals import Result
from tests.bench.machine import sentence

_BUSY = 0.05  # of the cores with other things: more than that, and figures say little
_METHOD = """\
Each contender has a lab of its own, is loaded once and then measured in turn. Traffic comes from C programs
(`tests/bench/programs`), each with both ends of the traffic; nothing is pinned to a core. A repetition at a place is

- **datagrams** of 64 bytes in one flow, as many as the path carries (256 in flight at most); *CPU a packet* is the
  CPU time of the processes that give verdicts and of their children meanwhile (`/proc/PID/stat`), divided by the
  number of packets that were queued. It includes the kernel's work in their name, from the verdict to the next queue
  or socket; the share of the machine's time that was spent in softirqs is in `datapath.json`;
- **connections** opened and closed, 16 at a time, and counted; then, for as long, one after the other, and timed from
  `connect()` until they are open. The server, which accepts and closes, may be 256 behind;
- **bulk TCP** over one connection.

*At the host*: the endpoint is the host itself (INPUT and OUTPUT). *Forwarded*: both endpoints are behind veths of one
node. *Stamped*: two nodes, each with a queue; CPU and memory are means over both. *Offloads off*: `tso gso gro off`
on every interface of the path; packets that a host itself sends are segmented behind its queue all the same. The
rules of the C and NetfilterQueue loops queue every packet and keep no state; those of the engine match an ipset, make
the kernel keep connection state, and queue packets from or to a local endpoint. In the mode per-flow few packets are
queued, so CPU a packet means little there. Memory is PSS."""


@dataclass(frozen=True)
class Report:
    """A run, with what it takes to judge it."""

    day: date
    machine: Mapping[str, str]
    repetitions: int
    seconds: float
    busy: Sequence[float]
    figures: Figures
    left_out: Mapping[str, str]  # contenders that there are not, and why
    results: Sequence[Result]

    @property
    def about(self) -> str:
        """Return one sentence on where and how."""
        how = f"interleaved repetitions: {self.repetitions}, of {self.seconds:g} s each"
        return f"{self.day}: {sentence(self.machine)}; {how}"

    @property
    def warning(self) -> str:
        """Return a sentence if the machine had other things to do, else nothing."""
        share = median(self.busy) if self.busy else 0.0
        if share <= _BUSY:
            return ""
        return f"The machine was busy with other things ({share:.0%} of its cores): do not trust these figures."


def columns() -> list[str]:
    """Return the heads of a place's table."""
    return ["contender", *(measure.title for measure in IN_TABLES)]


def rows(figures: Figures, place: str) -> list[list[str]]:
    """Return the table of a place: median with ratio, and below least to most."""
    names = [name for name in figures.contenders() if any(figures.get(name, place, one) for one in IN_TABLES)]
    return [[name, *(_cell(figures, name, place, measure) for measure in IN_TABLES)] for name in names]


def _cell(figures: Figures, contender: str, place: str, measure: Measure) -> str:
    spread = figures.get(contender, place, measure)
    if spread is None:
        return "–"
    middle, least, most = (f"{number:,.{measure.digits}f}" for number in spread[:3])
    ratio = figures.ratio(place, measure, contender, C_ACCEPT if measure is CPU else NOTHING)
    of = f" ({ratio:.2f})" if ratio is not None and measure is not MEMORY else ""
    return f"{middle}{of}\n{least} to {most}"


def goal_columns() -> list[str]:
    """Return the heads of the table of goals."""
    return ["figure", "place", "goal", "reached", ""]


def goal_rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the table of goals."""
    return [
        [one.figure, one.place, f"{'≤' if one.at_most else '≥'} {one.bound:.2f}", _ratio(one), _verdict(one)]
        for one in results
    ]


def _ratio(result: Result) -> str:
    return "not measured" if result.ratio is None else f"{result.ratio:.2f}"


def _verdict(result: Result) -> str:
    return {True: "yes", False: "no", None: "–"}[result.reached]


def markdown(report: Report) -> str:
    """Return the run as a document; what the machine makes is not edited by hand."""
    parts = [
        "# The cost of the data path",
        "Written by `make bench`; `datapath.json` has every figure, `datapath.svg` shows them. In parentheses: the "
        "ratio to no netfilter; for CPU, the ratio to the C program that accepts every packet.",
        *filter(None, (f"{report.about}.", report.warning)),
        "![Figures of all contenders](datapath.svg)",
        *(f"Not there: {name} ({reason})." for name, reason in report.left_out.items()),
        "## Goals",
        _table(goal_columns(), goal_rows(report.results)),
    ]
    for place in report.figures.places():
        parts += [f"## {place[0].upper()}{place[1:]}", _table(columns(), rows(report.figures, place))]
    return "\n\n".join([*parts, "## How it is measured", _METHOD]) + "\n"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(f"| {' | '.join(cell.replace(chr(10), '<br>') for cell in line)} |" for line in lines)


def as_json(report: Report) -> str:
    """Return the run with every figure as JSON, a line for each contender, place and measure."""
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
        "goals": [one._asdict() | {"reached": one.reached} for one in report.results],
    }
