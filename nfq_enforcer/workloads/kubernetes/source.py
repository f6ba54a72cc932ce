"""Source of workloads: Kubernetes. The pods of this node are its endpoints, the cluster's policies its documents.

Each node watches only its own pods; other nodes learn them by the store, like every endpoint. Namespaces and policies
come first: a pod has its namespace's labels, and so its final identity, from the start.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.tasks import cancel
from nfq_enforcer.text import utc_time
from nfq_enforcer.workloads.endpoints import make_endpoint, usable_labels
from nfq_enforcer.workloads.kubernetes import documents, events, pods
from nfq_enforcer.workloads.kubernetes.client import ApiClient, ApiError, Json
from nfq_enforcer.workloads.kubernetes.documents import WatchedKind
from nfq_enforcer.workloads.kubernetes.pods import Pod, PodSet
from nfq_enforcer.workloads.kubernetes.reflector import Name, Progress, Reflector, State, Timings
from nfq_enforcer.workloads.publisher import Data, Publisher
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import KUBERNETES

_log = logging.getLogger(__name__)

_PODS, _NODES, _POD = "/api/v1/pods", "/api/v1/nodes", "Pod"
_DOCUMENTS_FIRST = 2.0  # s that the pods wait for namespaces and policies
_LOOK, _LOOK_AGAIN = 5.0, 0.2  # s between two looks at the interfaces of pods; while one is missing
_MAX_EVENTS = 200  # that wait for the API server
_CONFLICT = 409

FindInterface = Callable[[IPv4Address | IPv6Address], str | None]
"""Returns the interface by which this host reaches the address of a pod, None if it has none of its own."""


class PodSink:
    """Pod sink: names the endpoints of pods to the registrar."""

    def __init__(self, registrar: Registrar, find_interface: FindInterface) -> None:
        """Set the registrar and the look-up of interfaces."""
        self._registrar = registrar
        self._find_interface = find_interface
        self._pods = PodSet()
        self._interfaces: dict[str, str | None] = {}  # of endpoints, by full name
        self.invalid: dict[str, str] = {}  # reason for each pod that cannot be an endpoint, by full name

    @property
    def lacks_interfaces(self) -> bool:
        """Return whether the interface of a pod is not known yet."""
        return None in self._interfaces.values()

    def replace(self, objects: Mapping[Name, Pod], _version: str) -> None:
        """Name all endpoints."""
        self._pods = PodSet((str(name), pod) for name, pod in objects.items())
        self._interfaces.clear()
        self.invalid.clear()
        made = (self._endpoint(name) for name in self._pods.names())
        self._registrar.replace(KUBERNETES, [endpoint for endpoint in made if endpoint is not None])

    def put(self, name: Name, value: Pod) -> None:
        """Name the endpoint of a pod, and those of others that share its addresses."""
        self._update(self._pods.put(str(name), value))

    def remove(self, name: Name, _version: str) -> None:
        """Remove the endpoint of a pod."""
        self._update(self._pods.remove(str(name)))

    def look(self) -> None:
        """Look up the interfaces of all endpoints again, and name those that have another one."""
        for name, before in list(self._interfaces.items()):
            pod = self._pods.endpoint(name)
            if pod is not None and self._interface(pod) != before:
                self._update([name])

    def _update(self, names: Iterable[str]) -> None:
        for name in names:
            endpoint = self._endpoint(name)
            if endpoint is None:
                self._registrar.remove(KUBERNETES, name)
            else:
                self._registrar.put(KUBERNETES, endpoint)

    def _endpoint(self, name: str) -> Endpoint | None:
        pod = self._pods.endpoint(name)
        self._interfaces.pop(name, None)
        self.invalid.pop(name, None)
        if pod is None:
            return None
        namespace, _, own_name = name.partition("/")
        try:
            interface = self._interface(pod)
            endpoint = make_endpoint(
                namespace,
                own_name,
                usable_labels(dict(pod.labels)),
                pod.addresses,
                interface=interface,
                service_account=pod.account,
                ports=pod.ports,
            )
        except (BadInput, ValueError) as error:
            self.invalid[name] = str(error)
            _log.error("pod %s is no endpoint: %s", name, error)
            return None
        self._interfaces[name] = interface
        return endpoint

    def _interface(self, pod: Pod) -> str | None:
        found = (self._find_interface(ip_address(address)) for address in pod.addresses)
        return next((interface for interface in found if interface is not None), None)


class NodeSink:
    """Node sink: knows whether Kubernetes has this node, and hands its labels over.

    Under a wrong name a node has no pods, without an error. A node that was deleted keeps its last labels.
    """

    def __init__(self, on_labels: Callable[[Mapping[str, str]], None]) -> None:
        """Start without knowledge."""
        self._on_labels = on_labels
        self._names: set[Name] | None = None  # None: not listed yet

    @property
    def is_missing(self) -> bool:
        """Return whether Kubernetes is known not to have the node."""
        return self._names is not None and not self._names

    def replace(self, objects: Mapping[Name, Mapping[str, str]], _version: str) -> None:
        """Set the node, if it exists."""
        self._names = set(objects)
        for labels in objects.values():
            self._on_labels(labels)

    def put(self, name: Name, value: Mapping[str, str]) -> None:
        """Add the node, or change its labels."""
        self._names = {name}
        self._on_labels(value)

    def remove(self, _name: Name, _version: str) -> None:
        """Remove the node."""
        self._names = set()


class DocumentSink:
    """Document sink: gives the documents of one kind to the publisher."""

    def __init__(self, kind: str, publisher: Publisher) -> None:
        """Set the kind and the publisher."""
        self._kind = kind
        self._publisher = publisher

    def replace(self, objects: Mapping[Name, Data], version: str) -> None:
        """Give all documents."""
        self._publisher.replace(self._kind, objects.values(), version)

    def put(self, _name: Name, value: Data) -> None:
        """Give a document."""
        self._publisher.put(value)

    def remove(self, name: Name, version: str) -> None:
        """Remove a document."""
        meta = {"name": name.name, "namespace": name.namespace, "resourceVersion": version}
        self._publisher.remove({"kind": self._kind, "metadata": meta})


class KubernetesSource:
    """Kubernetes source: watches an API server for one node."""

    name: Final = KUBERNETES

    def __init__(
        self,
        node: str,
        client: ApiClient,
        registrar: Registrar,
        publisher: Publisher,
        find_interface: FindInterface,
        on_node_labels: Callable[[Mapping[str, str]], None],
        timings: Timings | None = None,
    ) -> None:
        """Take the node's name as Kubernetes has it, the client, and the receivers of endpoints, documents, labels."""
        self._client = client
        self._registrar = registrar
        self._publisher = publisher
        self._pods = PodSink(registrar, find_interface)
        self._pod_reflector = Reflector(
            client, [_PODS], pods.project, self._pods, field_selector=f"spec.nodeName={node}", timings=timings
        )
        self._node = node
        self._nodes = NodeSink(on_node_labels)
        self._node_reflector = Reflector(
            client, [_NODES], _node_labels, self._nodes, field_selector=f"metadata.name={node}", timings=timings
        )
        self._document_reflectors = {
            watched.kind: Reflector(
                client,
                watched.paths,
                _projection(watched),
                DocumentSink(watched.kind, publisher),
                label_selector=watched.selector,
                timings=timings,
            )
            for watched in documents.KINDS
        }
        self._pod_reflector.on_change = self._node_reflector.on_change = self._on_change
        for reflector in self._document_reflectors.values():
            reflector.on_change = self._on_change
        self._refusals: asyncio.Queue[tuple[Data, str]] = asyncio.Queue(_MAX_EVENTS)
        self._event_error: str | None = None
        self._unwatched: dict[str, str] = {}  # errors of single kinds, while the others are watched
        publisher.on_refused = self._on_refused

    async def run(self) -> None:
        """Watch; never return."""
        watches = [asyncio.create_task(reflector.run()) for reflector in self._document_reflectors.values()]
        works = [self._node_reflector.run(), self._watch_pods(), self._look_at_interfaces(), self._send_events()]
        tasks = [*watches, *map(asyncio.create_task, works)]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel(*tasks)
            await self._client.close()

    async def _watch_pods(self) -> None:
        try:
            async with asyncio.timeout(_DOCUMENTS_FIRST):
                for reflector in self._document_reflectors.values():
                    await reflector.synced.wait()
        except TimeoutError:
            _log.warning(
                "not all namespaces and policies are known yet: the pods of this node are endpoints before them"
            )
        await self._pod_reflector.run()

    async def _look_at_interfaces(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AGAIN if self._pods.lacks_interfaces else _LOOK)
            try:
                self._pods.look()
            except OSError as error:
                _log.warning("the interfaces of pods cannot be read: %s", error)

    def _on_change(self) -> None:
        """Tell the registrar whether the source is away: without its pods, or without any kind."""
        progress = self._progress()
        away = {kind: str(one.error) for kind, one in progress.items() if one.state is State.AWAY}
        is_away = bool(away) and (_POD in away or all(one.state is not State.WATCHING for one in progress.values()))
        self._registrar.note_problem(KUBERNETES, "; ".join(dict.fromkeys(away.values())) if is_away else None)
        before, self._unwatched = self._unwatched, {} if is_away else away
        for kind, error in self._unwatched.items():
            if before.get(kind) != error:
                _log.error("%s of Kubernetes is not watched: %s", kind, error)

    def _progress(self) -> dict[str, Progress]:
        kinds = {kind: reflector.progress for kind, reflector in self._document_reflectors.items()}
        return {_POD: self._pod_reflector.progress, "Node": self._node_reflector.progress, **kinds}

    async def _on_refused(self, document: Data, reason: str) -> None:
        if not self._refusals.full():  # the status has all of them
            self._refusals.put_nowait((document, reason))

    async def _send_events(self) -> None:
        """Create an event about each refused document; never return."""
        while True:
            document, reason = await self._refusals.get()
            event = events.refused(document, reason, utc_time(time.time()))
            try:
                await self._client.create(f"/api/v1/namespaces/{events.namespace_of(document)}/events", event)
            except ApiError as error:
                if error.status != _CONFLICT:  # another node has created it
                    self._event_error = str(error)
                    _log.warning("no event about a refused document: %s", error)
            else:
                self._event_error = None

    def status(self) -> dict[str, Any]:
        """Return the state of each watch, and the problems."""
        return {
            "server": self._client.url,
            "watches": {kind: _status(progress) for kind, progress in self._progress().items()},
            "problems": list(self.problems()),
        }

    def problems(self) -> Iterable[str]:
        """Yield the reasons for which pods are no endpoints, and faults of this node's view of the cluster."""
        for name, reason in self._pods.invalid.items():
            yield f"pod {name} is no endpoint: {reason}"
        if self._nodes.is_missing:
            yield f"Kubernetes has no node '{self._node}', so no pods of this host: kubernetes.node is its name there"
        for kind, error in self._unwatched.items():
            yield f"{kind} of Kubernetes is not watched, its last known objects stay in force: {error}"
        if self._event_error:
            yield f"no events about refused documents: {self._event_error}"

    def changing(self) -> Iterable[str]:
        """Return no endpoints: the source looks up the interfaces of its pods itself."""
        return ()


def _node_labels(item: Json) -> dict[str, str]:
    return usable_labels(item["metadata"].get("labels") or {})


def _projection(watched: WatchedKind) -> Callable[[Json], Data]:
    return lambda item: documents.project(watched, item)


def _status(progress: Progress) -> dict[str, Any]:
    counts = progress.counts
    return {
        "state": progress.state.value,
        "since": utc_time(progress.since),
        "error": progress.error,
        "lists": counts.lists,
        "watches": counts.watches,
        "events": counts.events,
        "expired": counts.expired,
        "failures": counts.failures,
    }
