"""Containers of this node: a watch for each daemon that the configuration names."""

from collections.abc import Iterator

from nfq_enforcer.agent.config import ContainersSection
from nfq_enforcer.dataplane import namespace_links
from nfq_enforcer.workloads.registrar import DOCKER, PODMAN, Registrar
from nfq_enforcer.workloads.source import WorkloadSource


def watches(config: ContainersSection, node: str, registrar: Registrar) -> Iterator[WorkloadSource]:
    """Yield the watches; the client of the daemons takes memory and is imported for the first of them."""
    sockets = {DOCKER: config.docker, PODMAN: config.podman}
    for source, path in sockets.items():
        if path is not None:
            from nfq_enforcer.workloads.containers.watch import ContainerWatch

            yield ContainerWatch(source, path, node, registrar, namespace_links.attachments)
