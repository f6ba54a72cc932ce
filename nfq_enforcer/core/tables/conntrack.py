"""Conntrack: the flows of one worker, each with its opener, its state and its time-out.

A flow is stored under two keys, one of its opener's packets and one of the replies, so a packet of either direction
finds it with one look-up. The table is bounded. When it is full, the oldest unconfirmed flow is evicted, then the
oldest of all, so a flood of forged openers evicts nothing but its own flows. Time-outs are those of Linux
(Documentation/networking/nf_conntrack-sysctl.rst) for the protocols that it names.

The kernel passes packets of an offloaded flow without a verdict (see ``core.offload``), so only a few of them reach
this table. An offloaded flow therefore has a short time-out of its own, whatever its state, and is evicted first: the
kernel keeps the flow in its own conntrack.

No operation slows down as the number of flows grows. The table consists of many small dicts, because a large dict
stalls the packet path while it grows. A flow is linked to its neighbours in age, so its removal takes constant time. A
packet only moves ``expires`` of its flow; a sweep visits every part of the table within half a minute. Origins and
stamp templates are shared between flows, so one flow takes some 500 bytes with its two keys.
"""

from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.tables.flow_ends import EndCause, FlowEnds, one_packet
from nfq_enforcer.core.tables.policymap import DnsRules
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP, Packet, read_key, reply_key
from nfq_enforcer.core.wire.stamp import StampTemplate


class FlowState(IntEnum):
    """State of a flow. Only TCP flows close; flows of other protocols expire."""

    NEW = 0  # without a reply yet
    ANSWERED = 1  # TCP: accepted by the replier, not yet confirmed by the opener, whose address may be forged
    ESTABLISHED = 2
    CLOSING = 3  # TCP: one side has sent a FIN
    CLOSED = 4  # TCP: one side has sent a RST


_NEW, _ANSWERED = FlowState.NEW, FlowState.ANSWERED  # an enum look-up costs more than the packet path can spend
_FIN, _SYN, _RST, _SYN_ACK = 0x01, 0x02, 0x04, 0x12
_FIN_RST = _FIN | _RST
_BOTH = 3  # sides that have sent a FIN
_ONE_PACKET = one_packet(0)

# The next state of a TCP flow, by its state (row) and by sender and flags of the segment (column). RST outweighs FIN.
# opener: SYN, other, FIN, RST; replier: neither FIN nor RST, FIN, RST
_TCP_TRANSITIONS = tuple(
    tuple(map(FlowState, row))
    for row in (
        (0, 0, 3, 4, 1, 3, 4),  # NEW
        (1, 2, 3, 4, 1, 3, 4),  # ANSWERED
        (2, 2, 3, 4, 2, 3, 4),  # ESTABLISHED
        (3, 3, 3, 4, 3, 3, 4),  # CLOSING
        (4, 4, 4, 4, 4, 4, 4),  # CLOSED
    )
)

_TIMEOUTS: dict[int, tuple[int, int, int, int, int]] = {  # seconds, by protocol and state
    TCP: (60, 60, 432_000, 120, 10),
    UDP: (30, 0, 180, 0, 0),
    ICMP: (30, 0, 30, 0, 0),
    ICMPV6: (30, 0, 30, 0, 0),
}
_OTHER_TIMEOUTS = (60, 0, 600, 0, 0)
_OFFLOADED_TIMEOUT = 150  # seconds


class Offload(IntEnum):
    """Extent to which the kernel passes a flow without a verdict, under the policy verdict that opened the flow."""

    NEVER = 0  # policy denies the flow, and only audit mode accepts it
    NONE = 1  # nothing yet
    OPENER = 2  # the opener's packets
    FLOW = 3  # the packets of both directions


class Origin(NamedTuple):
    """Origin of packets: interface and stamped identity."""

    interface: str | None  # None: this host
    identity: Identity | None  # None: no stamp; ``world``: behind a node, but none of its endpoints

    @property
    def endpoint(self) -> Identity | None:
        """Return the identity of the remote endpoint that the stamp names, None if it names none."""
        return None if self.identity == WORLD else self.identity


@lru_cache(maxsize=4096)
def shared_origin(interface: str | None, identity: Identity | None) -> Origin:
    """Return the origin, as one object shared by all flows that have it."""
    return Origin(interface, identity)


ORIGIN_UNKNOWN = Origin("", None)
"""Origin of an imported flow until its opener sends a packet. No interface has an empty name."""

REVISION_NONE = -1  # the revision of an imported flow until its first evaluation
REVISION_L7 = -3  # the revision of a flow with layer-7 rules, whose packets need more than the flow's verdict
REVISION_UNREPORTED = -2  # the revision of a flow until a packet of it has passed: its first one was too long


class Opening(NamedTuple):
    """Opening of a flow, the input of a policy evaluation: its first packet, and the identities of both ends."""

    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int
    icmp_type: int
    icmp_code: int
    to_host: bool  # delivered to this host itself
    source: Identity
    destination: Identity
    sender: int = 0  # cgroup of the opener's socket, if it is that of a process endpoint of this node
    receiver: int = 0  # the same of the replier's socket


class FlowL7(NamedTuple):
    """Layer-7 treatment of a flow: the rules that each of its messages has to meet."""

    dns: DnsRules | None  # None: the proxy checks them
    revision: int  # of the policy with these rules
    opening: Opening


class Flow:
    """Flow: one connection, or one exchange of a connectionless protocol, as this node sees it."""

    __slots__ = (
        "destination",
        "elder",
        "expires",
        "fins",
        "fits",
        "key",
        "l7",
        "lifetime",
        "masqueraded",
        "names",
        "offload",
        "origin",
        "over",
        "receiver",
        "reply_key",
        "reply_origin",
        "reply_stamp",
        "reply_traffic",
        "revision",
        "sender",
        "slot",
        "source",
        "stamp",
        "started",
        "state",
        "to_host",
        "traffic",
        "younger",
    )

    to_host: bool  # delivered to this host itself
    origin: Origin  # of the opener's packets
    revision: int  # of the policy that allowed it
    stamp: StampTemplate | None  # for the opener's packets
    reply_stamp: StampTemplate | None  # for replies
    lifetime: int  # seconds without a packet after which the flow expires in its state
    expires: float
    started: float | None  # time of its first packet; None: that packet is not known here
    elder: "Flow"  # neighbours in the table, by age
    younger: "Flow"

    def __init__(self, key: bytes, answer_key: bytes) -> None:
        """Make an unanswered flow; its policy verdict and its time-out are set by the caller and the table."""
        self.key = key
        self.reply_key = answer_key
        self.reply_origin: Origin | None = None  # set by the first reply, or before
        self.state = FlowState.NEW
        self.source = self.destination = Identity(0)  # until its first evaluation
        self.offload = Offload.NONE
        self.l7: FlowL7 | None = None
        self.names: tuple[str, ...] = ()  # of its destination, when it was evaluated: those that policy names
        self.sender = self.receiver = 0  # cgroups of process endpoints, as in ``Opening``
        self.slot = 0  # of the proxy, which receives the flow; negative: which has opened it
        self.masqueraded = False  # the opener's stamp came from an address of no endpoint: a router rewrote the address
        self.traffic = self.reply_traffic = 0  # counts, see ``flow_ends``: of the opener's packets, and of the replies
        self.fins = 0  # TCP: 1 the opener has sent a FIN, 2 the replier, 3 both
        self.over = False  # its end is, or will be, in the log
        self.fits = False  # TCP: the SYN passed here and had its MSS clamped, so every segment has room for a stamp

    @property
    def opening(self) -> Opening:
        """Return the opening that policy evaluated."""
        return Opening(
            *(*read_key(self.key), self.to_host, self.source, self.destination),
            *(self.sender, self.receiver),
        )

    @property
    def evaluated(self) -> int:
        """Return the revision of the policy that allowed it, also if ``revision`` keeps it off the fast path."""
        return self.revision if self.l7 is None else self.l7.revision

    @property
    def is_reported(self) -> bool:
        """Tell whether the log has the flow, and its end is known here.

        Only the kernel knows the end of an offloaded flow. Of a flow through the proxy, the client's half is reported.
        """
        return self.source != 0 and self.offload <= Offload.NONE and self.slot >= 0

    @property
    def last_seen(self) -> float:
        """Return the time of its last packet."""
        return self.expires - self.lifetime

    @property
    def is_over(self) -> bool:
        """Tell whether a TCP flow is closed, or may be: the kernel does not show the end of an offloaded flow."""
        return self.state >= FlowState.CLOSING or self.offload is Offload.FLOW

    def origin_of(self, packet: Packet) -> Origin | None:
        """Return the origin of packets of this one's direction; None until the first reply has shown it."""
        return self.origin if packet.key == self.key else self.reply_origin

    def stamp_on(self, packet: Packet) -> StampTemplate | None:
        """Return the stamp for packets of this one's direction that leave for another node."""
        return self.stamp if packet.key == self.key else self.reply_stamp

    def is_reopened_by(self, packet: Packet) -> bool:
        """Tell whether the packet opens a new flow under the keys of this one.

        The replier must not open a connection under cover of a flow, and a port may be reused after the flow's end.
        """
        return packet.opens and (packet.key != self.key or self.is_over)


class KernelFlow(NamedTuple):
    """Flow of the kernel's conntrack."""

    key: bytes  # of its opener's packets
    state: FlowState
    expires_in: float  # seconds
    of_process: bool = False  # one of its ends is a process endpoint of this node


class _AgeList:
    """Ring of flows by age, the oldest first; a flow is unlinked in constant time, wherever it stands."""

    def __init__(self) -> None:
        self._end = Flow(b"", b"")
        self._end.elder = self._end.younger = self._end

    def __iter__(self) -> Iterator[Flow]:
        flow = self._end.younger
        while flow is not self._end:
            yield flow
            flow = flow.younger

    def append(self, flow: Flow) -> None:
        last, end = self._end.elder, self._end
        flow.elder, flow.younger = last, end
        last.younger = end.elder = flow


def _unlink(flow: Flow) -> None:
    flow.elder.younger, flow.younger.elder = flow.younger, flow.elder


_PARTS = 1024
_SWEEP_PERIOD = 32  # seconds in which the sweep visits every flow
_REMOVAL_COST = 32  # looks at a flow that take as long as one removal
_MIN_REMOVALS = 50  # flows that a step removes at least, if that many have expired


class Conntrack:
    """Table of the flows of one worker."""

    def __init__(self, maximum: int, now: float) -> None:
        """Make an empty table for at most ``maximum`` flows (at least 1); ``now`` in seconds, of any steady clock."""
        self._maximum = maximum
        self._parts: tuple[dict[bytes, Flow], ...] = tuple({} for _ in range(_PARTS))
        self._unconfirmed = _AgeList()
        self._confirmed = _AgeList()
        self._offloaded = _AgeList()
        self._length = 0
        self._swept = _parts_due(now)
        self.evicted = 0
        self.ends = FlowEnds()

    def __len__(self) -> int:
        """Return the number of flows."""
        return self._length

    def __iter__(self) -> Iterator[Flow]:
        """Yield every flow, unconfirmed ones first."""
        yield from self._unconfirmed
        yield from self._confirmed
        yield from self._offloaded

    def lookup(self, key: bytes, now: float) -> Flow | None:
        """Return the live flow of packets with this key, in either direction."""
        flow = self._parts[hash(key) % _PARTS].get(key)
        if flow is not None and flow.expires <= now:
            self.remove(flow, EndCause.EXPIRED, now)
            return None
        return flow

    def create(self, packet: Packet, now: float) -> Flow:
        """Create the flow that this packet opens, in place of any flow with one of its keys."""
        flow = Flow(packet.key, reply_key(packet.key))
        for key in (flow.key, flow.reply_key):
            old = self._parts[hash(key) % _PARTS].get(key)
            if old is not None:
                self.remove(old, EndCause.REPLACED, now)
        if self._length >= self._maximum:
            self._evict(now)
        self._insert(flow)
        flow.started = now if packet.opens or packet.proto != TCP else None
        flow.fits = packet.opens
        self.update(flow, False, packet.tcp_flags, packet.length, now)
        return flow

    def import_flow(self, known: KernelFlow, now: float) -> bool:
        """Import a flow of the kernel's conntrack, to be evaluated at its next packet; return False without room."""
        flow = _imported(known.key, known.state)
        if self._length >= self._maximum or self.lookup(flow.key, now) or self.lookup(flow.reply_key, now):
            return False
        self._insert(flow)
        flow.expires = now + min(known.expires_in, flow.lifetime)
        return True

    def restore(self, key: bytes, now: float) -> Flow:
        """Import an established flow that is not in the table; ``key``: of its opener's packets."""
        flow = _imported(key, FlowState.ESTABLISHED)
        if self._length >= self._maximum:
            self._evict(now)
        self._insert(flow)
        flow.expires = now + flow.lifetime
        return flow

    def offload(self, flow: Flow, extent: Offload, now: float) -> None:
        """Record the extent to which the kernel passes the flow from now on."""
        flow.offload = extent
        if extent is Offload.FLOW:
            flow.state = FlowState.ESTABLISHED  # the kernel does not show its end
        flow.lifetime = _OFFLOADED_TIMEOUT
        flow.expires = now + _OFFLOADED_TIMEOUT
        _unlink(flow)
        self._offloaded.append(flow)

    def _insert(self, flow: Flow) -> None:
        for key in (flow.key, flow.reply_key):
            self._parts[hash(key) % _PARTS][key] = flow
        (self._unconfirmed if flow.state < FlowState.ESTABLISHED else self._confirmed).append(flow)
        self._length += 1
        flow.lifetime = _TIMEOUTS.get(flow.key[0], _OTHER_TIMEOUTS)[flow.state]

    def update(self, flow: Flow, reply: bool, tcp_flags: int, length: int, now: float) -> None:
        """Update a flow by one of its packets, of this length: advance its state, renew its time-out, count it."""
        if tcp_flags & _FIN_RST or flow.state is _ANSWERED or (reply and flow.state is _NEW):
            self._advance(flow, reply, tcp_flags, now)
        flow.expires = now + flow.lifetime
        if reply:
            flow.reply_traffic += _ONE_PACKET + length
        else:
            flow.traffic += _ONE_PACKET + length

    def _advance(self, flow: Flow, reply: bool, tcp_flags: int, now: float) -> None:
        proto, state = flow.key[0], flow.state
        if proto == TCP:
            flow.state = _TCP_TRANSITIONS[state][_segment(reply, tcp_flags)]
            if tcp_flags & _FIN_RST:
                self._close(flow, reply, now)
            confirmed = state is _ANSWERED and not reply and tcp_flags & _SYN_ACK != _SYN
        else:
            confirmed = state is _ANSWERED or (state is _NEW and reply)
            flow.state = FlowState.ESTABLISHED if confirmed else state
        if confirmed:
            _unlink(flow)
            self._confirmed.append(flow)
        flow.lifetime = _TIMEOUTS.get(proto, _OTHER_TIMEOUTS)[flow.state]

    def _close(self, flow: Flow, reply: bool, now: float) -> None:
        """Note the FIN or RST of one side; the flow is over if both have sent a FIN."""
        flow.fins |= 2 if reply else 1
        if flow.state is FlowState.CLOSED:
            self.ends.close(flow, EndCause.RESET, now)
        elif flow.fins == _BOTH:
            self.ends.close(flow, EndCause.CLOSED, now)

    def remove(self, flow: Flow, cause: EndCause, now: float) -> None:
        """Remove the flow, which must be in the table, and so end it."""
        self._take_out(flow)
        self.ends.add(flow, EndCause.CLOSED if flow.state is FlowState.CLOSING else cause, now)

    def _take_out(self, flow: Flow) -> None:
        for key in {flow.key, flow.reply_key}:
            del self._parts[hash(key) % _PARTS][key]
        _unlink(flow)
        self._length -= 1

    def forget(self, flow: Flow, now: float) -> None:
        """Forget verdict, identities, origin and stamps of a flow in the table.

        An established flow stays, as one imported from the kernel's conntrack: its next packet is evaluated. Without it
        the replies of a connection whose opener is silent would be dropped.
        """
        if flow.state is not FlowState.ESTABLISHED:
            self.remove(flow, EndCause.FLUSHED, now)
            return
        self._take_out(flow)
        self.import_flow(KernelFlow(flow.key, flow.state, max(0.0, flow.expires - now)), now)
        successor = self._parts[hash(flow.key) % _PARTS][flow.key]
        successor.started = flow.started
        successor.traffic, successor.reply_traffic = flow.traffic, flow.reply_traffic

    def expire(self, now: float, budget: int = 5000) -> int:
        """Continue the sweep up to the parts that are due now; return the number of flows removed.

        The sweep ends early after a look at ``budget`` flows (a few more in the last part), which takes about 1 ms.
        """
        removed, due = 0, _parts_due(now)
        self._swept = max(self._swept, due - _PARTS)
        while self._swept < due and budget > 0:
            part = self._parts[self._swept % _PARTS]
            expired = [flow for key, flow in part.items() if key is flow.key and flow.expires <= now]
            budget -= len(part)
            removals = expired[: max(_MIN_REMOVALS, budget // _REMOVAL_COST)]
            for flow in removals:
                self.remove(flow, EndCause.EXPIRED, now)
            removed += len(removals)
            budget -= len(removals) * _REMOVAL_COST
            self._swept += len(removals) == len(expired)
        return removed

    def _evict(self, now: float) -> None:
        self.remove(next(chain(self._offloaded, self._unconfirmed, self._confirmed)), EndCause.EVICTED, now)
        self.evicted += 1


def _segment(reply: bool, tcp_flags: int) -> int:
    """Return the column of ``_TCP_TRANSITIONS`` for a segment."""
    if tcp_flags & _RST:
        return 6 if reply else 3
    if tcp_flags & _FIN:
        return 5 if reply else 2
    return 4 if reply else int(tcp_flags & _SYN_ACK != _SYN)


def _imported(key: bytes, state: FlowState) -> Flow:
    """Return a flow without a policy verdict, to be evaluated at its next packet."""
    flow = Flow(key, reply_key(key))
    flow.state = state
    flow.origin, flow.revision, flow.to_host = ORIGIN_UNKNOWN, REVISION_NONE, False
    flow.stamp = flow.reply_stamp = flow.started = None
    return flow


def _parts_due(now: float) -> int:
    """Return the number of parts that the sweep has to have visited by this time, since the clock began."""
    return int(now * _PARTS / _SWEEP_PERIOD)
