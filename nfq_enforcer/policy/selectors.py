"""Selectors: the endpoints that a policy selects by labels, as its subjects and as its peers.

A key without a source, or with source ``any``, matches the key of any source. A selector of a namespaced policy is
scoped to that namespace: a subject selector always, a peer selector unless it contains a namespace or a reserved label
itself. An empty selector of a policy never matches the world or the host.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import ANY_SOURCE, DEFAULT_SOURCE, Labels, split_key
from nfq_enforcer.policy.documents import LabelSelector, SelectorExpression
from nfq_enforcer.policy.fields import NAMESPACE_KEY, NAMESPACE_LABELS
from nfq_enforcer.policy.kubernetes import KubernetesSelector
from nfq_enforcer.policy.requirements import Operator, Requirement

RESERVED_SOURCE = "reserved"


@dataclass(frozen=True, slots=True)
class Selector:
    """Selector: requirements that labels must all meet; equal requirements make equal selectors, however written."""

    requirements: frozenset[Requirement]

    def __hash__(self) -> int:
        """Hash the requirements: a frozenset caches its hash, and every look-up of the compiler hashes a selector."""
        return hash(self.requirements)

    def matches(self, labels: Labels) -> bool:
        """Return whether the selector selects the labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def selects_nodes(self) -> bool:
        """Return whether it selects nodes, and no endpoint."""
        return _HOST in self.requirements


_NAMESPACED = Requirement(DEFAULT_SOURCE, NAMESPACE_KEY, Operator.EXISTS)
_HOST = Requirement(RESERVED_SOURCE, "host", Operator.EXISTS)

WILDCARD = Selector(frozenset())
ALL_ENDPOINTS = Selector(frozenset((_NAMESPACED,)))


def reserved_selector(name: str) -> Selector:
    """Return the selector of a reserved identity; that of ``world`` also selects every CIDR identity."""
    return Selector(frozenset((Requirement(RESERVED_SOURCE, name, Operator.EXISTS),)))


def subject_selector(selector: LabelSelector, namespace: str) -> Selector:
    """Return the selector of a rule's subjects: endpoints in the policy's namespace, in any namespace if it is empty.

    It never selects the host, whatever its labels: ``node_selector`` does.

    As upstream, the policy's namespace overrides ``k8s:io.kubernetes.pod.namespace`` in matchLabels; any other
    requirement that contradicts the namespace makes a selector that matches nothing.
    """
    if not namespace:
        not_host = _HOST._replace(operator=Operator.DOES_NOT_EXIST)
        return Selector(_requirements(selector.match_labels, selector.match_expressions) | {not_host})
    labels = {**selector.match_labels, f"{DEFAULT_SOURCE}:{NAMESPACE_KEY}": namespace}
    return Selector(_requirements(labels, selector.match_expressions))


def peer_selector(selector: LabelSelector, namespace: str) -> Selector:
    """Return the selector of a rule's peers, scoped as upstream.

    The scope of a namespaced policy is its namespace, that of a clusterwide policy every label set with a namespace,
    which means every endpoint.
    """
    requirements = _requirements(selector.match_labels, selector.match_expressions)
    if any(item.source == RESERVED_SOURCE or _is_namespace(item) for item in requirements):
        return Selector(requirements)
    if not namespace:
        return Selector(requirements | {_NAMESPACED})
    if any(map(_is_namespace_label, requirements)):
        return Selector(requirements)
    return Selector(requirements | {_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace)})


def label_selector(selector: LabelSelector) -> Selector:
    """Return the selector of documents by their labels, without any scope."""
    return Selector(_requirements(selector.match_labels, selector.match_expressions))


def node_selector(selector: LabelSelector) -> Selector:
    """Return the selector of a rule's subjects that are nodes."""
    return Selector(_requirements(selector.match_labels, selector.match_expressions) | {_HOST})


def pod_subject_selector(selector: KubernetesSelector, namespace: str) -> Selector:
    """Return the selector of a NetworkPolicy's subjects: pods in its namespace."""
    return Selector(_kubernetes_requirements(selector) | {_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace)})


def pod_peer_selector(
    pods: KubernetesSelector | None, namespaces: KubernetesSelector | None, namespace: str
) -> Selector:
    """Return the selector of peer pods in the selected namespaces, by default the policy's; never world or host."""
    if namespaces is None:
        scope = frozenset((_equal(DEFAULT_SOURCE, NAMESPACE_KEY, namespace),))
    else:
        scope = _kubernetes_requirements(namespaces, NAMESPACE_LABELS) | {_NAMESPACED}
    return Selector(scope | _kubernetes_requirements(pods) if pods else scope)


def _kubernetes_requirements(selector: KubernetesSelector, prefix: str = "") -> frozenset[Requirement]:
    equal = (_equal(DEFAULT_SOURCE, prefix + key, value) for key, value in selector.match_labels.items())
    others = (
        Requirement(
            DEFAULT_SOURCE, prefix + expression.key, Operator(expression.operator), frozenset(expression.values)
        )
        for expression in selector.match_expressions
    )
    return frozenset((*equal, *others))


def _requirements(labels: Mapping[str, str], expressions: Iterable[SelectorExpression]) -> frozenset[Requirement]:
    equal = (_equal(*split_key(key, ANY_SOURCE), value) for key, value in labels.items())
    others = (
        Requirement(*split_key(expression.key, ANY_SOURCE), Operator(expression.operator), frozenset(expression.values))
        for expression in expressions
    )
    return frozenset((*equal, *others))


def _equal(source: str, key: str, value: str) -> Requirement:
    return Requirement(source, key, Operator.IN, frozenset((value,)))


def _is_namespace(requirement: Requirement) -> bool:
    return requirement.source in {ANY_SOURCE, DEFAULT_SOURCE} and requirement.key == NAMESPACE_KEY


def _is_namespace_label(requirement: Requirement) -> bool:
    return requirement.source in {ANY_SOURCE, DEFAULT_SOURCE} and requirement.key.startswith(NAMESPACE_LABELS)


class SelectorIndex:
    """SelectorIndex: known identities by label, and the cached selection of each selector.

    A selection looks identities up by the labels in its requirements, without a test of every identity. Equal selectors
    of any policies share one cached selection.
    """

    def __init__(self, identities: Mapping[Labels, Identity]) -> None:
        """Index the identities; they must include the reserved ones."""
        self._all = frozenset(identities.values())
        self._by_label: dict[tuple[str, str], dict[str, set[Identity]]] = {}
        self._selected: dict[Selector, frozenset[Identity]] = {}
        for labels, identity in identities.items():
            for label in labels:
                for source in (label.source, ANY_SOURCE):
                    values = self._by_label.setdefault((source, label.key), {})
                    values.setdefault(label.value, set()).add(identity)

    def updated(self, removed: Mapping[Labels, Identity], added: Mapping[Labels, Identity]) -> "SelectorIndex":
        """Return an index without the removed and then with the added identities; this one stays unchanged.

        The two indexes share all unchanged parts, among them the selection of a selector that selects neither removed
        nor added identities.
        """
        less, more = SelectorIndex(removed), SelectorIndex(added)
        index = SelectorIndex({})
        index._all = (self._all - less._all if removed else self._all) | more._all
        index._by_label = dict(self._by_label)
        for key, values in less._by_label.items():
            remaining = {value: index._by_label[key][value] - lost for value, lost in values.items()}
            updated = index._by_label[key] | remaining
            index._by_label[key] = {value: identities for value, identities in updated.items() if identities}
        for key, values in more._by_label.items():
            old = index._by_label.get(key, {})
            index._by_label[key] = old | {value: old.get(value, set()) | gained for value, gained in values.items()}
        for selector, selected in self._selected.items():
            lost, gained = selected & less._all, more.select(selector)
            index._selected[selector] = selected - lost | gained if lost or gained else selected
        return index

    def select(self, selector: Selector) -> frozenset[Identity]:
        """Return the identities with labels that the selector matches."""
        selected = self._selected.get(selector)
        if selected is None:
            selected = self._selected[selector] = self._evaluate(selector)
        return selected

    def _evaluate(self, selector: Selector) -> frozenset[Identity]:
        positive = []
        for requirement in selector.requirements:
            if not requirement.negative:
                positive.append(self._with_label(requirement))
                if not positive[-1]:
                    return frozenset()
        selected = reduce(frozenset.intersection, sorted(positive, key=len)) if positive else self._all
        negative = (requirement for requirement in selector.requirements if requirement.negative)
        return selected.difference(*map(self._with_label, negative))

    def _with_label(self, requirement: Requirement) -> frozenset[Identity]:
        """Return the identities with the key, and with one of the values if the operator has values."""
        by_value = self._by_label.get((requirement.source, requirement.key), {})
        if requirement.valued:
            return frozenset().union(*(by_value.get(value, ()) for value in requirement.values))
        return frozenset().union(*by_value.values())
