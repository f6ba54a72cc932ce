"""Slot requests of a worker: first packets of connections that wait for a slot of the proxy.

A slot is made for its first connection. The packet stays parked until the proxy listens and all workers know the slot,
for a limited time. Then, or if too many packets wait, it goes on without a slot, and is dropped at its ordinary hook.
"""

from collections.abc import Iterator

from nfq_enforcer.core.tables.slots import SlotKey, SlotTable
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, Redirect
from nfq_enforcer.dataplane.worker.channel import Setup, SlotChanges, WorkerChannel
from nfq_enforcer.dataplane.worker.reports import Applied, SlotWanted

_MAX_HELD = 1024  # packets


class SlotRequests:
    """Slot requests: the slots that a worker knows, and the packets that wait for others."""

    def __init__(self, setup: Setup, channel: WorkerChannel) -> None:
        """Start with the slots of the setup."""
        self.table = SlotTable(setup.slots)
        self._channel = channel
        self._timeout = setup.timings.slot
        self._held: dict[HeldPacket, tuple[SlotKey, float]] = {}  # with the time until which each waits

    @property
    def holds(self) -> bool:
        """Return whether a packet waits."""
        return bool(self._held)

    def request(self, key: SlotKey, now: float) -> HeldPacket | None:
        """Ask the agent for a slot; return the packet to hold, None if too many wait; a later one uses the slot."""
        if not self._channel.send(SlotWanted(key)) or len(self._held) >= _MAX_HELD:
            return None
        packet = HeldPacket(Verdict.UNDECIDED)
        self._held[packet] = key, now + self._timeout
        return packet

    def apply(self, message: SlotChanges) -> None:
        """Apply changes of the agent, and redirect the packets that waited for them."""
        self.table.apply(message.changes)
        self._channel.send(Applied(message.number))
        for packet, (key, _) in tuple(self._held.items()):
            if self.table.is_open(key):
                del self._held[packet]
                packet.settle(Redirect(self.table.find(key)))

    def overdue(self, now: float) -> Iterator[HeldPacket]:
        """Yield the packets that have waited for too long."""
        while self._held:
            packet, (_, deadline) = next(iter(self._held.items()))
            if deadline > now:
                return
            del self._held[packet]
            yield packet
