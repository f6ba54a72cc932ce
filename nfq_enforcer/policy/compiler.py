"""Policy compiler: resolved rules and identities in, one policy map for each kind of endpoint and direction out.

A kind of endpoint is its labels, for ingress with its named ports: endpoints of one kind share their policy maps, and
maps share the entries that one rule contributes to them. ``cilium_rules``, ``kubernetes_rules`` and
``cluster_policy_rules`` define which traffic an entry of a document allows or denies.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from copy import copy
from typing import NamedTuple

from nfq_enforcer.core import modes
from nfq_enforcer.core.identity import ANY, RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import PORT_BITS, L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.local_identities import LocalIdentities
from nfq_enforcer.policy.rules import L4Filter, NamedPortRef, PortBlock, PortSet, Rule
from nfq_enforcer.policy.rules_index import NO_PORTS, ContributionKey, EndpointSide, RulesIndex
from nfq_enforcer.policy.selectors import RESERVED_SOURCE, Selector, SelectorIndex

Enforcement = modes.Enforcement  # defined among the modes, which the command line imports without the compiler


class EndpointMaps(NamedTuple):
    """EndpointMaps: the policy maps of an endpoint, one for each direction."""

    ingress: PolicyMap
    egress: PolicyMap


KeyedEntry = tuple[PolicyEntry, frozenset[PolicyKey]]
Contribution = tuple[KeyedEntry, ...]
"""The entries of one rule with the keys at which they stand: two pairs for each L4 filter of the rule. The first pair
has most of the keys, the second the keys added lately, so that adding a key does not copy all of them."""

_MAX_RECENT_KEYS = 64  # in the second pair, before they move to the first


class Policy:
    """Policy: all loaded rules, compiled for all known identities; an immutable value, as are its policy maps.

    A change makes a new policy (``with_documents``, ``with_identity``, ``without_identity``), while readers of the old
    one go on with it. Compared with a compiler that is changed in place, no reader needs a lock, and an update that
    fails leaves the old policy complete. The old and the new policy share all unchanged parts: a map is rebuilt only if
    one of its entries or its default deny changed, and then from the map before.
    """

    def __init__(
        self,
        documents: Iterable[PolicyDocument],
        identities: Mapping[Labels, Identity],
        enforcement: Enforcement,
        ports: Mapping[Identity, Iterable[PortSet]],
    ) -> None:
        """Compile the documents in their order; ``ports`` are the port sets of the endpoints of each identity."""
        self._enforcement = enforcement
        self._identities = dict(identities)
        self._ports = {identity: frozenset(port_sets) for identity, port_sets in ports.items()}
        self._rules_index = RulesIndex(documents)
        self.local_identities = self._derived_identities()
        self._selector_index = SelectorIndex({**identities, **self.local_identities.cidr_labels, **_RESERVED})
        self._contributions: dict[ContributionKey, Contribution] = {}
        self._maps: dict[EndpointSide, PolicyMap] = {}

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction, in the order of their documents."""
        return self._rules_index.in_direction(direction)

    def maps_for(self, labels: Labels, ports: PortSet = NO_PORTS) -> EndpointMaps:
        """Return the policy maps for these labels and named ports: those of an endpoint, or those of the host."""
        return EndpointMaps(*(self._map(EndpointSide(labels, ports, direction)) for direction in Direction))

    def maps_once(self, labels: Labels, ports: PortSet = NO_PORTS) -> EndpointMaps:
        """Return the policy maps for these labels and named ports without keeping new ones: a question, no endpoint."""
        once = copy(self)
        once._maps, once._contributions = dict(self._maps), dict(self._contributions)
        return once.maps_for(labels, ports)

    def with_documents(self, documents: Iterable[PolicyDocument]) -> "Policy":
        """Return the policy of these documents; a document object of this policy is not resolved again."""
        after = copy(self)
        after._rules_index = RulesIndex(documents, self._rules_index)
        if not after._rules_index.keeps_order_of(self._rules_index):
            return Policy(after._rules_index.documents, self._identities, self._enforcement, self._ports)
        before, now = self._rules_index.named_prefixes, after._rules_index.named_prefixes
        if before != now or not self.local_identities.fit(after._rules_index.with_local_peers):
            after.local_identities = after._derived_identities()
        return after._update_from(self, {}, {})

    def with_identity(self, labels: Labels, identity: Identity, ports: Iterable[PortSet] = ()) -> "Policy":
        """Return the policy with an additional identity, or with another number or other port sets for known labels."""
        after = self.without_identity(labels) if self._identities.get(labels, identity) != identity else copy(self)
        known = labels in after._identities
        after._identities = after._identities | {labels: identity}
        return after._with_ports(identity, frozenset(ports), {}, {} if known else {labels: identity})

    def without_identity(self, labels: Labels) -> "Policy":
        """Return the policy without an identity; raise KeyError for unknown labels."""
        after = copy(self)
        after._identities = dict(self._identities)
        identity = after._identities.pop(labels)
        after = after._with_ports(identity, frozenset(), {labels: identity}, {})
        after._maps = {side: policy_map for side, policy_map in after._maps.items() if side.labels != labels}
        return after

    def _with_ports(
        self,
        identity: Identity,
        port_sets: frozenset[PortSet],
        removed: dict[Labels, Identity],
        added: dict[Labels, Identity],
    ) -> "Policy":
        """Set the port sets of an identity, and update for the removed and added identities."""
        before = copy(self)
        old_port_sets = before._ports.get(identity, frozenset())
        self._ports = before._ports | {identity: port_sets}
        if not port_sets:
            del self._ports[identity]
        if port_sets != old_port_sets and max(len(port_sets), len(old_port_sets)) > 1:
            self.local_identities = self._derived_identities()
        return self._update_from(before, removed, added, {identity})

    def _derived_identities(self) -> LocalIdentities:
        index = self._rules_index
        return LocalIdentities(index.with_local_peers, self._ports, index.named_prefixes)

    def _update_from(
        self,
        before: "Policy",
        removed: dict[Labels, Identity],
        added: dict[Labels, Identity],
        changed: Iterable[Identity] = (),
    ) -> "Policy":
        """Reuse all unchanged parts of the policy before, and update the rest for changed rules and identities."""
        if self.local_identities is not before.local_identities:
            old, new = before.local_identities.cidr_labels.items(), self.local_identities.cidr_labels.items()
            removed, added = removed | dict(old - new), added | dict(new - old)
            changed = {*changed, *self.local_identities.changed_since(before.local_identities)}
        if removed or added:
            self._selector_index = before._selector_index.updated(removed, added)
        affected = frozenset((*changed, *removed.values(), *added.values()))
        self._contributions = dict(before._contributions)
        changed_keys = self._update_contributions(before, affected) if affected else {}
        if self._rules_index is not before._rules_index:
            kept = set(map(id, self._rules_index.rules))
            self._contributions = {
                key: contribution for key, contribution in self._contributions.items() if key[0] in kept
            }
        if self._enforcement is not Enforcement.NEVER:
            rule_ids = {key[0] for key in changed_keys}
            self._maps = {side: self._updated_map(before, side, rule_ids, changed_keys) for side in before._maps}
        return self

    def _update_contributions(
        self, before: "Policy", affected: frozenset[Identity]
    ) -> dict[ContributionKey, frozenset[PolicyKey]]:
        """Update the contributions that the affected identities change; return the added and removed keys of each."""
        rules = {
            id(rule): rule
            for selector, of_selector in before._rules_index.by_selector.items()
            if not (affected.isdisjoint(before._select(selector)) and affected.isdisjoint(self._select(selector)))
            for rule in of_selector
        }
        if self.local_identities is not before.local_identities:
            rules |= {id(rule): rule for rule in before._rules_index.with_local_peers}
        changed_keys = {}
        for key in [key for key in before._contributions if key[0] in rules]:
            rule, contribution = rules[key[0]], before._contributions[key]
            old = [frozenset(before._keys(rule, l4_filter, key[1], affected)) for l4_filter in rule.filters]
            new = [frozenset(self._keys(rule, l4_filter, key[1], affected)) for l4_filter in rule.filters]
            if old != new:
                self._contributions[key] = tuple(
                    pair
                    for parts in zip(contribution[::2], contribution[1::2], old, new, strict=True)
                    for pair in _with_keys_replaced(*parts)
                )
                changed_keys[key] = frozenset[PolicyKey]().union(*(o ^ n for o, n in zip(old, new, strict=True)))
        return changed_keys

    def _updated_map(
        self,
        before: "Policy",
        side: EndpointSide,
        rule_ids: Set[int],
        changed_keys: Mapping[ContributionKey, frozenset[PolicyKey]],
    ) -> PolicyMap:
        """Return the map of an endpoint side: the map before if it is unchanged, else one derived from it."""
        policy_map = before._maps[side]
        rules, old = self._rules_index.selecting(side), before._rules_index.selecting(side)
        contribution_keys = self._rules_index.contribution_keys(side, rule_ids) if rule_ids else []
        keys = set[PolicyKey]().union(*(changed_keys.get(key, ()) for key in contribution_keys))
        if rules is not old:
            keys.update(before._keys_of(old, rules, side.ports), self._keys_of(rules, old, side.ports))
        enforced, enforced_by, isolated = self._default_deny(side, rules)
        if keys:
            entries = self._replaced_entries(policy_map, rules, side.ports, keys)
            return policy_map.revised(entries, keys, enforced=enforced, enforced_by=enforced_by, isolated=isolated)
        if (enforced, enforced_by, isolated) != (policy_map.enforced, policy_map.enforced_by, policy_map.isolated):
            return policy_map.with_enforcement(enforced_by, enforced=enforced, isolated=isolated)
        return policy_map

    def _keys_of(self, rules: Iterable[Rule], others: Iterable[Rule], ports: PortSet) -> set[PolicyKey]:
        """Return the keys that the rules contribute, without the rules that are also among the others."""
        known = set(map(id, others))
        contributions = (self._contribution(rule, ports) for rule in rules if id(rule) not in known)
        return set[PolicyKey]().union(*(keys for contribution in contributions for _, keys in contribution))

    def _replaced_entries(
        self, policy_map: PolicyMap, rules: Iterable[Rule], ports: PortSet, keys: Set[PolicyKey]
    ) -> dict[PolicyKey, PolicyEntry]:
        """Return the map's entries, those at the keys replaced by the entries of the rules."""
        entries = dict(policy_map.entries)
        for key in keys:
            entries.pop(key, None)
        entries.update(self._entries(rules, ports, keys))
        return entries

    def _map(self, side: EndpointSide) -> PolicyMap:
        policy_map = self._maps.get(side)
        if policy_map is None:
            policy_map = self._maps[side] = self._compile(side)
        return policy_map

    def _compile(self, side: EndpointSide) -> PolicyMap:
        if self._enforcement is Enforcement.NEVER:
            return PolicyMap({}, enforced=False)
        rules = self._rules_index.selecting(side)
        enforced, enforced_by, isolated = self._default_deny(side, rules)
        return PolicyMap(
            self._entries(rules, side.ports), enforced=enforced, enforced_by=enforced_by, isolated=isolated
        )

    def _default_deny(self, side: EndpointSide, rules: Iterable[Rule]) -> tuple[bool, tuple[RuleRef, ...], bool]:
        """Return whether an endpoint side is in default deny, the rules that put it there, and whether it is isolated.

        A side is isolated by a rule that selects it. One in default deny by the mode alone is not.
        """
        isolating = tuple(rule.ref for rule in rules if rule.isolates)
        if not is_host(side.labels):  # only a rule that selects a node isolates it: no mode may lock the operator out
            if self._enforcement is Enforcement.ALWAYS:
                return True, (), bool(isolating)
            if self._enforcement is Enforcement.AUTO:
                of_any = self._rules_index.isolating(side.direction)
                return bool(of_any), of_any, bool(isolating)
        return bool(isolating), isolating, bool(isolating)

    def _entries(
        self, rules: Iterable[Rule], ports: PortSet, only: Set[PolicyKey] | None = None
    ) -> dict[PolicyKey, PolicyEntry]:
        """Return the merged entries that the rules contribute, ``only`` at these keys if given."""
        entries: dict[PolicyKey, PolicyEntry] = {}
        merged: dict[tuple[int, int], PolicyEntry] = {}  # equal merged entries are one object
        for rule in rules:
            for entry, keys in self._contribution(rule, ports):
                for key in keys if only is None else keys & only:
                    old = entries.setdefault(key, entry)
                    if old is not entry:
                        pair = (id(old), id(entry))
                        both = merged.get(pair)
                        if both is None:
                            both = merged[pair] = _merge(old, entry)
                        entries[key] = both
        return entries

    def _contribution(self, rule: Rule, ports: PortSet) -> Contribution:
        """Return the entries that a rule contributes to the maps of an endpoint with these named ports."""
        key = self._rules_index.contribution_key(rule, ports)
        contribution = self._contributions.get(key)
        if contribution is None:
            contribution = self._contributions[key] = tuple(
                pair
                for l4_filter in rule.filters
                for entry in (_entry(rule, l4_filter),)
                for pair in ((entry, frozenset(self._keys(rule, l4_filter, key[1]))), (entry, frozenset[PolicyKey]()))
            )
        return contribution

    def _keys(
        self, rule: Rule, l4_filter: L4Filter, ports: PortSet, affected: frozenset[Identity] | None = None
    ) -> Iterator[PolicyKey]:
        """Yield the policy keys of an L4 filter; with ``affected``, only those of these peer identities."""
        identities = self._peer_identities(rule, affected)
        if not identities:
            return
        named = [port for port in l4_filter.ports if isinstance(port, NamedPortRef)]
        numbered = [port for port in l4_filter.ports if isinstance(port, PortBlock)]
        if rule.ref.direction is Direction.INGRESS:
            numbered += _resolve_named(named, ports)
        elif named:
            yield from self._named_port_keys(identities, named, affected)
        for identity in identities:
            for port in numbered:
                yield PolicyKey(identity, *port)

    def _named_port_keys(
        self, identities: Iterable[Identity], named: list[NamedPortRef], affected: frozenset[Identity] | None
    ) -> Iterator[PolicyKey]:
        """Yield the egress keys of named ports: for each peer that has a port of the name, the peer's own number."""
        if ANY in identities:
            identities = self._ports if affected is None else affected
        for identity in identities:
            for port_set in self._ports.get(identity, ()):
                peer = self.local_identities.by_port_set.get((identity, port_set), identity)
                for port in _resolve_named(named, port_set):
                    yield PolicyKey(peer, *port)

    def _peer_identities(self, rule: Rule, affected: frozenset[Identity] | None) -> frozenset[Identity]:
        if rule.matches_any_peer:
            return frozenset((ANY,))
        selectors = (peer for peer in rule.peers or () if isinstance(peer, Selector))
        selected = (*map(self._select, selectors), self.local_identities.of_rule(rule))
        return frozenset[Identity]().union(
            *(selected if affected is None else (identities & affected for identities in selected))
        )

    def _select(self, selector: Selector) -> frozenset[Identity]:
        return self._selector_index.select(selector)


_RESERVED = {labels: identity for identity, labels in RESERVED.items()}


def is_host(labels: Labels) -> bool:
    """Return whether labels are those of a node."""
    return bool(labels.find(RESERVED_SOURCE, "host"))


def _with_keys_replaced(
    main: KeyedEntry, recent: KeyedEntry, removed: frozenset[PolicyKey], added: frozenset[PolicyKey]
) -> Contribution:
    """Return both pairs of an L4 filter's contribution, without the removed keys and with the added ones."""
    (entry, keys), (_, recent_keys) = main, recent
    recent_keys = recent_keys - removed | added
    if not keys.isdisjoint(removed) or len(recent_keys) > _MAX_RECENT_KEYS:
        keys, recent_keys = keys - removed | recent_keys, frozenset()
    return (entry, keys), (entry, recent_keys)


def _resolve_named(named: Iterable[NamedPortRef], ports: PortSet) -> list[PortBlock]:
    wanted = set(named)
    return [
        PortBlock(port.proto, port.number, PORT_BITS) for port in ports if NamedPortRef(port.name, port.proto) in wanted
    ]


def _entry(rule: Rule, l4_filter: L4Filter) -> PolicyEntry:
    refs = (rule.ref,)
    if rule.learns:
        return PolicyEntry(learned_by=refs)
    if rule.ref.order is not None:
        return PolicyEntry(ordered=refs)
    if rule.ref.deny:
        return PolicyEntry(denied_by=refs)
    if l4_filter.l7:
        return PolicyEntry(l7=tuple(L7Rule(rule.ref, match) for match in l4_filter.l7))
    return PolicyEntry(refs)


def _merge(one: PolicyEntry, other: PolicyEntry) -> PolicyEntry:
    return PolicyEntry(
        _merge_refs(one.allowed_by, other.allowed_by),
        _merge_refs(one.denied_by, other.denied_by),
        one.l7 + other.l7,
        _merge_refs(one.ordered, other.ordered),
        _merge_refs(one.learned_by, other.learned_by),
    )


def _merge_refs(one: tuple[RuleRef, ...], other: tuple[RuleRef, ...]) -> tuple[RuleRef, ...]:
    return one if not other or one[-1:] == other else one + other


def compile_policy(
    documents: Iterable[PolicyDocument],
    identities: Mapping[Labels, Identity],
    enforcement: Enforcement,
    ports: Mapping[Identity, Iterable[PortSet]] | None = None,
) -> Policy:
    """Return the policy of the documents, compiled for these identities and the reserved ones."""
    return Policy(documents, identities, enforcement, ports or {})
