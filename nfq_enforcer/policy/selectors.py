"""Selectors: which endpoints a policy speaks of.

A key without a source, or with source ``any``, means the key of any source. A selector of a namespaced policy is bound
to that namespace: the subject's always, a peer's unless it names a namespace or a reserved identity itself. No selector
of a policy matches the world or the host by being empty.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import ANY_SOURCE, DEFAULT_SOURCE, Labels, split_key
from nfq_enforcer.policy.documents import Expression, LabelSelector
from nfq_enforcer.policy.fields import NAMESPACE_KEY, NAMESPACE_LABELS
from nfq_enforcer.policy.kubernetes import PlainSelector

_RESERVED_SOURCE = "reserved"


class Operator(StrEnum):
    """What a requirement asks of a key's value; In and Exists need the key, the others hold without it as well."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


_VALUED = (Operator.IN, Operator.NOT_IN)  # tuples: members of an enumeration are slow to hash
_NEGATIVE = (Operator.NOT_IN, Operator.DOES_NOT_EXIST)


class Requirement(NamedTuple):
    """One condition on the labels of an endpoint."""

    source: str  # any: that of whatever source
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    @property
    def negative(self) -> bool:
        """Say whether it holds where its positive twin does not."""
        return self.operator in _NEGATIVE

    def matches(self, labels: Labels) -> bool:
        """Say whether the labels meet it."""
        found = labels.find(self.source, self.key)
        if self.operator in _VALUED:
            return any(label.value in self.values for label in found) is not self.negative
        return bool(found) is not self.negative


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold; equal ones select the same, however they were written."""

    requirements: frozenset[Requirement]

    def __hash__(self) -> int:
        """Hash the requirements, which remember their hash: every look-up of the compiler begins here."""
        return hash(self.requirements)

    def matches(self, labels: Labels) -> bool:
        """Say whether the labels are selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)


_NAMESPACED = Requirement(DEFAULT_SOURCE, NAMESPACE_KEY, Operator.EXISTS)
_HOST = Requirement(_RESERVED_SOURCE, "host", Operator.EXISTS)

EVERYBODY = Selector(frozenset())
ENDPOINTS = Selector(frozenset((_NAMESPACED,)))


def reserved(name: str) -> Selector:
    """Return the selector of a reserved identity; of ``world``: with every CIDR."""
    return Selector(frozenset((Requirement(_RESERVED_SOURCE, name, Operator.EXISTS),)))


def subject(written: LabelSelector, namespace: str) -> Selector:
    """Return the selector of a rule's own endpoints: those of the policy's namespace, of all if that is empty.

    The host is never among them, whatever the selector says: ``node_subject`` selects it.

    As upstream, ``k8s:io.kubernetes.pod.namespace`` among matchLabels gives way to the policy's namespace; any other
    requirement that contradicts it leaves a selector that nothing meets.
    """
    if not namespace:
        not_host = _HOST._replace(operator=Operator.DOES_NOT_EXIST)
        return Selector(_requirements(written.match_labels, written.match_expressions) | {not_host})
    labels = {**written.match_labels, f"{DEFAULT_SOURCE}:{NAMESPACE_KEY}": namespace}
    return Selector(_requirements(labels, written.match_expressions))


def peer(written: LabelSelector, namespace: str) -> Selector:
    """Return the selector of a rule's peers, scoped as upstream does it.

    In a namespaced policy: to its namespace; in a clusterwide one: to whatever has a namespace, so to endpoints.
    """
    requirements = _requirements(written.match_labels, written.match_expressions)
    if any(one.source == _RESERVED_SOURCE or _names_namespace(one) for one in requirements):
        return Selector(requirements)
    if not namespace:
        return Selector(requirements | {_NAMESPACED})
    if any(_names_namespace_label(one) for one in requirements):
        return Selector(requirements)
    return Selector(requirements | {_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace)})


def node_subject(written: LabelSelector) -> Selector:
    """Return the selector of a rule's own nodes."""
    return Selector(_requirements(written.match_labels, written.match_expressions) | {_HOST})


def pod_subject(written: PlainSelector, namespace: str) -> Selector:
    """Return the selector of a NetworkPolicy's own pods."""
    return Selector(_plain(written) | {_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace)})


def pod_peer(pods: PlainSelector | None, namespaces: PlainSelector | None, namespace: str) -> Selector:
    """Return the selector of pods in namespaces, in the policy's own if no selector says which; never world or host."""
    if namespaces is None:
        scope = frozenset((_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace),))
    else:
        scope = _plain(namespaces, NAMESPACE_LABELS) | {_NAMESPACED}
    return Selector(scope | _plain(pods) if pods else scope)


def _plain(written: PlainSelector, prefix: str = "") -> frozenset[Requirement]:
    equal = (_equal(DEFAULT_SOURCE, prefix + key, value) for key, value in written.match_labels.items())
    others = (
        Requirement(DEFAULT_SOURCE, prefix + one.key, Operator(one.operator), frozenset(one.values))
        for one in written.match_expressions
    )
    return frozenset((*equal, *others))


def _requirements(labels: Mapping[str, str], expressions: Iterable[Expression]) -> frozenset[Requirement]:
    equal = (_equal(*split_key(key, ANY_SOURCE), value) for key, value in labels.items())
    others = (
        Requirement(*split_key(one.key, ANY_SOURCE), Operator(one.operator), frozenset(one.values))
        for one in expressions
    )
    return frozenset((*equal, *others))


def _equal(source: str, key: str, value: str) -> Requirement:
    return Requirement(source, key, Operator.IN, frozenset((value,)))


def _names_namespace(requirement: Requirement) -> bool:
    return requirement.source in {ANY_SOURCE, DEFAULT_SOURCE} and requirement.key == NAMESPACE_KEY


def _names_namespace_label(requirement: Requirement) -> bool:
    return requirement.source in {ANY_SOURCE, DEFAULT_SOURCE} and requirement.key.startswith(NAMESPACE_LABELS)


class SelectorIndex:
    """All known identities by label, and what each selector selects of them.

    Identities are looked up by the labels that a selector asks for instead of being tried one by one, and equal
    selectors of whatever policies share one answer.
    """

    def __init__(self, identities: Mapping[Labels, Identity]) -> None:
        """Take every identity there is, reserved ones included."""
        self._all = frozenset(identities.values())
        self._by_label: dict[tuple[str, str], dict[str, set[Identity]]] = {}
        self._selected: dict[Selector, frozenset[Identity]] = {}
        for labels, identity in identities.items():
            for label in labels:
                for source in (label.source, ANY_SOURCE):
                    values = self._by_label.setdefault((source, label.key), {})
                    values.setdefault(label.value, set()).add(identity)

    def updated(self, gone: Mapping[Labels, Identity], come: Mapping[Labels, Identity]) -> "SelectorIndex":
        """Return an index without some identities and then with others; a selector that selects neither is not touched.

        This one stays as it is, and the two share what is the same in both.
        """
        less, more = SelectorIndex(gone), SelectorIndex(come)
        index = SelectorIndex({})
        index._all = (self._all - less._all if gone else self._all) | more._all
        index._by_label = dict(self._by_label)
        for key, values in less._by_label.items():
            left = {value: index._by_label[key][value] - found for value, found in values.items()}
            index._by_label[key] = {value: of for value, of in (index._by_label[key] | left).items() if of}
        for key, values in more._by_label.items():
            had = index._by_label.get(key, {})
            index._by_label[key] = had | {value: had.get(value, set()) | found for value, found in values.items()}
        for selector, selected in self._selected.items():
            lost, won = selected & less._all, more.select(selector)
            index._selected[selector] = selected - lost | won if lost or won else selected
        return index

    def select(self, selector: Selector) -> frozenset[Identity]:
        """Return the identities whose labels the selector matches."""
        selected = self._selected.get(selector)
        if selected is None:
            selected = self._selected[selector] = self._evaluate(selector)
        return selected

    def _evaluate(self, selector: Selector) -> frozenset[Identity]:
        positive = []
        for one in selector.requirements:
            if not one.negative:
                positive.append(self._having(one))
                if not positive[-1]:
                    return frozenset()
        selected = reduce(frozenset.intersection, sorted(positive, key=len)) if positive else self._all
        return selected.difference(*(self._having(one) for one in selector.requirements if one.negative))

    def _having(self, requirement: Requirement) -> frozenset[Identity]:
        by_value = self._by_label.get((requirement.source, requirement.key), {})
        if requirement.operator in _VALUED:
            return frozenset().union(*(by_value.get(value, ()) for value in requirement.values))
        return frozenset().union(*by_value.values())
