"""Objects of the Kubernetes API as documents, without the fields that have no effect on policy. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nfq_enforcer.workloads.endpoints import usable_labels
from nfq_enforcer.workloads.kubernetes.client import Json

_OWN_ANNOTATIONS = "nfq-enforcer.io/"
NAMESPACE = "Namespace"


class WatchedKind(NamedTuple):
    """WatchedKind: a kind of documents, and the paths of its collection by version, the preferred one first."""

    kind: str
    api_version: str  # of the document
    paths: tuple[str, ...]


_CILIUM = "/apis/cilium.io"
KINDS = (
    WatchedKind(NAMESPACE, "v1", ("/api/v1/namespaces",)),
    WatchedKind("NetworkPolicy", "networking.k8s.io/v1", ("/apis/networking.k8s.io/v1/networkpolicies",)),
    WatchedKind("CiliumNetworkPolicy", "cilium.io/v2", (f"{_CILIUM}/v2/ciliumnetworkpolicies",)),
    WatchedKind("CiliumClusterwideNetworkPolicy", "cilium.io/v2", (f"{_CILIUM}/v2/ciliumclusterwidenetworkpolicies",)),
    WatchedKind(
        "CiliumCIDRGroup",
        "cilium.io/v2",
        (f"{_CILIUM}/v2/ciliumcidrgroups", f"{_CILIUM}/v2alpha1/ciliumcidrgroups"),
    ),
)


def project(watched: WatchedKind, item: Json) -> dict[str, Any]:
    """Return the document of an object of the API.

    Left out are fields of the server (managedFields, status) and metadata without effect; of a namespace also labels
    that no endpoint can have. ``resourceVersion`` and ``uid`` stay: they tell the newer of two versions.
    """
    meta: Mapping[str, Any] = item["metadata"]
    kept = {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion", "generation") if meta.get(key)}
    own = {key: value for key, value in (meta.get("annotations") or {}).items() if key.startswith(_OWN_ANNOTATIONS)}
    if own:
        kept["annotations"] = own
    document: dict[str, Any] = {"apiVersion": watched.api_version, "kind": watched.kind, "metadata": kept}
    if watched.kind == NAMESPACE:
        kept["labels"] = usable_labels(meta.get("labels") or {})
        return document
    return document | {key: item[key] for key in ("spec", "specs") if item.get(key) is not None}
