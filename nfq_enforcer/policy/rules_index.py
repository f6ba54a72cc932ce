"""Index of resolved rules: the rules of all documents in document order, found by the endpoints that they select.

An index is immutable. An index of changed documents is built from the index before and reuses its resolved rules and
its selections for documents present in both.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from typing import NamedTuple

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import cilium_rules, cluster_policy_rules, kubernetes_rules
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.cluster_policy import ClusterNetworkPolicy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.local_identities import is_prefix
from nfq_enforcer.policy.references import References
from nfq_enforcer.policy.rules import NamedPortRef, PortSet, Rule
from nfq_enforcer.policy.selectors import WILDCARD, Selector

NO_PORTS: PortSet = frozenset()


class EndpointSide(NamedTuple):
    """EndpointSide: the labels, named ports and direction that determine a policy map."""

    labels: Labels
    ports: PortSet
    direction: Direction


ContributionKey = tuple[int, PortSet]
"""Key of a rule's contribution to policy maps: the ``id`` of the rule object, and the endpoint's named ports if the
contribution depends on them."""


def resolve(document: PolicyDocument, references: References) -> Iterator[Rule]:
    """Yield the rules of a document, in their order; a document that only others refer to has none."""
    if isinstance(document, NetworkPolicy):
        yield from kubernetes_rules.resolve(document)
    elif isinstance(document, CiliumPolicy):
        yield from cilium_rules.resolve(document, references)
    elif isinstance(document, ClusterNetworkPolicy):
        yield from cluster_policy_rules.resolve(document)
    else:
        assert not document.has_rules


class RulesIndex:
    """RulesIndex: finds the rules of a set of documents by direction, selected labels and peer."""

    def __init__(self, documents: Iterable[PolicyDocument], before: "RulesIndex | None" = None) -> None:
        """Resolve the documents in their order.

        A document object in the index before is not resolved again, unless it refers to CIDR groups or services, and
        these differ.
        """
        self.documents = tuple(documents)
        self._references = References.among(self.documents)
        known = before._resolved_with(self._references) if before else {}
        self._resolved: dict[int, tuple[Rule, ...]] = {
            id(document): known.get(id(document)) or tuple(resolve(document, self._references))
            for document in self.documents
        }
        self.rules = tuple(rule for document in self.documents for rule in self._resolved[id(document)])
        self._by_direction = {d: tuple(rule for rule in self.rules if rule.ref.direction is d) for d in Direction}
        self._selecting: dict[tuple[Labels, Direction], tuple[Rule, ...]] = {}
        self._selecting_ids: dict[tuple[Labels, Direction], frozenset[int]] = {}
        if before and self.keeps_order_of(before):
            self._reuse_selections(before)

    def _resolved_with(self, references: References) -> Mapping[int, tuple[Rule, ...]]:
        """Return the rules, by the ``id`` of their document, that are the same with these CIDR groups and services."""
        changed = set(map(id, references.changed(self._references, self.documents)))
        if not changed:
            return self._resolved
        return {document: rules for document, rules in self._resolved.items() if document not in changed}

    def _reuse_selections(self, before: "RulesIndex") -> None:
        """Copy the selections of the index before, without removed rules and with added ones."""
        rank = {id(rule): position for position, rule in enumerate(self.rules)}
        known = set(map(id, before.rules))
        added = [rule for rule in self.rules if id(rule) not in known]
        for (labels, direction), rules in before._selecting.items():
            kept = [rule for rule in rules if id(rule) in rank]
            more = [rule for rule in added if rule.ref.direction is direction and rule.subject.matches(labels)]
            same = len(kept) == len(rules) and not more
            ordered = rules if same else tuple(sorted(kept + more, key=lambda rule: rank[id(rule)]))
            self._selecting[labels, direction] = ordered

    def keeps_order_of(self, before: "RulesIndex") -> bool:
        """Return whether the documents present in both indexes have the same order."""
        common = [id(document) for document in self.documents if id(document) in before._resolved]
        return common == [id(document) for document in before.documents if id(document) in self._resolved]

    def in_direction(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction."""
        return self._by_direction[direction]

    def selecting(self, side: EndpointSide) -> tuple[Rule, ...]:
        """Return the rules that select an endpoint side; the tuple object of the index before if it is equal."""
        key = side.labels, side.direction
        rules = self._selecting.get(key)
        if rules is None:
            rules = tuple(rule for rule in self._by_direction[side.direction] if rule.subject.matches(side.labels))
            self._selecting[key] = rules
        return rules

    def isolating(self, direction: Direction) -> tuple[RuleRef, ...]:
        """Return the rules that put any endpoint (not only the host) into default deny in this direction."""
        return self._isolating[direction]

    @cached_property
    def _isolating(self) -> dict[Direction, tuple[RuleRef, ...]]:
        return {
            direction: tuple(rule.ref for rule in rules if rule.isolates and not rule.subject.selects_nodes)
            for direction, rules in self._by_direction.items()
        }

    def contribution_keys(self, side: EndpointSide, rule_ids: Set[int]) -> list[ContributionKey]:
        """Return the contribution keys of the rules that select an endpoint side, limited to the given rule ids."""
        rules = self.selecting(side)
        key = side.labels, side.direction
        selecting_ids = self._selecting_ids.get(key)
        if selecting_ids is None:
            selecting_ids = self._selecting_ids[key] = frozenset(map(id, rules))
        return [
            (rule_id, side.ports if rule_id in self._with_named_ports else NO_PORTS)
            for rule_id in selecting_ids & rule_ids
        ]

    def contribution_key(self, rule: Rule, ports: PortSet) -> ContributionKey:
        """Return the key of a rule's contribution; it includes the named ports for an ingress rule that names ports."""
        return id(rule), ports if id(rule) in self._with_named_ports else NO_PORTS

    @cached_property
    def _with_named_ports(self) -> frozenset[int]:
        return frozenset(id(rule) for rule in self.in_direction(Direction.INGRESS) if _names_ports(rule))

    @cached_property
    def with_local_peers(self) -> tuple[Rule, ...]:
        """Return the rules with address blocks or names among their peers."""
        return tuple(rule for rule in self.rules if rule.has_local_peers)

    @cached_property
    def named_prefixes(self) -> frozenset[str]:
        """Return the prefixes that selectors of peers name as a label, ``cidr:PREFIX``."""
        keys = {requirement.key for selector in self.by_selector for requirement in selector.requirements}
        return frozenset(filter(is_prefix, keys))

    @cached_property
    def by_selector(self) -> dict[Selector, list[Rule]]:
        """Return the rules by the selectors of their peers; a rule for any peer is under the wildcard selector."""
        by_selector: dict[Selector, list[Rule]] = {}
        for rule in self.rules:
            for peer in (WILDCARD,) if rule.peers is None else rule.peers:
                if isinstance(peer, Selector):
                    by_selector.setdefault(peer, []).append(rule)
        return by_selector


def _names_ports(rule: Rule) -> bool:
    return any(isinstance(port, NamedPortRef) for l4_filter in rule.filters for port in l4_filter.ports)
