"""Registry of document kinds: the apiVersion and the model of each kind, and the kinds refused as unsupported."""

from collections.abc import Mapping

from nfq_enforcer.policy.cilium import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from nfq_enforcer.policy.documents import Document, Endpoint, Namespace
from nfq_enforcer.policy.kubernetes import NetworkPolicy

KINDS: Mapping[str, tuple[str, type[Document]]] = {
    "Endpoint": ("nfq-enforcer.io/v1", Endpoint),
    "Namespace": ("v1", Namespace),
    "CiliumNetworkPolicy": ("cilium.io/v2", CiliumNetworkPolicy),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2", CiliumClusterwideNetworkPolicy),
    "NetworkPolicy": ("networking.k8s.io/v1", NetworkPolicy),
}
UNSUPPORTED_KINDS = frozenset(("CiliumCIDRGroup",))
