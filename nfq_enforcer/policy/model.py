"""Cluster model of documents: every endpoint with its identity and named ports, and the compiled policy.

``policy trace`` and ``policy matrix`` evaluate the model offline. Identities are derived from the labels of all
endpoints, so two readers of the same documents compute the same identities.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.prefixes import Prefixes
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER, Address
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import Documents, endpoint_labels
from nfq_enforcer.policy.rules import PROTOCOL_NUMBERS, NamedPort, PortSet
from nfq_enforcer.policy.services import api_servers


class EndpointModel(NamedTuple):
    """EndpointModel: an endpoint document with its labels, identity and named ports."""

    document: Endpoint
    labels: Labels
    identity_labels: Labels  # the part of the labels that determines the identity
    identity: Identity
    ports: PortSet

    @property
    def name(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.document.namespace}/{self.document.name}"


@dataclass(frozen=True)
class ClusterModel:
    """ClusterModel: all endpoints, and the policy compiled for their identities."""

    endpoints: tuple[EndpointModel, ...]
    policy: Policy
    kube_apiserver: frozenset[bytes] = frozenset()  # addresses

    def maps(self, endpoint: EndpointModel) -> EndpointMaps:
        """Return the policy maps of an endpoint."""
        return self.policy.maps_for(endpoint.identity_labels, endpoint.ports)

    @cached_property
    def ipcache(self) -> Ipcache:
        """Return an ipcache of every endpoint's addresses, on whatever node, with the policy's local identities."""
        peers = {ip.packed: Peer(model.identity, True) for model in self.endpoints for ip in model.document.spec.ips}
        local_identities = self.policy.local_identities
        by_port_set = local_identities.by_port_set
        of_addresses = {
            ip.packed: by_port_set[model.identity, model.ports]
            for model in self.endpoints
            if (model.identity, model.ports) in by_port_set
            for ip in model.document.spec.ips
        }
        cidrs, ip_blocks = Prefixes(local_identities.by_cidr), Prefixes(local_identities.by_ip_block)
        return Ipcache(peers, (), cidrs, ip_blocks, of_addresses, self.kube_apiserver)


def build_model(
    documents: Documents,
    enforcement: Enforcement,
    cluster: str = DEFAULT_CLUSTER,
    kube_apiserver: Iterable[Address] = (),
    label_filter: LabelFilter | None = None,
) -> ClusterModel:
    """Return the cluster model of the documents, its policy compiled in this enforcement mode.

    ``cluster`` is the cluster's name, ``kube_apiserver`` are further addresses of the entity kube-apiserver, and
    ``label_filter`` selects the labels that determine an identity.
    """
    endpoints = model_endpoints(documents, label_filter, cluster=cluster)
    ports: dict[Identity, set[PortSet]] = defaultdict(set)
    for endpoint in endpoints:
        ports[endpoint.identity].add(endpoint.ports)
    identities = {endpoint.identity_labels: endpoint.identity for endpoint in endpoints}
    policy = compile_policy(documents.policies, identities, enforcement, ports)
    configured = frozenset(address.packed for address in kube_apiserver)
    return ClusterModel(endpoints, policy, configured | api_servers(documents.policies))


def model_endpoints(
    documents: Documents, label_filter: LabelFilter | None = None, cluster: str = DEFAULT_CLUSTER
) -> tuple[EndpointModel, ...]:
    """Return the endpoints of the documents; ``label_filter`` selects the labels that determine an identity."""
    chosen = label_filter or LabelFilter()
    labels = [endpoint_labels(endpoint, documents.namespaces, cluster) for endpoint in documents.endpoints]
    identity_labels = [chosen.apply(all_labels) for all_labels in labels]
    identities = derive(identity_labels)
    return tuple(
        EndpointModel(document, all_labels, filtered, identities[filtered], named_ports(document))
        for document, all_labels, filtered in zip(documents.endpoints, labels, identity_labels, strict=True)
    )


def named_ports(endpoint: Endpoint) -> PortSet:
    """Return the named ports of an endpoint document."""
    return frozenset(
        NamedPort(port.name.lower(), PROTOCOL_NUMBERS[port.protocol][0], port.port) for port in endpoint.spec.ports
    )
