"""Everybody against everybody: which ports are open between them, and where two sets of documents differ in that.

What decides between two ends is constant over stretches of ports, cut where an entry of one of their two maps begins or
ends. So a comparison asks one port of each stretch, and is exact for all 65,535 of each protocol.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, product
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.ports import FIRST, LAST, Question, Span, in_words, joined
from nfq_enforcer.policy.simulation import ECHO, Answer, Pair, Simulation

OUTSIDE = ("reserved:world", "reserved:host", "reserved:remote-node")


class Cell(NamedTuple):
    """One connection of the matrix, and its answer."""

    source: str
    target: str
    question: Question
    answer: Answer

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        number = {"icmp": {"type": self.question.port}} if self.question.icmp else {"port": self.question.port}
        ends = {"from": self.source, "to": self.target, "protocol": self.question.protocol}
        return {**ends, **number, **self.answer.as_data()}


class VerdictChange(NamedTuple):
    """What one pair of ends gains or loses, and why it now is as it is."""

    source: str
    target: str
    spans: tuple[Span, ...]
    old: str
    new: str
    reason: str

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        return {
            "from": self.source,
            "to": self.target,
            "ports": in_words(self.spans),
            "old": self.old,
            "new": self.new,
            "reason": self.reason,
        }


def matrix(simulation: Simulation, questions: Iterable[Question]) -> Iterator[Cell]:
    """Yield the answer for every pair of endpoints and every question."""
    asked = tuple(questions)
    for source, target in product(simulation.endpoints, repeat=2):
        if source != target:
            pair = simulation.pair(source, target)
            for question in asked:
                yield Cell(source, target, question, simulation.judge(pair, question))


def named_ports(simulation: Simulation) -> tuple[Question, ...]:
    """Return each port that a policy names (of a range the first of a block), a TCP port that none names, and ping."""
    maps = {policy for name in simulation.endpoints for policy in simulation.end(name).maps or ()}
    keys = {key for policy in maps for key in policy.entries if key.bits}
    named = (Question(*key) for key in sorted({(key.proto, key.port) for key in keys}))
    other = _other(Span(TCP, key.port, key.last_port) for key in keys if key.proto == TCP)
    only_ipv6 = {not simulation.end(name).speaks("IPv4") for name in simulation.endpoints}
    pings = [Question(*ECHO["IPv6" if ipv6 else "IPv4"]) for ipv6 in sorted(only_ipv6)]
    return tuple(dict.fromkeys((*named, *other, *pings)))


def _other(spans: Iterable[Span]) -> tuple[Question, ...]:
    """Return the first TCP port that is in none of the spans, if there is one."""
    port = FIRST[TCP]
    for span in sorted(spans):
        if span.first > port:
            break
        port = max(port, span.last + 1)
    return (Question(TCP, port),) if port <= LAST[TCP] else ()


def diff(old: Simulation, new: Simulation) -> Iterator[VerdictChange]:
    """Yield what differs between two sets of policies for the same endpoints; also to and from what is outside."""
    stretches = _Stretches()
    outside = dict.fromkeys((*OUTSIDE, *old.prefixes, *new.prefixes))
    for source, target in product((*new.endpoints, *outside), repeat=2):
        if source != target and not {source, target} <= outside.keys():
            yield from _changes(old, new, source, target, stretches)


def _changes(
    old: Simulation, new: Simulation, source: str, target: str, stretches: "_Stretches"
) -> Iterator[VerdictChange]:
    found: dict[tuple[str, str], list[Span]] = {}
    reasons: dict[tuple[str, str], str] = {}
    pairs = old.pair(source, target), new.pair(source, target)
    for span in stretches.between(*pairs):
        question = Question(span.proto, span.first)
        before, after = old.judge(pairs[0], question), new.judge(pairs[1], question)
        if _essence(before) != _essence(after):
            change = _state(before), _state(after)
            found.setdefault(change, []).append(span)
            reasons.setdefault(change, after.reason)
    for change, spans in found.items():
        yield VerdictChange(source, target, tuple(joined(spans)), *change, reasons[change])


def _essence(answer: Answer) -> object:
    """Return all of an answer that traffic can tell."""
    sides = (answer.egress, answer.ingress)
    return answer.allowed, answer.allowed and [{rule.match for rule in side.requests} for side in sides]


def _state(answer: Answer) -> str:
    return "allow some requests" if answer.filtered else answer.verdict


class _Stretches:
    """Where the entries of maps begin and end, by peer."""

    def __init__(self) -> None:
        self._cuts: dict[PolicyMap, dict[Identity, set[tuple[int, int]]]] = {}

    def between(self, *pairs: Pair) -> Iterator[Span]:
        """Yield stretches that cover every port, none of which an entry that these pairs meet cuts."""
        cuts = {(proto, first) for proto, first in FIRST.items()}
        for facing in chain.from_iterable((pair.egress, pair.ingress) for pair in pairs):
            for identity in (facing.peer.identity, *facing.also, ANY):
                cuts |= self._of(facing.policy, identity) if facing.policy else set()
        ordered = sorted(cuts)
        for (proto, first), following in zip(ordered, (*ordered[1:], (0, 0)), strict=True):
            yield Span(proto, first, following[1] - 1 if following[0] == proto else LAST[proto])

    def _of(self, policy: PolicyMap, peer: Identity) -> set[tuple[int, int]]:
        by_peer = self._cuts.get(policy)
        if by_peer is None:
            by_peer = self._cuts[policy] = {}
            for key in policy.entries:
                edges = ((key.proto, key.port), (key.proto, key.last_port + 1))
                by_peer.setdefault(key.identity, set()).update(e for e in edges if key.proto and _inside(*e))
        return by_peer.get(peer, set())


def _inside(proto: int, port: int) -> bool:
    return FIRST[proto] <= port <= LAST[proto]
