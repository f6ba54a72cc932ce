"""Document model of ClusterNetworkPolicy, as the Network Policy API documents it (policy.networking.k8s.io/v1alpha2).

Upstream's experimental fields are ``nodes`` and ``domainNames``. A peer or protocol without any known field is refused
with its document, where upstream would treat a rule with it as one that matches nothing, or denies everything.
"""

import re
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from nfq_enforcer.core.tables.policymap import Tier
from nfq_enforcer.policy.documents import ClusterMetadata, PolicyDocument
from nfq_enforcer.policy.fields import KubernetesPort, PortField, Prefix
from nfq_enforcer.policy.kubernetes import KubernetesSelector
from nfq_enforcer.policy.validation import Items, Part

MAX_PRIORITY = 1000
_MAX_ITEMS = 25  # of each list, as upstream
_MAX_TITLE = 100  # characters
_DOMAIN_NAME = re.compile(
    r"(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?"
)
_MAX_DOMAIN_NAME = 255  # characters, as in DNS

ItemT = TypeVar("ItemT")


def _at_most(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    if len(items) > _MAX_ITEMS:
        raise ValueError(f"{len(items)} entries are too many; allowed: at most {_MAX_ITEMS}")
    return items


def _some(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    if not items:
        raise ValueError(f"an empty list; allowed: 1 to {_MAX_ITEMS} entries")
    return _at_most(items)


def _distinct(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    repeated = next((item for number, item in enumerate(items) if item in items[:number]), None)
    if repeated is not None:
        raise ValueError(f"{repeated} stands twice in the list; allowed: once")
    return items


class _OneOf(Part):
    """OneOf: a mapping with exactly one of its fields."""

    noun: ClassVar[str]

    @model_validator(mode="after")
    def _has_one_field(self) -> Self:
        allowed = list(type(self).fields())
        given = [str(field.alias) for name, field in type(self).model_fields.items() if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"{self.noun} has {found}; allowed: one of {', '.join(allowed)}")
        return self


class NamespacedPods(Part):
    """NamespacedPods: pods selected by their labels in namespaces selected by theirs; empty selectors match all."""

    namespace_selector: KubernetesSelector
    pod_selector: KubernetesSelector


class Subject(_OneOf):
    """Subject: the pods that a policy is for."""

    noun = "a subject"

    namespaces: KubernetesSelector | None = None
    pods: NamespacedPods | None = None


class IngressPeer(_OneOf):
    """IngressPeer: one entry of ``from``."""

    noun = "a peer"
    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(("networks", "nodes", "domainNames"), "egress rules")

    namespaces: KubernetesSelector | None = None
    pods: NamespacedPods | None = None


def _domain_name(name: str) -> str:
    if len(name) > _MAX_DOMAIN_NAME or not _DOMAIN_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a domain name; allowed: labels of letters, digits, '-' and '_', at least two, and a "
            "leading '*.' for one or more labels"
        )
    return name


class EgressPeer(_OneOf):
    """EgressPeer: one entry of ``to``."""

    noun = "a peer"

    namespaces: KubernetesSelector | None = None
    pods: NamespacedPods | None = None
    nodes: KubernetesSelector | None = None
    networks: Annotated[Items[Prefix], AfterValidator(_some), AfterValidator(_distinct)] | None = None
    domain_names: (
        Annotated[Items[Annotated[str, AfterValidator(_domain_name)]], AfterValidator(_some), AfterValidator(_distinct)]
        | None
    ) = None

    @field_validator("nodes")
    @classmethod
    def _every_node(cls, nodes: KubernetesSelector | None) -> KubernetesSelector | None:
        if nodes is not None and (nodes.match_labels or nodes.match_expressions):
            raise ValueError(
                "labels of nodes are not supported by this version, in which a node has those of no other node; "
                "allowed: {} for every node, or networks with the addresses of nodes"
            )
        return nodes

    @property
    def has_named_ports(self) -> bool:
        """Return whether the peer's ports can have names: those of pods."""
        return self.namespaces is not None or self.pods is not None


class PortRange(Part):
    """PortRange: consecutive ports, both ends included."""

    start: PortField
    end: PortField

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not below end {self.end}; allowed: a start below the end")
        return self


class Port(_OneOf):
    """Port: one port, or a range of ports."""

    noun = "a destinationPort"

    number: PortField | None = None
    range: PortRange | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the first and the last port."""
        if self.range is not None:
            return self.range.start, self.range.end
        assert self.number is not None  # validated: one of the two
        return self.number, self.number


class TransportMatch(Part):
    """TransportMatch: the ports of one protocol."""

    destination_port: Port


def _port_name(name: int | str) -> str:
    if isinstance(name, int):
        raise ValueError(f"{name} is a number; allowed: the name of a port, or tcp, udp or sctp with destinationPort")
    return name


class ProtocolMatch(_OneOf):
    """ProtocolMatch: one entry of ``protocols``."""

    noun = "a protocol"

    tcp: TransportMatch | None = None
    udp: TransportMatch | None = None
    sctp: TransportMatch | None = None
    destination_named_port: Annotated[KubernetesPort, AfterValidator(_port_name)] | None = None


def _title(title: str) -> str:
    if len(title) > _MAX_TITLE:
        raise ValueError(f"{len(title)} characters are too many; allowed: at most {_MAX_TITLE}")
    return title


class ClusterPolicyRule(Part):
    """ClusterPolicyRule: the fields common to the entries of ``ingress`` and ``egress``."""

    name: Annotated[str, AfterValidator(_title)] = ""
    action: Literal["Accept", "Deny", "Pass"]
    protocols: Annotated[Items[ProtocolMatch], AfterValidator(_some)] | None = None


class ClusterIngressRule(ClusterPolicyRule):
    """ClusterIngressRule: an entry of ``ingress``."""

    from_: Annotated[Items[IngressPeer], AfterValidator(_some)] = Field(alias="from")

    @property
    def peers(self) -> tuple[IngressPeer, ...]:
        """Return the peers at the other end of the traffic."""
        return self.from_


class ClusterEgressRule(ClusterPolicyRule):
    """ClusterEgressRule: an entry of ``egress``."""

    to: Annotated[Items[EgressPeer], AfterValidator(_some)]

    @property
    def peers(self) -> tuple[EgressPeer, ...]:
        """Return the peers at the other end of the traffic."""
        return self.to

    @model_validator(mode="after")
    def _names_are_of_pods(self) -> Self:
        if any(match.destination_named_port is not None for match in self.protocols or ()):
            unnamed = next((peer for peer in self.to if not peer.has_named_ports), None)
            if unnamed is not None:
                (field,) = unnamed.model_fields_set
                alias = type(unnamed).model_fields[field].alias
                raise ValueError(
                    f"destinationNamedPort beside {alias}, whose ports have no names; allowed: tcp, udp or sctp with "
                    "destinationPort"
                )
        return self

    @model_validator(mode="after")
    def _domain_names_are_accepted(self) -> Self:
        if self.action != "Accept" and any(peer.domain_names is not None for peer in self.to):
            raise ValueError(
                f"domainNames with action {self.action}; allowed: with action Accept, before a rule that denies others"
            )
        return self


class ClusterPolicySpec(Part):
    """ClusterPolicySpec: the tier, priority and subject pods of a policy, and its rules in their order."""

    tier: Literal["Admin", "Baseline"]
    priority: int
    subject: Subject
    ingress: Annotated[Items[ClusterIngressRule], AfterValidator(_at_most)] = ()
    egress: Annotated[Items[ClusterEgressRule], AfterValidator(_at_most)] = ()

    @field_validator("priority")
    @classmethod
    def _is_in_range(cls, priority: int) -> int:
        if not 0 <= priority <= MAX_PRIORITY:
            raise ValueError(f"priority {priority} is out of range; allowed: 0 to {MAX_PRIORITY}, lower ones first")
        return priority

    @property
    def place(self) -> tuple[Tier, int]:
        """Return the tier and the priority."""
        return Tier(self.tier), self.priority


class ClusterNetworkPolicy(PolicyDocument):
    """ClusterNetworkPolicy: a policy of administrators, before or after those of namespaces."""

    kind: Literal["ClusterNetworkPolicy"]
    metadata: ClusterMetadata
    spec: ClusterPolicySpec
