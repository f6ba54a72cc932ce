"""The compiler: rules and identities in, a policy map per kind of endpoint and direction out.

A kind of endpoint is its labels, and at ingress also its named ports: endpoints of one kind share their maps, and maps
share what one rule puts into them. What the entries of documents come to is told in ``cilium_rules`` and
``kubernetes_rules``.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, HOST, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.policymap import PORT_BITS, Entry, L7Rule, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import cilium_rules, kubernetes_rules
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.numbers import Numbers
from nfq_enforcer.policy.rules import Block, NamedPort, Opening, Port, PortSet, Rule
from nfq_enforcer.policy.selectors import EVERYBODY, Selector, SelectorIndex

NO_PORTS: PortSet = frozenset()


class Enforcement(StrEnum):
    """When an endpoint is closed to what no rule allows, in each direction."""

    AUTO = "auto"  # every endpoint, as soon as any rule closes the direction
    PER_ENDPOINT = "per-endpoint"  # an endpoint, as soon as a rule that selects it closes the direction
    ALWAYS = "always"
    NEVER = "never"


class EndpointMaps(NamedTuple):
    """What may pass the two sides of an endpoint."""

    ingress: PolicyMap
    egress: PolicyMap


Keys = tuple[PolicyKey, ...]


def resolve(document: PolicyDocument) -> Iterator[Rule]:
    """Yield the rules of a document, in their order."""
    if isinstance(document, NetworkPolicy):
        return kubernetes_rules.resolve(document)
    assert isinstance(document, CiliumPolicy)  # there is no other kind
    return cilium_rules.resolve(document)


class Policy:
    """All loaded rules, resolved against all known identities."""

    def __init__(
        self,
        rules: Iterable[Rule],
        identities: Mapping[Labels, Identity],
        enforcement: Enforcement,
        ports: Mapping[Identity, Iterable[PortSet]],
    ) -> None:
        """Take the rules in the order of their documents; ``ports`` are what endpoints of an identity call theirs."""
        ordered = tuple(rules)
        self._ports = {identity: frozenset(found) for identity, found in ports.items()}
        self.numbers = Numbers(ordered, self._ports)
        self._index = SelectorIndex({**identities, **self.numbers.labels, **_RESERVED})
        self._enforcement = enforcement
        self._rules = {d: tuple(rule for rule in ordered if rule.ref.direction is d) for d in Direction}
        self._spoken = {
            direction: tuple(rule.ref for rule in found if rule.isolates and not rule.subject.matches(_HOST))
            for direction, found in self._rules.items()
        }
        self._given: dict[tuple[int, PortSet], tuple[tuple[Entry, Keys], ...]] = {}
        self._maps: dict[tuple[Labels, PortSet], EndpointMaps] = {}

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction, in the order of their documents."""
        return self._rules[direction]

    def maps_for(self, labels: Labels, ports: PortSet = NO_PORTS) -> EndpointMaps:
        """Return the maps of an endpoint with these labels and named ports; with the host's labels, the host's."""
        maps = self._maps.get((labels, ports))
        if maps is None:
            maps = EndpointMaps(*(self._map(labels, ports, direction) for direction in Direction))
            self._maps[labels, ports] = maps
        return maps

    def _map(self, labels: Labels, ports: PortSet, direction: Direction) -> PolicyMap:
        if self._enforcement is Enforcement.NEVER:
            return PolicyMap({}, enforced=False)
        rules = [rule for rule in self._rules[direction] if rule.subject.matches(labels)]
        closing = tuple(rule.ref for rule in rules if rule.isolates)
        entries = self._entries(rules, ports)
        if labels == _HOST:  # a node is closed by what selects it and by nothing else: nobody is to be locked out
            return PolicyMap(entries, enforced=bool(closing), enforced_by=closing)
        if self._enforcement is Enforcement.ALWAYS:
            return PolicyMap(entries, enforced=True)
        if self._enforcement is Enforcement.AUTO:
            closing = self._spoken[direction]
        return PolicyMap(entries, enforced=bool(closing), enforced_by=closing)

    def _entries(self, rules: Iterable[Rule], ports: PortSet) -> dict[PolicyKey, Entry]:
        entries: dict[PolicyKey, Entry] = {}
        merged: dict[tuple[int, int], Entry] = {}  # equal sums of entries are one object
        for rule in rules:
            for entry, keys in self._contributions(rule, ports):
                for key in keys:
                    old = entries.setdefault(key, entry)
                    if old is not entry:
                        pair = (id(old), id(entry))
                        both = merged.get(pair)
                        if both is None:
                            both = merged[pair] = _sum(old, entry)
                        entries[key] = both
        return entries

    def _contributions(self, rule: Rule, ports: PortSet) -> tuple[tuple[Entry, Keys], ...]:
        """Return what a rule puts into the maps of an endpoint with these named ports."""
        if rule.ref.direction is Direction.EGRESS or not _has_names(rule):
            ports = NO_PORTS
        given = self._given.get((id(rule), ports))
        if given is None:
            given = tuple(
                (_entry(rule, opening), tuple(dict.fromkeys(self._keys(rule, opening, ports))))
                for opening in rule.opens
            )
            self._given[id(rule), ports] = given
        return given

    def _keys(self, rule: Rule, opening: Opening, ports: PortSet) -> Iterator[PolicyKey]:
        identities = self._identities(rule)
        named = [port for port in opening.ports if isinstance(port, NamedPort)]
        numbered = [port for port in opening.ports if isinstance(port, Port)]
        if rule.ref.direction is Direction.INGRESS:
            numbered += _called(named, ports)
        elif named:
            yield from self._destinations(identities, named)
        for identity in identities:
            for port in numbered:
                yield PolicyKey(identity, *port)

    def _destinations(self, identities: Iterable[Identity], named: list[NamedPort]) -> Iterator[PolicyKey]:
        """Yield a key for each peer that has a port of such a name: its own number of it."""
        peers = self._ports if ANY in identities else identities
        for identity in peers:
            for ports in self._ports.get(identity, ()):
                site = self.numbers.sites.get((identity, ports), identity)
                for port in _called(named, ports):
                    yield PolicyKey(site, *port)

    def _identities(self, rule: Rule) -> frozenset[Identity]:
        if rule.peers is None or EVERYBODY in rule.peers:
            return frozenset((ANY,))
        return frozenset[Identity]().union(*map(self._named, rule.peers))

    def _named(self, peer: Selector | Block) -> frozenset[Identity]:
        return self.numbers.of(peer) if isinstance(peer, Block) else self._index.select(peer)


_RESERVED = {labels: identity for identity, labels in RESERVED.items()}
_HOST = RESERVED[HOST]


def _has_names(rule: Rule) -> bool:
    return any(isinstance(port, NamedPort) for opening in rule.opens for port in opening.ports)


def _called(named: Iterable[NamedPort], ports: PortSet) -> list[Port]:
    wanted = set(named)
    return [Port(port.proto, port.number, PORT_BITS) for port in ports if NamedPort(port.name, port.proto) in wanted]


def _entry(rule: Rule, opening: Opening) -> Entry:
    alone = (rule.ref,)
    if rule.ref.deny:
        return Entry(denied_by=alone)
    return Entry(l7=tuple(L7Rule(rule.ref, match) for match in opening.l7)) if opening.l7 else Entry(alone)


def _sum(one: Entry, other: Entry) -> Entry:
    return Entry(_joined(one.allowed_by, other.allowed_by), _joined(one.denied_by, other.denied_by), one.l7 + other.l7)


def _joined(one: tuple[RuleRef, ...], other: tuple[RuleRef, ...]) -> tuple[RuleRef, ...]:
    return one if not other or one[-1:] == other else one + other


def compile_policy(
    documents: Iterable[PolicyDocument],
    identities: Mapping[Labels, Identity],
    enforcement: Enforcement,
    ports: Mapping[Identity, Iterable[PortSet]] | None = None,
) -> Policy:
    """Return the policy that the documents make among these identities and the reserved ones."""
    rules = (rule for document in documents for rule in resolve(document))
    return Policy(rules, identities, enforcement, ports or {})
