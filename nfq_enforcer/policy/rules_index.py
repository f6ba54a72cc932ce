"""The rule book: the rules of all documents in their order, and which of them select whom.

A book is not changed; another, of other documents, takes over what it knows of those that are in both.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from typing import NamedTuple

from nfq_enforcer.core.identity import HOST, RESERVED
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import cilium_rules, kubernetes_rules
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.rules import Block, NamedPort, PortSet, Rule
from nfq_enforcer.policy.selectors import EVERYBODY, Selector

NO_PORTS: PortSet = frozenset()
_HOST = RESERVED[HOST]


class Side(NamedTuple):
    """One side of a kind of endpoint."""

    labels: Labels
    ports: PortSet
    direction: Direction


Giver = tuple[int, PortSet]
"""A rule, by what Python's ``id`` says of it, and the named ports of those to whom it gives something."""


def resolve(document: PolicyDocument) -> Iterator[Rule]:
    """Yield the rules of a document, in their order."""
    if isinstance(document, NetworkPolicy):
        return kubernetes_rules.resolve(document)
    assert isinstance(document, CiliumPolicy)  # there is no other kind
    return cilium_rules.resolve(document)


class Rulebook:
    """The rules of some documents."""

    def __init__(self, documents: Iterable[PolicyDocument], before: "Rulebook | None" = None) -> None:
        """Take the documents in their order; those that are the very objects of the book before are not read again."""
        self.documents = tuple(documents)
        known: Mapping[int, tuple[Rule, ...]] = before._resolved if before else {}
        self._resolved: dict[int, tuple[Rule, ...]] = {
            id(one): known.get(id(one)) or tuple(resolve(one)) for one in self.documents
        }
        self.rules = tuple(rule for one in self.documents for rule in self._resolved[id(one)])
        self._by_direction = {d: tuple(rule for rule in self.rules if rule.ref.direction is d) for d in Direction}
        self._selecting: dict[tuple[Labels, Direction], tuple[Rule, ...]] = {}
        self._numbers: dict[tuple[Labels, Direction], frozenset[int]] = {}
        if before and self.keeps_order_of(before):
            self._take_over(before)

    def _take_over(self, before: "Rulebook") -> None:
        """Correct what the book before knows of who is selected."""
        rank = {id(rule): number for number, rule in enumerate(self.rules)}
        known = set(map(id, before.rules))
        come = [rule for rule in self.rules if id(rule) not in known]
        for (labels, direction), rules in before._selecting.items():
            kept = [rule for rule in rules if id(rule) in rank]
            more = [rule for rule in come if rule.ref.direction is direction and rule.subject.matches(labels)]
            same = len(kept) == len(rules) and not more
            ordered = rules if same else tuple(sorted(kept + more, key=lambda rule: rank[id(rule)]))
            self._selecting[labels, direction] = ordered

    def keeps_order_of(self, before: "Rulebook") -> bool:
        """Say whether the documents that are in both books are in the same order."""
        mine = [id(one) for one in self.documents if id(one) in before._resolved]
        return mine == [id(one) for one in before.documents if id(one) in self._resolved]

    def of(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction."""
        return self._by_direction[direction]

    def selecting(self, side: Side) -> tuple[Rule, ...]:
        """Return the rules about a side; the same object as in the book before if they are the same."""
        of = side.labels, side.direction
        rules = self._selecting.get(of)
        if rules is None:
            rules = tuple(rule for rule in self._by_direction[side.direction] if rule.subject.matches(side.labels))
            self._selecting[of] = rules
        return rules

    def spoken(self, direction: Direction) -> tuple[RuleRef, ...]:
        """Return the rules that close a direction to any endpoint."""
        return self._spoken[direction]

    @cached_property
    def _spoken(self) -> dict[Direction, tuple[RuleRef, ...]]:
        return {
            direction: tuple(rule.ref for rule in rules if rule.isolates and not rule.subject.matches(_HOST))
            for direction, rules in self._by_direction.items()
        }

    def givers(self, side: Side, among: Set[int]) -> list[Giver]:
        """Return those of some rules, by their ``id``, that give something to a side."""
        rules = self.selecting(side)
        of = side.labels, side.direction
        numbers = self._numbers.get(of)
        if numbers is None:
            numbers = self._numbers[of] = frozenset(map(id, rules))
        return [(one, side.ports if one in self._naming else NO_PORTS) for one in numbers & among]

    def giver(self, rule: Rule, ports: PortSet) -> Giver:
        """Return what tells apart what a rule gives: at ingress, if it names ports, also who has which."""
        return id(rule), ports if id(rule) in self._naming else NO_PORTS

    @cached_property
    def _naming(self) -> frozenset[int]:
        return frozenset(id(rule) for rule in self.of(Direction.INGRESS) if _has_names(rule))

    @cached_property
    def blocks(self) -> frozenset[Block]:
        """Return the blocks of addresses that rules name."""
        return frozenset(block for rule in self.rules for block in rule.blocks)

    @cached_property
    def by_peer(self) -> dict[Selector | Block, list[Rule]]:
        """Return the rules by the peers that they name; a rule for anyone stands at everybody."""
        found: dict[Selector | Block, list[Rule]] = {}
        for rule in self.rules:
            for peer in (EVERYBODY,) if rule.peers is None else rule.peers:
                found.setdefault(peer, []).append(rule)
        return found


def _has_names(rule: Rule) -> bool:
    return any(isinstance(port, NamedPort) for opening in rule.opens for port in opening.ports)
