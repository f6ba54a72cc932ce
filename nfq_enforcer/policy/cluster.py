"""The cluster on one page: every endpoint with its identity and its named ports, and the policy among them.

What ``trace`` and ``matrix`` foretell begins with documents (``gather``); what an agent enforces is compiled here from
what its store knows (``Compilation``). Without a store identities are derived from the labels of all endpoints, so
whoever has the same documents agrees on them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.ipcache import Ipcache, Network, Peer, Prefixes
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import Endpoint, PolicyDocument
from nfq_enforcer.policy.loader import Documents, endpoint_labels
from nfq_enforcer.policy.rules import PROTOCOLS, PortOf, PortSet

_MANY = 100  # identities changed at once: a fresh compilation is about as dear as so many steps
_NO_PORTS: frozenset[PortSet] = frozenset()


class Member(NamedTuple):
    """An endpoint's document, with what follows from it."""

    document: Endpoint
    labels: Labels
    relevant: Labels  # those of them that make the identity
    identity: Identity
    ports: PortSet

    @property
    def name(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.document.namespace}/{self.document.name}"


@dataclass(frozen=True)
class Cluster:
    """All endpoints, and the policy among them."""

    members: tuple[Member, ...]
    policy: Policy

    def maps(self, member: Member) -> EndpointMaps:
        """Return the policy maps of an endpoint."""
        return self.policy.maps_for(member.relevant, member.ports)

    @cached_property
    def addresses(self) -> Ipcache:
        """Return the look-up of every endpoint's address, wherever it lives, and of all others."""
        return self.ipcache(
            {ip.packed: Peer(one.identity, True) for one in self.members for ip in one.document.spec.ips}
        )

    def ipcache(self, peers: Mapping[bytes, Peer], cluster: tuple[Network, ...] = ()) -> Ipcache:
        """Return an ipcache of these peers that knows what policy says of addresses."""
        numbers = self.policy.numbers
        sites = {
            ip.packed: numbers.sites[one.identity, one.ports]
            for one in self.members
            if (one.identity, one.ports) in numbers.sites
            for ip in one.document.spec.ips
        }
        return Ipcache(peers, cluster, Prefixes(numbers.cidrs), Prefixes(numbers.blocks), sites)


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


def gather(documents: Documents, enforcement: Enforcement) -> Cluster:
    """Return the cluster that the documents make."""
    found = members(documents)
    ports: dict[Identity, set[PortSet]] = defaultdict(set)
    for one in found:
        ports[one.identity].add(one.ports)
    numbers = {one.relevant: one.identity for one in found}
    return Cluster(found, Compilation.fresh(documents.policies, numbers, ports, enforcement).policy)


def members(documents: Documents, relevant: LabelFilter | None = None) -> tuple[Member, ...]:
    """Return the endpoints of the documents; ``relevant`` says which labels enter an identity."""
    chosen = relevant or LabelFilter()
    labels = [endpoint_labels(endpoint, documents.namespaces) for endpoint in documents.endpoints]
    some = [chosen.apply(all_labels) for all_labels in labels]
    numbers = derive(some)
    return tuple(
        Member(document, all_labels, of_identity, numbers[of_identity], named_ports(document))
        for document, all_labels, of_identity in zip(documents.endpoints, labels, some, strict=True)
    )


def _known_again(given: tuple[PolicyDocument, ...], known: tuple[PolicyDocument, ...]) -> tuple[PolicyDocument, ...]:
    """Return the documents given, each that says what a known one said as that very object; the known, if all do."""
    if given is known:
        return known
    by_key = {one.key: one for one in known}
    chosen = tuple(
        old if (old := by_key.get(one.key)) is not None and one.written and old.written == one.written else one
        for one in given
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


def named_ports(endpoint: Endpoint) -> PortSet:
    """Return the ports that an endpoint has names for."""
    return frozenset(PortOf(port.name.lower(), PROTOCOLS[port.protocol][0], port.port) for port in endpoint.spec.ports)
