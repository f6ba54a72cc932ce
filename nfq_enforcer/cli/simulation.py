"""Simulation of policy for commands that need no agent: of documents in files, or of those of a running agent."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.agent import client, config, defaults
from nfq_enforcer.cli.options import Localhost
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Enforcement
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER, Address, address, cluster_name
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import Documents, endpoint_labels
from nfq_enforcer.policy.simulation import EndPair, Simulation
from nfq_enforcer.policy.warnings import ClusterFacts

_MANY_DOCUMENTS = 60.0  # s for all documents of a large cluster


def of_files(
    paths: Iterable[Path],
    enforcement: Enforcement,
    allow_localhost: Localhost,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
    node_labels: Mapping[str, str] | None = None,
) -> Simulation:
    """Return the simulation of documents in files."""
    return Simulation(
        loader.load(paths, ignore_other_kinds=ignore_other_kinds),
        enforcement,
        allow_localhost=allow_localhost is Localhost.ALWAYS,
        cluster=_cluster(cluster),
        kube_apiserver=_addresses(kube_apiserver),
        node_labels=Labels.parse(node_labels or {}),
    )


def of_files_or_agent(
    files: list[Path] | None,
    socket: Path,
    enforcement: Enforcement | None,
    allow_localhost: Localhost | None,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
) -> tuple[Simulation, str]:
    """Return the simulation of files, else of the running agent, else of the configured documents; and its origin."""
    mode, localhost = enforcement or Enforcement.AUTO, allow_localhost or Localhost.ALWAYS
    if files:
        return of_files(files, mode, localhost, cluster, kube_apiserver, ignore_other_kinds), "the given files"
    try:
        running = client.call(socket, "documents", _MANY_DOCUMENTS)
    except client.NoAgent:
        simulation = _configured_simulation(mode, localhost, cluster, kube_apiserver, ignore_other_kinds)
        return simulation, "the configuration; no agent is running"
    documents = loader.from_data(running["documents"])
    origins = {tuple(key): origin for *key, origin in running.get("origins", ())}
    for policy in documents.policies:
        policy.set_origin(origins.get(policy.key, ""), policy.data)
    simulation = Simulation(
        documents,
        enforcement or Enforcement(running["enforcement"]),
        allow_localhost=(allow_localhost or Localhost(running["allow_localhost"])) is Localhost.ALWAYS,
        cluster=_cluster(cluster or running["cluster"]),
        kube_apiserver=_addresses(kube_apiserver or running["kube_apiserver"]),
        relevant=LabelFilter(running["identity_labels"]),
        node_labels=Labels.parse(running.get("node_labels", {})),
    )
    return simulation, f"the running agent of node {running['node']}, revision {running['revision']}"


class Current(NamedTuple):
    """Current documents: those of the running agent or of files, and the simulation of others in their place."""

    documents: Documents
    simulate: Callable[[Documents], Simulation]
    origin: str


def current(files: list[Path] | None, socket: Path, ignore_other_kinds: bool) -> Current:
    """Return the documents of files, with the default settings, else those of the running agent with its settings."""
    if files:
        documents = loader.load(files, ignore_other_kinds=ignore_other_kinds)
        return Current(documents, Simulation, "the given files")
    running = client.call(socket, "documents", _MANY_DOCUMENTS)
    simulate = partial(
        Simulation,
        enforcement=Enforcement(running["enforcement"]),
        allow_localhost=Localhost(running["allow_localhost"]) is Localhost.ALWAYS,
        cluster=running["cluster"],
        kube_apiserver=_addresses(running["kube_apiserver"]),
        relevant=LabelFilter(running["identity_labels"]),
        node_labels=Labels.parse(running.get("node_labels", {})),
    )
    origin = f"the running agent of node {running['node']}, revision {running['revision']}"
    return Current(loader.from_data(running["documents"]), simulate, origin)


def _configured_simulation(
    enforcement: Enforcement,
    allow_localhost: Localhost,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
) -> Simulation:
    """Return the simulation of the documents in the agent's configuration, with its cluster, API server and labels."""
    configured = config.load(None, os.environ)
    if not configured.documents:
        raise BadInput(f"which documents? name them with -f, or as 'documents' in {defaults.DEFAULT_PATH}")
    addresses = kube_apiserver or list(map(str, configured.kube_apiserver))
    paths = map(Path, configured.documents)
    options = (cluster or configured.cluster, addresses, ignore_other_kinds, configured.node.labels)
    return of_files(paths, enforcement, allow_localhost, *options)


def pair(simulation: Simulation, source: str, target: str) -> EndPair:
    """Return both ends of a connection; raise BadInput with the option of an end that does not exist."""
    for option, reference in (("--from", source), ("--to", target)):
        try:
            simulation.end(reference)
        except ValueError as error:
            raise BadInput(f"{option}: {error}") from None
    return simulation.pair(source, target)


def facts(documents: Documents, cluster: str | None, kube_apiserver: list[str] | None) -> ClusterFacts:
    """Return the properties of a cluster by which documents are checked."""
    endpoints = (endpoint_labels(endpoint, documents.namespaces) for endpoint in documents.endpoints)
    sources = frozenset(label.source for labels in endpoints for label in labels)
    return ClusterFacts(_cluster(cluster), bool(_addresses(kube_apiserver)), sources)


def _cluster(name: str | None) -> str:
    try:
        return cluster_name(name or DEFAULT_CLUSTER)
    except ValueError as error:
        raise BadInput(f"--cluster: {error}") from None


def _addresses(written: list[str] | None) -> tuple[Address, ...]:
    try:
        return tuple(map(address, written or ()))
    except ValueError as error:
        raise BadInput(f"--kube-apiserver: {error}") from None
