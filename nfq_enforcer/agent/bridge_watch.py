"""Bridges of this host: other programs add ports, and load br_netfilter, while the agent runs (Docker does both).

The rules that redirect connections from the ports of bridges follow within a fraction of a second; until then such a
connection is not redirected and dropped, and its SYN comes again.
"""

import asyncio
import logging

from nfq_enforcer.agent.notifications import look_repeatedly
from nfq_enforcer.agent.timings import LookTimings
from nfq_enforcer.dataplane.interfaces import open_link_notifications
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_TIMINGS = LookTimings(busy=0.5)  # a look may also wait for another change of the rules


class BridgeWatch:
    """Bridge watch: keeps the rules at the bridges that the host has."""

    def __init__(self, rules: Rules) -> None:
        """Set the rules; nothing is read before ``run``."""
        self._rules = rules
        self._error: str | None = None  # of the last look

    async def run(self) -> None:
        """Look after each notification of the kernel, and at an interval; never return."""
        lost = "no notifications of changed interfaces (%s): the ports of bridges are read at an interval only"
        await look_repeatedly(self.look, open_link_notifications, _log, lost, _TIMINGS)

    async def look(self) -> None:
        """Bring the rules to the present state; log a failure once, until it ends."""
        error = None
        try:
            await asyncio.to_thread(self._rules.follow_bridges)
        except (NfqError, OSError) as failure:
            error = str(failure)
        if error is not None and error != self._error:
            _log.warning("connections from new ports of bridges are not redirected, but dropped: %s", error)
        self._error = error
