"""Interfaces of this node's endpoints: a document may name one that does not exist, and then no packet matches it.

An interface may also come later than its endpoint, or be replaced, so the check is repeated. Each missing interface is
logged once, and once more when it exists.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable

from nfq_enforcer.core.tables.snapshot import LocalEndpoint

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # s

Named = frozenset[tuple[str, str]]
"""Endpoints, each with its interface."""


def interface_names() -> frozenset[str]:
    """Return the names of this host's interfaces."""
    return frozenset(name for _, name in socket.if_nameindex())


class InterfaceCheck:
    """Interface check: compares the interfaces of local endpoints with those of the host."""

    def __init__(
        self,
        endpoints: Callable[[], Iterable[LocalEndpoint]],
        interfaces: Callable[[], frozenset[str]] = interface_names,
    ) -> None:
        """Set the functions that return the node's endpoints, and the names of the host's interfaces."""
        self._endpoints = endpoints
        self._interfaces = interfaces
        self._missing: Named = frozenset()

    def check(self) -> dict[str, str]:
        """Return the interface of each endpoint whose interface does not exist; log the differences."""
        named = {(one.name, one.interface) for one in self._endpoints() if one.interface is not None}
        existing = self._interfaces()
        missing = frozenset(pair for pair in named if pair[1] not in existing)
        for endpoint, interface in sorted(missing - self._missing):
            _log.warning("endpoint %s is on interface %s, which does not exist on this node", endpoint, interface)
        for endpoint, interface in sorted(self._missing - missing):
            if interface in existing:
                _log.info("interface %s of endpoint %s exists now", interface, endpoint)
        self._missing = missing
        return dict(sorted(missing))

    async def run(self) -> None:
        """Check at an interval; never return."""
        while True:
            self.check()
            await asyncio.sleep(_INTERVAL)


def problem(endpoint: str, interface: str) -> str:
    """Return the sentence of the status for an endpoint with a missing interface."""
    return f"endpoint {endpoint} is on interface {interface}, which does not exist on this node"
