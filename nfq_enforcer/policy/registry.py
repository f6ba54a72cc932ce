"""Registry of document kinds: apiVersion and model of each kind, their lists, and the kinds refused as unsupported."""

from collections.abc import Mapping
from difflib import get_close_matches

from nfq_enforcer.policy.cilium import CiliumCIDRGroup, CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from nfq_enforcer.policy.cluster_policy import ClusterNetworkPolicy
from nfq_enforcer.policy.documents import Document, Endpoint, Namespace
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.services import Endpoints, EndpointSlice, Service

KINDS: Mapping[str, tuple[str, type[Document]]] = {
    "Endpoint": ("nfq-enforcer.io/v1", Endpoint),
    "Namespace": ("v1", Namespace),
    "CiliumNetworkPolicy": ("cilium.io/v2", CiliumNetworkPolicy),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2", CiliumClusterwideNetworkPolicy),
    "CiliumCIDRGroup": ("cilium.io/v2", CiliumCIDRGroup),
    "NetworkPolicy": ("networking.k8s.io/v1", NetworkPolicy),
    "Service": ("v1", Service),
    "EndpointSlice": ("discovery.k8s.io/v1", EndpointSlice),
    "Endpoints": ("v1", Endpoints),
    "ClusterNetworkPolicy": ("policy.networking.k8s.io/v1alpha2", ClusterNetworkPolicy),
}
_OLDER = {
    "CiliumCIDRGroup": "cilium.io/v2alpha1",
    "EndpointSlice": "discovery.k8s.io/v1beta1",
}  # an apiVersion with the same fields
LISTS: Mapping[str, tuple[str, str]] = {
    "List": ("v1", ""),
    **{f"{kind}List": (version, kind) for kind, (version, _) in KINDS.items()},
}
"""apiVersion of each kind of list, and the kind of an item that does not name its own, as for kubectl."""

_REPLACED = {"AdminNetworkPolicy": "Admin", "BaselineAdminNetworkPolicy": "Baseline"}
"""Kinds of v1alpha1 that upstream has replaced by ClusterNetworkPolicy, with the tier that stands for each."""

UNSUPPORTED_KINDS = frozenset(
    (
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "CiliumClusterwideEnvoyConfig",
        "CiliumEgressGatewayPolicy",
        "CiliumEnvoyConfig",
        "CiliumLocalRedirectPolicy",
        "GlobalNetworkPolicy",
    )
)
_REFERRED = frozenset(("Service", "EndpointSlice", "Endpoints"))  # other products have kinds of these names
_OTHER_KINDS = frozenset(("CiliumEndpoint", "CiliumEndpointSlice"))
_OTHER_GROUPS = frozenset(("networking.k8s.aws",))  # of other products, though similar to a group of Kubernetes
_POLICY_WORDS = ("networkpolicy", "cidrgroup")
_SIMILAR = 0.8  # a kind or group that differs less than this from one of ours is a mistyped one, not another kind


def versions(kind: str) -> tuple[str, ...]:
    """Return each apiVersion of a kind of document or list, the present one first; none of an unknown kind."""
    version, item = LISTS.get(kind) or (KINDS[kind][0] if kind in KINDS else "", kind)
    return tuple(filter(None, (version, _OLDER.get(item, ""))))


def is_unsupported(kind: str) -> bool:
    """Return whether a kind, or the kind of a list's items, has to do with network policy beyond this version."""
    item = kind.removesuffix("List")
    return item in UNSUPPORTED_KINDS or (item not in KINDS and item.endswith("NetworkPolicy"))


def replacement(kind: str) -> str:
    """Return the sentence about the kind that has replaced an unsupported one, with a blank; empty without any."""
    tier = _REPLACED.get(kind.removesuffix("List"))
    if tier is None:
        return ""
    version = KINDS["ClusterNetworkPolicy"][0]
    return (
        f"upstream has replaced it by ClusterNetworkPolicy of {version}, with tier: {tier}, action: Accept in place of "
        "Allow and protocols in place of ports; "
    )


def wrong_version(kind: str, version: object) -> str:
    """Return the message about another apiVersion of a kind: another product's, or a wrong one of the same product."""
    group, allowed = _group(str(version)), " or ".join(versions(kind))
    own = [_group(known) for known, _ in KINDS.values()]
    mistyped = group not in _OTHER_GROUPS and get_close_matches(group, own, 1, _SIMILAR)
    if "." in group and not group.endswith(".k8s.io") and not mistyped:
        return f"a {kind} of {group} belongs to another product and has another meaning; allowed: {kind} of {allowed}"
    return f"the apiVersion of {kind} is {allowed}, not {version}"


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def similar_kinds(kind: str, version: object) -> list[str]:
    """Return the kinds of this apiVersion, or of any without one, that a mistyped kind can stand for."""
    known = {name: of for name, (of, _) in KINDS.items()} | {name: of for name, (of, _) in LISTS.items()}
    candidates = {name.lower(): name for name, of in known.items() if version is None or version == of}
    return [candidates[name] for name in get_close_matches(kind.lower(), candidates, 1, _SIMILAR)]


def is_other_kind(data: object) -> bool:
    """Return whether a document is certainly no document of policy, endpoints or namespaces.

    A kind that mentions network policy, or resembles one of the kinds here, is never an other kind.
    """
    if not isinstance(data, Mapping):
        return True
    kind, version = data.get("kind"), data.get("apiVersion")
    if kind is None:
        return not ("spec" in data and "metadata" in data) and version not in [known for known, _ in KINDS.values()]
    if not isinstance(kind, str):
        return False
    if kind in _REFERRED:
        return version not in versions(kind)
    if kind in KINDS or kind in LISTS or is_unsupported(kind):
        return False
    if kind in _OTHER_KINDS:
        return True
    named = any(word in kind.lower() for word in _POLICY_WORDS)
    policies = [name.lower() for name in KINDS if name.endswith("Policy")]
    return not (named or similar_kinds(kind, version) or get_close_matches(kind.lower(), policies, 1, _SIMILAR))
