"""Objects of the Kubernetes API as documents, without the fields that have no effect on policy. Pure."""

from collections.abc import Callable
from typing import Any, NamedTuple

from nfq_enforcer.workloads.endpoints import effective_metadata, usable_labels
from nfq_enforcer.workloads.kubernetes.client import Json

_OF_SELECTORS = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"


class WatchedKind(NamedTuple):
    """WatchedKind: a kind of documents, and the collection that has them."""

    kind: str
    api_version: str  # of the document
    paths: tuple[str, ...]  # of the collection, by version; the preferred one first
    fields: Callable[[Json], dict[str, Any]]  # returns those of a document beside its metadata
    labels: bool = False  # whether the object's labels matter
    selector: str = ""  # labelSelector of the objects that matter


def _spec(item: Json) -> dict[str, Any]:
    return {key: item[key] for key in ("spec", "specs") if item.get(key) is not None}


def _nothing(_item: Json) -> dict[str, Any]:
    return {}


def _selector(item: Json) -> dict[str, Any]:
    spec = item.get("spec") or {}
    return {"spec": {"selector": spec["selector"]} if spec.get("selector") else {}}


def _backends(item: Json) -> dict[str, Any]:
    backends = [{"addresses": one.get("addresses") or []} for one in item.get("endpoints") or ()]
    return {"addressType": item.get("addressType"), "endpoints": backends}


def _cilium(kind: str, plural: str, *versions: str, labels: bool = False) -> WatchedKind:
    paths = tuple(f"/apis/cilium.io/{version}/{plural}" for version in versions)
    return WatchedKind(kind, "cilium.io/v2", paths, _spec, labels)


_DISCOVERY = "/apis/discovery.k8s.io"
KINDS = (
    WatchedKind("Namespace", "v1", ("/api/v1/namespaces",), _nothing, labels=True),
    WatchedKind("NetworkPolicy", "networking.k8s.io/v1", ("/apis/networking.k8s.io/v1/networkpolicies",), _spec),
    _cilium("CiliumNetworkPolicy", "ciliumnetworkpolicies", "v2"),
    _cilium("CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", "v2"),
    _cilium("CiliumCIDRGroup", "ciliumcidrgroups", "v2", "v2alpha1", labels=True),
    WatchedKind(
        "ClusterNetworkPolicy",
        "policy.networking.k8s.io/v1alpha2",
        ("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",),
        _spec,
    ),
    WatchedKind("Service", "v1", ("/api/v1/services",), _selector, labels=True),
    # The slices of services with a selector change with each of their pods, and mean the same as the selector.
    WatchedKind(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        (f"{_DISCOVERY}/v1/endpointslices", f"{_DISCOVERY}/v1beta1/endpointslices"),
        _backends,
        labels=True,
        selector=_OF_SELECTORS,
    ),
)


def project(watched: WatchedKind, item: Json) -> dict[str, Any]:
    """Return the document of an object of the API.

    Left out are fields of the server (managedFields, status) and metadata without effect, and labels that no endpoint
    can have. ``resourceVersion`` and ``uid`` stay: they tell the newer of two versions.
    """
    metadata = effective_metadata(item["metadata"])
    labels = metadata.pop("labels", {})
    if watched.labels:
        metadata["labels"] = usable_labels(labels)
    return {"apiVersion": watched.api_version, "kind": watched.kind, "metadata": metadata, **watched.fields(item)}
