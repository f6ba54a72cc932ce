"""Tables of ``nfq-enforcer policy``: verdicts in green and red, with their reasons."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from nfq_enforcer.cli import output
from nfq_enforcer.policy.explain import RuleTrace, SideTrace, Trace
from nfq_enforcer.policy.matrix import MatrixCell, VerdictChange
from nfq_enforcer.policy.ports import render_spans
from nfq_enforcer.policy.probes import Probe
from nfq_enforcer.policy.simulation import ConnectionResult, verdict_word

_STYLE = {True: "green", False: "red"}


def matrix(endpoints: Sequence[str], cells: Iterable[MatrixCell]) -> output.Table:
    """Return a square table: each cell has the allowed ports, ``✓`` for all evaluated ones, ``✗`` for none."""
    by_pair: dict[tuple[str, str], list[MatrixCell]] = defaultdict(list)
    for cell in cells:
        by_pair[cell.source, cell.target].append(cell)
    rows = ([source, *(_square(by_pair.get((source, target), [])) for target in endpoints)] for source in endpoints)
    return output.table(("from \\ to", *endpoints), rows)


def legend(cells: Iterable[MatrixCell]) -> Text:
    """Return the explanation of a matrix: the connections that were asked, and the signs."""
    questions = dict.fromkeys(str(cell.traffic) for cell in cells)
    return Text(
        f"asked: {', '.join(questions)}\n✓ all of it passes   ✗ none   a port: only that   ~ only some requests", "dim"
    )


def _square(cells: Sequence[MatrixCell]) -> Text | list[Text]:
    if not cells:
        return Text("·", "dim")
    passing = [cell for cell in cells if cell.result.allowed]
    if not passing:
        return Text("✗", "red")
    if len(passing) == len(cells) and not any(cell.result.restricted for cell in cells):
        return Text("✓", "green")
    return [
        Text(f"{'~' if cell.result.restricted else ''}{cell.traffic}", "yellow" if cell.result.restricted else "green")
        for cell in passing
    ]


def probes(probes: Sequence[Probe], answers: Sequence[ConnectionResult]) -> output.Table:
    """Return a table with a row for each probe."""
    columns = ("FROM", "TO", "ASKED", "VERDICT", "REASON")
    return output.table(columns, (_probe(*both) for both in zip(probes, answers, strict=True)))


def _probe(probe: Probe, answer: ConnectionResult) -> Sequence[object]:
    verdict = Text(answer.verdict, _STYLE[answer.allowed])
    if probe.expect not in {None, answer.verdict}:
        verdict.append(f" (expected {probe.expect})", "bold red")
    return probe.source, probe.target, str(probe), verdict, answer.reason


def diff(changes: Iterable[VerdictChange]) -> output.Table:
    """Return a table with a row for each pair and kind of change."""
    return output.table(("FROM", "TO", "PORTS", "NOW", "THEN", "BECAUSE"), map(_change, changes))


def _change(change: VerdictChange) -> Sequence[object]:
    old, new = (Text(state, _STYLE[state != "deny"]) for state in (change.old, change.new))
    return change.source, change.target, list(render_spans(change.spans)), old, new, change.reason


def trace(trace: Trace, *, all_documents: bool = True) -> Text:
    """Return the explanation of a verdict, with one line for each rule.

    Without ``all_documents``, the documents that do not select the endpoint are counted only.
    """
    lines = [Text(f"{trace.egress.side.subject.name} → {trace.ingress.side.subject.name}, {trace.traffic}", "bold")]
    for side in (trace.egress, trace.ingress):
        lines += _side(side, all_documents)
    verdict = (f"{trace.result.verdict}: ", f"bold {_STYLE[trace.result.allowed]}")
    lines += [Text(), Text.assemble(verdict, trace.result.reason)]
    return Text("\n").join(lines)


def _side(trace: SideTrace, all_documents: bool) -> Iterator[Text]:
    yield Text()
    yield Text.assemble(
        (str(trace.side), "bold"), ": ", (verdict_word(trace.result.allowed), _STYLE[trace.result.allowed])
    )
    for one in trace.rules:
        if one.selects or all_documents:
            yield _rule(one)
    selecting = {one.rule.document for one in trace.rules if one.selects}
    others = {one.rule.document for one in trace.rules} - selecting
    if others and not all_documents:
        noun, verb = ("document", "does") if len(others) == 1 else ("documents", "do")
        name = trace.side.subject.name
        yield Text(f"  · {len(others)} {noun} {verb} not select {name}; --all shows them", "dim")
    yield Text(f"  = {trace.explanation}")


def _rule(one: RuleTrace) -> Text:
    mark, style = ("►", "bold") if one.decides else ("✓", "") if one.matches else ("·", "dim")
    return Text(f"  {mark} {one.rule}: {one.explanation}", style)
