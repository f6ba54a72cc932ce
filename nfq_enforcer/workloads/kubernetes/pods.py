"""Pods as endpoints. Pure.

A pod is an endpoint from when it has an address until it is deleted, or until its containers have ended for good
(Completed, Failed): its address may be another pod's then. A pod that is being deleted still sends and receives. A pod
in the network of its host (hostNetwork) is no endpoint: its packets are the host's.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nfq_enforcer.workloads.kubernetes.client import Json

_ENDED = frozenset(("Succeeded", "Failed"))
_PROTOCOLS = frozenset(("TCP", "UDP", "SCTP"))


class Port(NamedTuple):
    """Port: a named port of a container."""

    name: str
    number: int
    protocol: str


class Pod(NamedTuple):
    """Pod: the fields of a pod that matter to its endpoint."""

    uid: str
    labels: tuple[tuple[str, str], ...]  # sorted
    account: str
    addresses: tuple[str, ...]  # none before the pod has any
    ports: tuple[Port, ...]
    host_network: bool
    phase: str
    deleting: bool
    created: str  # RFC 3339, which is in the order of time

    @property
    def is_endpoint(self) -> bool:
        """Return whether the pod can send and receive by addresses of its own."""
        return bool(self.addresses) and not self.host_network and self.phase not in _ENDED

    @property
    def rank(self) -> tuple[bool, bool, str, str]:
        """Return the rank among pods with one address: running, not being deleted, then the later one."""
        return self.phase == "Running", not self.deleting, self.created, self.uid


def project(item: Json) -> Pod:
    """Return the pod of an object of the API."""
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    return Pod(
        uid=str(meta.get("uid", "")),
        labels=tuple(sorted((meta.get("labels") or {}).items())),
        account=spec.get("serviceAccountName") or "default",
        addresses=tuple(_addresses(status)),
        ports=tuple(_ports(spec)),
        host_network=bool(spec.get("hostNetwork")),
        phase=status.get("phase", ""),
        deleting=bool(meta.get("deletionTimestamp")),
        created=meta.get("creationTimestamp") or "",
    )


def _addresses(status: Mapping[str, Any]) -> Iterator[str]:
    entries = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]
    yield from entries or filter(None, [status.get("podIP")])


def _ports(spec: Mapping[str, Any]) -> Iterator[Port]:
    """Yield the named ports of containers, and of init containers that run as long as these; the first of a name."""
    sidecars = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    known: set[str] = set()
    for container in [*sidecars, *(spec.get("containers") or ())]:
        for port in container.get("ports") or ():
            name, protocol = port.get("name"), port.get("protocol") or "TCP"
            if name and name not in known and protocol in _PROTOCOLS:
                known.add(name)
                yield Port(name, port["containerPort"], protocol)


class PodSet:
    """Pod set: the pods of a node, and for each address the pod that has it."""

    def __init__(self, pods: Iterable[tuple[str, Pod]] = ()) -> None:
        """Take pods by their full names."""
        self._pods: dict[str, Pod] = {}
        self._by_address: dict[str, set[str]] = {}
        for name, pod in pods:
            self.put(name, pod)

    def put(self, name: str, pod: Pod) -> frozenset[str]:
        """Take a new or changed pod; return the names of those for which ``endpoint`` may differ from before."""
        touched = self.remove(name)
        self._pods[name] = pod
        if pod.is_endpoint:
            for address in pod.addresses:
                self._by_address.setdefault(address, set()).add(name)
        return touched | self._sharing(pod) | {name}

    def remove(self, name: str) -> frozenset[str]:
        """Forget a pod; return the names of those for which ``endpoint`` may differ from before."""
        pod = self._pods.pop(name, None)
        if pod is None:
            return frozenset()
        touched = self._sharing(pod) | {name}
        for address in pod.addresses:
            names = self._by_address.get(address, set())
            names.discard(name)
            if not names:
                self._by_address.pop(address, None)
        return touched

    def endpoint(self, name: str) -> Pod | None:
        """Return a pod with the addresses that no other pod has a better claim to; None if it is no endpoint."""
        pod = self._pods.get(name)
        if pod is None or not pod.is_endpoint:
            return None
        own = tuple(address for address in pod.addresses if self._owner(address) == name)
        return pod._replace(addresses=own) if own else None

    def names(self) -> Iterable[str]:
        """Return the names of all pods."""
        return self._pods.keys()

    def _owner(self, address: str) -> str:
        return max(self._by_address[address], key=lambda name: self._pods[name].rank)

    def _sharing(self, pod: Pod) -> frozenset[str]:
        return frozenset(name for address in pod.addresses for name in self._by_address.get(address, ()))
