"""Endpoint documents of workloads, and the labels and metadata of workloads that have an effect. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Endpoint, EndpointMetadata

_METADATA = ("name", "namespace", "labels", "uid", "generation", "resourceVersion")
_ANNOTATIONS = "nfq-enforcer.io/"  # prefix of those that have an effect


def make_endpoint(
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    ips: Iterable[str],
    *,
    interface: str | None = None,
    service_account: str = "default",
    cgroup: str | None = None,
    ports: Iterable[tuple[str, int, str]] = (),
) -> Endpoint:
    """Return an endpoint; raise BadInput with a sentence for a value that no Endpoint document may have.

    ``cgroup``: of a process endpoint, in place of addresses; ``ports``: name, number and protocol (TCP, UDP or SCTP) of
    each named port.
    """
    spec: dict[str, Any] = {"ips": list(ips), "serviceAccount": service_account, "interface": interface}
    spec["ports"] = [{"name": port, "port": number, "protocol": protocol} for port, number, protocol in ports]
    if cgroup is not None:
        spec = {**spec, "cgroup": cgroup}
    data = {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels)},
        "spec": spec,
    }
    try:
        return Endpoint.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(f"{namespace}/{name}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def usable_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a workload that an endpoint can have.

    Left out are labels that are no labels of Kubernetes, and those that the engine makes itself: with these a workload
    could claim the identity of another namespace.
    """
    return {key: value for key, value in labels.items() if _is_usable(key, value)}


def effective_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an object of Kubernetes that have an effect, or tell its version."""
    effective = {key: metadata[key] for key in _METADATA if metadata.get(key) is not None}
    annotations = metadata.get("annotations") or {}
    if own := {key: value for key, value in annotations.items() if key.startswith(_ANNOTATIONS)}:
        effective["annotations"] = own
    return effective


def _is_usable(key: str, value: str) -> bool:
    try:
        EndpointMetadata.model_validate({"name": "any", "labels": {key: value}})
    except ValidationError:
        return False
    return True
