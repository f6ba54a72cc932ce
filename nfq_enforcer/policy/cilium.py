"""Document models of Cilium's network policies and CIDR groups, as Cilium documents them (cilium.io/v2).

An entry of ``ingress``, ``egress``, ``ingressDeny`` or ``egressDeny`` has its peers in one of several fields. A missing
list (None) differs from an empty one: see ``cilium_rules``.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from nfq_enforcer.core.tables import server_names
from nfq_enforcer.core.tables.l7 import L7Match, SniMatch
from nfq_enforcer.policy import icmp
from nfq_enforcer.policy.documents import ClusterMetadata, LabelSelector, Metadata, PolicyDocument
from nfq_enforcer.policy.fields import Cidr, DnsLabel, DnsName, EndPort, PolicyPort, Prefix, is_port_name
from nfq_enforcer.policy.l7_rules import DnsRule, L7Rules
from nfq_enforcer.policy.validation import Items, Part

_WITHOUT_PORTS = ("GRE", "IPIP", "IPV6", "ESP", "AH", "VRRP", "IGMP")  # upstream's extended IP protocols
MAX_PORTS = 40  # in one entry of toPorts or icmps, as upstream

Entity = Literal[
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "cluster-mesh",
    "host",
    "remote-node",
    "init",
    "health",
    "unmanaged",
    "kube-apiserver",
    "ingress",
    "none",
]


class PortProtocol(Part):
    """PortProtocol: a port or port range of one protocol, or of TCP, UDP and SCTP."""

    port: PolicyPort  # "0": all ports; a name: the destination's port of that name
    end_port: EndPort = 0  # 0: no range; ignored for a named port, as upstream
    protocol: Literal["TCP", "UDP", "SCTP", "ANY"] = "ANY"

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, data: object) -> object:
        """Refuse a protocol without ports before the model asks for its port."""
        protocol = data.get("protocol") if isinstance(data, dict) else None
        if protocol in _WITHOUT_PORTS:
            raise ValueError(f"protocol {protocol} is not supported by this version; allowed: TCP, UDP, SCTP and ANY")
        return data

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.end_port and not self.named and not 0 < int(self.port) <= self.end_port:
            raise ValueError(
                f"endPort {self.end_port} does not fit port {self.port}; allowed: port to 65535, from port 1 on"
            )
        return self

    @property
    def named(self) -> bool:
        """Return whether the port is a name."""
        return is_port_name(self.port)

    @property
    def is_range(self) -> bool:
        """Return whether it has several ports, though not all."""
        return not self.named and self.end_port > int(self.port)


def _at_most(maximum: int, noun: str, field: str) -> AfterValidator:
    def check(items: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(items) > maximum:
            raise ValueError(f"{len(items)} {noun} are too many; allowed: at most {maximum} in one entry of {field}")
        return items

    return AfterValidator(check)


_Ports = Annotated[Items[PortProtocol], _at_most(MAX_PORTS, "ports", "toPorts")]


class DenyPortRule(Part):
    """DenyPortRule: one entry of toPorts in a deny rule; without ports it denies nothing, as upstream."""

    ports: _Ports = ()


def _server_name(name: str) -> str:
    if not server_names.is_pattern(name):
        raise ValueError(
            f"'{name}' is not a server name; allowed: letters, digits, '-', '_', '.', '*' for some of a label, and "
            "'**' for one or more labels"
        )
    return name


def _at_least_one_name(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError(
            "serverNames without a name; allowed: at least one, or no serverNames, which allows every name"
        )
    return names


class PortRule(Part):
    """PortRule: one entry of toPorts; without ports it allows nothing, as upstream."""

    unsupported = frozenset({"listener", "originatingTLS", "terminatingTLS"})

    ports: _Ports = ()
    rules: L7Rules | None = None
    server_names: Annotated[
        Items[Annotated[str, AfterValidator(_server_name)]], AfterValidator(_at_least_one_name)
    ] = ()

    @property
    def has_rules(self) -> bool:
        """Return whether the entry allows some requests only."""
        return self.rules is not None and bool(self.rules.matches())

    def matches(self) -> tuple[L7Match, ...]:
        """Return the match of each rule and server name; without any, the entry allows everything on its ports."""
        return (*(self.rules.matches() if self.rules else ()), *map(SniMatch, self.server_names))

    @model_validator(mode="after")
    def _server_names_fit_ports(self) -> Self:
        if not self.server_names:
            return self
        if self.has_rules:
            raise ValueError("serverNames and rules; allowed: one of them, because the proxy does not decrypt TLS")
        if not self.ports or any(port.port == "0" for port in self.ports):
            raise ValueError('serverNames without ports; allowed: ports "1" to "65535", or the name of a port')
        if any(port.protocol not in {"TCP", "ANY"} for port in self.ports):
            raise ValueError("serverNames are those of TLS over TCP; allowed: ports with protocol: TCP or ANY")
        return self

    @model_validator(mode="after")
    def _rules_fit_ports(self) -> Self:
        if not self.has_rules or self.rules is None:
            return self
        if not self.ports:
            raise ValueError("rules without ports; allowed: at least one port beside them")
        if any(port.port == "0" for port in self.ports):
            raise ValueError('rules are not allowed with port "0"; allowed: "1" to "65535", or the name of a port')
        if self.rules.http and any(port.protocol != "TCP" for port in self.ports):
            raise ValueError("http rules are for TCP; allowed: ports with protocol: TCP")
        if self.rules.dns and any(port.protocol == "SCTP" or port.is_range for port in self.ports):
            raise ValueError(
                "dns rules are for single ports of TCP and UDP; allowed: protocol TCP, UDP or ANY, and no endPort "
                "above its port"
            )
        return self


class IcmpField(Part):
    """IcmpField: one ICMP message type, by number or by name."""

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: object = Field(validate_default=True)

    @field_validator("type")
    @classmethod
    def _number(cls, value: object, info: ValidationInfo) -> object:
        family = info.data.get("family")
        return icmp.number(family, value) if family else value


class IcmpRule(Part):
    """IcmpRule: one entry of icmps; without fields it allows nothing."""

    fields_: Annotated[Items[IcmpField], _at_most(MAX_PORTS, "types", "icmps")] = Field((), alias="fields")


class CidrRule(Part):
    """CidrRule: the addresses of a prefix, or of CIDR groups, without those of the ``except`` prefixes."""

    cidr: Prefix | None = None
    cidr_group_ref: DnsName | None = None
    cidr_group_selector: LabelSelector | None = None
    except_: Items[Prefix] = Field((), alias="except")

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [name for name in ("cidr", "cidr_group_ref", "cidr_group_selector") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(str(type(self).model_fields[name].alias) for name in given) or "none of them"
            raise ValueError(f"{found} given; allowed: one of cidr, cidrGroupRef and cidrGroupSelector")
        if self.cidr is not None:
            check_except(self.cidr, self.except_)
        return self


def check_except(block: Prefix, excluded: Iterable[Prefix]) -> None:
    """Raise ValueError for an ``except`` prefix outside its block."""
    for prefix in excluded:
        if prefix.version != block.version or not prefix.subnet_of(block):  # type: ignore[arg-type]
            raise ValueError(f"except {prefix} is not within {block}; allowed: prefixes that the block contains")


class ServiceName(Part):
    """ServiceName: a service of Kubernetes, by its name."""

    service_name: DnsName
    namespace: DnsLabel | Literal[""] = ""  # empty: every namespace, as upstream


class ServiceSelector(Part):
    """ServiceSelector: services of Kubernetes, by their labels."""

    selector: LabelSelector
    namespace: DnsLabel | Literal[""] = ""  # as above


class ServicePeer(Part):
    """ServicePeer: one entry of toServices, services by name or by labels."""

    k8s_service: ServiceName | None = Field(None, alias="k8sService")
    k8s_service_selector: ServiceSelector | None = Field(None, alias="k8sServiceSelector")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.k8s_service is None) is (self.k8s_service_selector is None):
            given = "both" if self.k8s_service else "none of them"
            raise ValueError(f"{given} given; allowed: either k8sService or k8sServiceSelector")
        return self


PeerSpec = LabelSelector | IPv4Network | IPv6Network | CidrRule | Entity | DnsRule | ServicePeer


def _mode(mode: str) -> str:
    if mode in {"required", "test-always-fail"}:
        raise ValueError(f"'{mode}' is not supported by this version; allowed: 'disabled'")
    if mode != "disabled":
        raise ValueError(f"'{mode}' is not allowed; allowed: 'disabled'")
    return mode


class Authentication(Part):
    """Authentication: mutual authentication of both ends, which this version can only have switched off."""

    mode: Annotated[str, AfterValidator(_mode)]


class RuleEntry(Part):
    """RuleEntry: the fields common to the entries of ingress, egress, ingressDeny and egressDeny."""

    peer_fields: ClassVar[tuple[str, ...]]  # names of the attributes with peers

    icmps: Items[IcmpRule] | None = None
    to_ports: Items[Any] | None = None

    @property
    def peers(self) -> tuple[PeerSpec, ...] | None:
        """Return the peers of the entry, None if every peer field is missing."""
        lists = [peers for peers in map(self._peers, self.peer_fields) if peers is not None]
        return tuple(peer for peers in lists for peer in peers) if lists else None

    @property
    def ports(self) -> tuple[PortRule | DenyPortRule, ...]:
        """Return the entries of toPorts."""
        return self.to_ports or ()

    def _peers(self, field: str) -> tuple[PeerSpec, ...] | None:
        peers: tuple[PeerSpec, ...] | None = getattr(self, field)
        return peers

    @model_validator(mode="after")
    def _one_kind_of_peers(self) -> Self:
        present = [str(type(self).model_fields[name].alias) for name in self.peer_fields if self._peers(name)]
        if len(present) > 1:
            raise ValueError(
                f"{' and '.join(present)} cannot be combined; allowed: one of them, the other in a rule of its own"
            )
        if self.ports and self.icmps:
            raise ValueError(
                "toPorts and icmps cannot be combined; allowed: one of them, the other in a rule of its own"
            )
        return self


class _Ingress(RuleEntry):
    peer_fields = ("from_endpoints", "from_cidr", "from_cidr_set", "from_entities")
    unsupported = frozenset(("fromGroups", "fromNodes"))
    removed = frozenset(("fromRequires",))

    from_endpoints: Items[LabelSelector] | None = None
    from_cidr: Items[Cidr] | None = Field(None, alias="fromCIDR")
    from_cidr_set: Items[CidrRule] | None = Field(None, alias="fromCIDRSet")
    from_entities: Items[Entity] | None = None


class _Egress(RuleEntry):
    peer_fields: ClassVar[tuple[str, ...]] = ("to_endpoints", "to_cidr", "to_cidr_set", "to_entities", "to_services")
    unsupported = frozenset(("toGroups", "toNodes"))
    removed = frozenset(("toRequires",))

    to_endpoints: Items[LabelSelector] | None = None
    to_cidr: Items[Cidr] | None = Field(None, alias="toCIDR")
    to_cidr_set: Items[CidrRule] | None = Field(None, alias="toCIDRSet")
    to_entities: Items[Entity] | None = None
    to_services: Items[ServicePeer] | None = None


class IngressRule(_Ingress):
    """IngressRule: an entry of ``ingress``."""

    to_ports: Items[PortRule] | None = None
    authentication: Authentication | None = None

    @model_validator(mode="after")
    def _no_dns(self) -> Self:
        if any(port.rules and port.rules.dns for port in self.to_ports or ()):
            raise ValueError("dns rules are not allowed in ingress; allowed: in egress")
        return self


class IngressDenyRule(_Ingress):
    """IngressDenyRule: an entry of ``ingressDeny``."""

    to_ports: Items[DenyPortRule] | None = None


class EgressRule(_Egress):
    """EgressRule: an entry of ``egress``."""

    peer_fields: ClassVar[tuple[str, ...]] = (*_Egress.peer_fields, "to_fqdns")

    to_fqdns: Items[DnsRule] | None = Field(None, alias="toFQDNs")
    to_ports: Items[PortRule] | None = None
    authentication: Authentication | None = None


class EgressDenyRule(_Egress):
    """EgressDenyRule: an entry of ``egressDeny``."""

    elsewhere: ClassVar[Mapping[str, str]] = {"toFQDNs": "egress"}

    to_ports: Items[DenyPortRule] | None = None


class RuleLabel(Part):
    """RuleLabel: a label of a rule, for other tools; it has no effect."""

    key: str
    value: str = ""
    source: str = ""


class DefaultDeny(Part):
    """DefaultDeny: whether a rule with entries for a direction isolates its subjects in it; None means yes."""

    ingress: bool | None = None
    egress: bool | None = None


class PolicyRule(Part):
    """PolicyRule: the subjects, endpoints or nodes, and the traffic that they may receive and send."""

    unsupported = frozenset(("log",))

    endpoint_selector: LabelSelector | None = None
    node_selector: LabelSelector | None = None
    ingress: Items[IngressRule] = ()
    egress: Items[EgressRule] = ()
    ingress_deny: Items[IngressDenyRule] = ()
    egress_deny: Items[EgressDenyRule] = ()
    enable_default_deny: DefaultDeny = DefaultDeny()
    description: str = ""
    labels: Items[RuleLabel] = ()

    @property
    def entries(self) -> tuple[RuleEntry, ...]:
        """Return the entries of all sections."""
        return (*self.ingress, *self.egress, *self.ingress_deny, *self.egress_deny)

    @property
    def has_http(self) -> bool:
        """Return whether any entry allows some HTTP requests only."""
        return any(port.rules and port.rules.http for port in self._port_rules())

    @property
    def has_server_names(self) -> bool:
        """Return whether any entry allows TLS to some server names only."""
        return any(port.server_names for port in self._port_rules())

    def _port_rules(self) -> Iterable[PortRule]:
        return (port for entry in (*self.ingress, *self.egress) for port in entry.to_ports or ())

    @model_validator(mode="after")
    def _has_entries_and_one_selector(self) -> Self:
        if not self.entries:
            sections = "ingress, egress, ingressDeny or egressDeny"
            empty = [section for section in ("ingress", "egress") if section in self.model_fields_set] or ["ingress"]
            written = " and ".join(f"{section}: [{{}}]" for section in empty)
            raise ValueError(
                f"a rule without effect; allowed: at least one entry in {sections}; for default deny write {written}"
            )
        if (self.endpoint_selector is None) is (self.node_selector is None):
            raise ValueError("a rule needs a selector; allowed: either endpointSelector or nodeSelector")
        if self.node_selector is not None and (self.has_http or self.has_server_names):
            field = "http rules are" if self.has_http else "serverNames are"
            raise ValueError(f"{field} not allowed with nodeSelector; allowed: with endpointSelector")
        return self


class CiliumPolicy(PolicyDocument):
    """CiliumPolicy: the fields common to the two kinds of Cilium policies."""

    spec: PolicyRule | None = None
    specs: Items[PolicyRule] = Field((), validate_default=True)

    @field_validator("specs")
    @classmethod
    def _at_least_one(cls, specs: tuple[PolicyRule, ...], info: ValidationInfo) -> tuple[PolicyRule, ...]:
        if not specs and "spec" in info.data and info.data["spec"] is None:
            raise ValueError("a policy without a rule; allowed: one in spec, a list of them in specs, or both")
        return specs

    @property
    def group_references(self) -> Iterator[CidrRule]:
        """Yield the peers that refer to CIDR groups."""
        return (peer for peer in self._peers if isinstance(peer, CidrRule) and peer.cidr is None)

    @property
    def service_references(self) -> Iterator[ServicePeer]:
        """Yield the peers that refer to services."""
        return (peer for peer in self._peers if isinstance(peer, ServicePeer))

    @property
    def _peers(self) -> Iterator[PeerSpec]:
        return (peer for rule in self.rules for entry in rule.entries for peer in entry.peers or ())

    @property
    def rules(self) -> tuple[PolicyRule, ...]:
        """Return the rules in their order: the rule in ``spec``, then those in ``specs``."""
        return (self.spec, *self.specs) if self.spec else self.specs


class CiliumNetworkPolicy(CiliumPolicy):
    """CiliumNetworkPolicy: a policy for endpoints in its own namespace."""

    kind: Literal["CiliumNetworkPolicy"]
    metadata: Metadata

    @model_validator(mode="after")
    def _not_for_nodes(self) -> Self:
        if any(rule.node_selector is not None for rule in self.rules):
            kind = "CiliumClusterwideNetworkPolicy"
            raise ValueError(f"nodeSelector selects nodes, which have no namespace; allowed: in a {kind}")
        return self


class CiliumClusterwideNetworkPolicy(CiliumPolicy):
    """CiliumClusterwideNetworkPolicy: a policy for endpoints in every namespace, or for nodes."""

    kind: Literal["CiliumClusterwideNetworkPolicy"]
    metadata: ClusterMetadata


class CidrGroupSpec(Part):
    """CidrGroupSpec: the prefixes of a CIDR group."""

    external_cidrs: Items[Prefix] = Field(alias="externalCIDRs")


class CiliumCIDRGroup(PolicyDocument):
    """CiliumCIDRGroup: prefixes that policies name together, by the name or the labels of the group."""

    has_rules = False

    kind: Literal["CiliumCIDRGroup"]
    metadata: ClusterMetadata
    spec: CidrGroupSpec

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Return the prefixes."""
        return self.spec.external_cidrs
