"""Explanation of a connection's verdict, rule by rule: the conditions of each rule, and the first one not met.

The verdict is that of the compiled policy map, as on the data path; the explanations are made from the resolved rules.
The policy map determines which rules decide, so tests compare the map with the explanations.
"""

from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from nfq_enforcer.core.labels import ANY_SOURCE, Labels
from nfq_enforcer.core.tables import dns_names
from nfq_enforcer.core.tables.l7 import DnsMatch, L7Match, SniMatch
from nfq_enforcer.core.tables.policymap import PORT_BITS, WHOLE, Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.l7_match import matches, refusal, wrong_protocol
from nfq_enforcer.policy.ports import LAST, PortSpan, TrafficSpec, merge_spans
from nfq_enforcer.policy.requirements import Operator, Requirement
from nfq_enforcer.policy.rules import L4Filter, NamedPortRef, NamePeer, PortBlock, PortSet, Rule, RulePeer
from nfq_enforcer.policy.selectors import Selector
from nfq_enforcer.policy.simulation import (
    ConnectionEnd,
    ConnectionResult,
    ConnectionSide,
    EndPair,
    SideResult,
    Simulation,
    verdict_word,
)

_PEERS = 5  # that one explanation names
_ACTIONS = {Action.ACCEPT: "accepts", Action.DENY: "denies"}


class RuleTrace(NamedTuple):
    """RuleTrace: one rule, and the explanation of its effect on a connection."""

    rule: RuleRef
    matches: bool  # it selects the subject, the peer, the port and the request
    decides: bool
    explanation: str
    selects: bool = True  # the endpoint, as its subject

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the rule's trace."""
        return {"rule": str(self.rule), "fits": self.matches, "decides": self.decides, "why": self.explanation}


class SideTrace(NamedTuple):
    """SideTrace: one side of a connection, with a trace of every rule of its direction."""

    side: ConnectionSide
    result: SideResult
    rules: tuple[RuleTrace, ...]

    @property
    def explanation(self) -> str:
        """Return the reason for the side's verdict."""
        return self.result.reason or f"{self.side.subject.name} has no policy of its own"

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the side's trace."""
        return {
            "verdict": verdict_word(self.result.allowed),
            "why": self.explanation,
            "considered": [rule.as_data() for rule in self.rules],
        }


class Trace(NamedTuple):
    """Trace: a connection, its result, and the traces of both sides."""

    traffic: TrafficSpec
    result: ConnectionResult
    egress: SideTrace
    ingress: SideTrace

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the trace."""
        return {
            "from": self.egress.side.subject.name,
            "to": self.ingress.side.subject.name,
            "asked": str(self.traffic),
            "verdict": self.result.verdict,
            "reason": self.result.reason,
            "egress": self.egress.as_data(),
            "ingress": self.ingress.as_data(),
        }


def trace(simulation: Simulation, pair: EndPair, traffic: TrafficSpec) -> Trace:
    """Return the trace of a connection."""
    result = simulation.evaluate(pair, traffic)
    sides = (
        SideTrace(side, side_result, tuple(_rule_traces(simulation.rules(side.direction), side, side_result, traffic)))
        for side, side_result in ((pair.egress, result.egress), (pair.ingress, result.ingress))
    )
    return Trace(traffic, result, *sides)


def _rule_traces(
    rules: Iterable[Rule], side: ConnectionSide, result: SideResult, traffic: TrafficSpec
) -> Iterator[RuleTrace]:
    if side.policy is not None:
        tiers: set[Tier] = set()  # those with a matching rule before this one
        for rule in sorted(rules, key=_by_tier):
            mismatch = _mismatch(rule, side, traffic)
            if mismatch and rule.learns:
                continue  # its document has another rule with the same reference
            decides = rule.ref in result.rules and not rule.learns
            explanation = mismatch or _effect(rule, side, traffic)
            if not (mismatch or decides or rule.learns or _takes_turn(rule.ref, result, tiers)):
                explanation += ", without effect: a rule or policy of higher precedence matches"
            if rule.ref.order and not (mismatch or rule.learns):
                tiers.add(rule.ref.order.tier)
            selects = rule.subject.matches(side.subject.subject_labels)
            yield RuleTrace(rule.ref, not mismatch, decides, explanation, selects)


def _takes_turn(ref: RuleRef, result: SideResult, tiers: Set[Tier]) -> bool:
    """Return whether a matching rule that does not decide has an effect; ``tiers``: those with a match before it."""
    if ref.order is None:
        return not (result.rules and result.rules[0].order)
    return ref.order.action is Action.PASS and ref.order.tier not in tiers


def _by_tier(rule: Rule) -> tuple[int, tuple[int, str, int]]:
    """Return the sort key of a rule: Admin in its order, the rules without order as they are, Baseline in its order."""
    if rule.ref.order is None:
        return 1, (0, "", 0)
    return (0 if rule.ref.order.tier is Tier.ADMIN else 2), rule.ref.precedence


def _effect(rule: Rule, side: ConnectionSide, traffic: TrafficSpec) -> str:
    preposition = "to" if side.direction is Direction.EGRESS else "from"
    opening = f"{traffic} {preposition} {side.peer.name}"
    if rule.learns:
        return f"reads the answers of {side.peer.name} on {traffic}, if policy allows it, for its domainNames"
    match rule.ref.order:
        case RuleOrder(action=Action.PASS, tier=Tier.ADMIN):
            return f"passes {opening} to the rules outside the tier"
        case RuleOrder(action=Action.PASS):
            return f"passes {opening} to the default"
        case RuleOrder(action=action):
            return f"{_ACTIONS[action]} {opening}"
    return f"{'denies' if rule.ref.deny else 'allows'} {opening}"


def _mismatch(rule: Rule, side: ConnectionSide, traffic: TrafficSpec) -> str:
    """Return the first condition of a rule that the connection does not meet; empty if the rule matches."""
    if not rule.subject.matches(side.subject.subject_labels):
        return f"does not select {side.subject.name}: {_unmet(rule.subject, side.subject.subject_labels)}"
    if rule.ref.number == WHOLE or not rule.filters:
        return f"closes {side} and opens nothing" if rule.isolates else "opens nothing"
    if rule.peers == ():
        return "its list of peers is empty, so it is about nobody"
    if not matches_peer(rule, side):
        reasons = list(dict.fromkeys(_peer_mismatch(peer, side.peer) for peer in rule.peers or ()))
        more = [f"wants one of {len(reasons) - _PEERS} more"] if len(reasons) > _PEERS else []
        return f"{side.peer.name} is none of its peers: {', or '.join(reasons[:_PEERS] + more)}"
    matching = [rule.filters[place] for place in matching_filters(rule, side, traffic)]
    if not matching:
        ports = _render_ports(rule.filters, _destination_ports(side)) or "no port"
        return f"is about {ports}, not {traffic._replace(request=None)}"
    return _request_mismatch(matching, traffic)


def matches_peer(rule: Rule, side: ConnectionSide) -> bool:
    """Return whether a rule is about the peer of a side."""
    return rule.peers is None or any(_matches_peer(peer, side) for peer in rule.peers)


def matching_filters(rule: Rule, side: ConnectionSide, traffic: TrafficSpec) -> list[int]:
    """Return the places of the rule's filters that are about a port, whatever the request."""
    named_ports = _destination_ports(side)
    return [place for place, one in enumerate(rule.filters) if _matches_port(one, traffic, named_ports)]


def _destination_ports(side: ConnectionSide) -> PortSet:
    return side.subject.ports if side.direction is Direction.INGRESS else side.peer.ports


def _matches_peer(peer: RulePeer, side: ConnectionSide) -> bool:
    if isinstance(peer, Selector):
        return peer.matches(side.peer.labels)
    if isinstance(peer, NamePeer):
        return dns_names.matches(peer.pattern, side.peer.fqdn or "")
    return (peer.includes_endpoints or _is_outside(side.peer)) and any(
        network in peer for network in side.peer.addresses.values()
    )


def _is_outside(end: ConnectionEnd) -> bool:
    return bool(end.labels.find("reserved", "world"))


def _peer_mismatch(peer: RulePeer, end: ConnectionEnd) -> str:
    if isinstance(peer, Selector):
        return _unmet(peer, end.labels)
    if isinstance(peer, NamePeer):
        return f"wants an address that DNS has for {peer.pattern}"
    excluded = f" without {', '.join(map(str, sorted(peer.excluded, key=str)))}" if peer.excluded else ""
    if not peer.includes_endpoints and not _is_outside(end):
        return f"wants an address in {peer.prefix}{excluded}, and CIDRs are never endpoints or nodes"
    return f"wants an address in {peer.prefix}{excluded}"


def _unmet(selector: Selector, labels: Labels) -> str:
    unmet = sorted(requirement for requirement in selector.requirements if not requirement.matches(labels))
    return " and ".join(
        f"wants {_render_requirement(requirement)}, and it has {_labels_of_key(requirement, labels)}"
        for requirement in unmet
    )


def _render_requirement(requirement: Requirement) -> str:
    key, values = _render_key(requirement), sorted(requirement.values)
    if requirement.operator is Operator.EXISTS:
        return key
    if requirement.operator is Operator.DOES_NOT_EXIST:
        return f"no {key}"
    if requirement.operator is Operator.IN and len(values) == 1:
        return f"{key}={values[0]}"
    return f"{key} {'in' if requirement.operator is Operator.IN else 'not in'} ({', '.join(values)})"


def _render_key(requirement: Requirement) -> str:
    return requirement.key if requirement.source == ANY_SOURCE else f"{requirement.source}:{requirement.key}"


def _labels_of_key(requirement: Requirement, labels: Labels) -> str:
    return ", ".join(map(str, labels.find(ANY_SOURCE, requirement.key))) or f"no {requirement.key}"


def _spans(l4_filter: L4Filter, named_ports: PortSet) -> Iterator[PortSpan]:
    for port in l4_filter.ports:
        if isinstance(port, NamedPortRef):
            yield from (
                PortSpan(named.proto, named.number, named.number)
                for named in named_ports
                if NamedPortRef(named.name, named.proto) == port
            )
        else:
            last = port.number | ((1 << (PORT_BITS - port.bits)) - 1)
            yield PortSpan(port.proto, port.number, min(last, LAST[port.proto]))


def _matches_port(l4_filter: L4Filter, traffic: TrafficSpec, named_ports: PortSet) -> bool:
    if any(isinstance(port, PortBlock) and not port.proto for port in l4_filter.ports):
        return True
    return any(span.proto == traffic.proto and traffic.port in span for span in _spans(l4_filter, named_ports))


def _render_ports(filters: Iterable[L4Filter], named_ports: PortSet) -> str:
    filters = tuple(filters)
    spans = merge_spans(dict.fromkeys(span for l4_filter in filters for span in _spans(l4_filter, named_ports)))
    existing = {NamedPortRef(named.name, named.proto) for named in named_ports}
    refs = (port for l4_filter in filters for port in l4_filter.ports if isinstance(port, NamedPortRef))
    missing = dict.fromkeys(f"a port named {ref.name}, which is not there" for ref in refs if ref not in existing)
    return ", ".join((*map(str, spans), *missing))


def _request_mismatch(filters: Iterable[L4Filter], traffic: TrafficSpec) -> str:
    """Return the allowed requests if no filter allows this request; empty if one does, or if the traffic has none."""
    wrong = {l4_filter: wrong_protocol(l4_filter.l7, traffic.proto) for l4_filter in filters}
    reasons = list(filter(None, wrong.values()))
    filters = [l4_filter for l4_filter, reason in wrong.items() if not reason]
    if reasons and not filters:
        return f"lists {reasons[0][0]}, and {reasons[0][1]}"
    l7 = [match for l4_filter in filters for match in l4_filter.l7]
    request = traffic.request
    unrestricted = any(not l4_filter.l7 for l4_filter in filters)
    if request is None or unrestricted or any(matches(match, request) for match in l7):
        return ""
    if refused := refusal(request):
        return f"is not asked, because {refused}"
    return f"lets only requests pass that are {' or '.join(map(render_match, l7))}"


def render_match(match: L7Match) -> str:
    """Return a match on requests as text, as in ``GET /path`` or ``DNS queries for example.com``."""
    if isinstance(match, DnsMatch):
        return f"DNS queries for {match.pattern}"
    if isinstance(match, SniMatch):
        return f"TLS to {match.pattern}"
    host = f" at {match.host}" if match.host else ""
    headers = "".join(f" with {h.name}" + (f": {h.value}" if h.value is not None else "") for h in match.headers)
    return f"{match.method or 'any method'} {match.path or 'any path'}{host}{headers}"
