"""Report of long work besides verdicts, with its start and extent, for status and log."""

import asyncio
import logging
import time
from collections.abc import Sequence

from nfq_enforcer.policy.progress import Progress, Work

_log = logging.getLogger(__name__)
_INTERVAL = 5.0  # s between two log lines about one work


class WorkReport:
    """WorkReport: the work of the store and of the reconciler."""

    def __init__(self, sources: Sequence[Progress]) -> None:
        """Set the sources of work."""
        self._sources = sources

    def current(self) -> list[Work]:
        """Return the work that is under way."""
        return [work for progress in self._sources if (work := progress.work) is not None]

    async def run(self) -> None:
        """Log work that takes long, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            for work in self.current():
                if (seconds := time.time() - work.since) >= _INTERVAL:
                    _log.info("%s, for %.0f s", work, seconds)
