"""Addresses of this host: other programs add and remove them while the agent runs (DHCP, a floating address).

A packet from or to any address of a node is the node's, at the node itself and at all others, and a DNS answer with one
is no answer about a remote name. The addresses are read after each notification of rtnetlink, and at an interval
besides; other addresses than before are enforced here and registered for the other nodes.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from nfq_enforcer.agent.notifications import look_repeatedly
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.agent.timings import LookTimings
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.dataplane.interfaces import open_address_notifications
from nfq_enforcer.errors import NfqError
from nfq_enforcer.policy.simulation import limited_list

_log = logging.getLogger(__name__)

Read = Callable[[NodeSettings], NodeSettings]
"""Returns settings with the addresses that the host has now; raises NfqError, OSError or ValueError."""


class AddressWatch:
    """Address watch: keeps the reconciler and the store at the addresses that the host has."""

    def __init__(
        self,
        settings: NodeSettings,
        read: Read,
        reconciler: Reconciler,
        store: Store,
        timings: LookTimings | None = None,
    ) -> None:
        """Set the settings in use and the function that reads others; nothing is read before ``run``."""
        self._settings = settings
        self._read = read
        self._reconciler = reconciler
        self._store = store
        self._timings = timings or LookTimings()

    async def run(self) -> None:
        """Read the addresses after each notification of the kernel, and at an interval; never return."""
        lost = "no notifications of changed addresses (%s): they are read at an interval only"
        await look_repeatedly(self.look, open_address_notifications, _log, lost, self._timings)

    async def look(self) -> None:
        """Read the addresses; enforce and register them if they differ from those in use."""
        try:
            settings = await asyncio.to_thread(self._read, self._settings)
        except (NfqError, OSError, ValueError) as error:
            _log.warning("the addresses of this host cannot be read, those before stay in use: %s", error)
            return
        if settings == self._settings:
            return
        before, now = self._settings.own_addresses, settings.own_addresses
        _log.info("the addresses of this host have changed: %s", _differences(before, now))
        await self._reconciler.use(settings)
        await self._store.register(settings.registered_addresses)
        self._settings = settings


def _differences(before: Iterable[IPv4Address | IPv6Address], now: Iterable[IPv4Address | IPv6Address]) -> str:
    """Return the added and the removed addresses in words."""
    added, removed = (sorted(map(str, one)) for one in (set(now) - set(before), set(before) - set(now)))
    parts = ("added", added), ("removed", removed)
    return "; ".join(f"{verb} {limited_list(some)}" for verb, some in parts if some) or "their order"
