"""Incremental compilation of a policy from the policy documents and identities of a store."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.compiler import Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.rules import PortSet

_MANY = 100  # changed identities; a fresh compilation costs about as much as so many steps
_NO_PORTS: frozenset[PortSet] = frozenset()


@dataclass(frozen=True)
class Compilation:
    """Compilation: a policy, and the documents, identities and named ports that it was compiled from."""

    policy: Policy
    policies: tuple[PolicyDocument, ...]
    numbers: Mapping[Labels, Identity]
    ports: Mapping[Identity, Set[PortSet]]  # named ports of each identity's endpoints, if they have any

    @classmethod
    def fresh(
        cls,
        policies: tuple[PolicyDocument, ...],
        numbers: Mapping[Labels, Identity],
        ports: Mapping[Identity, Set[PortSet]],
        enforcement: Enforcement,
    ) -> "Compilation":
        """Compile a policy from scratch."""
        return cls(compile_policy(policies, numbers, enforcement, ports), policies, numbers, ports)

    def followed_by(
        self,
        policies: tuple[PolicyDocument, ...],
        numbers: Mapping[Labels, Identity],
        ports: Mapping[Identity, Set[PortSet]],
        enforcement: Enforcement,
    ) -> "Compilation":
        """Return the compilation of the current state, in the same mode; ``self`` if nothing is different.

        If little has changed, only the changes are compiled.
        """
        chosen = _with_same_objects(policies, self.policies)
        if chosen is self.policies and numbers == self.numbers and ports == self.ports:
            return self
        policy = _in_steps(self, chosen, numbers, ports)
        if policy is None:
            return self.fresh(chosen, numbers, ports, enforcement)
        return Compilation(policy, chosen, numbers, ports)


def _with_same_objects(
    policies: tuple[PolicyDocument, ...], before: tuple[PolicyDocument, ...]
) -> tuple[PolicyDocument, ...]:
    """Return the documents, with the object of before for each of equal content; ``before`` if all are equal."""
    if policies is before:
        return before
    by_key = {policy.key: policy for policy in before}
    chosen = tuple(
        old if (old := by_key.get(policy.key)) is not None and policy.data and old.data == policy.data else policy
        for policy in policies
    )
    return before if _same_objects(chosen, before) else chosen


def _same_objects(policies: Iterable[PolicyDocument], others: Iterable[PolicyDocument]) -> bool:
    return list(map(id, policies)) == list(map(id, others))


def _in_steps(
    before: Compilation,
    policies: tuple[PolicyDocument, ...],
    numbers: Mapping[Labels, Identity],
    ports: Mapping[Identity, Set[PortSet]],
) -> Policy | None:
    """Return the policy of before with each change applied; None if so much has changed that a fresh one is cheaper."""
    gone = before.numbers.keys() - numbers.keys()
    stayed = before.numbers.keys() & numbers.keys()
    if any(before.numbers[labels] != numbers[labels] for labels in stayed):
        return None  # labels have another number, or share one with other labels
    changed = [
        labels
        for labels in stayed
        if before.ports.get(numbers[labels], _NO_PORTS) != ports.get(numbers[labels], _NO_PORTS)
    ]
    new = [*(numbers.keys() - stayed), *changed]
    if len(gone) + len(new) > _MANY:
        return None
    policy = before.policy if policies is before.policies else before.policy.with_documents(policies)
    for labels in gone:
        policy = policy.without_identity(labels)
    for labels in new:
        policy = policy.with_identity(labels, numbers[labels], ports.get(numbers[labels], _NO_PORTS))
    return policy
