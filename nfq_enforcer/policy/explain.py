"""Why a connection passes or not, rule by rule: what each rule asks, and where it does not fit.

The verdict is the compiled map's, as on the data path; the words are made from the resolved rules. A rule decides where
the map says so, so the two can be held against each other.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfq_enforcer.core.labels import ANY_SOURCE, Labels
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import PORT_BITS, WHOLE, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.ports import LAST, Question, Span, joined
from nfq_enforcer.policy.rules import Block, NamedPort, Opening, Port, PortSet, Rule
from nfq_enforcer.policy.selectors import Operator, Requirement, Selector
from nfq_enforcer.policy.simulation import Answer, End, Facing, Pair, Side, Simulation, word


class Considered(NamedTuple):
    """One rule, and what there is to say of it."""

    rule: RuleRef
    fits: bool  # it selects this endpoint, and the peer, the port and the request are its own
    decides: bool
    words: str

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        return {"rule": str(self.rule), "fits": self.fits, "decides": self.decides, "why": self.words}


class SideTrace(NamedTuple):
    """One side of a connection, and every rule that was considered there."""

    facing: Facing
    side: Side
    considered: tuple[Considered, ...]

    @property
    def words(self) -> str:
        """Return what the side comes to."""
        return self.side.why or f"{self.facing.subject.name} has no policy of its own"

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        return {
            "verdict": word(self.side.allowed),
            "why": self.words,
            "considered": [one.as_data() for one in self.considered],
        }


class Trace(NamedTuple):
    """A connection, its answer, and how both sides come to it."""

    question: Question
    answer: Answer
    egress: SideTrace
    ingress: SideTrace

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        return {
            "from": self.egress.facing.subject.name,
            "to": self.ingress.facing.subject.name,
            "asked": str(self.question),
            "verdict": self.answer.verdict,
            "reason": self.answer.reason,
            "egress": self.egress.as_data(),
            "ingress": self.ingress.as_data(),
        }


def trace(simulation: Simulation, pair: Pair, question: Question) -> Trace:
    """Return how a connection is judged."""
    answer = simulation.judge(pair, question)
    sides = (
        SideTrace(facing, side, tuple(_considered(simulation.rules(facing.direction), facing, side, question)))
        for facing, side in ((pair.egress, answer.egress), (pair.ingress, answer.ingress))
    )
    return Trace(question, answer, *sides)


def _considered(rules: Iterable[Rule], facing: Facing, side: Side, question: Question) -> Iterator[Considered]:
    if facing.policy is not None:
        for rule in rules:
            misfit = _misfit(rule, facing, question)
            yield Considered(rule.ref, not misfit, rule.ref in side.rules, misfit or _effect(rule, facing, question))


def _effect(rule: Rule, facing: Facing, question: Question) -> str:
    toward = "to" if facing.direction is Direction.EGRESS else "from"
    return f"{'denies' if rule.ref.deny else 'allows'} {question} {toward} {facing.peer.name}"


def _misfit(rule: Rule, facing: Facing, question: Question) -> str:
    """Return why a rule is not about this connection, nothing if it is."""
    if not rule.subject.matches(facing.subject.labels):
        return f"does not select {facing.subject.name}: {_unmet(rule.subject, facing.subject)}"
    if rule.ref.number == WHOLE or not rule.opens:
        return f"closes {facing} and opens nothing" if rule.isolates else "opens nothing"
    if rule.peers == ():
        return "its list of peers is empty, so it is about nobody"
    if rule.peers is not None and not any(_is(peer, facing) for peer in rule.peers):
        reasons = dict.fromkeys(_not_among(peer, facing.peer) for peer in rule.peers)
        return f"{facing.peer.name} is none of its peers: {', or '.join(reasons)}"
    named = facing.subject.ports if facing.direction is Direction.INGRESS else facing.peer.ports
    fitting = [opening for opening in rule.opens if _opens(opening, question, named)]
    if not fitting:
        return f"is about {_ports(rule.opens, named) or 'no port'}, not {question._replace(request=None)}"
    return _no_such_request(fitting, question)


def _is(peer: Selector | Block, facing: Facing) -> bool:
    if isinstance(peer, Selector):
        return peer.matches(facing.peer.labels)
    return (peer.everybody or _outside(facing.peer)) and any(
        network in peer for network in facing.peer.addresses.values()
    )


def _outside(end: End) -> bool:
    return bool(end.labels.find("reserved", "world"))


def _not_among(peer: Selector | Block, end: End) -> str:
    if isinstance(peer, Selector):
        return _unmet(peer, end)
    holes = f" without {', '.join(map(str, sorted(peer.holes, key=str)))}" if peer.holes else ""
    if not peer.everybody and not _outside(end):
        return f"wants an address in {peer.prefix}{holes}, and CIDRs are never endpoints or nodes"
    return f"wants an address in {peer.prefix}{holes}"


def _unmet(selector: Selector, end: End) -> str:
    unmet = sorted(one for one in selector.requirements if not one.matches(end.labels))
    return " and ".join(f"wants {_wish(one)}, and it has {_found(one, end.labels)}" for one in unmet)


def _wish(requirement: Requirement) -> str:
    key, values = _key(requirement), sorted(requirement.values)
    if requirement.operator is Operator.EXISTS:
        return key
    if requirement.operator is Operator.DOES_NOT_EXIST:
        return f"no {key}"
    if requirement.operator is Operator.IN and len(values) == 1:
        return f"{key}={values[0]}"
    return f"{key} {'in' if requirement.operator is Operator.IN else 'not in'} ({', '.join(values)})"


def _key(requirement: Requirement) -> str:
    return requirement.key if requirement.source == ANY_SOURCE else f"{requirement.source}:{requirement.key}"


def _found(requirement: Requirement, labels: Labels) -> str:
    return ", ".join(map(str, labels.find(ANY_SOURCE, requirement.key))) or f"no {requirement.key}"


def _spans(opening: Opening, named: PortSet) -> Iterator[Span]:
    for port in opening.ports:
        if isinstance(port, NamedPort):
            yield from (Span(p.proto, p.number, p.number) for p in named if NamedPort(p.name, p.proto) == port)
        else:
            last = port.number | ((1 << (PORT_BITS - port.bits)) - 1)
            yield Span(port.proto, port.number, min(last, LAST[port.proto]))


def _opens(opening: Opening, question: Question, named: PortSet) -> bool:
    if any(isinstance(port, Port) and not port.proto for port in opening.ports):
        return True
    return any(span.proto == question.proto and question.port in span for span in _spans(opening, named))


def _ports(openings: Iterable[Opening], named: PortSet) -> str:
    openings = tuple(openings)
    spans = joined(dict.fromkeys(span for opening in openings for span in _spans(opening, named)))
    known = {NamedPort(one.name, one.proto) for one in named}
    ports = (port for opening in openings for port in opening.ports if isinstance(port, NamedPort))
    missing = dict.fromkeys(f"a port named {port.name}, which is not there" for port in ports if port not in known)
    return ", ".join((*map(str, spans), *missing))


def _no_such_request(openings: Iterable[Opening], question: Question) -> str:
    """Return why none of the openings lets this request pass; nothing if one does, or if none is asked about."""
    matches = [match for opening in openings for match in opening.l7]
    request = question.request
    whole = any(not opening.l7 for opening in openings)
    if request is None or whole or any(isinstance(one, HttpMatch) and one.matches(request) for one in matches):
        return ""
    return f"lets only requests pass that are {' or '.join(map(_request, matches))}"


def _request(match: HttpMatch | DnsMatch) -> str:
    if isinstance(match, DnsMatch):
        return f"DNS queries for {match.name}"
    host = f" at {match.host}" if match.host else ""
    headers = "".join(f" with {h.name}" + (f": {h.value}" if h.value is not None else "") for h in match.headers)
    return f"{match.method or 'any method'} {match.path or 'any path'}{host}{headers}"
