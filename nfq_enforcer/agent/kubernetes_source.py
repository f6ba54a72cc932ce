"""Kubernetes as a source of workloads, as the configuration describes it."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from nfq_enforcer.agent.config import KubernetesSection
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.dataplane import routes
from nfq_enforcer.workloads.kubernetes import access
from nfq_enforcer.workloads.kubernetes.client import ApiClient
from nfq_enforcer.workloads.kubernetes.source import KubernetesSource
from nfq_enforcer.workloads.publisher import Publisher
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import KUBERNETES


def make(
    section: KubernetesSection,
    settings: NodeSettings,
    store: Store,
    replica: Replica,
    registrar: Registrar,
    on_node_labels: Callable[[Mapping[str, str]], None],
) -> KubernetesSource:
    """Return the source of this node's pods; raise BadInput if the access to the API server is not valid."""
    if section.kubeconfig is None:
        entry = access.in_cluster(os.environ)
    else:
        entry = access.from_kubeconfig(Path(section.kubeconfig), section.context)
    registrar.publisher = publisher = Publisher(KUBERNETES, store, lambda: replica.documents, registrar.note_change)
    find_interface = partial(routes.find_interface, excluded=settings.cluster_interfaces)
    node = section.node or settings.name
    return KubernetesSource(node, ApiClient(entry), registrar, publisher, find_interface, on_node_labels)
