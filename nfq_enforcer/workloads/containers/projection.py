"""Projection of containers to endpoints: names, namespaces, labels and interfaces. Pure.

A container has one endpoint for each of its networks, all with the same labels and so with the same identity: an
endpoint has one interface, by which alone its addresses may send.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.fields import is_dns_label, is_dns_name, is_interface_name
from nfq_enforcer.text import shorten
from nfq_enforcer.workloads.containers.container import Container, Network
from nfq_enforcer.workloads.endpoints import make_endpoint, usable_labels

NAMESPACE_LABEL = "nfq-enforcer.io/namespace"
_PROJECT_LABELS = (NAMESPACE_LABEL, "com.docker.compose.project", "io.podman.compose.project")
_KEPT = {"com.docker.compose.project", "com.docker.compose.service"}
# Labels that builders and runtimes write: they change with each build, or differ between replicas of one service.
_OF_RUNTIME = re.compile(
    r"(com|io|desktop)\.docker\.|io\.podman\.|io\.buildah\.|org\.opencontainers\.|org\.label-schema\.|PODMAN_SYSTEMD_UNIT"
    r"|nfq-enforcer\.io/"
)
_DEFAULT_NAMESPACE = "default"
_DEFAULT_NETWORKS = {"default": ("bridge",), "bridge": ("bridge", "podman")}  # by network mode
_MAX_NAME = 100  # characters of a container's name that an endpoint's name has; both it and the node's fit in 253
_ID_CHARACTERS = 12  # by which the command line of Docker shows a container
_OTHER = re.compile(r"[^a-z0-9.-]+")


class Attached(Protocol):
    """Attached: the link by which an address of a container is connected."""

    @property
    def kind(self) -> str:
        """Return the kind of the link in the container: veth, macvlan, …; empty: unknown."""

    @property
    def interface(self) -> str | None:
        """Return this host's interface at the other end."""

    @property
    def bridge(self) -> str | None:
        """Return the bridge of which that interface is a port."""

    @property
    def passed(self) -> bool:
        """Tell whether frames between ports of the bridge traverse the hooks of IP (br_netfilter)."""


class Projection(NamedTuple):
    """Projection: the endpoints of a container, and sentences about its limits."""

    endpoints: tuple[Endpoint, ...] = ()
    problems: tuple[str, ...] = ()  # networks in which no policy applies to the container
    unseen: frozenset[str] = frozenset()  # bridges on which traffic between containers is not seen


def project(
    container: Container, node: str, attachments: Mapping[bytes, Attached] | None, taken: Iterable[str] = ()
) -> Projection:
    """Return the endpoints of a container on this node.

    ``attachments``: by address; None while the container starts, when its interface does not exist yet. ``taken``: full
    names of endpoints of other containers.
    """
    if not _has_own_network(container.mode):
        return Projection()
    endpoints, problems, unseen = list[Endpoint](), list[str](), set[str]()
    names = frozenset(taken)
    for network in container.networks:
        if not network.addresses:
            continue
        placed = _place(network, attachments)
        unseen |= placed.unseen
        if placed.problem is None:
            try:
                endpoints.append(_endpoint(container, network, node, placed.interface, names))
                continue
            except BadInput as error:
                placed = placed._replace(problem=str(error))
        problems.append(f"container {_shown(container.name)}, network {_shown(network.name)}: {placed.problem}")
    return Projection(tuple(endpoints), tuple(problems), frozenset(unseen))


def _has_own_network(mode: str) -> bool:
    """Tell whether a container has addresses of its own: not those of the host or of another container."""
    return mode not in ("host", "none") and not mode.startswith(("container:", "ns:"))


class _Place(NamedTuple):
    interface: str | None
    problem: str | None = None
    unseen: frozenset[str] = frozenset()


def _place(network: Network, attachments: Mapping[bytes, Attached] | None) -> _Place:
    """Choose the interface of a network's addresses.

    It is the port, if the hooks of IP see it: then no container can bear the address of another one of its bridge.
    Otherwise it is the bridge.
    """
    if attachments is None:
        return _Place(None)
    found = [attachments.get(address.packed) for address in network.addresses]
    known = [one for one in found if one is not None]
    if not known:
        return _Place(None, "the container's network namespace does not have the address; no policy applies there")
    kinds = {one.kind for one in known}
    if any(one.interface is None for one in known):
        kind = shorten(" ".join(sorted(kinds - {""})) or "unknown")
        return _Place(None, f"its link ({kind}) does not lead to an interface of this host; no policy applies there")
    interfaces = {one.interface for one in known if one.interface is not None}
    if len(interfaces) > 1 or not all(map(is_interface_name, interfaces)):
        return _Place(None, f"interfaces {', '.join(map(_shown, sorted(interfaces)))} cannot be used as one")
    bridges = {one.bridge for one in known if one.bridge is not None}
    if not bridges:
        return _Place(interfaces.pop())
    bridge = bridges.pop()
    passed = {one.passed for one in known}
    if passed == {True}:
        return _Place(interfaces.pop())
    return _Place(None if True in passed else bridge, None, frozenset({bridge}))


def _endpoint(
    container: Container, network: Network, node: str, interface: str | None, taken: frozenset[str]
) -> Endpoint:
    namespace = namespace_of(container.labels)
    name = name_of(container, network, node)
    if f"{namespace}/{name}" in taken:
        name = name_of(container, network, node, unique=True)
    addresses = map(str, network.addresses)
    return make_endpoint(namespace, name, user_labels(container.labels), addresses, interface=interface)


def namespace_of(labels: Mapping[str, str]) -> str:
    """Return the namespace of a container: by its label, its compose project, or the default one."""
    for key in _PROJECT_LABELS:
        written = labels.get(key, "")
        name = _dns_name(written).replace(".", "-")[:63].rstrip("-")
        if is_dns_label(name):
            return name
    return _DEFAULT_NAMESPACE


def name_of(container: Container, network: Network, node: str, *, unique: bool = False) -> str:
    """Return the name of an endpoint: of the container and the node, and of a network that is not the first.

    The node's name is part of it, because containers on two hosts can have one name.
    """
    own = _dns_name(container.name)[:_MAX_NAME].rstrip("-.")
    if unique or not own:
        own = f"{own}-{container.id[:_ID_CHARACTERS].lower()}".lstrip("-")
    first = _is_first(container, network)
    parts = [own, *([] if first else [_dns_name(network.name)[:_MAX_NAME].rstrip("-.")]), _dns_name(node)]
    name = ".".join(filter(None, parts))[-253:].lstrip("-.")
    return name if is_dns_name(name) else container.id[:_ID_CHARACTERS].lower()


def _is_first(container: Container, network: Network) -> bool:
    """Tell whether a network is the one that the container was created in.

    Podman's mode ``bridge`` stands for any network: then it is the default one, or the first by name.
    """
    names = {one.name for one in container.networks}
    created = [name for name in _DEFAULT_NETWORKS.get(container.mode, (container.mode,)) if name in names]
    if not created and container.mode == "bridge":
        created = [min(names)]
    return network.name in created[:1]


def user_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that an endpoint has; those of builders and runtimes are left out.

    A key with a colon is left out too: an endpoint would have the label of another source.
    """
    return usable_labels({key: value for key, value in labels.items() if ":" not in key and not _is_of_runtime(key)})


def _is_of_runtime(key: str) -> bool:
    return key not in _KEPT and _OF_RUNTIME.match(key) is not None


def _dns_name(text: str) -> str:
    """Return a text as a DNS name (RFC 1123); empty if nothing of it can be in one."""
    parts = (part.strip("-") for part in _OTHER.sub("-", text.lower()).split("."))
    return ".".join(filter(None, parts))


def _shown(text: str) -> str:
    return f"'{shorten(text)}'"
