"""Name learning of a worker: DNS answers with new addresses, held until all workers of the node have the addresses.

The connection that follows an answer may meet any worker. So a worker with siblings leaves the packet parked, reports
the addresses to the agent, which sends them to all workers, and delivers the answer when the agent releases it. Without
siblings it learns by itself, and reports the addresses for the next start. Answers are held in a limited number and for
a limited time; those that the limits concern are dropped, and their client asks again.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import count

from nfq_enforcer.core.dns import learnable
from nfq_enforcer.core.events import Decision, Learned
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.dns_names import NamePatterns
from nfq_enforcer.core.tables.names import NameChange, NameTable, expiry
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict
from nfq_enforcer.dataplane.queue.protocol import HeldPacket
from nfq_enforcer.dataplane.worker.channel import NameChanges, Setup, WorkerChannel
from nfq_enforcer.dataplane.worker.reports import Applied, NamesLearned

_MAX_HELD = 256  # answers
_RESOLUTION = 1.0  # s, less than a step of ``expiry``


class NameLearning:
    """Name learning: the table of names of one worker, and the answers that it holds."""

    def __init__(self, setup: Setup, channel: WorkerChannel) -> None:
        """Start with the names of the setup."""
        self.table = NameTable(setup.names)
        self._channel = channel
        self._alone = setup.alone
        self._min_ttl = setup.min_ttl
        self._timeout = setup.timings.hold
        self._numbers = count(1)
        self._held: dict[int, tuple[HeldPacket, Decision, float]] = {}  # with the time at which each is dropped
        self._unconfirmed: Counter[tuple[str, bytes]] = Counter()  # names with addresses of held answers

    @property
    def holds(self) -> bool:
        """Return whether an answer is held."""
        return bool(self._held)

    def learn(
        self, decision: Decision, snapshot: Snapshot, patterns: NamePatterns[Identity], now: float
    ) -> Decision | HeldPacket:
        """Learn the addresses of accepted answers; return the packet to hold, or the decision on it."""
        taught = [one for one in decision.learned if self._teaches(one, now)]
        if not taught:
            return decision
        learned = tuple(one for one in (learnable(one, snapshot) for one in taught) if one is not None)
        if not learned:
            return decision
        decision = decision._replace(learned=learned)
        matters = any(self._is_new(one, now) and patterns.find(one.name) for one in learned)
        holds = matters and not self._alone
        if holds and len(self._held) >= _MAX_HELD:
            return _not_learned(decision)
        number = next(self._numbers) if holds else 0
        numbers = (*[0] * (len(learned) - 1), number)  # with the last one, all workers have the others too
        sent = [self._channel.send(NamesLearned(n, *one)) for n, one in zip(numbers, learned, strict=True)]
        if matters and not all(sent):
            return _not_learned(decision)
        if self._alone:
            self.table.apply(
                NameChange(one.name, address, expiry(now, ttl, self._min_ttl))
                for one in learned
                for address, ttl in one.addresses
            )
        if not holds:
            return decision
        self._unconfirmed.update(_keys(learned))
        packet = HeldPacket(decision.payload or decision.verdict)
        self._held[number] = packet, decision, now + self._timeout
        return packet

    def _teaches(self, learned: Learned, now: float) -> bool:
        """Return whether some worker does not know an address for the time that the answer gives it."""
        for address, ttl in learned.addresses:
            if not self._is_known(learned.name, address, expiry(now, ttl, self._min_ttl) - _RESOLUTION):
                return True
        return False

    def _is_new(self, learned: Learned, now: float) -> bool:
        return not all(self._is_known(learned.name, address, now) for address, _ in learned.addresses)

    def _is_known(self, name: str, address: bytes, now: float) -> bool:
        """Return whether all workers know until after this time that a name has an address."""
        return self.table.is_current(name, address, now) and (name, address) not in self._unconfirmed

    def apply(self, message: NameChanges) -> None:
        """Apply changes of the agent, and confirm them."""
        self.table.apply(message.changes)
        self._channel.send(Applied(message.number))

    def released(self, number: int) -> Iterator[tuple[HeldPacket, Decision]]:
        """Yield the held packet of this number, if its time is not over."""
        if number in self._held:
            yield self._end(number)

    def overdue(self, now: float) -> Iterator[tuple[HeldPacket, Decision]]:
        """Yield the packets that were held for too long, with the decision to drop them."""
        while self._held:
            number, (_, _, deadline) = next(iter(self._held.items()))
            if deadline > now:
                return
            packet, decision = self._end(number)
            yield packet, _not_learned(decision)

    def _end(self, number: int) -> tuple[HeldPacket, Decision]:
        packet, decision, _ = self._held.pop(number)
        for key in _keys(decision.learned):
            self._unconfirmed[key] -= 1
            if not self._unconfirmed[key]:
                del self._unconfirmed[key]
        return packet, decision


def _keys(learned: tuple[Learned, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield each name with each address."""
    return ((one.name, address) for one in learned for address, _ in one.addresses)


def _not_learned(decision: Decision) -> Decision:
    """Return the decision to drop an answer with addresses that some worker does not have."""
    event = decision.event
    if event is not None:
        event = event._replace(verdict=FlowVerdict.DROPPED, reason=DropReason.DNS_NOT_LEARNED, allowed_by=())
    return Decision(Verdict.DROP, event=event)
