"""The compiler: rules and identities in, a policy map per kind of endpoint and direction out.

A kind of endpoint is its labels, and at ingress also its named ports: endpoints of one kind share their maps, and maps
share what one rule puts into them. What the entries of documents come to is told in ``cilium_rules`` and
``kubernetes_rules``.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from copy import copy
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, HOST, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import PORT_BITS, L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.local_identities import LocalIdentities
from nfq_enforcer.policy.rules import Block, NamedPort, Opening, Port, PortSet, Rule
from nfq_enforcer.policy.rules_index import NO_PORTS, Giver, Rulebook, Side
from nfq_enforcer.policy.selectors import EVERYBODY, Selector, SelectorIndex


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


Given = tuple[tuple[PolicyEntry, frozenset[PolicyKey]], ...]
"""What a rule puts into maps: for each of its openings the entry and at which keys, then again for those that came
lately, so that a key that comes does not cost a copy of all."""

_LATELY = 64  # so many keys are kept apart before they join the others


class Policy:
    """All loaded rules, resolved against all known identities: a value, as are the maps it hands out.

    What changes makes another policy (``with_documents``, ``with_identity``, ``without_identity``), and whoever holds
    the one before goes on reading it. That is simpler than a compiler which is changed in place: no reader has to be
    kept away while it is, and an update that fails leaves nothing half done. The two share what is the same in both:
    a map is made anew only if an entry of it changed or what closes it, and then from the one before.
    """

    def __init__(
        self,
        documents: Iterable[PolicyDocument],
        identities: Mapping[Labels, Identity],
        enforcement: Enforcement,
        ports: Mapping[Identity, Iterable[PortSet]],
    ) -> None:
        """Take the documents in their order; ``ports`` are what endpoints of an identity call theirs."""
        self._enforcement = enforcement
        self._identities = dict(identities)
        self._ports = {identity: frozenset(found) for identity, found in ports.items()}
        self._rulebook = Rulebook(documents)
        self.numbers = LocalIdentities(self._rulebook.rules, self._ports)
        self._index = SelectorIndex({**identities, **self.numbers.labels, **_RESERVED})
        self._given: dict[Giver, Given] = {}
        self._sides: dict[Side, PolicyMap] = {}

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction, in the order of their documents."""
        return self._rulebook.of(direction)

    def maps_for(self, labels: Labels, ports: PortSet = NO_PORTS) -> EndpointMaps:
        """Return the maps of an endpoint with these labels and named ports; with the host's labels, the host's."""
        return EndpointMaps(*(self._side(Side(labels, ports, direction)) for direction in Direction))

    def with_documents(self, documents: Iterable[PolicyDocument]) -> "Policy":
        """Return the policy that these documents make; those that are the very objects of before are not read again."""
        after = copy(self)
        after._rulebook = Rulebook(documents, self._rulebook)
        if not after._rulebook.keeps_order_of(self._rulebook):
            return Policy(after._rulebook.documents, self._identities, self._enforcement, self._ports)
        if after._rulebook.blocks != self._rulebook.blocks:
            after.numbers = LocalIdentities(after._rulebook.rules, self._ports)
        return after._follow(self, {}, {})

    def with_identity(self, labels: Labels, identity: Identity, ports: Iterable[PortSet] = ()) -> "Policy":
        """Return the policy with an identity more, or another number or other ports of one that it knows."""
        after = self.without_identity(labels) if self._identities.get(labels, identity) != identity else copy(self)
        known = labels in after._identities
        after._identities = after._identities | {labels: identity}
        return after._renamed(identity, frozenset(ports), {}, {} if known else {labels: identity})

    def without_identity(self, labels: Labels) -> "Policy":
        """Return the policy without an identity; raise KeyError for one that it does not know."""
        after = copy(self)
        after._identities = dict(self._identities)
        identity = after._identities.pop(labels)
        after = after._renamed(identity, frozenset(), {labels: identity}, {})
        after._sides = {side: found for side, found in after._sides.items() if side.labels != labels}
        return after

    def _renamed(
        self, identity: Identity, ports: frozenset[PortSet], gone: dict[Labels, Identity], come: dict[Labels, Identity]
    ) -> "Policy":
        before = copy(self)
        had = before._ports.get(identity, frozenset())
        self._ports = before._ports | {identity: ports}
        if not ports:
            del self._ports[identity]
        if ports != had and max(len(ports), len(had)) > 1:
            self.numbers = LocalIdentities(self._rulebook.rules, self._ports)
        return self._follow(before, gone, come, {identity})

    def _follow(
        self,
        before: "Policy",
        gone: dict[Labels, Identity],
        come: dict[Labels, Identity],
        touched: Iterable[Identity] = (),
    ) -> "Policy":
        """Take over what is the same as before, and correct the rest for the rules and identities that changed."""
        if self.numbers is not before.numbers:
            old, new = before.numbers.labels.items(), self.numbers.labels.items()
            gone, come = gone | dict(old - new), come | dict(new - old)
            touched = {*touched, *self.numbers.changed_since(before.numbers)}
        if gone or come:
            self._index = before._index.updated(gone, come)
        among = frozenset((*touched, *gone.values(), *come.values()))
        self._given = dict(before._given)
        dirty = self._corrected(before, among) if among else {}
        if self._rulebook is not before._rulebook:
            kept = set(map(id, self._rulebook.rules))
            self._given = {of: given for of, given in self._given.items() if of[0] in kept}
        if self._enforcement is not Enforcement.NEVER:
            changed = {of[0] for of in dirty}
            self._sides = {side: self._followed(before, side, changed, dirty) for side in before._sides}
        return self

    def _corrected(self, before: "Policy", among: frozenset[Identity]) -> dict[Giver, frozenset[PolicyKey]]:
        """Correct what rules give to these identities; return the keys that each rule gives now and did not, or did."""
        rules = {
            id(rule): rule
            for peer, found in before._rulebook.by_peer.items()
            if not (isinstance(peer, Block) and self.numbers is before.numbers)
            and not (among.isdisjoint(before._named(peer)) and among.isdisjoint(self._named(peer)))
            for rule in found
        }
        dirty = {}
        for of in [of for of in before._given if of[0] in rules]:
            rule, given = rules[of[0]], before._given[of]
            old = [frozenset(before._keys(rule, opening, of[1], among)) for opening in rule.opens]
            new = [frozenset(self._keys(rule, opening, of[1], among)) for opening in rule.opens]
            if old != new:
                self._given[of] = tuple(
                    part for each in zip(given[::2], given[1::2], old, new, strict=True) for part in _revised(*each)
                )
                dirty[of] = frozenset[PolicyKey]().union(*(o ^ n for o, n in zip(old, new, strict=True)))
        return dirty

    def _followed(
        self, before: "Policy", side: Side, changed: Set[int], dirty: Mapping[Giver, frozenset[PolicyKey]]
    ) -> PolicyMap:
        """Return the map of a side, made from the one before where it is not the same."""
        found = before._sides[side]
        rules, old = self._rulebook.selecting(side), before._rulebook.selecting(side)
        givers = self._rulebook.givers(side, changed) if changed else []
        keys = set[PolicyKey]().union(*(dirty.get(of, ()) for of in givers))
        if rules is not old:
            keys.update(before._keys_of(old, rules, side.ports), self._keys_of(rules, old, side.ports))
        enforced, enforced_by = self._closed(side, rules)
        if keys:
            entries = self._patched(found, rules, side.ports, keys)
            return found.revised(entries, keys, enforced=enforced, enforced_by=enforced_by)
        if (enforced, enforced_by) != (found.enforced, found.enforced_by):
            return found.closed_by(enforced_by, enforced=enforced)
        return found

    def _keys_of(self, rules: Iterable[Rule], others: Iterable[Rule], ports: PortSet) -> set[PolicyKey]:
        """Return the keys of those rules that are not among the others."""
        known = set(map(id, others))
        given = (self._contributions(rule, ports) for rule in rules if id(rule) not in known)
        return set[PolicyKey]().union(*(keys for of in given for _, keys in of))

    def _patched(
        self, found: PolicyMap, rules: Iterable[Rule], ports: PortSet, keys: Set[PolicyKey]
    ) -> dict[PolicyKey, PolicyEntry]:
        entries = dict(found.entries)
        for key in keys:
            entries.pop(key, None)
        entries.update(self._entries(rules, ports, keys))
        return entries

    def _side(self, side: Side) -> PolicyMap:
        found = self._sides.get(side)
        if found is None:
            found = self._sides[side] = self._map(side)
        return found

    def _map(self, side: Side) -> PolicyMap:
        if self._enforcement is Enforcement.NEVER:
            return PolicyMap({}, enforced=False)
        rules = self._rulebook.selecting(side)
        enforced, enforced_by = self._closed(side, rules)
        return PolicyMap(self._entries(rules, side.ports), enforced=enforced, enforced_by=enforced_by)

    def _closed(self, side: Side, rules: Iterable[Rule]) -> tuple[bool, tuple[RuleRef, ...]]:
        """Say whether a side is closed to what no rule opens, and by which rules."""
        if side.labels != _HOST:  # a node is closed by what selects it and nothing else: nobody is to be locked out
            if self._enforcement is Enforcement.ALWAYS:
                return True, ()
            if self._enforcement is Enforcement.AUTO:
                spoken = self._rulebook.spoken(side.direction)
                return bool(spoken), spoken
        closing = tuple(rule.ref for rule in rules if rule.isolates)
        return bool(closing), closing

    def _entries(
        self, rules: Iterable[Rule], ports: PortSet, only: Set[PolicyKey] | None = None
    ) -> dict[PolicyKey, PolicyEntry]:
        entries: dict[PolicyKey, PolicyEntry] = {}
        merged: dict[tuple[int, int], PolicyEntry] = {}  # equal sums of entries are one object
        for rule in rules:
            for entry, keys in self._contributions(rule, ports):
                for key in keys if only is None else keys & only:
                    old = entries.setdefault(key, entry)
                    if old is not entry:
                        pair = (id(old), id(entry))
                        both = merged.get(pair)
                        if both is None:
                            both = merged[pair] = _sum(old, entry)
                        entries[key] = both
        return entries

    def _contributions(self, rule: Rule, ports: PortSet) -> Given:
        """Return what a rule puts into the maps of an endpoint with these named ports."""
        of = self._rulebook.giver(rule, ports)
        given = self._given.get(of)
        if given is None:
            given = self._given[of] = tuple(
                part
                for opening in rule.opens
                for entry in (_entry(rule, opening),)
                for part in ((entry, frozenset(self._keys(rule, opening, of[1]))), (entry, frozenset[PolicyKey]()))
            )
        return given

    def _keys(
        self, rule: Rule, opening: Opening, ports: PortSet, among: frozenset[Identity] | None = None
    ) -> Iterator[PolicyKey]:
        """Yield the keys that an opening opens; ``among``: for these peers only."""
        identities = self._identities_of(rule, among)
        if not identities:
            return
        named = [port for port in opening.ports if isinstance(port, NamedPort)]
        numbered = [port for port in opening.ports if isinstance(port, Port)]
        if rule.ref.direction is Direction.INGRESS:
            numbered += _called(named, ports)
        elif named:
            yield from self._destinations(identities, named, among)
        for identity in identities:
            for port in numbered:
                yield PolicyKey(identity, *port)

    def _destinations(
        self, identities: Iterable[Identity], named: list[NamedPort], among: frozenset[Identity] | None
    ) -> Iterator[PolicyKey]:
        """Yield a key for each peer that has a port of such a name: its own number of it."""
        if ANY in identities:
            identities = self._ports if among is None else among
        for identity in identities:
            for ports in self._ports.get(identity, ()):
                site = self.numbers.sites.get((identity, ports), identity)
                for port in _called(named, ports):
                    yield PolicyKey(site, *port)

    def _identities_of(self, rule: Rule, among: frozenset[Identity] | None) -> frozenset[Identity]:
        if rule.peers is None or EVERYBODY in rule.peers:
            return frozenset((ANY,))
        found = map(self._named, rule.peers)
        return frozenset[Identity]().union(*(found if among is None else (of & among for of in found)))

    def _named(self, peer: Selector | Block) -> frozenset[Identity]:
        return self.numbers.of(peer) if isinstance(peer, Block) else self._index.select(peer)


_RESERVED = {labels: identity for identity, labels in RESERVED.items()}
_HOST = RESERVED[HOST]


def _revised(
    most: tuple[PolicyEntry, frozenset[PolicyKey]],
    few: tuple[PolicyEntry, frozenset[PolicyKey]],
    less: frozenset[PolicyKey],
    more: frozenset[PolicyKey],
) -> Given:
    """Return both parts of what an opening gives, without some keys and with others."""
    (entry, keys), (_, late) = most, few
    late = late - less | more
    if not keys.isdisjoint(less) or len(late) > _LATELY:
        keys, late = keys - less | late, frozenset()
    return (entry, keys), (entry, late)


def _called(named: Iterable[NamedPort], ports: PortSet) -> list[Port]:
    wanted = set(named)
    return [Port(port.proto, port.number, PORT_BITS) for port in ports if NamedPort(port.name, port.proto) in wanted]


def _entry(rule: Rule, opening: Opening) -> PolicyEntry:
    alone = (rule.ref,)
    if rule.ref.deny:
        return PolicyEntry(denied_by=alone)
    return PolicyEntry(l7=tuple(L7Rule(rule.ref, match) for match in opening.l7)) if opening.l7 else PolicyEntry(alone)


def _sum(one: PolicyEntry, other: PolicyEntry) -> PolicyEntry:
    return PolicyEntry(
        _joined(one.allowed_by, other.allowed_by), _joined(one.denied_by, other.denied_by), one.l7 + other.l7
    )


def _joined(one: tuple[RuleRef, ...], other: tuple[RuleRef, ...]) -> tuple[RuleRef, ...]:
    return one if not other or one[-1:] == other else one + other


def compile_policy(
    documents: Iterable[PolicyDocument],
    identities: Mapping[Labels, Identity],
    enforcement: Enforcement,
    ports: Mapping[Identity, Iterable[PortSet]] | None = None,
) -> Policy:
    """Return the policy that the documents make among these identities and the reserved ones."""
    return Policy(documents, identities, enforcement, ports or {})
