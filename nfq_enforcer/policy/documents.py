"""The documents, as users of Kubernetes and Cilium write them: what all have in common, endpoints and namespaces.

``cilium`` and ``kubernetes`` have the policies. A model holds what this version understands and nothing else. What
upstream has beyond that is listed as unsupported, so that it is refused with that reason: a policy that is half applied
is worse than one that is not loaded. Descriptive metadata, as ``kubectl get -o yaml`` prints it, is accepted and has
no effect.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from nfq_enforcer.policy.fields import (
    AccountName,
    Address,
    Annotation,
    DnsLabel,
    DnsName,
    InterfaceName,
    LabelKey,
    LabelValue,
    NodeName,
    OwnLabels,
    Port,
    PortName,
    SelectorKey,
)
from nfq_enforcer.policy.validation import Items, Part


class ClusterMetadata(Part):
    """What names a document that belongs to no namespace; all but the name and the labels has no effect."""

    name: DnsName
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    annotations: dict[Annotation, str] = Field(default_factory=dict)
    uid: object = None
    resource_version: object = None
    creation_timestamp: object = None
    generation: object = None
    managed_fields: object = None
    owner_references: object = None
    finalizers: object = None


class Metadata(ClusterMetadata):
    """What names a document within a namespace."""

    namespace: DnsLabel = "default"


class Document(Part):
    """Any document; ``origin`` says where it was read, ``written`` is the data as it stood there."""

    api_version: str
    kind: str
    metadata: ClusterMetadata
    status: object = None
    _origin: str = PrivateAttr("")
    _written: Mapping[str, object] = PrivateAttr(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Return the namespace; empty for a document of the whole cluster."""
        return self.metadata.namespace if isinstance(self.metadata, Metadata) else ""

    @property
    def origin(self) -> str:
        """Return ``file:line`` of where it begins; empty if it was not read from a file."""
        return self._origin

    @property
    def written(self) -> Mapping[str, object]:
        """Return the data it was made of; empty if it was not read from a file."""
        return self._written

    @property
    def key(self) -> tuple[str, str, str]:
        """Return kind, namespace and name: what no two documents share."""
        return self.kind, self.namespace, self.name

    def at(self, origin: str, written: Mapping[str, object]) -> None:
        """Note where it was read, and what; to be called once, by who reads it."""
        self._origin = origin
        self._written = written


class EndpointMetadata(Metadata):
    """What names an endpoint, and the labels that make its identity."""

    labels: OwnLabels = Field(default_factory=dict)


class EndpointPort(Part):
    """A port of an endpoint by its name."""

    name: PortName
    port: Port
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class EndpointSpec(Part):
    """Where an endpoint is and how it is reached."""

    ips: Items[Address]
    node: NodeName | None = None  # none: the node that loads the document
    interface: InterfaceName | None = None  # none: not said
    service_account: AccountName = "default"
    ports: Items[EndpointPort] = ()

    @field_validator("ips")
    @classmethod
    def _at_least_one(cls, ips: tuple[Address, ...]) -> tuple[Address, ...]:
        if not ips:
            raise ValueError("an endpoint has at least one address; allowed: a list of IPv4 and IPv6 addresses")
        return ips

    @field_validator("ports")
    @classmethod
    def _names_differ(cls, ports: tuple[EndpointPort, ...]) -> tuple[EndpointPort, ...]:
        if len({port.name.lower() for port in ports}) < len(ports):  # policies name them in any case
            raise ValueError("two ports have the same name; each name is allowed once")
        return ports


class Endpoint(Document):
    """A workload: its addresses, and the labels that make its identity."""

    kind: Literal["Endpoint"]
    metadata: EndpointMetadata
    spec: EndpointSpec


class NamespaceMetadata(ClusterMetadata):
    """What names a namespace, and the labels that its endpoints inherit."""

    name: DnsLabel
    labels: OwnLabels = Field(default_factory=dict)


class Namespace(Document):
    """A namespace and its labels; what Kubernetes has in its spec has no effect."""

    kind: Literal["Namespace"]
    metadata: NamespaceMetadata
    spec: object = None


class Expression(Part):
    """One requirement of a selector."""

    key: SelectorKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Items[LabelValue] = Field((), validate_default=True)

    @field_validator("values")
    @classmethod
    def _fit_operator(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        operator = info.data.get("operator")
        if operator in {"In", "NotIn"} and not values:
            raise ValueError(f"operator {operator} needs at least one value")
        if operator in {"Exists", "DoesNotExist"} and values:
            raise ValueError(f"operator {operator} takes no values")
        return values


class LabelSelector(Part):
    """All of the labels and expressions must hold; an empty selector holds for everything in its scope."""

    match_labels: dict[SelectorKey, LabelValue] = Field(default_factory=dict)
    match_expressions: Items[Expression] = ()


class PolicyDocument(Document):
    """A document that says who may speak to whom."""
