"""Connection tracking: who opened a flow, whether it was answered, and how long it may stay silent.

A flow stands in the table under two keys, that of the packets of its opener and that of the replies, so a packet of
either direction meets it with one look-up. The table is bounded: when it is full the oldest flow that not both sides
have confirmed makes room, then the oldest of all; a flood of forged openers drives out nothing but itself. Time-outs
are those of Linux (Documentation/networking/nf_conntrack-sysctl.rst) where it has them.

A flow whose packets the kernel passes without us (see ``bypass``) shows itself only now and then. So it is kept for
little longer than that takes, whatever its state, and makes room before all others: the kernel remembers it.

Nothing here takes longer because there are many flows. The table is cut into many small dicts, because a big one that
has to grow would stall the packets meanwhile. A flow knows its neighbours in age, so it leaves from any place at once.
A packet only moves its flow's ``expires``; a sweep goes round the parts and meets every flow within half a minute.
What flows have in common (origins, imprints) they share, so one takes some 500 bytes, its two keys included.
"""

from collections.abc import Iterator
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP, Packet, read_key, reply_key
from nfq_enforcer.core.wire.stamp import StampTemplate


class FlowState(IntEnum):
    """How far a flow has come. Only TCP flows close; the others just fall silent."""

    NEW = 0  # not answered yet
    ANSWERED = 1  # TCP: accepted, but the opener has not confirmed yet, and may not exist
    ESTABLISHED = 2
    CLOSING = 3  # TCP: one side has sent a FIN
    CLOSED = 4  # TCP: one side has reset it


_NEW, _ANSWERED = FlowState.NEW, FlowState.ANSWERED  # looking a member up takes longer than the packet path has
_FIN, _SYN, _RST, _SYN_ACK = 0x01, 0x02, 0x04, 0x12
_FIN_RST = _FIN | _RST

_SECONDS: dict[int, tuple[int, int, int, int, int]] = {
    TCP: (60, 60, 432_000, 120, 10),
    UDP: (30, 0, 180, 0, 0),
    ICMP: (30, 0, 30, 0, 0),
    ICMPV6: (30, 0, 30, 0, 0),
}
_OTHER_SECONDS = (60, 0, 600, 0, 0)


class Offload(IntEnum):
    """How much of a flow the kernel passes by itself, under the policy that the flow was judged by."""

    NEVER = 0  # policy refuses it, and only audit lets it pass
    NONE = 1  # nothing yet
    OPENER = 2  # what its opener sends
    FLOW = 3  # all of it


Origin = tuple[str | None, Identity | None]
"""Where packets come from: the interface (None: this host), and the identity on their stamp (None: no stamp)."""


ORIGIN_UNKNOWN: Origin = ("", None)
"""The origin of a flow that was learned, until its opener is seen: no interface has this name."""

REVISION_NONE = -1  # the revision of a flow that was learned, until it is judged


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
        "destination",
        "elder",
        "expires",
        "fits",
        "key",
        "lifetime",
        "masqueraded",
        "offload",
        "origin",
        "reply_key",
        "reply_origin",
        "reply_stamp",
        "revision",
        "source",
        "stamp",
        "state",
        "to_host",
        "younger",
    )

    to_host: bool  # delivered on this host itself
    source: Identity  # the opener's
    destination: Identity
    origin: Origin  # of the opener's packets
    revision: int  # of the policy that allowed it
    stamp: StampTemplate | None  # put on the opener's packets
    reply_stamp: StampTemplate | None  # put on replies
    lifetime: int  # for how many seconds it may be silent in its state
    expires: float
    elder: "Flow"  # its neighbours in the table
    younger: "Flow"

    def __init__(self, key: bytes, answer_key: bytes) -> None:
        """Make an unanswered flow; who judges it says the rest, the table sets its time."""
        self.key = key
        self.reply_key = answer_key
        self.reply_origin: Origin | None = None  # known from the first reply on, or before
        self.state = FlowState.NEW
        self.offload = Offload.NONE
        self.masqueraded = (
            False  # its opener's stamp came from an address that is no endpoint's: a router has changed it
        )
        self.fits = False  # TCP: its SYN passed here, where it was given an MSS that leaves room for a stamp

    @property
    def opening(self) -> Opening:
        """Return what policy has judged."""
        return Opening(*read_key(self.key), self.to_host, self.source, self.destination)

    def origin_of(self, packet: Packet) -> Origin | None:
        """Return where packets of this one's direction come from; None if that has to show in the first reply."""
        return self.origin if packet.key == self.key else self.reply_origin

    def stamp_on(self, packet: Packet) -> StampTemplate | None:
        """Return the stamp that packets of this one's direction bear when they leave."""
        return self.stamp if packet.key == self.key else self.reply_stamp


class KernelFlow(NamedTuple):
    """A flow that somebody else remembers, the kernel for example."""

    key: bytes  # of its opener's packets
    state: FlowState
    expires_in: float  # seconds


class _Ages:
    """Flows by age, the oldest first, in a ring of neighbours that a flow leaves at no cost, wherever it stands."""

    def __init__(self) -> None:
        self._end = Flow(b"", b"")
        self._end.elder = self._end.younger = self._end

    def __iter__(self) -> Iterator[Flow]:
        flow = self._end.younger
        while flow is not self._end:
            yield flow
            flow = flow.younger

    def join(self, flow: Flow) -> None:
        last, end = self._end.elder, self._end
        flow.elder, flow.younger = last, end
        last.younger = end.elder = flow


def _leave(flow: Flow) -> None:
    flow.elder.younger, flow.younger.elder = flow.younger, flow.elder


_PARTS = 1024
_HANDED_OVER = 150  # seconds of silence after which a flow is forgotten that the kernel passes
_ROUND = 32  # seconds in which the sweep meets every flow
_REMOVAL = 32  # to remove a flow takes as long as to look at so many
_LEAST = 50  # flows that a step removes at least, if there are so many to remove


class Conntrack:
    """The flows of one worker."""

    def __init__(self, maximum: int, now: float) -> None:
        """Make an empty table for at most ``maximum`` flows (at least 1); ``now`` in seconds, of any steady clock."""
        self._maximum = maximum
        self._parts: tuple[dict[bytes, Flow], ...] = tuple({} for _ in range(_PARTS))
        self._unconfirmed = _Ages()
        self._confirmed = _Ages()
        self._handed_over = _Ages()
        self._length = 0
        self._swept = _due(now)
        self.evicted = 0

    def __len__(self) -> int:
        """Return the number of flows."""
        return self._length

    def __iter__(self) -> Iterator[Flow]:
        """Yield every flow, those that only one side has confirmed first."""
        yield from self._unconfirmed
        yield from self._confirmed
        yield from self._handed_over

    def lookup(self, key: bytes, now: float) -> Flow | None:
        """Return the live flow that a packet with this key belongs to, in either direction."""
        flow = self._parts[hash(key) % _PARTS].get(key)
        if flow is not None and flow.expires <= now:
            self.remove(flow)
            return None
        return flow

    def create(self, packet: Packet, now: float) -> Flow:
        """Enter the flow that this packet opens, in place of any that has one of its keys."""
        flow = Flow(packet.key, reply_key(packet.key))
        for key in (flow.key, flow.reply_key):
            old = self._parts[hash(key) % _PARTS].get(key)
            if old is not None:
                self.remove(old)
        if self._length >= self._maximum:
            self._make_room()
        self._enter(flow)
        flow.fits = packet.opens
        self.see(flow, False, packet.tcp_flags, now)
        return flow

    def import_flow(self, known: KernelFlow, now: float) -> bool:
        """Enter a flow that somebody else knows, for who judges to meet it; say whether there was room for it."""
        flow = _unjudged(known.key, known.state)
        if self._length >= self._maximum or self.lookup(flow.key, now) or self.lookup(flow.reply_key, now):
            return False
        self._enter(flow)
        flow.expires = now + min(known.expires_in, flow.lifetime)
        return True

    def restore(self, key: bytes, now: float) -> Flow:
        """Enter, as ``learn`` does, an established flow that is not in the table; ``key``: of its opener's packets."""
        flow = _unjudged(key, FlowState.ESTABLISHED)
        if self._length >= self._maximum:
            self._make_room()
        self._enter(flow)
        flow.expires = now + flow.lifetime
        return flow

    def hand_over(self, flow: Flow, bypass: Offload, now: float) -> None:
        """Note that the kernel passes this much of the flow from now on."""
        flow.offload = bypass
        if bypass is Offload.FLOW:
            flow.state = FlowState.ESTABLISHED  # its end will not be seen
        flow.lifetime = _HANDED_OVER
        flow.expires = now + _HANDED_OVER
        _leave(flow)
        self._handed_over.join(flow)

    def _enter(self, flow: Flow) -> None:
        for key in (flow.key, flow.reply_key):
            self._parts[hash(key) % _PARTS][key] = flow
        (self._unconfirmed if flow.state < FlowState.ESTABLISHED else self._confirmed).join(flow)
        self._length += 1
        flow.lifetime = _SECONDS.get(flow.key[0], _OTHER_SECONDS)[flow.state]

    def see(self, flow: Flow, reply: bool, tcp_flags: int, now: float) -> None:
        """Note a packet of the flow, of its opener or a reply: its state may move on, its time is renewed."""
        if tcp_flags & _FIN_RST or flow.state is _ANSWERED or (reply and flow.state is _NEW):
            self._move(flow, reply, tcp_flags)
        flow.expires = now + flow.lifetime

    def _move(self, flow: Flow, reply: bool, tcp_flags: int) -> None:
        proto = flow.key[0]
        if flow.state is _NEW or flow.state is _ANSWERED:
            self._answer(flow, reply, proto == TCP, tcp_flags)
        if tcp_flags & _RST:
            flow.state = FlowState.CLOSED
        elif tcp_flags & _FIN and flow.state is not FlowState.CLOSED:
            flow.state = FlowState.CLOSING
        flow.lifetime = _SECONDS.get(proto, _OTHER_SECONDS)[flow.state]

    def _answer(self, flow: Flow, reply: bool, confirms: bool, tcp_flags: int) -> None:
        """Take a reply, or what follows one: if the protocol ``confirms``, the opener must have spoken again."""
        if reply and confirms:
            flow.state = FlowState.ANSWERED
        elif reply or (flow.state is _ANSWERED and tcp_flags & _SYN_ACK != _SYN):
            flow.state = FlowState.ESTABLISHED
            _leave(flow)
            self._confirmed.join(flow)

    def remove(self, flow: Flow) -> None:
        """Forget the flow, which must be in the table."""
        for key in {flow.key, flow.reply_key}:
            del self._parts[hash(key) % _PARTS][key]
        _leave(flow)
        self._length -= 1

    def expire(self, now: float, budget: int = 5000) -> int:
        """Go on with the sweep, as far as it has come to by now; return how many flows went.

        It ends early when it has looked at ``budget`` of them (of the last part maybe more), which takes about 1 ms.
        """
        removed, due = 0, _due(now)
        self._swept = max(self._swept, due - _PARTS)
        while self._swept < due and budget > 0:
            part = self._parts[self._swept % _PARTS]
            over = [flow for key, flow in part.items() if key is flow.key and flow.expires <= now]
            budget -= len(part)
            going = over[: max(_LEAST, budget // _REMOVAL)]
            for flow in going:
                self.remove(flow)
            removed += len(going)
            budget -= len(going) * _REMOVAL
            self._swept += len(going) == len(over)
        return removed

    def _make_room(self) -> None:
        self.remove(next(chain(self._handed_over, self._unconfirmed, self._confirmed)))
        self.evicted += 1


def _unjudged(key: bytes, state: FlowState) -> Flow:
    """Return a flow that nobody has judged here yet, for who judges to meet it."""
    flow = Flow(key, reply_key(key))
    flow.state = state
    flow.origin, flow.revision, flow.to_host = ORIGIN_UNKNOWN, REVISION_NONE, False
    flow.source = flow.destination = Identity(0)
    flow.stamp = flow.reply_stamp = None
    return flow


def _due(now: float) -> int:
    """Return how many parts the sweep has met by this time, since the clock began."""
    return int(now * _PARTS / _ROUND)
