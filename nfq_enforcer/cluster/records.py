"""Records of a cluster: one for each node, identity, endpoint and document, from whichever store.

A store delivers changes of records, also deletions. ``replica`` turns them into the state that the node enforces.
"""

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.wire.packet import SCTP, TCP, UDP
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Endpoint, Namespace, PolicyDocument, title_of
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import DocumentKey, Documents, compose_labels
from nfq_enforcer.policy.model import model_endpoints, named_ports
from nfq_enforcer.policy.rules import PortSet

Address = IPv4Address | IPv6Address

SOURCE_ANNOTATION = "nfq-enforcer.io/source"
_PROTOCOLS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}


class Kind(StrEnum):
    """Kind: the kind of a record; each line has the form of the record's name."""

    NODE = "node"  # the node's name
    DOCUMENT = "document"  # a policy or a Namespace: kind/namespace/name, the namespace empty for the whole cluster
    IDENTITY = "identity"  # the number in decimal
    ENDPOINT = "endpoint"  # namespace/name


class NodeRecord(NamedTuple):
    """NodeRecord: a node, written by its own agent."""

    addresses: tuple[Address, ...]  # by which other nodes reach it
    version: str = ""  # of its nfq_enforcer
    datapath: Datapath | str = (
        Datapath.PER_PACKET
    )  # of its configuration; a str if this version does not have that word
    # address and port at which its agent accepts those of other nodes; None: it does not, or is of an older version
    peers: tuple[Address, int] | None = None


class EndpointRecord(NamedTuple):
    """EndpointRecord: an endpoint, with the fields that every node can hold for a hundred thousand of them."""

    namespace: str
    name: str
    node: str
    identity: Identity
    addresses: tuple[bytes, ...]  # 4 or 16 bytes each
    interface: str | None  # on its node; None: not known, or the host itself
    labels: Labels  # of its document, without those of its namespace and account
    account: str
    ports: PortSet
    source: str = ""  # source of workloads that it comes from; empty: a document of a person
    cgroup: str | None = None  # of a process endpoint, which has no addresses: its path below the root of cgroup2

    @property
    def full_name(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @classmethod
    def of(cls, document: Endpoint, identity: Identity, node: str, source: str = "") -> "EndpointRecord":
        """Return the record of a document; ``node`` is its node if the document names none.

        The source is not read from the document: a document of a person stays one, also if it was printed as another's.
        """
        spec = document.spec
        return cls(
            document.namespace,
            document.name,
            spec.node or node,
            identity,
            tuple(address.packed for address in spec.ips),
            spec.interface,
            Labels.parse(document.metadata.labels),
            spec.service_account,
            named_ports(document),
            source,
            spec.cgroup,
        )

    def all_labels(self, namespaces: Mapping[str, Namespace], cluster: str) -> Labels:
        """Return the labels of endpoint, namespace, account and cluster; ``namespaces`` by their records' names."""
        document = namespaces.get(f"Namespace//{self.namespace}")
        return compose_labels(self.labels, self.namespace, self.account, document, cluster)

    def document(self) -> dict[str, Any]:
        """Return the Endpoint document of the record, as data."""
        spec: dict[str, Any] = {"node": self.node, "ips": [str(ip_address(address)) for address in self.addresses]}
        if self.cgroup is not None:
            spec = {"node": self.node, "cgroup": self.cgroup}
        if self.interface is not None:
            spec["interface"] = self.interface
        if self.account != "default":
            spec["serviceAccount"] = self.account
        if self.ports:
            ports = sorted(self.ports)
            spec["ports"] = [{"name": p.name, "port": p.number, "protocol": _PROTOCOLS[p.proto]} for p in ports]
        labels = {f"{label.source}:{label.key}".removeprefix("k8s:"): label.value for label in self.labels}
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace, "labels": labels}
        if self.source:
            metadata["annotations"] = {SOURCE_ANNOTATION: self.source}
        return {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}


def check_source(record: "EndpointRecord | PolicyDocument | Namespace | None", source: str) -> None:
    """Raise BadInput for a change of an endpoint or document that comes from another source; None is neither."""
    if isinstance(record, EndpointRecord):
        _check_source(f"endpoint {record.full_name}", record.source, source, f" on node {record.node}")
    elif record is not None:
        _check_source(record.title, record.source, source)


def check_document_source(name: str, stored: str | None, source: str) -> None:
    """Check a document by the name of its record, and by its source only; None: it does not exist."""
    if stored is not None:
        _check_source(title_of(*name.split("/")), stored, source)


def _check_source(title: str, stored: str, source: str, place: str = "") -> None:
    if stored != source:
        origin = f"comes from {stored}{place}" if stored else "has a document of its own"
        raise BadInput(f"{title} {origin}: it changes and ends there only")


class EndpointRequest(NamedTuple):
    """EndpointRequest: an endpoint to be written to a store that allocates the number of its identity."""

    record: EndpointRecord  # its identity is not used
    labels: Labels  # that make the identity
    preferred: Identity  # the number for a new identity, if it is free


Record = NodeRecord | EndpointRecord | Labels | PolicyDocument | Namespace
"""Labels are the record of an identity: those that make it."""


class Change(NamedTuple):
    """Change: a record of the cluster as it is now."""

    kind: Kind
    name: str
    record: Record | None  # None: deleted


def document_name(document: PolicyDocument | Namespace) -> str:
    """Return the name of a document's record."""
    return "/".join(document.key)


ClusterState = Mapping[tuple[Kind, str], Record]
"""All records by kind and name."""

NO_SOURCES: Mapping[DocumentKey, str] = {}


def records_of(
    documents: Documents,
    node: str,
    relevant: LabelFilter | None = None,
    cluster: str = DEFAULT_CLUSTER,
    sources: Mapping[DocumentKey, str] = NO_SOURCES,
) -> ClusterState:
    """Return the records of documents alone: identities are derived from the labels of all endpoints.

    ``node`` is the node of endpoints with a document that names none; ``relevant`` selects the labels of an identity;
    ``sources`` has the documents of workloads.
    """
    endpoints = model_endpoints(documents, relevant, cluster)
    state: dict[tuple[Kind, str], Record] = {}
    state |= {(Kind.DOCUMENT, document_name(document)): document for document in documents.namespaces}
    state |= {(Kind.DOCUMENT, document_name(document)): document for document in documents.policies}
    state |= {(Kind.IDENTITY, str(endpoint.identity)): endpoint.identity_labels for endpoint in endpoints}
    state |= {
        (Kind.ENDPOINT, member.name): EndpointRecord.of(
            member.document, member.identity, node, sources.get(member.document.key, "")
        )
        for member in endpoints
    }
    return state


def changes_between(before: ClusterState, now: ClusterState) -> list[Change]:
    """Return the changes from one state to another: first deletions, then new and different records."""
    deleted = [Change(*key, None) for key in before if key not in now]
    new = [Change(*key, record) for key, record in now.items() if before.get(key) != record]
    return deleted + new
