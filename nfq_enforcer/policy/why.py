"""Why a connection is allowed or refused, and the smallest change of policy that would let it pass.

The change is found by trial: each small edit of a document that closes the endpoint is simulated. Of those with which
the connection passes, the one that opens the fewest other connections is the smallest; then the one with the fewest
lines. The connections that it opens besides are found by comparing every pair with the changed endpoints.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import unified_diff
from itertools import islice
from typing import Any, NamedTuple

import yaml

from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.change import Change, candidates
from nfq_enforcer.policy.explain import Trace, trace
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.matrix import VerdictChange, diff_at
from nfq_enforcer.policy.ports import PortSpan, TrafficSpec, render_spans
from nfq_enforcer.policy.probes import Family
from nfq_enforcer.policy.simulation import ConnectionResult, EndPair, Simulation

_CONTEXT = 5  # lines of a diff before and after the changed ones
_MAX_STEPS = 4  # edits, one after another: of both sides, and of a rule that denies before another closes
_MAX_TRIED = 12  # edits of one step
_MAX_OPENED = 2000  # connections that a change opens, counted
_MAX_SUBJECTS = 200  # endpoints whose connections are compared


class Connection(NamedTuple):
    """Connection: the references of both ends (as ``policy trace`` takes them), and the traffic."""

    source: str
    target: str
    traffic: TrafficSpec
    family: Family | None = None

    def pair(self, simulation: Simulation) -> EndPair:
        """Return both sides in a simulation; raise ValueError for an end that its documents do not have."""
        return simulation.pair(self.source, self.target, self.family)

    def evaluate(self, simulation: Simulation) -> ConnectionResult:
        """Return the result in a simulation."""
        return simulation.evaluate(self.pair(simulation), self.traffic)


class Opened(NamedTuple):
    """Opened: connections that a change opens besides the one that was asked for."""

    changes: tuple[VerdictChange, ...]
    complete: bool  # all were counted


class Proposal(NamedTuple):
    """Proposal: the smallest change with which a connection passes, as one or several changed documents."""

    changes: tuple[Change, ...]
    opened: Opened


class Explanation(NamedTuple):
    """Explanation: the verdict on a connection, rule by rule, with the change that would let it pass."""

    trace: Trace
    proposal: Proposal | None  # None: it passes, or no small change lets it pass

    def as_data(self) -> dict[str, Any]:
        """Return the JSON object of the explanation."""
        return {**self.trace.as_data(), "change": None if self.proposal is None else proposal_data(self.proposal)}


def explain(simulation: Simulation, connection: Connection) -> Explanation:
    """Return the explanation of a connection; raise ValueError for an end that the documents do not have."""
    explained = trace(simulation, connection.pair(simulation), connection.traffic)
    return Explanation(explained, None if explained.result.allowed else propose(simulation, connection))


def propose(simulation: Simulation, connection: Connection) -> Proposal | None:
    """Return the smallest change with which a refused connection passes, None if no few edits suffice."""
    present, changes = simulation, list[Change]()
    while len(changes) <= _MAX_STEPS:
        result = connection.evaluate(present)
        if result.allowed:
            return Proposal(tuple(_merged(changes)), _opened(simulation, present, connection, Direction))
        step = _best_step(present, connection, result)
        if step is None:
            return None
        changes.append(step[0])
        present = step[1]
    return None


def _best_step(
    simulation: Simulation, connection: Connection, result: ConnectionResult
) -> tuple[Change, Simulation] | None:
    """Return the edit that opens least at the first side that refuses, with its simulation.

    If none lets the connection pass there, an edit that removes a denying rule is a step on the way.
    """
    pair = connection.pair(simulation)
    side, refused = (pair.ingress, result.ingress) if result.egress.allowed else (pair.egress, result.egress)
    passing: list[tuple[int, int, int, Change, Simulation]] = []
    partial: tuple[Change, Simulation] | None = None
    tried = islice(candidates(simulation, side, refused, connection.traffic), _MAX_TRIED)
    for number, change in enumerate(tried):
        changed = _with(simulation, change)
        if changed is None:
            continue
        both = connection.evaluate(changed)
        after = both.egress if side.direction is Direction.EGRESS else both.ingress
        if after.allowed:
            opened = len(_opened(simulation, changed, connection, (side.direction,)).changes)
            opened += connection.traffic.request is not None and not _by_request(changed, connection, side.direction)
            passing.append((opened, len(list(diff_lines(change))), number, change, changed))
        elif partial is None and refused.rules:
            partial = change, changed
    if passing:
        *_, change, changed = min(passing, key=lambda one: one[:3])
        return change, changed
    return partial


def _by_request(simulation: Simulation, connection: Connection, direction: Direction) -> bool:
    """Return whether a side allows some requests only, and not all on this port."""
    plain = connection._replace(traffic=connection.traffic._replace(request=None)).evaluate(simulation)
    return bool((plain.egress if direction is Direction.EGRESS else plain.ingress).l7_rules)


def _with(simulation: Simulation, change: Change) -> Simulation | None:
    """Return the simulation with a changed document, None if the document is not valid then."""
    documents = simulation.documents
    policies = {policy.key: policy for policy in documents.policies}
    if change.after is None:
        del policies[change.key]
    else:
        try:
            (policies[change.key],) = loader.from_data([change.after]).policies
        except ValueError:  # no valid document
            return None
    return simulation.with_documents(Documents(documents.endpoints, documents.namespaces, tuple(policies.values())))


def _merged(changes: Sequence[Change]) -> Iterator[Change]:
    """Yield one change for each document, from before its first edit to after its last."""
    first: dict[tuple[str, str, str], Change] = {}
    for change in changes:
        known = first.get(change.key)
        first[change.key] = change if known is None else known._replace(after=change.after)
    yield from first.values()


def _opened(old: Simulation, new: Simulation, connection: Connection, at: Iterable[Direction]) -> Opened:
    """Return the connections that a change opens besides this one, at the sides of these directions."""
    found: dict[tuple[str, str], VerdictChange] = {}
    complete = True
    for direction in at:
        subjects = _changed_subjects(old, new, direction)
        complete = complete and len(subjects) <= _MAX_SUBJECTS
        for change in diff_at(old, new, subjects[:_MAX_SUBJECTS], direction):
            other = change if (change.source, change.target) != connection[:2] else _without(change, connection.traffic)
            if other.spans and other.new != "deny":
                found[other.source, other.target] = other
            if len(found) >= _MAX_OPENED:
                return Opened(tuple(found.values()), False)
    return Opened(tuple(found.values()), complete)


def _changed_subjects(old: Simulation, new: Simulation, direction: Direction) -> list[str]:
    """Return the endpoints whose policy map of a direction differs between two simulations."""
    return [name for name in new.endpoints if _entries(old, name, direction) != _entries(new, name, direction)]


def _entries(simulation: Simulation, name: str, direction: Direction) -> object:
    maps = simulation.end(name).maps
    assert maps is not None  # of an endpoint
    policy = maps.ingress if direction is Direction.INGRESS else maps.egress
    return policy.enforced, policy.entries


def _without(change: VerdictChange, traffic: TrafficSpec) -> VerdictChange:
    """Return a change without the port that was asked for."""
    return change._replace(spans=tuple(span for one in change.spans for span in _cut(one, traffic)))


def _cut(span: PortSpan, traffic: TrafficSpec) -> Iterator[PortSpan]:
    if span.proto != traffic.proto or traffic.port not in span:
        yield span
        return
    if span.first < traffic.port:
        yield span._replace(last=traffic.port - 1)
    if traffic.port < span.last:
        yield span._replace(first=traffic.port + 1)


def diff_lines(change: Change) -> Iterator[str]:
    """Yield the lines of the unified diff of a changed document, as ``policy get`` prints it."""
    kind, namespace, name = change.key
    title = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
    before, after = _lines(change.before), _lines(change.after)
    yield from unified_diff(before, after, title, title, n=_CONTEXT, lineterm="")


def _lines(data: Mapping[str, Any] | None) -> list[str]:
    if data is None:
        return []
    text: str = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    return text.splitlines()


def proposal_data(proposal: Proposal) -> dict[str, Any]:
    """Return the JSON object of a proposal."""
    return {
        "documents": [
            {
                **dict(zip(("kind", "namespace", "name"), change.key, strict=True)),
                "new": change.before is None,
                "deleted": change.after is None,
                "document": change.after,
                "diff": list(diff_lines(change)),
            }
            for change in proposal.changes
        ],
        "also_opens": [
            {"from": one.source, "to": one.target, "ports": render_spans(one.spans)} for one in proposal.opened.changes
        ],
        "also_opens_is_complete": proposal.opened.complete,
    }
