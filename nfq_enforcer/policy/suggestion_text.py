"""Text of suggested policies: YAML documents with a comment above each rule, which names the flows that it is for."""

from collections.abc import Iterable, Iterator
from textwrap import indent

import yaml

from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.errors import DocumentErrors, NfqError
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.simulation import limited_list
from nfq_enforcer.policy.suggestion import BOTH, Evidence, SuggestedPolicy
from nfq_enforcer.policy.writing import Data
from nfq_enforcer.text import printable, utc_time

_FILE = "the suggestion"
_INDENT = "  "
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where PyYAML has libyaml
_SIDES = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def render(policies: Iterable[SuggestedPolicy]) -> str:
    """Return the documents as YAML; raise NfqError if a name in a flow makes one that the loader refuses."""
    suggested = list(policies)
    text = "".join(f"---\n{line}" for line in map(_document, suggested))
    try:
        read = [one.document.data for one in loader.parse(text, _FILE)] if suggested else []
    except DocumentErrors as error:
        raise NfqError(f"the flows have names that no policy can have: {error}") from None
    if read != [one.document for one in suggested]:
        raise NfqError("the text of the suggestion differs from its documents; -o json has the documents")
    return text


def _document(policy: SuggestedPolicy) -> str:
    return "".join(_parts(policy))


def _parts(policy: SuggestedPolicy) -> Iterator[str]:
    yield _comment(f"for {limited_list(policy.subjects)}")
    if policy.also_selected:
        yield _comment(f"it also selects {limited_list(policy.also_selected)}")
    yield _yaml({**policy.head})
    yield "spec:\n"
    yield indent(_yaml({"endpointSelector": policy.selector}), _INDENT)
    for direction in BOTH:
        rules = policy.section(direction)
        if rules:
            yield f"{_INDENT}{direction}:\n"
        for rule in rules:
            yield indent(_comment(describe(rule.evidence, direction)), _INDENT)
            yield indent(_yaml([rule.entry]), _INDENT)


def _yaml(data: Data | list[Data]) -> str:
    return yaml.dump(data, Dumper=_DUMPER, sort_keys=False, width=10_000)


def _comment(text: str) -> str:
    return f"# {printable(text)}\n"


def describe(evidence: Evidence, direction: Direction) -> str:
    """Return the sentence on the flows that a rule was made for."""
    counts = [_count(evidence.connections, "connection"), _count(evidence.requests, "request")]
    words = [
        f"seen: {' and '.join(filter(None, counts))} {_SIDES[direction]} {limited_list(evidence.peers)}",
        f"last {utc_time(evidence.last)}",
    ]
    if evidence.refused:
        words.append(f"of which {evidence.refused} not allowed at that time")
    return ", ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""
