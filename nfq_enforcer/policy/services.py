"""Services: the peers that rules name by ``toServices``, as Kubernetes documents services (v1, discovery.k8s.io/v1).

A service with a selector means the pods of its namespace that it selects; the ports of the rule are those of the pods,
because policy applies after the translation of the service's address. A service without a selector means the addresses
of its EndpointSlices and Endpoints, as far as they are outside the cluster. An ExternalName means nothing: a rule with
toFQDNs does. Without such a service a rule has no peer: an allow rule opens nothing, a deny rule denies nothing.

Of all fields of these documents only names, labels, selectors and addresses have an effect.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Literal, Self

from pydantic import Field, model_validator

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.cilium import ServicePeer
from nfq_enforcer.policy.documents import Document, Metadata, PolicyDocument
from nfq_enforcer.policy.fields import Address, AddressField, KubernetesKey, LabelValue, address
from nfq_enforcer.policy.kubernetes import KubernetesSelector
from nfq_enforcer.policy.rules import NO_EXCLUSIONS, AddressBlock
from nfq_enforcer.policy.selectors import Selector, label_selector, pod_peer_selector
from nfq_enforcer.policy.validation import Items, Part

SERVICE_NAME = "kubernetes.io/service-name"  # label of an EndpointSlice


class ServiceSpec(Part):
    """ServiceSpec: the selector of a service's pods; the other fields have no effect on policy."""

    selector: dict[KubernetesKey, LabelValue] = Field(default_factory=dict)
    type: object = None
    ports: object = None
    cluster_ip: object = Field(None, alias="clusterIP")
    cluster_ips: object = Field(None, alias="clusterIPs")
    external_ips: object = Field(None, alias="externalIPs")
    external_name: object = None
    external_traffic_policy: object = None
    internal_traffic_policy: object = None
    traffic_distribution: object = None
    health_check_node_port: object = None
    publish_not_ready_addresses: object = None
    session_affinity: object = None
    session_affinity_config: object = None
    ip_family: object = None
    ip_families: object = None
    ip_family_policy: object = None
    topology_keys: object = None
    load_balancer_ip: object = Field(None, alias="loadBalancerIP")
    load_balancer_class: object = None
    load_balancer_source_ranges: object = None
    allocate_load_balancer_node_ports: object = None


class _Referred(PolicyDocument):
    """_Referred: a document that policies refer to by its namespace and name, or by its labels."""

    has_rules = False

    metadata: Metadata


class Service(_Referred):
    """Service: pods that a selector chooses, or addresses that further documents have."""

    kind: Literal["Service"]
    spec: ServiceSpec = ServiceSpec()


class SliceEndpoint(Part):
    """SliceEndpoint: the addresses of one backend of a service."""

    addresses: Items[str]
    conditions: object = None
    hostname: object = None
    node_name: object = None
    target_ref: object = None
    deprecated_topology: object = None
    topology: object = None
    zone: object = None
    hints: object = None


class EndpointSlice(_Referred):
    """EndpointSlice: backends of the service that its label ``kubernetes.io/service-name`` names."""

    kind: Literal["EndpointSlice"]
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: Items[SliceEndpoint] = ()
    ports: object = None

    @model_validator(mode="after")
    def _has_addresses(self) -> Self:
        if self.address_type != "FQDN":
            for written in (written for endpoint in self.endpoints for written in endpoint.addresses):
                address(written)
        return self

    @property
    def service(self) -> str:
        """Return the name of the service; empty without the label."""
        return self.metadata.labels.get(SERVICE_NAME, "")

    @property
    def backends(self) -> Iterator[Address]:
        """Yield the address of each backend; names of a slice of addressType FQDN are none."""
        if self.address_type != "FQDN":
            yield from (address(written) for endpoint in self.endpoints for written in endpoint.addresses)


class SubsetAddress(Part):
    """SubsetAddress: the address of one backend."""

    ip: AddressField
    hostname: object = None
    node_name: object = None
    target_ref: object = None


class Subset(Part):
    """Subset: backends with the same ports."""

    addresses: Items[SubsetAddress] = ()
    not_ready_addresses: object = None
    ports: object = None


class Endpoints(_Referred):
    """Endpoints: backends of the service of the same name."""

    kind: Literal["Endpoints"]
    subsets: Items[Subset] = ()

    @property
    def service(self) -> str:
        """Return the name of the service."""
        return self.name

    @property
    def backends(self) -> Iterator[Address]:
        """Yield the address of each backend."""
        return (one.ip for subset in self.subsets for one in subset.addresses)


_APISERVER = ("default", "kubernetes")  # namespace and name of the API server's own service


def api_servers(documents: Iterable[Document]) -> frozenset[bytes]:
    """Return the addresses of the Kubernetes API server: the backends of its own service, ``default/kubernetes``."""
    return frozenset(
        backend.packed
        for document in documents
        if isinstance(document, EndpointSlice | Endpoints) and (document.namespace, document.service) == _APISERVER
        for backend in document.backends
    )


class Services:
    """Services: all services among some documents with their backends, in their order."""

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        """Take services and backends; documents of other kinds do not count."""
        self._documents = tuple(one for one in documents if isinstance(one, _Referred))
        self._services = tuple(
            (one, Labels.parse(one.metadata.labels)) for one in self._documents if isinstance(one, Service)
        )
        self._backends: defaultdict[tuple[str, str], dict[Address, None]] = defaultdict(dict)
        for document in self._documents:
            if isinstance(document, EndpointSlice | Endpoints):
                self._backends[document.namespace, document.service].update(dict.fromkeys(document.backends))

    def same_as(self, others: "Services") -> bool:
        """Tell whether both have the same document objects, in the same order."""
        return list(map(id, self._documents)) == list(map(id, others._documents))

    def of(self, peer: ServicePeer) -> list[Service]:
        """Return the services that an entry of toServices refers to: without a namespace, those of every one."""
        if peer.k8s_service is not None:
            named = peer.k8s_service
            found = (service for service, _ in self._services if service.name == named.service_name)
            return [service for service in found if named.namespace in ("", service.namespace)]
        assert peer.k8s_service_selector is not None  # validated: an entry has exactly one of the two
        namespace, selector = peer.k8s_service_selector.namespace, label_selector(peer.k8s_service_selector.selector)
        return [
            service
            for service, labels in self._services
            if namespace in ("", service.namespace) and selector.matches(labels)
        ]

    def peers(self, peer: ServicePeer) -> Iterator[Selector | AddressBlock]:
        """Yield the peers that an entry of toServices stands for."""
        for service in self.of(peer):
            if service.spec.selector:
                pods = KubernetesSelector.model_validate({"matchLabels": service.spec.selector})
                yield pod_peer_selector(pods, None, service.namespace)
            else:
                for backend in self._backends.get((service.namespace, service.name), ()):
                    yield AddressBlock(ip_network(backend), NO_EXCLUSIONS, includes_endpoints=False)
