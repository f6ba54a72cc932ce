"""Epoch of offloaded flows (``datapath: per-flow``): the kernel passes a flow only while its connmark has the epoch.

A change that must reach open flows begins a new epoch. From then on the kernel queues every packet again, until a
worker has evaluated the flow and marked it with the new epoch (see ``dataplane.rules.connmark``).
"""

import asyncio
from collections.abc import AsyncIterator, Container, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.tables.ipcache import PeerChange
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.errors import NfqError


class Epoch(Protocol):
    """Epoch: decides which marks of flows count in the kernel's rules."""

    @property
    def number(self) -> int | None:
        """Return the current epoch; None: no flow is offloaded."""

    def ends_with(self, changes: Iterable[PeerChange], peers: Container[bytes]) -> bool:
        """Return whether these changes end the epoch: one removes or replaces a peer that open flows may have."""

    def advance(self, *, hold: bool) -> AbstractAsyncContextManager[int | None]:
        """Begin the next epoch; in the context, send it to the workers.

        ``hold``: a worker may have missed the previous epoch, and a mark that it sets could pass for one of the new
        epoch. So no mark counts until the context ends, when all workers have the new epoch.
        """


class NoEpoch:
    """No epoch (``datapath: per-packet``): the kernel offloads no flow, so nothing has to be revoked."""

    number = None

    def ends_with(self, changes: Iterable[PeerChange], peers: Container[bytes]) -> bool:
        """Return False."""
        return False

    @asynccontextmanager
    async def advance(self, *, hold: bool) -> AsyncIterator[int | None]:
        """Change nothing."""
        yield None


class OffloadEpoch:
    """Offload epoch (``datapath: per-flow``): kept in the rules, which match it against the connmark."""

    def __init__(self, rules: Rules, previous: int) -> None:
        """Begin with the epoch after ``previous``; ``Rules.install`` puts it into the rules."""
        self._rules = rules
        self._number = previous + 1
        self._in_rules: int | None = self._number  # the last one that the rules have taken

    @property
    def number(self) -> int | None:
        """Return the current epoch."""
        return self._number

    def ends_with(self, changes: Iterable[PeerChange], peers: Container[bytes]) -> bool:
        """Return whether one of these addresses has a peer now."""
        return any(address in peers for address, _ in changes)

    @asynccontextmanager
    async def advance(self, *, hold: bool) -> AsyncIterator[int | None]:
        """Put the next epoch into the rules: at once, or with ``hold`` at the end of the context.

        If the rules cannot be changed (another program holds the lock of iptables), NfqError is raised at the end only:
        the kernel goes on offloading the flows that it offloads, no others, and the context enforces the change on
        these.
        """
        self._number += 1
        failure = None
        try:
            await self._put_into_rules(None if hold else self._number)
        except NfqError as error:
            failure = error
            if self._in_rules is not None and (self._number - self._in_rules) % 2 == 0:
                self._number += 1  # a worker's request has the last bit of the epoch: it must not be that of the rules
        yield self._number
        if failure is not None:
            raise failure
        if hold:
            await self._put_into_rules(self._number)

    async def _put_into_rules(self, epoch: int | None) -> None:
        await asyncio.to_thread(self._rules.set_epoch, epoch)
        self._in_rules = epoch


def create(datapath: Datapath, rules: Rules, previous: int = 0) -> Epoch:
    """Return the epoch of a datapath; ``previous`` is the last one of an agent whose workers may still set marks."""
    return OffloadEpoch(rules, previous) if datapath is Datapath.PER_FLOW else NoEpoch()
