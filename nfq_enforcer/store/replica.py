"""This node's replica of the cluster: documents and nodes in, the snapshot for the workers out. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from nfq_enforcer.core.directory import Directory, EndpointName
from nfq_enforcer.core.identity import REMOTE_NODE
from nfq_enforcer.core.ipcache import Peer
from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.core.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.cluster import Cluster, Member, gather
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.loader import Documents

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

    snapshot: Snapshot  # without the peers
    peers: Mapping[bytes, Peer]
    directory: Directory
    documents: Documents
    cluster: Cluster


def build(
    documents: Documents,
    settings: NodeSettings,
    revision: int,
    nodes: Mapping[str, tuple[Address, ...]],
    before: Cluster | None = None,
) -> View:
    """Return the view of these documents; ``nodes`` are the addresses of registered nodes by name.

    ``before`` is the cluster of the last view, so that only what has changed is compiled.

    Identities are derived from the labels of all endpoints, so nodes that have the same documents agree on them.
    """
    _refuse_unenforceable(documents)
    cluster = gather(documents, settings.enforcement, settings.relevant, before)
    snapshot = Snapshot(
        revision,
        _local(cluster, settings),
        cluster.ipcache({}, settings.cluster_networks),
        settings.cluster_interfaces,
        {address.version: address.packed for address in reversed(settings.addresses)},
        audit=settings.audit,
        allow_localhost=settings.allow_localhost,
        believe_ipcache=settings.believe_ipcache,
    )
    peers = _peers(cluster, settings.name, nodes)
    return View(snapshot, peers, _directory(cluster, settings.name), documents, cluster)


def _refuse_unenforceable(documents: Documents) -> None:
    """Raise DocumentErrors for policies that can be understood, but not yet be enforced: half of one is worse."""
    errors = [
        DocumentError(document.origin, f"{_called(document)}: {reason}")
        for document in documents.policies
        for reason in _unenforceable(document)
    ]
    if errors:
        raise DocumentErrors(errors)


def _unenforceable(document: PolicyDocument) -> Iterator[str]:
    rules = document.rules if isinstance(document, CiliumPolicy) else ()
    lacks = "are understood by validate, trace and matrix, but this version has no"
    if any(rule.has_http for rule in rules):
        yield f"http rules {lacks} proxy to enforce them"
    if any(rule.has_dns for rule in rules):
        yield f"dns rules {lacks} proxy to enforce them"
    if any(rule.node_selector is not None for rule in rules):
        yield f"rules with nodeSelector {lacks} way to judge the host's own packets"


def _called(document: PolicyDocument) -> str:
    return f"{document.kind} {document.namespace}/{document.name}".replace(" /", " ")


def _node_of(member: Member, node: str) -> str:
    return member.document.spec.node or node


def _local(cluster: Cluster, settings: NodeSettings) -> dict[bytes, LocalEndpoint]:
    local: dict[bytes, LocalEndpoint] = {}
    for one in cluster.members:
        if _node_of(one, settings.name) == settings.name:
            spec, maps = one.document.spec, cluster.maps(one)
            is_host = not settings.own_addresses.isdisjoint(spec.ips)
            here = LocalEndpoint(one.name, one.identity, spec.interface, maps.ingress, maps.egress, is_host)
            local.update({ip.packed: here for ip in spec.ips})
    return local


def _peers(cluster: Cluster, node: str, nodes: Mapping[str, tuple[Address, ...]]) -> dict[bytes, Peer]:
    others = {
        address.packed: Peer(REMOTE_NODE, remote=True)
        for name, addresses in nodes.items()
        for address in addresses
        if name != node
    }
    return others | {
        ip.packed: Peer(one.identity, remote=True)
        for one in cluster.members
        if _node_of(one, node) != node
        for ip in one.document.spec.ips
    }


def _directory(cluster: Cluster, node: str) -> Directory:
    identities = {one.identity: one.relevant for one in cluster.members}
    cidrs = {number: labels for labels, number in cluster.policy.numbers.labels.items()}
    endpoints: list[EndpointName] = []
    by_address: dict[bytes, EndpointName] = {}
    for one in cluster.members:
        metadata, spec = one.document.metadata, one.document.spec
        addresses = tuple(map(str, spec.ips))
        name = EndpointName(
            metadata.namespace, metadata.name, _node_of(one, node), one.identity, one.labels, addresses, spec.interface
        )
        endpoints.append(name)
        by_address.update((ip.packed, name) for ip in spec.ips)
    return Directory(identities | cidrs, tuple(endpoints), by_address)
