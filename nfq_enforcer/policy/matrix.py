"""Matrix of all pairs of endpoints: the allowed ports of each pair, and the differences between two policy sets.

The verdict on a pair is constant over intervals of ports that begin and end at the entries of its two policy maps. So a
comparison evaluates one port of each interval, and is exact for all 65,535 ports of each protocol.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, product
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.ports import FIRST, LAST, PortSpan, TrafficSpec, merge_spans, render_spans
from nfq_enforcer.policy.simulation import ECHO_REQUEST, ConnectionResult, EndPair, Simulation

OUTSIDE_REFERENCES = ("reserved:world", "reserved:host", "reserved:remote-node")


class MatrixCell(NamedTuple):
    """MatrixCell: one connection of the matrix, with its result."""

    source: str
    target: str
    traffic: TrafficSpec
    result: ConnectionResult

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the cell."""
        number = {"icmp": {"type": self.traffic.port}} if self.traffic.icmp else {"port": self.traffic.port}
        ends = {"from": self.source, "to": self.target, "protocol": self.traffic.protocol}
        return {**ends, **number, **self.result.as_data()}


class VerdictChange(NamedTuple):
    """VerdictChange: the ports of a pair for which two policy sets differ, with the reason for the new verdict."""

    source: str
    target: str
    spans: tuple[PortSpan, ...]
    old: str
    new: str
    reason: str

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the change."""
        return {
            "from": self.source,
            "to": self.target,
            "ports": render_spans(self.spans),
            "old": self.old,
            "new": self.new,
            "reason": self.reason,
        }


def matrix(simulation: Simulation, traffic: Iterable[TrafficSpec]) -> Iterator[MatrixCell]:
    """Yield the result of every pair of endpoints for every kind of traffic."""
    every_traffic = tuple(traffic)
    for source, target in product(simulation.endpoints, repeat=2):
        if source != target:
            pair = simulation.pair(source, target)
            for one_traffic in every_traffic:
                yield MatrixCell(source, target, one_traffic, simulation.evaluate(pair, one_traffic))


def default_traffic(simulation: Simulation) -> tuple[TrafficSpec, ...]:
    """Return each port in the policies (of a range, the first of each block), a TCP port in none of them, and ping."""
    maps = {policy for name in simulation.endpoints for policy in simulation.end(name).maps or ()}
    keys = {key for policy in maps for key in policy.entries if key.bits}
    in_policies = (TrafficSpec(*key) for key in sorted({(key.proto, key.port) for key in keys}))
    in_none = _first_free_tcp_port(PortSpan(TCP, key.port, key.last_port) for key in keys if key.proto == TCP)
    only_ipv6 = {not simulation.end(name).supports("IPv4") for name in simulation.endpoints}
    pings = [TrafficSpec(*ECHO_REQUEST["IPv6" if ipv6 else "IPv4"]) for ipv6 in sorted(only_ipv6)]
    return tuple(dict.fromkeys((*in_policies, *in_none, *pings)))


def _first_free_tcp_port(spans: Iterable[PortSpan]) -> tuple[TrafficSpec, ...]:
    """Return the first TCP port outside all spans; empty if the spans cover every port."""
    port = FIRST[TCP]
    for span in sorted(spans):
        if span.first > port:
            break
        port = max(port, span.last + 1)
    return (TrafficSpec(TCP, port),) if port <= LAST[TCP] else ()


def diff(old: Simulation, new: Simulation) -> Iterator[VerdictChange]:
    """Yield the verdict changes between two policy sets for the same endpoints, traffic with the outside included."""
    intervals = _PortIntervals()
    outside = dict.fromkeys((*OUTSIDE_REFERENCES, *old.prefix_references, *new.prefix_references))
    for source, target in product((*new.endpoints, *outside), repeat=2):
        if source != target and not {source, target} <= outside.keys():
            yield from _changes(old, new, source, target, intervals)


def diff_at(old: Simulation, new: Simulation, subjects: Iterable[str], direction: Direction) -> Iterator[VerdictChange]:
    """Yield the verdict changes of connections whose side of this direction is one of the subjects."""
    intervals = _PortIntervals()
    outside = dict.fromkeys((*OUTSIDE_REFERENCES, *old.prefix_references, *new.prefix_references))
    for subject in subjects:
        for peer in (*new.endpoints, *outside):
            ends = (peer, subject) if direction is Direction.INGRESS else (subject, peer)
            if peer != subject:
                yield from _changes(old, new, *ends, intervals)


def _changes(
    old: Simulation, new: Simulation, source: str, target: str, intervals: "_PortIntervals"
) -> Iterator[VerdictChange]:
    changed: dict[tuple[str, str], list[PortSpan]] = {}
    reasons: dict[tuple[str, str], str] = {}
    pairs = old.pair(source, target), new.pair(source, target)
    for span in intervals.of_pairs(*pairs):
        traffic = TrafficSpec(span.proto, span.first)
        before, after = old.evaluate(pairs[0], traffic), new.evaluate(pairs[1], traffic)
        if _observable(before) != _observable(after):
            change = _state(before), _state(after)
            changed.setdefault(change, []).append(span)
            reasons.setdefault(change, after.reason)
    for change, spans in changed.items():
        yield VerdictChange(source, target, tuple(merge_spans(spans)), *change, reasons[change])


def _observable(result: ConnectionResult) -> object:
    """Return the part of a result that traffic can observe: the verdict and the allowed requests, without rules."""
    sides = (result.egress, result.ingress)
    return result.allowed, result.allowed and [{rule.match for rule in side.l7_rules} for side in sides]


def _state(result: ConnectionResult) -> str:
    return "allow some requests" if result.restricted else result.verdict


class _PortIntervals:
    """PortIntervals: the ports at which the entries of policy maps begin and end, by peer identity."""

    def __init__(self) -> None:
        self._cuts: dict[PolicyMap, dict[Identity, set[tuple[int, int]]]] = {}

    def of_pairs(self, *pairs: EndPair) -> Iterator[PortSpan]:
        """Yield spans that cover every port, cut wherever a policy entry for these pairs begins or ends."""
        cuts = {(proto, first) for proto, first in FIRST.items()}
        for side in chain.from_iterable((pair.egress, pair.ingress) for pair in pairs):
            for identity in (side.peer.identity, *side.local_identities, ANY):
                cuts |= self._cuts_of(side.policy, identity) if side.policy else set()
        ordered = sorted(cuts)
        for (proto, first), following in zip(ordered, (*ordered[1:], (0, 0)), strict=True):
            yield PortSpan(proto, first, following[1] - 1 if following[0] == proto else LAST[proto])

    def _cuts_of(self, policy: PolicyMap, peer: Identity) -> set[tuple[int, int]]:
        by_peer = self._cuts.get(policy)
        if by_peer is None:
            by_peer = self._cuts[policy] = {}
            for key in policy.entries:
                edges = ((key.proto, key.port), (key.proto, key.last_port + 1))
                by_peer.setdefault(key.identity, set()).update(e for e in edges if key.proto and _is_port(*e))
        return by_peer.get(peer, set())


def _is_port(proto: int, port: int) -> bool:
    return FIRST[proto] <= port <= LAST[proto]
