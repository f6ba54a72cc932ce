"""Interfaces of this node's endpoints: a document may name one that does not exist, and then no packet matches it.

An interface may also come later than its endpoint, or be replaced, so the check is repeated. A missing interface is
logged once, and once more when it exists. A check logs one line for all of these, with their number and examples: an
agent may start before thousands of its interfaces exist. A document may also name none: other workloads of this node
can then send from the endpoint's addresses, unless these are the host's own.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Iterable, Set

from nfq_enforcer.core.tables.snapshot import LocalEndpoint
from nfq_enforcer.policy.simulation import limited_list
from nfq_enforcer.policy.warnings import without_interface

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # s
_MISSING = (
    "endpoint {endpoint} is on interface {interface}, which does not exist on this node",
    "{} endpoints are on interfaces that do not exist on this node",
)
_FOUND = "interface {interface} of endpoint {endpoint} exists now", "interfaces of {} endpoints exist now"

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
        changing: Callable[[], Set[str]] = frozenset,
    ) -> None:
        """Set the functions that return the node's endpoints, and the names of the host's interfaces.

        ``changing`` returns the endpoints that get their interface in a moment, or have just lost it with their end.
        """
        self._endpoints = endpoints
        self._interfaces = interfaces
        self._changing = changing
        self._missing: Named = frozenset()
        self.unnamed: frozenset[str] = frozenset()  # endpoints without an interface, as of the last check

    def check(self) -> dict[str, str]:
        """Return the interface of each endpoint whose interface does not exist; log the differences."""
        changing = self._changing()
        endpoints = [one for one in self._endpoints() if one.name not in changing]
        named = {(one.name, one.interface) for one in endpoints if one.interface is not None}
        unnamed = frozenset(one.name for one in endpoints if one.interface is None and not one.is_host)
        if unnamed and not self.unnamed:
            _log.warning("%s", without_interface(unnamed))
        self.unnamed = unnamed
        existing = self._interfaces()
        missing = frozenset(pair for pair in named if pair[1] not in existing)
        if lost := missing - self._missing:
            _log.warning("%s", _sentence(_MISSING, lost))
        if found := {pair for pair in self._missing - missing if pair[1] in existing}:
            _log.info("%s", _sentence(_FOUND, found))
        self._missing = missing
        return self.missing

    @property
    def missing(self) -> dict[str, str]:
        """Return the interface of each endpoint whose interface did not exist at the last check."""
        return dict(sorted(self._missing))

    def problems(self) -> list[str]:
        """Return the sentences of the status: one for all missing interfaces, one for all endpoints without any."""
        self.check()
        sentences = self.missing_sentences()
        return [*sentences, without_interface(self.unnamed)] if self.unnamed else sentences

    def missing_sentences(self) -> list[str]:
        """Return one sentence for all missing interfaces, as of the last check; none without any."""
        return [_sentence(_MISSING, self._missing)] if self._missing else []

    async def run(self) -> None:
        """Check at an interval; never return."""
        while True:
            self.check()
            await asyncio.sleep(_INTERVAL)


def _sentence(forms: tuple[str, str], named: Collection[tuple[str, str]]) -> str:
    """Return a sentence about endpoints and their interfaces: the form for one, or for several with examples."""
    of_one, of_several = forms
    if len(named) == 1:
        ((endpoint, interface),) = named
        return of_one.format(endpoint=endpoint, interface=interface)
    examples = limited_list(f"{endpoint} ({interface})" for endpoint, interface in sorted(named))
    return f"{of_several.format(len(named))}: {examples}"
