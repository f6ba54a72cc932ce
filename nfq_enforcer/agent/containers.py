"""Containers of this node: a watch for each daemon that the configuration names."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nfq_enforcer.agent.config import Config
from nfq_enforcer.dataplane import namespace_links
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.source import WorkloadSource

_PROXY = "docker-proxy"  # the process by which Docker publishes a port to this host, one for each


def watches(config: Config, node: str, registrar: Registrar) -> Iterator[WorkloadSource]:
    """Yield the watches; the client of the daemons takes memory and is imported for the first of them."""
    proxies = runs_proxies if config.allow_localhost == "always" else lambda: False
    for source, path in config.containers.sockets.items():
        from nfq_enforcer.workloads.containers.watch import ContainerWatch

        yield ContainerWatch(source, path, node, registrar, namespace_links.attachments, proxies)


def runs_proxies() -> bool:
    """Tell whether processes of this host connect to published ports for others, as the host."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):  # it has ended
                if (process / "comm").read_text().rstrip() == _PROXY:
                    return True
    return False
