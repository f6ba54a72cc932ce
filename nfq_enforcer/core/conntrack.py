"""Connection tracking: who opened a flow, whether it was answered, and how long it may stay silent.

A flow stands in the table under two keys, that of the packets of its opener and that of the replies, so a packet of
either direction meets it with one look-up. The table is bounded: when it is full the oldest flow that not both sides
have confirmed makes room, then the oldest of all; a flood of forged openers drives out nothing but itself. Time-outs
are those of Linux (Documentation/networking/nf_conntrack-sysctl.rst) where it has them. Expiry is a ring of one-second
slots: a packet only moves its flow's ``expires``; when the hand meets the flow's slot, about a minute on at the
latest, the flow goes or moves to a later slot.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.packet import ICMP, ICMPV6, TCP, UDP, Packet, reply_key
from nfq_enforcer.core.stamp import Stamp


class State(IntEnum):
    """How far a flow has come. Only TCP flows close; the others just fall silent."""

    NEW = 0  # not answered yet
    ANSWERED = 1  # TCP: accepted, but the opener has not confirmed yet, and may not exist
    ESTABLISHED = 2
    CLOSING = 3  # TCP: one side has sent a FIN
    CLOSED = 4  # TCP: one side has reset it


_FIN = 0x01

_SECONDS: dict[int, tuple[int, int, int, int, int]] = {
    TCP: (60, 60, 432_000, 120, 10),
    UDP: (30, 0, 180, 0, 0),
    ICMP: (30, 0, 30, 0, 0),
    ICMPV6: (30, 0, 30, 0, 0),
}
_OTHER_SECONDS = (60, 0, 600, 0, 0)


Origin = tuple[str | None, Identity | None]
"""Where packets come from: the interface (None: this host), and the identity on their stamp (None: no stamp)."""


class Opening(NamedTuple):
    """What policy judges: the first packet of a flow, and who sends it to whom."""

    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int
    icmp_type: int
    icmp_code: int
    to_host: bool  # delivered on this host itself
    source: Identity
    destination: Identity


class Flow:
    """One connection, or what passes for one, as this node sees it."""

    __slots__ = (
        "expires",
        "key",
        "opening",
        "origin",
        "reply_key",
        "reply_origin",
        "reply_stamp",
        "revision",
        "slot",
        "stamp",
        "state",
    )

    opening: Opening
    origin: Origin  # of the opener's packets
    revision: int  # of the policy that allowed it
    stamp: Stamp | None  # put on the opener's packets
    reply_stamp: Stamp | None  # put on replies
    expires: float
    slot: int  # of the table's ring

    def __init__(self, key: bytes, answer_key: bytes) -> None:
        """Make an unanswered flow; who judges it says the rest, the table sets its time."""
        self.key = key
        self.reply_key = answer_key
        self.reply_origin: Origin | None = None  # learned from the first reply
        self.state = State.NEW

    def origin_of(self, packet: Packet) -> Origin | None:
        """Return where packets of this one's direction come from; None before the first reply."""
        return self.origin if packet.key == self.key else self.reply_origin

    def stamp_on(self, packet: Packet) -> Stamp | None:
        """Return the stamp that packets of this one's direction bear when they leave."""
        return self.stamp if packet.key == self.key else self.reply_stamp


_RING = 64  # slots of one second


class Conntrack:
    """The flows of one worker."""

    def __init__(self, maximum: int, now: float) -> None:
        """Make an empty table for at most ``maximum`` flows (at least 1); ``now`` in seconds, of any steady clock."""
        self._maximum = maximum
        self._flows: dict[bytes, Flow] = {}
        self._unconfirmed: dict[bytes, Flow] = {}  # both in order of creation
        self._confirmed: dict[bytes, Flow] = {}
        self._ring: list[dict[bytes, Flow]] = [{} for _ in range(_RING)]
        self._hand = int(now)
        self.evicted = 0

    def __len__(self) -> int:
        """Return the number of flows."""
        return len(self._unconfirmed) + len(self._confirmed)

    def __iter__(self) -> Iterator[Flow]:
        """Yield every flow, those that only one side has confirmed first."""
        yield from self._unconfirmed.values()
        yield from self._confirmed.values()

    def lookup(self, key: bytes, now: float) -> Flow | None:
        """Return the live flow that a packet with this key belongs to, in either direction."""
        flow = self._flows.get(key)
        if flow is not None and flow.expires <= now:
            self.remove(flow)
            return None
        return flow

    def create(self, packet: Packet, now: float) -> Flow:
        """Enter the flow that this packet opens, in place of any that has one of its keys."""
        flow = Flow(packet.key, reply_key(packet))
        for key in (flow.key, flow.reply_key):
            old = self._flows.get(key)
            if old is not None:
                self.remove(old)
        if len(self) >= self._maximum:
            self._evict()
        self._flows[flow.key] = self._flows[flow.reply_key] = flow
        self._unconfirmed[flow.key] = flow
        self.see(flow, packet, now)
        self._schedule(flow)
        return flow

    def see(self, flow: Flow, packet: Packet, now: float) -> None:
        """Note a packet of the flow: its state may move on, its time is renewed."""
        if flow.state < State.ESTABLISHED:
            self._advance(flow, packet)
        if packet.is_rst:
            flow.state = State.CLOSED
        elif packet.tcp_flags & _FIN and flow.state is not State.CLOSED:
            flow.state = State.CLOSING
        flow.expires = now + _SECONDS.get(packet.proto, _OTHER_SECONDS)[flow.state]

    def _advance(self, flow: Flow, packet: Packet) -> None:
        reply = packet.key != flow.key
        if reply and packet.proto == TCP:
            flow.state = State.ANSWERED
        elif reply or (flow.state is State.ANSWERED and not packet.opens):
            flow.state = State.ESTABLISHED
            self._confirmed[flow.key] = self._unconfirmed.pop(flow.key)

    def remove(self, flow: Flow) -> None:
        """Forget the flow, which must be in the table."""
        for key in {flow.key, flow.reply_key}:
            del self._flows[key]
        self._ring[flow.slot].pop(flow.key, None)  # the sweep has taken it out already
        if self._unconfirmed.pop(flow.key, None) is None:
            del self._confirmed[flow.key]

    def expire(self, now: float, budget: int = 1000) -> int:
        """Remove flows whose time is over, looking at ``budget`` flows at most; return how many went."""
        removed = 0
        self._hand = max(self._hand, int(now) - _RING)
        while self._hand < int(now):
            slot = self._ring[self._hand % _RING]
            while slot:
                if budget == 0:
                    return removed
                budget -= 1
                removed += self._settle(slot.popitem()[1], now)
            self._hand += 1
        return removed

    def _settle(self, flow: Flow, now: float) -> bool:
        if flow.expires > now:
            self._schedule(flow)
            return False
        self.remove(flow)
        return True

    def _schedule(self, flow: Flow) -> None:
        # Never the slot under the hand, however late the sweep: it would meet the same flow again and again.
        flow.slot = min(int(flow.expires) + 1, self._hand + _RING - 1) % _RING
        self._ring[flow.slot][flow.key] = flow

    def _evict(self) -> None:
        oldest = next(iter(self._unconfirmed.values()), None) or next(iter(self._confirmed.values()))
        self.remove(oldest)
        self.evicted += 1
