"""Explanation of a connection in words: verdict and rules of both sides, and the smallest change."""

from collections.abc import Callable, Iterator

from rich.text import Text

from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.policy.explain import SideTrace
from nfq_enforcer.policy.ports import render_spans
from nfq_enforcer.policy.simulation import verdict_word
from nfq_enforcer.policy.why import Explanation, Proposal, diff_lines

_STYLE = {True: "green", False: "red"}
_DIFF = {"+": "green", "-": "red", "@": "cyan"}
_MAX_LISTED = 20  # connections, or rules of one side

Place = Callable[[RuleRef], str]


def render(explanation: Explanation, place: Place) -> Iterator[Text]:
    """Yield the lines of an explanation; ``place`` returns where a rule is written."""
    for side in (explanation.trace.egress, explanation.trace.ingress):
        yield from _side(side, place)
    if explanation.trace.result.allowed:
        return
    yield Text()
    if explanation.proposal is None:
        yield Text("No small change of one document lets it pass.")
    else:
        yield from _proposal(explanation.proposal)


def _side(trace: SideTrace, place: Place) -> Iterator[Text]:
    verdict = verdict_word(trace.result.allowed)
    yield Text.assemble((str(trace.side), "bold"), ": ", (verdict, _STYLE[trace.result.allowed]), f", {_reason(trace)}")
    shown = [one for one in trace.rules if one.selects]
    for one in shown[:_MAX_LISTED]:
        mark = "►" if one.decides else "·"
        written = place(one.rule)
        yield Text(f"  {mark} {one.rule}{f' ({written})' if written else ''}: {one.explanation}")
    if len(shown) > _MAX_LISTED:
        yield Text(f"  · {len(shown) - _MAX_LISTED} more rules select it; 'policy trace' shows them", "dim")


def _reason(trace: SideTrace) -> str:
    return trace.result.reason or f"because {trace.explanation}"


def _proposal(proposal: Proposal) -> Iterator[Text]:
    yield Text("The smallest change with which it passes:", "bold")
    for change in proposal.changes:
        for line in diff_lines(change):
            yield Text(f"  {line}", _DIFF.get(line[:1], ""))
    opened = proposal.opened
    if not opened.changes and opened.complete:
        yield Text("It opens no other connection between the endpoints that the documents know.", "bold")
        return
    number = f"{len(opened.changes)}" if opened.complete else f"{len(opened.changes)} or more"
    yield Text(f"It also opens connections between {number} other pairs:", "bold")
    for one in opened.changes[:_MAX_LISTED]:
        yield Text(f"  {one.source} → {one.target}: {', '.join(render_spans(one.spans))}")
    if len(opened.changes) > _MAX_LISTED:
        yield Text(f"  and {len(opened.changes) - _MAX_LISTED} more; -o json has all", "dim")
