"""Cluster model of documents: every endpoint with its identity and named ports, and the policy among them.

``trace`` and ``matrix`` evaluate it offline (``gather``). Identities are derived from the labels of all endpoints,
so every reader of the same documents computes the same numbers.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.core.tables.ipcache import Ipcache, Network, Peer, Prefixes
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import Documents, endpoint_labels
from nfq_enforcer.policy.rules import PROTOCOLS, PortOf, PortSet


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


def gather(documents: Documents, enforcement: Enforcement) -> Cluster:
    """Return the cluster that the documents make."""
    found = members(documents)
    ports: dict[Identity, set[PortSet]] = defaultdict(set)
    for one in found:
        ports[one.identity].add(one.ports)
    numbers = {one.relevant: one.identity for one in found}
    return Cluster(found, compile_policy(documents.policies, numbers, enforcement, ports))


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


def named_ports(endpoint: Endpoint) -> PortSet:
    """Return the ports that an endpoint has names for."""
    return frozenset(PortOf(port.name.lower(), PROTOCOLS[port.protocol][0], port.port) for port in endpoint.spec.ports)
