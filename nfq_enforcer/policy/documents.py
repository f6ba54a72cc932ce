"""The documents, as users of Kubernetes and Cilium write them.

A model holds what this version enforces and nothing else. What upstream has beyond that is listed as unsupported, so
that it is refused with that reason: a policy that is half applied is worse than one that is not loaded. Descriptive
metadata, as ``kubectl get -o yaml`` prints it, is accepted and has no effect.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

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
    PolicyPort,
    Port,
    PortName,
    SelectorKey,
)
from nfq_enforcer.policy.validation import Items, Part

MAX_PORTS = 40  # of a toPorts entry, as upstream


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
    """Any document; ``origin`` says where it was read."""

    api_version: str
    kind: str
    metadata: ClusterMetadata
    status: object = None
    _origin: str = PrivateAttr("")

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

    def at(self, origin: str) -> None:
        """Note where it was read; to be called once, by who reads it."""
        self._origin = origin


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
        if len({port.name for port in ports}) < len(ports):
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


class PortProtocol(Part):
    """One port of one protocol, or of all that have ports."""

    unsupported = frozenset({"endPort"})

    port: PolicyPort  # "0": all ports
    protocol: Literal["TCP", "UDP", "SCTP", "ANY"] = "ANY"


class PortRule(Part):
    """One entry of toPorts; without ports it opens nothing, as upstream."""

    unsupported = frozenset({"rules", "listener", "serverNames", "originatingTLS", "terminatingTLS"})

    ports: Items[PortProtocol] = ()

    @field_validator("ports")
    @classmethod
    def _not_too_many(cls, ports: tuple[PortProtocol, ...]) -> tuple[PortProtocol, ...]:
        if len(ports) > MAX_PORTS:
            raise ValueError(f"{len(ports)} ports are too many; allowed: at most {MAX_PORTS} in one entry of toPorts")
        return ports


_UNSUPPORTED_EITHER_WAY = frozenset(("icmps", "authentication"))


class IngressRule(Part):
    """An entry of ``ingress``; a missing list (None) differs from an empty one, see ``compiler``."""

    unsupported = _UNSUPPORTED_EITHER_WAY.union(
        ("fromRequires", "fromCIDR", "fromCIDRSet", "fromEntities", "fromGroups", "fromNodes")
    )

    from_endpoints: Items[LabelSelector] | None = None
    to_ports: Items[PortRule] | None = None

    @property
    def peers(self) -> tuple[LabelSelector, ...] | None:
        """Return who may connect."""
        return self.from_endpoints


class EgressRule(Part):
    """An entry of ``egress``; a missing list (None) differs from an empty one, see ``compiler``."""

    unsupported = _UNSUPPORTED_EITHER_WAY.union(
        ("toRequires", "toCIDR", "toCIDRSet", "toEntities", "toGroups", "toNodes", "toFQDNs", "toServices")
    )

    to_endpoints: Items[LabelSelector] | None = None
    to_ports: Items[PortRule] | None = None

    @property
    def peers(self) -> tuple[LabelSelector, ...] | None:
        """Return who may be connected to."""
        return self.to_endpoints


class RuleLabel(Part):
    """A label of a rule, by which other tools find it; it has no effect."""

    key: str
    value: str = ""
    source: str = ""


class PolicyRule(Part):
    """What the endpoints that the selector selects may receive and send."""

    unsupported = frozenset(("nodeSelector", "ingressDeny", "egressDeny", "enableDefaultDeny", "log"))

    endpoint_selector: LabelSelector
    ingress: Items[IngressRule] = ()
    egress: Items[EgressRule] = ()
    description: str = ""
    labels: Items[RuleLabel] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.ingress and not self.egress:
            raise ValueError("a rule without effect; allowed: at least one entry in ingress or egress")
        return self


class CiliumPolicy(Document):
    """What the two kinds of Cilium policies have in common."""

    spec: PolicyRule | None = None
    specs: Items[PolicyRule] = Field((), validate_default=True)

    @field_validator("specs")
    @classmethod
    def _at_least_one(cls, specs: tuple[PolicyRule, ...], info: ValidationInfo) -> tuple[PolicyRule, ...]:
        if not specs and "spec" in info.data and info.data["spec"] is None:
            raise ValueError("a policy without a rule; allowed: one in spec, a list of them in specs, or both")
        return specs

    @property
    def rules(self) -> tuple[PolicyRule, ...]:
        """Return the rules in their order: that of ``spec`` and those of ``specs``."""
        return (self.spec, *self.specs) if self.spec else self.specs


class CiliumNetworkPolicy(CiliumPolicy):
    """A policy for endpoints of its own namespace."""

    kind: Literal["CiliumNetworkPolicy"]
    metadata: Metadata


class CiliumClusterwideNetworkPolicy(CiliumPolicy):
    """A policy for endpoints of every namespace."""

    kind: Literal["CiliumClusterwideNetworkPolicy"]
    metadata: ClusterMetadata


KINDS: Mapping[str, tuple[str, type[Document]]] = {
    "Endpoint": ("nfq-enforcer.io/v1", Endpoint),
    "Namespace": ("v1", Namespace),
    "CiliumNetworkPolicy": ("cilium.io/v2", CiliumNetworkPolicy),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2", CiliumClusterwideNetworkPolicy),
}
UNSUPPORTED_KINDS = frozenset(("NetworkPolicy", "CiliumCIDRGroup"))
