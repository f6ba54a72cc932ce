"""Document models, as users of Kubernetes and Cilium write documents: common fields, endpoints and namespaces.

The models of policies are in ``cilium`` and ``kubernetes``. A model has only the fields that this version implements.
Further fields of upstream are listed as unsupported and refused with that reason: a policy applied in part is worse
than a policy not loaded. Descriptive metadata, as ``kubectl get -o yaml`` prints it, is accepted and has no effect.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator

from nfq_enforcer.policy.fields import (
    AccountName,
    AddressField,
    Annotation,
    CgroupPath,
    DnsLabel,
    DnsName,
    InterfaceName,
    LabelKey,
    LabelValue,
    NodeName,
    PortField,
    PortName,
    SelectorKey,
    UserLabels,
)
from nfq_enforcer.policy.validation import Items, Part


class ClusterMetadata(Part):
    """ClusterMetadata: the metadata of a document of the whole cluster; only the name and the labels have an effect."""

    name: DnsName
    namespace: Annotated[str, AfterValidator(lambda _: "")] = ""  # cleared, as by Kubernetes
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    annotations: dict[Annotation, str] = Field(default_factory=dict)
    uid: object = None
    resource_version: object = None
    creation_timestamp: object = None
    generation: object = None
    managed_fields: object = None
    owner_references: object = None
    finalizers: object = None
    self_link: object = None
    generate_name: object = None
    deletion_timestamp: object = None
    deletion_grace_period_seconds: object = None


class Metadata(ClusterMetadata):
    """Metadata: the metadata of a document within a namespace."""

    namespace: DnsLabel = "default"


class Document(Part):
    """Document: the fields common to all kinds, with the place it was read from and the data read there."""

    api_version: str
    kind: str
    metadata: ClusterMetadata
    status: object = None
    _origin: str = PrivateAttr("")
    _data: Mapping[str, object] = PrivateAttr(default_factory=dict)
    _source: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """Return the name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Return the namespace; empty for a document of the whole cluster."""
        return self.metadata.namespace

    @property
    def origin(self) -> str:
        """Return ``file:line`` of the first line of the document; empty if it was not read from a file."""
        return self._origin

    @property
    def data(self) -> Mapping[str, object]:
        """Return the data that the document was validated from; empty if it was not read from a file."""
        return self._data

    @property
    def source(self) -> str:
        """Return the source that brought the document, such as ``kubernetes``; empty: a person."""
        return self._source

    @property
    def title(self) -> str:
        """Return ``Kind namespace/name``, or ``Kind name`` for a document of the whole cluster."""
        return title_of(*self.key)

    @property
    def key(self) -> tuple[str, str, str]:
        """Return kind, namespace and name, unique among documents."""
        return self.kind, self.namespace, self.name

    def set_origin(self, origin: str, data: Mapping[str, object], source: str = "") -> None:
        """Set ``origin``, ``data`` and ``source``, as the reader of the document does."""
        self._origin = origin
        self._data = data
        self._source = source


def title_of(kind: str, namespace: str, name: str) -> str:
    """Return ``Kind namespace/name``, or ``Kind name`` for a document of the whole cluster (no namespace)."""
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


class EndpointMetadata(Metadata):
    """EndpointMetadata: the name of an endpoint, and the labels that determine its identity."""

    labels: UserLabels = Field(default_factory=dict)


class EndpointPort(Part):
    """EndpointPort: a named port of an endpoint."""

    name: PortName
    port: PortField
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class EndpointSpec(Part):
    """EndpointSpec: the addresses (or cgroup), node, interface, service account and named ports of an endpoint."""

    cgroup: CgroupPath | None = None  # of a process endpoint, in place of addresses: the endpoint has its sockets
    ips: Items[AddressField] = Field((), validate_default=True)
    node: NodeName | None = None  # None: the node that loads the document
    interface: InterfaceName | None = None  # None: not specified
    service_account: AccountName = "default"
    ports: Items[EndpointPort] = ()

    @field_validator("ips")
    @classmethod
    def _at_least_one(cls, ips: tuple[AddressField, ...], info: ValidationInfo) -> tuple[AddressField, ...]:
        if "cgroup" not in info.data:  # it has an error of its own
            return ips
        is_process = info.data["cgroup"] is not None
        if not ips and not is_process:
            allowed = "a list of IPv4 and IPv6 addresses, or a cgroup in place of them"
            raise ValueError(f"an endpoint has at least one address; allowed: {allowed}")
        if ips and is_process:
            raise ValueError("an endpoint with a cgroup has the addresses of its node; allowed: no others")
        return ips

    @field_validator("interface")
    @classmethod
    def _none_of_process(cls, interface: str | None, info: ValidationInfo) -> str | None:
        if interface is not None and info.data.get("cgroup") is not None:
            raise ValueError("an endpoint with a cgroup is on its node itself; allowed: no interface")
        return interface

    @field_validator("ports")
    @classmethod
    def _names_differ(cls, ports: tuple[EndpointPort, ...]) -> tuple[EndpointPort, ...]:
        if len({port.name.lower() for port in ports}) < len(ports):  # names in policies are case-insensitive
            raise ValueError("two ports have the same name; each name is allowed once")
        return ports


class Endpoint(Document):
    """Endpoint: a workload, with its addresses and the labels that determine its identity."""

    kind: Literal["Endpoint"]
    metadata: EndpointMetadata
    spec: EndpointSpec


class NamespaceMetadata(ClusterMetadata):
    """NamespaceMetadata: the name of a namespace, and the labels that its endpoints inherit."""

    name: DnsLabel
    labels: UserLabels = Field(default_factory=dict)


class Namespace(Document):
    """Namespace: a namespace with its labels; the spec that Kubernetes has is accepted and has no effect."""

    kind: Literal["Namespace"]
    metadata: NamespaceMetadata
    spec: object = None


class SelectorExpression(Part):
    """SelectorExpression: one entry of matchExpressions, a requirement on the value of a label key."""

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
    """LabelSelector: labels and expressions that must all match; an empty selector matches everything in its scope."""

    match_labels: dict[SelectorKey, LabelValue] = Field(default_factory=dict)
    match_expressions: Items[SelectorExpression] = ()


class PolicyDocument(Document):
    """PolicyDocument: base class of the documents with network policy, and of those that policies refer to."""

    has_rules: ClassVar[bool] = True
