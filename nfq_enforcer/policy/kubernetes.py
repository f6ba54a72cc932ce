"""NetworkPolicy, as Kubernetes documents it (networking.k8s.io/v1).

A list that is missing (None) and an empty one mean the same in an entry (any peer, any port), but not in the document:
see ``kubernetes_rules``.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from nfq_enforcer.policy.cilium import check_holes
from nfq_enforcer.policy.documents import Expression, Metadata, PolicyDocument
from nfq_enforcer.policy.fields import EndPort, KubernetesKey, KubernetesPort, LabelValue, Prefix
from nfq_enforcer.policy.validation import Items, Part


class PlainExpression(Expression):
    """One requirement of a selector that knows no label sources."""

    key: KubernetesKey


class PlainSelector(Part):
    """All of the labels and expressions must hold; an empty selector holds for everything in its scope."""

    match_labels: dict[KubernetesKey, LabelValue] = Field(default_factory=dict)
    match_expressions: Items[PlainExpression] = ()


class IpBlock(Part):
    """A prefix, and holes in it."""

    cidr: Prefix
    except_: Items[Prefix] = Field((), alias="except")

    @model_validator(mode="after")
    def _holes_are_inside(self) -> Self:
        check_holes(self.cidr, self.except_)
        if self.cidr in self.except_:
            raise ValueError(f"except {self.cidr} leaves nothing of the block; allowed: longer prefixes")
        return self


class PeerRule(Part):
    """Pods, by their labels, their namespaces' or both; or addresses."""

    pod_selector: PlainSelector | None = None
    namespace_selector: PlainSelector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if selects is (self.ip_block is not None):
            raise ValueError(
                "a peer is either ipBlock, or podSelector, namespaceSelector or both; allowed: one of these"
            )
        return self


class PortRule(Part):
    """One port, a range of ports, or every port of a protocol."""

    port: KubernetesPort | None = None
    end_port: EndPort | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.end_port is not None and (not isinstance(self.port, int) or self.end_port < self.port):
            raise ValueError(
                f"endPort {self.end_port} does not fit; allowed: with a port that is a number and not above it"
            )
        return self


class IngressRule(Part):
    """An entry of ``ingress``."""

    from_: Items[PeerRule] = Field((), alias="from")
    ports: Items[PortRule] = ()

    @property
    def peers(self) -> tuple[PeerRule, ...]:
        """Return who may connect; empty: anyone."""
        return self.from_


class EgressRule(Part):
    """An entry of ``egress``."""

    to: Items[PeerRule] = ()
    ports: Items[PortRule] = ()

    @property
    def peers(self) -> tuple[PeerRule, ...]:
        """Return who may be connected to; empty: anyone."""
        return self.to


class NetworkPolicySpec(Part):
    """What the pods that the selector selects may receive and send."""

    pod_selector: PlainSelector
    ingress: Items[IngressRule] = ()
    egress: Items[EgressRule] = ()
    policy_types: Items[Literal["Ingress", "Egress"]] = ()

    @property
    def types(self) -> frozenset[str]:
        """Return the directions that the policy is about; it closes in them what no policy opens."""
        if self.policy_types:
            return frozenset(self.policy_types)
        return frozenset(("Ingress", "Egress") if self.egress else ("Ingress",))


class NetworkPolicy(PolicyDocument):
    """A policy for pods of its own namespace."""

    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec
