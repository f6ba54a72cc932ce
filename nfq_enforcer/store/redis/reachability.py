"""Reachability of the store: the commands of the joined server, or since when and why it cannot be reached."""

import asyncio
import contextlib
import logging
import time

from nfq_enforcer.store.address import StoreAddress
from nfq_enforcer.store.redis.commands import Commands
from nfq_enforcer.store.redis.connection import StoreError

_log = logging.getLogger(__name__)
_NOT_YET = "not connected yet"


class Reachability:
    """Reachability: set by the session as it connects and fails, read by every command that needs the store."""

    def __init__(self, address: StoreAddress, reconnect: float) -> None:
        """Start as unreachable; a command waits ``reconnect`` seconds for a connection that is being renewed."""
        self._address = address
        self._reconnect = reconnect
        self.commands: Commands | None = None  # of the joined server, if this node is connected and caught up
        self.joined = asyncio.Event()  # set while ``commands`` may be used
        self.error: str | None = _NOT_YET  # the reason; None: connected
        self.since = time.time()  # of the last change between connected and unreachable, in seconds since the epoch

    def set_joined(self, commands: Commands) -> None:
        """Make a joined and caught-up server available to commands."""
        self.commands = commands
        self.joined.set()

    def set_left(self) -> None:
        """Make no server available; ``error`` is set once the connection counts as lost."""
        self.commands = None
        self.joined.clear()

    def set_stale(self) -> None:
        """Make commands wait for the next join: the server was found to be another run than the joined one."""
        self.joined.clear()

    def note_connected(self) -> None:
        """Record and log that the store is reachable, if it was not."""
        if self.error is not None:
            _log.info("connected to the store %s", self._address.redacted)
            self.since = time.time()
        self.error = None

    def note_lost(self, reason: str) -> None:
        """Record and log that the store is unreachable, or that the reason is another one."""
        if self.error is None:
            self.since = time.time()
            _log.warning("the store is unreachable, enforcing the last known state: %s", reason)
        elif self.error == _NOT_YET:
            _log.warning("the store is unreachable: %s", reason)
        elif reason != self.error:
            _log.warning("the store is still unreachable: %s", reason)
        self.error = reason

    async def wait_reachable(self) -> Commands:
        """Return the commands; wait for them while a connection is being renewed, and raise StoreError for none."""
        if self.error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reconnect):
                    await self.joined.wait()
        if self.commands is None:
            raise StoreError(self.unreachable)
        return self.commands

    @property
    def unreachable(self) -> str:
        """Return the sentence with the time since which, and the reason for which, the store is unreachable."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"the store {self._address.redacted} is unreachable since {since}: {self.error}"
