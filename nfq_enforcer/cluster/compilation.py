"""Compilation: the policy that an agent enforces, compiled from the records of its store, incrementally."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.compiler import Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.rules import PortSet

_MANY = 100  # identities changed at once: a fresh compilation costs about as much as so many steps
_NO_PORTS: frozenset[PortSet] = frozenset()


@dataclass(frozen=True)
class Compilation:
    """A policy, and what it was compiled from."""

    policy: Policy
    policies: tuple[PolicyDocument, ...]
    numbers: Mapping[Labels, Identity]
    ports: Mapping[Identity, Set[PortSet]]  # the named ports of the endpoints of each identity, if there are any

    @classmethod
    def fresh(
        cls,
        policies: tuple[PolicyDocument, ...],
        numbers: Mapping[Labels, Identity],
        ports: Mapping[Identity, Set[PortSet]],
        enforcement: Enforcement,
    ) -> "Compilation":
        """Compile all of it."""
        return cls(compile_policy(policies, numbers, enforcement, ports), policies, numbers, ports)

    def followed_by(
        self,
        policies: tuple[PolicyDocument, ...],
        numbers: Mapping[Labels, Identity],
        ports: Mapping[Identity, Set[PortSet]],
        enforcement: Enforcement,
    ) -> "Compilation":
        """Return the compilation of what is so now, in the same mode; itself if that says the same as before.

        Where little has changed, only that is compiled.
        """
        chosen = _known_again(policies, self.policies)
        if chosen is self.policies and numbers == self.numbers and ports == self.ports:
            return self
        policy = _in_steps(self, chosen, numbers, ports)
        if policy is None:
            return self.fresh(chosen, numbers, ports, enforcement)
        return Compilation(policy, chosen, numbers, ports)


def _known_again(given: tuple[PolicyDocument, ...], known: tuple[PolicyDocument, ...]) -> tuple[PolicyDocument, ...]:
    """Return the documents given, each that says what a known one said as that very object; the known, if all do."""
    if given is known:
        return known
    by_key = {one.key: one for one in known}
    chosen = tuple(
        old if (old := by_key.get(one.key)) is not None and one.data and old.data == one.data else one for one in given
    )
    return known if _same(chosen, known) else chosen


def _same(some: Iterable[PolicyDocument], others: Iterable[PolicyDocument]) -> bool:
    return list(map(id, some)) == list(map(id, others))


def _in_steps(
    before: Compilation,
    policies: tuple[PolicyDocument, ...],
    numbers: Mapping[Labels, Identity],
    ports: Mapping[Identity, Set[PortSet]],
) -> Policy | None:
    """Return the policy before with each change applied; None where so much has changed that a fresh one is cheaper."""
    gone = before.numbers.keys() - numbers.keys()
    stayed = before.numbers.keys() & numbers.keys()
    if any(before.numbers[labels] != numbers[labels] for labels in stayed):
        return None  # two sets of labels met at one number, or an identity was given another
    changed = [
        labels
        for labels in stayed
        if before.ports.get(numbers[labels], _NO_PORTS) != ports.get(numbers[labels], _NO_PORTS)
    ]
    come = [*(numbers.keys() - stayed), *changed]
    if len(gone) + len(come) > _MANY:
        return None
    policy = before.policy if policies is before.policies else before.policy.with_documents(policies)
    for labels in gone:
        policy = policy.without_identity(labels)
    for labels in come:
        policy = policy.with_identity(labels, numbers[labels], ports.get(numbers[labels], _NO_PORTS))
    return policy
