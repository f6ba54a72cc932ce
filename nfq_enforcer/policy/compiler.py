"""The compiler: policy documents and identities in, a policy map per set of endpoint labels and direction out.

A document's entries first become rules: small records with selectors that are scoped and ports that are numbers. What
one entry of ``ingress`` or ``egress`` opens, with "peers" for fromEndpoints or toEndpoints (as upstream):

=============  =================  ==========================================
peers          toPorts            opens
=============  =================  ==========================================
missing        missing or empty   nothing; it closes what no other rule opens
missing        ports              these ports to anyone, world and host included
empty          any                nothing
selectors      missing or empty   every protocol and port to those selected
selectors      ports              these ports to those selected
=============  =================  ==========================================
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.packet import SCTP, TCP, UDP
from nfq_enforcer.core.policymap import PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.documents import CiliumPolicy, EgressRule, IngressRule, PolicyRule, PortRule
from nfq_enforcer.policy.selectors import Selector, SelectorIndex, peer, subject

_PROTOCOLS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}


class Enforcement(StrEnum):
    """When an endpoint is closed to what no rule allows, in each direction."""

    AUTO = "auto"  # every endpoint, as soon as any rule speaks of the direction
    PER_ENDPOINT = "per-endpoint"  # an endpoint, as soon as a rule that selects it speaks of the direction
    ALWAYS = "always"
    NEVER = "never"


class Port(NamedTuple):
    """What a rule opens to its peers."""

    proto: int  # 0: every protocol, ICMP included
    number: int  # 0: every port


EVERY_PORT = Port(0, 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of ``ingress`` or ``egress``, resolved."""

    ref: RuleRef
    subject: Selector
    peers: tuple[Selector, ...] | None  # None: anyone
    ports: tuple[Port, ...]  # none covers another


class EndpointMaps(NamedTuple):
    """What may pass the two sides of an endpoint."""

    ingress: PolicyMap
    egress: PolicyMap


def resolve(document: CiliumPolicy) -> Iterator[Rule]:
    """Yield the rules of a document; ``ref.spec`` counts from the rule in ``spec``, if there is one, to ``specs``."""
    for spec, written in enumerate(document.rules):
        selects = subject(written.endpoint_selector, document.namespace)
        for direction, number, entry in _entries(written):
            ref = RuleRef(document.kind, document.namespace, document.name, direction, number, spec)
            yield Rule(ref, selects, _peers(entry, document.namespace), _ports(entry))


def _entries(rule: PolicyRule) -> Iterator[tuple[Direction, int, IngressRule | EgressRule]]:
    yield from ((Direction.INGRESS, number, entry) for number, entry in enumerate(rule.ingress))
    yield from ((Direction.EGRESS, number, entry) for number, entry in enumerate(rule.egress))


def _peers(entry: IngressRule | EgressRule, namespace: str) -> tuple[Selector, ...] | None:
    if entry.peers is None:
        return None
    return tuple(dict.fromkeys(peer(written, namespace) for written in entry.peers))


def _ports(entry: IngressRule | EgressRule) -> tuple[Port, ...]:
    if entry.to_ports:
        return _numbers(entry.to_ports)
    return () if entry.peers is None else (EVERY_PORT,)


def _numbers(entries: Iterable[PortRule]) -> tuple[Port, ...]:
    written = (port for entry in entries for port in entry.ports)
    ports = dict.fromkeys(Port(proto, int(port.port)) for port in written for proto in _PROTOCOLS[port.protocol])
    return tuple(port for port in ports if not port.number or Port(port.proto, 0) not in ports)


class Policy:
    """All loaded rules, resolved against all known identities.

    Endpoints with equal labels share their maps, and maps share what one rule puts into them.
    """

    def __init__(self, rules: Iterable[Rule], index: SelectorIndex, enforcement: Enforcement) -> None:
        """Take the rules in the order of their documents."""
        self._index = index
        self._enforcement = enforcement
        self._rules: dict[Direction, list[Rule]] = {direction: [] for direction in Direction}
        for rule in rules:
            self._rules[rule.ref.direction].append(rule)
        self._spoken = {direction: tuple(rule.ref for rule in found) for direction, found in self._rules.items()}
        self._opened: dict[Rule, tuple[PolicyKey, ...]] = {}
        self._maps: dict[Labels, EndpointMaps] = {}

    def maps_for(self, labels: Labels) -> EndpointMaps:
        """Return the maps of an endpoint with these labels: those of its identity."""
        maps = self._maps.get(labels)
        if maps is None:
            maps = EndpointMaps(self._map(labels, Direction.INGRESS), self._map(labels, Direction.EGRESS))
            self._maps[labels] = maps
        return maps

    def _map(self, labels: Labels, direction: Direction) -> PolicyMap:
        if self._enforcement is Enforcement.NEVER:
            return PolicyMap({}, enforced=False)
        rules = [rule for rule in self._rules[direction] if rule.subject.matches(labels)]
        if self._enforcement is Enforcement.ALWAYS:
            return PolicyMap(self._entries(rules), enforced=True)
        if self._enforcement is Enforcement.AUTO:
            closing = self._spoken[direction]
        else:
            closing = tuple(rule.ref for rule in rules)
        return PolicyMap(self._entries(rules), enforced=bool(closing), enforced_by=closing)

    def _entries(self, rules: Iterable[Rule]) -> dict[PolicyKey, tuple[RuleRef, ...]]:
        entries: dict[PolicyKey, tuple[RuleRef, ...]] = {}
        for rule in rules:
            alone = (rule.ref,)
            for key in self._keys(rule):
                others = entries.get(key)
                entries[key] = others + alone if others else alone
        return entries

    def _keys(self, rule: Rule) -> tuple[PolicyKey, ...]:
        keys = self._opened.get(rule)
        if keys is None:
            keys = tuple(PolicyKey(identity, *port) for identity in self._identities(rule) for port in rule.ports)
            self._opened[rule] = keys
        return keys

    def _identities(self, rule: Rule) -> Iterable[Identity]:
        if rule.peers is None:
            return (ANY,)
        return frozenset[Identity]().union(*map(self._index.select, rule.peers))


def compile_policy(
    documents: Iterable[CiliumPolicy], identities: Mapping[Labels, Identity], enforcement: Enforcement
) -> Policy:
    """Return the policy that the documents make among these identities and the reserved ones."""
    known = {**identities, **{labels: identity for identity, labels in RESERVED.items()}}
    return Policy((rule for document in documents for rule in resolve(document)), SelectorIndex(known), enforcement)
