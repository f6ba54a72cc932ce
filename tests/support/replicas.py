"""Replicas of documents, and their snapshots with peers."""

from collections.abc import Mapping
from dataclasses import replace

from nfq_enforcer.cluster.records import Address, Change, Kind, NodeRecord, changes_between, records_of
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.policy.loader import Documents

API_SERVER = """
---
apiVersion: v1
kind: Endpoints
metadata: {name: kubernetes, namespace: default}
subsets: [{addresses: [{ip: 198.51.100.1}, {ip: '2001:db8::1'}]}]
"""
NOBODY: Mapping[str, tuple[Address, ...]] = {}


def replica_of(
    documents: Documents, settings: NodeSettings, nodes: Mapping[str, tuple[Address, ...]] = NOBODY
) -> Replica:
    """Return a node's replica of the documents; ``nodes`` are the addresses of nodes by name."""
    replica = Replica(settings)
    replica.apply(Change(Kind.NODE, name, NodeRecord(addresses)) for name, addresses in nodes.items())
    replica.apply(changes_between({}, records_of(documents, settings.name, settings.relevant)))
    return replica


def with_peers(replica: Replica, revision: int = 1) -> Snapshot:
    """Return the snapshot with the peers in its ipcache, as a worker has it."""
    snapshot = replica.view(revision).snapshot
    replica.identity_changes()
    return replace(snapshot, ipcache=replica.ipcache(replica.peers), identities=replica.identities)
