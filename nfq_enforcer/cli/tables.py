"""What ``nfq-enforcer policy`` shows on a terminal: verdicts in green and red, reasons beside them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from nfq_enforcer.policy.explain import RuleTrace, SideTrace, Trace
from nfq_enforcer.policy.matrix import MatrixCell, VerdictChange
from nfq_enforcer.policy.ports import render_spans
from nfq_enforcer.policy.probes import Probe
from nfq_enforcer.policy.simulation import ConnectionResult, verdict_word

_STYLE = {True: "green", False: "red"}


def matrix(endpoints: Sequence[str], cells: Iterable[MatrixCell]) -> RenderableType:
    """Return a square: in each cell the ports that are open, ``✓`` for all that were asked, ``✗`` for none."""
    by_pair: dict[tuple[str, str], list[MatrixCell]] = defaultdict(list)
    for cell in cells:
        by_pair[cell.source, cell.target].append(cell)
    names = ("from \\ to", *(name.replace("/", "/\n") for name in endpoints))
    table = Table(*(Column(name, overflow="fold") for name in names), box=box.ROUNDED)
    for source in endpoints:
        table.add_row(source, *(_square(by_pair.get((source, target), [])) for target in endpoints))
    asked = dict.fromkeys(str(cell.traffic) for found in by_pair.values() for cell in found)
    legend = f"asked: {', '.join(asked)}\n✓ all of it passes   ✗ none   a port: only that   ~ only some requests"
    return Group(table, Text(legend, "dim"))


def _square(cells: Sequence[MatrixCell]) -> Text:
    if not cells:
        return Text("·", "dim")
    passing = [cell for cell in cells if cell.result.allowed]
    if not passing:
        return Text("✗", "red")
    if len(passing) == len(cells) and not any(cell.result.restricted for cell in cells):
        return Text("✓", "green")
    return Text("\n").join(
        Text(f"{'~' if cell.result.restricted else ''}{cell.traffic}", "yellow" if cell.result.restricted else "green")
        for cell in passing
    )


def probes(asked: Sequence[Probe], answers: Sequence[ConnectionResult]) -> Table:
    """Return a row for each probe."""
    table = Table("FROM", "TO", "ASKED", "VERDICT", "REASON", box=box.SIMPLE_HEAD)
    for probe, answer in zip(asked, answers, strict=True):
        verdict = Text(answer.verdict, _STYLE[answer.allowed])
        if probe.expect not in {None, answer.verdict}:
            verdict.append(f"\nexpected {probe.expect}", "bold red")
        table.add_row(probe.source, probe.target, str(probe), verdict, answer.reason)
    return table


def diff(changes: Iterable[VerdictChange]) -> Table:
    """Return a row for each pair and kind of change."""
    table = Table("FROM", "TO", "PORTS", "NOW", "THEN", "BECAUSE", box=box.SIMPLE_HEAD)
    for change in changes:
        ports = "\n".join(render_spans(change.spans))
        old, new = (Text(state, _STYLE[state != "deny"]) for state in (change.old, change.new))
        table.add_row(change.source, change.target, ports, old, new, change.reason)
    return table


def policies(listed: Iterable[Mapping[str, Any]]) -> Table:
    """Return the policies that an agent has, and where they come from."""
    table = Table("NAMESPACE", "NAME", "KIND", Column("FROM", overflow="fold"), box=box.SIMPLE_HEAD)
    for one in listed:
        table.add_row(*(Text(one[field]) for field in ("namespace", "name", "kind", "origin")))
    return table


def trace(found: Trace) -> Text:
    """Return the whole explanation, a line for each rule."""
    lines = [Text(f"{found.egress.side.subject.name} → {found.ingress.side.subject.name}, {found.traffic}", "bold")]
    for side in (found.egress, found.ingress):
        lines += _side(side)
    verdict = (f"{found.result.verdict}: ", f"bold {_STYLE[found.result.allowed]}")
    lines += [Text(), Text.assemble(verdict, found.result.reason)]
    return Text("\n").join(lines)


def _side(trace: SideTrace) -> Iterator[Text]:
    yield Text()
    yield Text.assemble(
        (str(trace.side), "bold"), ": ", (verdict_word(trace.result.allowed), _STYLE[trace.result.allowed])
    )
    for one in trace.rules:
        yield _rule(one)
    yield Text(f"  = {trace.explanation}")


def _rule(one: RuleTrace) -> Text:
    mark, style = ("►", "bold") if one.decides else ("✓", "") if one.matches else ("·", "dim")
    return Text(f"  {mark} {one.rule}: {one.explanation}", style)
