"""Document model of NetworkPolicy, as Kubernetes documents it (networking.k8s.io/v1).

In an entry, a missing list (None) and an empty list mean the same: any peer, any port. In the document they differ, see
``kubernetes_rules``.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nfq_enforcer.policy.cilium import check_except
from nfq_enforcer.policy.documents import Metadata, PolicyDocument, SelectorExpression
from nfq_enforcer.policy.fields import MAX_PORT, EndPort, KubernetesKey, KubernetesPort, LabelValue, Prefix
from nfq_enforcer.policy.validation import Items, Part

_MAX_TYPES = 2


class KubernetesExpression(SelectorExpression):
    """KubernetesExpression: one entry of matchExpressions, with a key without label source."""

    key: KubernetesKey


class KubernetesSelector(Part):
    """KubernetesSelector: a label selector with keys without label source; an empty one matches all in its scope."""

    match_labels: dict[KubernetesKey, LabelValue] = Field(default_factory=dict)
    match_expressions: Items[KubernetesExpression] = ()


class IpBlock(Part):
    """IpBlock: the addresses of a prefix, without those of the ``except`` prefixes."""

    cidr: Prefix
    except_: Items[Prefix] = Field((), alias="except")

    @model_validator(mode="after")
    def _except_is_inside(self) -> Self:
        check_except(self.cidr, self.except_)
        if self.cidr in self.except_:
            raise ValueError(f"except {self.cidr} leaves nothing of the block; allowed: longer prefixes")
        return self


class NetworkPolicyPeer(Part):
    """NetworkPolicyPeer: pods selected by their labels, by their namespace's labels or by both; or an ipBlock."""

    pod_selector: KubernetesSelector | None = None
    namespace_selector: KubernetesSelector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _has_one_kind_of_peer(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if selects is (self.ip_block is not None):
            raise ValueError(
                "a peer is either ipBlock, or podSelector, namespaceSelector or both; allowed: one of these"
            )
        return self


class NetworkPolicyPort(Part):
    """NetworkPolicyPort: one port, a range of ports, or every port of a protocol."""

    port: KubernetesPort | None = None
    end_port: EndPort | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.end_port is None:
            return self
        if not isinstance(self.port, int):
            beside = "without port" if self.port is None else f"beside the name of a port, '{self.port}'"
            raise ValueError(f"endPort {self.end_port} {beside}; allowed: beside the number of a port")
        if self.end_port < self.port:
            raise ValueError(f"endPort {self.end_port} is below port {self.port}; allowed: {self.port} to {MAX_PORT}")
        return self


class NetworkPolicyIngressRule(Part):
    """NetworkPolicyIngressRule: an entry of ``ingress``."""

    from_: Items[NetworkPolicyPeer] = Field((), alias="from")
    ports: Items[NetworkPolicyPort] = ()

    @property
    def peers(self) -> tuple[NetworkPolicyPeer, ...]:
        """Return the peers that may connect to the subject; empty: any peer."""
        return self.from_


class NetworkPolicyEgressRule(Part):
    """NetworkPolicyEgressRule: an entry of ``egress``."""

    to: Items[NetworkPolicyPeer] = ()
    ports: Items[NetworkPolicyPort] = ()

    @property
    def peers(self) -> tuple[NetworkPolicyPeer, ...]:
        """Return the peers that the subject may connect to; empty: any peer."""
        return self.to


def _at_most_two(types: tuple[str, ...]) -> tuple[str, ...]:
    if len(types) > _MAX_TYPES:
        raise ValueError(f"{len(types)} types are too many; allowed: at most two, Ingress and Egress")
    return types


class NetworkPolicySpec(Part):
    """NetworkPolicySpec: the subject pods, and the traffic that they may receive and send."""

    pod_selector: KubernetesSelector = KubernetesSelector()  # null or absent: an empty one, as for Kubernetes
    ingress: Items[NetworkPolicyIngressRule] = ()
    egress: Items[NetworkPolicyEgressRule] = ()
    policy_types: Annotated[Items[Literal["Ingress", "Egress"]], AfterValidator(_at_most_two)] = ()

    @property
    def types(self) -> frozenset[str]:
        """Return the directions in which the policy puts its subjects into default deny."""
        if self.policy_types:
            return frozenset(self.policy_types)
        return frozenset(("Ingress", "Egress") if self.egress else ("Ingress",))


class NetworkPolicy(PolicyDocument):
    """NetworkPolicy: a policy for pods in its own namespace."""

    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec = NetworkPolicySpec()
