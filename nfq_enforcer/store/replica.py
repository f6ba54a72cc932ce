"""This node's replica of the cluster: documents and nodes in, the snapshot for the workers out. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from nfq_enforcer.core.directory import Directory, EndpointName
from nfq_enforcer.core.identity import REMOTE_NODE, Identity, derive
from nfq_enforcer.core.ipcache import Ipcache, Peer
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.core.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.policy.compiler import Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import Documents, endpoint_labels

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class NodeSettings:
    """What a snapshot takes from the configuration of this node."""

    name: str
    addresses: tuple[Address, ...] = ()  # how other nodes reach this one
    own_addresses: frozenset[Address] = frozenset()  # all that this host has
    cluster_interfaces: frozenset[str] = frozenset()
    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    enforcement: Enforcement = Enforcement.AUTO
    audit: bool = False
    allow_localhost: bool = True
    believe_ipcache: bool = False
    relevant: LabelFilter = field(default_factory=LabelFilter)


@dataclass(frozen=True)
class View:
    """One revision of the cluster, as this node sees it."""

    snapshot: Snapshot
    directory: Directory
    documents: Documents


class _Known(NamedTuple):
    """An endpoint's document, with what follows from it."""

    document: Endpoint
    node: str
    labels: Labels
    relevant: Labels  # those of them that make the identity
    identity: Identity


def build(
    documents: Documents,
    settings: NodeSettings,
    revision: int,
    nodes: Mapping[str, tuple[Address, ...]],
) -> View:
    """Return the view of these documents; ``nodes`` are the addresses of registered nodes by name.

    Identities are derived from the labels of all endpoints, so nodes that have the same documents agree on them.
    """
    known = _identify(documents, settings)
    identities = {one.relevant: one.identity for one in known}
    policy = compile_policy(documents.policies, identities, settings.enforcement)
    snapshot = Snapshot(
        revision,
        _local(known, settings, policy),
        Ipcache(_peers(known, settings.name, nodes), settings.cluster_networks),
        settings.cluster_interfaces,
        {address.version: address.packed for address in reversed(settings.addresses)},
        audit=settings.audit,
        allow_localhost=settings.allow_localhost,
        believe_ipcache=settings.believe_ipcache,
    )
    return View(snapshot, _directory(known), documents)


def _identify(documents: Documents, settings: NodeSettings) -> list[_Known]:
    labels = [endpoint_labels(endpoint, documents.namespaces) for endpoint in documents.endpoints]
    relevant = [settings.relevant.apply(all_labels) for all_labels in labels]
    numbers = derive(relevant)
    return [
        _Known(document, document.spec.node or settings.name, all_labels, some, numbers[some])
        for document, all_labels, some in zip(documents.endpoints, labels, relevant, strict=True)
    ]


def _local(known: Iterable[_Known], settings: NodeSettings, policy: Policy) -> dict[bytes, LocalEndpoint]:
    local: dict[bytes, LocalEndpoint] = {}
    for one in known:
        if one.node == settings.name:
            name = f"{one.document.namespace}/{one.document.name}"
            maps = policy.maps_for(one.relevant)
            is_host = not settings.own_addresses.isdisjoint(one.document.spec.ips)
            here = LocalEndpoint(name, one.identity, one.document.spec.interface, maps.ingress, maps.egress, is_host)
            local.update({ip.packed: here for ip in one.document.spec.ips})
    return local


def _peers(known: Iterable[_Known], node: str, nodes: Mapping[str, tuple[Address, ...]]) -> dict[bytes, Peer]:
    others = {
        address.packed: Peer(REMOTE_NODE, remote=True)
        for name, addresses in nodes.items()
        for address in addresses
        if name != node
    }
    return others | {
        ip.packed: Peer(one.identity, remote=True) for one in known if one.node != node for ip in one.document.spec.ips
    }


def _directory(known: Iterable[_Known]) -> Directory:
    identities: dict[Identity, Labels] = {}
    endpoints: list[EndpointName] = []
    by_address: dict[bytes, EndpointName] = {}
    for one in known:
        metadata, spec = one.document.metadata, one.document.spec
        addresses = tuple(map(str, spec.ips))
        name = EndpointName(
            metadata.namespace, metadata.name, one.node, one.identity, one.labels, addresses, spec.interface
        )
        identities[one.identity] = one.relevant
        endpoints.append(name)
        by_address.update((ip.packed, name) for ip in spec.ips)
    return Directory(identities, tuple(endpoints), by_address)
