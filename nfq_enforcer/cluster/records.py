"""What a cluster is made of: a record for each node, identity, endpoint and document, whichever store it comes from.

A store hands over changes: this thing is now so, or is gone. ``replica`` makes of them what the node enforces.
"""

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.core.wire.packet import SCTP, TCP, UDP
from nfq_enforcer.policy.documents import Endpoint, Namespace, PolicyDocument
from nfq_enforcer.policy.loader import Documents, compose_labels
from nfq_enforcer.policy.model import model_endpoints, named_ports
from nfq_enforcer.policy.rules import PortSet

Address = IPv4Address | IPv6Address

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}


class Kind(StrEnum):
    """What a record is about; beside each how it is named."""

    NODE = "node"  # by its name
    DOCUMENT = "document"  # a policy or a Namespace: kind/namespace/name, the namespace empty for the whole cluster
    IDENTITY = "identity"  # by its number in decimal
    ENDPOINT = "endpoint"  # namespace/name


class NodeRecord(NamedTuple):
    """A node, as it has registered itself."""

    addresses: tuple[Address, ...]  # how other nodes reach it
    version: str = ""  # of nfq_enforcer that it runs
    datapath: str = "per-packet"  # as its configuration has it


class EndpointRecord(NamedTuple):
    """An endpoint, as little of it as all nodes can hold of a hundred thousand."""

    namespace: str
    name: str
    node: str
    identity: Identity
    addresses: tuple[bytes, ...]  # 4 or 16 bytes each
    interface: str | None  # on its node; None: not said, or the host itself
    labels: Labels  # as its document has them: without those of its namespace and account
    account: str
    ports: PortSet

    @property
    def called(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @classmethod
    def of(cls, document: Endpoint, identity: Identity, node: str) -> "EndpointRecord":
        """Return the record of a document; ``node`` is where it lives if the document does not say."""
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
        )

    def all_labels(self, namespaces: Mapping[str, Namespace]) -> Labels:
        """Return its own labels, and those of namespace and account; ``namespaces`` by the names of their records."""
        return compose_labels(self.labels, self.namespace, self.account, namespaces.get(f"Namespace//{self.namespace}"))

    def written(self) -> dict[str, Any]:
        """Return the Endpoint document that says so, as data."""
        spec: dict[str, Any] = {"node": self.node, "ips": [str(ip_address(address)) for address in self.addresses]}
        if self.interface is not None:
            spec["interface"] = self.interface
        if self.account != "default":
            spec["serviceAccount"] = self.account
        if self.ports:
            ports = sorted(self.ports)
            spec["ports"] = [{"name": p.name, "port": p.number, "protocol": _PROTOCOLS[p.proto]} for p in ports]
        labels = {f"{label.source}:{label.key}".removeprefix("k8s:"): label.value for label in self.labels}
        metadata = {"name": self.name, "namespace": self.namespace, "labels": labels}
        return {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}


class Placed(NamedTuple):
    """An endpoint to be written, with the labels that make its identity and the number it shall have if it is new."""

    record: EndpointRecord
    labels: Labels
    preferred: Identity


Record = NodeRecord | EndpointRecord | Labels | PolicyDocument | Namespace
"""Labels are the record of an identity: those that make it."""


class Change(NamedTuple):
    """One thing of the cluster is now so."""

    kind: Kind
    name: str
    record: Record | None  # None: it is gone


def document_name(document: PolicyDocument | Namespace) -> str:
    """Return the name of a document's record."""
    return "/".join(document.key)


ClusterState = Mapping[tuple[Kind, str], Record]
"""All records by what they are about."""


def described(documents: Documents, node: str, relevant: LabelFilter | None = None) -> ClusterState:
    """Return the records that documents alone make: identities are derived from the labels of all endpoints.

    ``node`` is where an endpoint lives whose document does not say; ``relevant`` says which labels enter an identity.
    """
    found = model_endpoints(documents, relevant)
    state: dict[tuple[Kind, str], Record] = {}
    state |= {(Kind.DOCUMENT, document_name(one)): one for one in documents.namespaces}
    state |= {(Kind.DOCUMENT, document_name(one)): one for one in documents.policies}
    state |= {(Kind.IDENTITY, str(one.identity)): one.identity_labels for one in found}
    state |= {(Kind.ENDPOINT, one.name): EndpointRecord.of(one.document, one.identity, node) for one in found}
    return state


def changes_between(before: ClusterState, now: ClusterState) -> list[Change]:
    """Return what has changed from one state to another: first what is gone, then what is new or different."""
    gone = [Change(*key, None) for key in before if key not in now]
    new = [Change(*key, record) for key, record in now.items() if before.get(key) != record]
    return gone + new
