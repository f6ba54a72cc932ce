"""Names: names with the addresses that endpoints of this node have learned from DNS answers."""

import time
from ipaddress import ip_address
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.core.tables.dns_names import matches


class FqdnHandlers:
    """Fqdn handlers: list learned names."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts

    async def list_names(self, _params: Params) -> list[dict[str, Any]]:
        """Return each name of each endpoint, by name, with its addresses; ``expires_in`` in s is negative afterwards.

        ``selectors`` are the patterns in ``toFQDNs`` that match the name.
        """
        now, patterns = time.monotonic(), self._parts.reconciler.view.snapshot.name_identities
        rows = [
            {
                "name": learned.name,
                "endpoint": learned.endpoint,
                "addresses": [
                    {"address": str(ip_address(address)), "expires_in": round(expires - now)}
                    for address, expires in tuple(learned.addresses.items())
                ],
                "selectors": [pattern for pattern in patterns if matches(pattern, learned.name)],
            }
            for learned in tuple(self._parts.learner.names)
        ]
        return sorted(rows, key=lambda row: (row["name"], row["endpoint"]))
