"""The verdict on one packet.

A plain packet of a flow that was judged under the policy in force, and that comes from where the flow comes from,
passes at a glance. Any other is parsed. If no known flow lets it pass, the identities of both ends are found, and
policy says whether the first of them may open this flow to the second; what may, makes a flow. A packet that leaves
for another node gets its sender's stamp. Where the kernel shall pass established flows by itself, the verdict says so.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nfq_enforcer.core.context import OPENERS, Interface, PacketContext
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.offload import bypass
from nfq_enforcer.core.policy_verdict import (
    PolicyDenied,
    PolicyVerdict,
    check_reply,
    evaluate,
    is_masqueraded,
    likely_origin,
    presumed_origin,
    reply_origin,
    source_endpoint,
    stamp_toward,
)
from nfq_enforcer.core.rewrite import Requeue, press, rewrite
from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_NONE,
    Conntrack,
    Flow,
    FlowState,
    Offload,
    Opening,
    Origin,
)
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, PacketError, Verdict
from nfq_enforcer.core.wire import icmp, stamp
from nfq_enforcer.core.wire.checksums import SEGMENTS
from nfq_enforcer.core.wire.fast_parse import parse_fast
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, Packet, parse, parse_quoted, reply_key
from nfq_enforcer.core.wire.stamp import Stamp, StampTemplate, stamp_template

_NAMED = 8  # rules that an event names at most
_ICMP_REPLIES = {ICMP: frozenset({0, 14, 16, 18}), ICMPV6: frozenset({129})}
_IPV4_KEY = 13
_UNREADABLE = Packet(4, 0, b"", 0, False, 0, False, False, 0, -1, -1)


class FlowEvent(NamedTuple):
    """A new flow or a drop, for the log. Addresses are bytes, empty where the packet could not be read."""

    time: float  # on the clock of ``decide``'s ``now``
    verdict: FlowVerdict
    reason: DropReason | None
    direction: Direction  # the side that decided; of a flow that both sides let pass: ingress
    opening: Opening  # what policy judged: who would have opened the flow; for other drops: what the packet says
    tcp_flags: int
    is_reply: bool
    allowed_by: tuple[RuleRef, ...] = ()  # the rules that opened the flow
    enforced_by: tuple[RuleRef, ...] = ()  # the rules that closed what no rule opens
    denied_by: tuple[RuleRef, ...] = ()  # the deny rules that refuse it


class Decision(NamedTuple):
    """What to do with a packet: the verdict, and what else follows."""

    verdict: Verdict
    payload: bytes | None = None  # the packet as it shall go on, where that differs
    answer: bytes | None = None  # a packet to send back to the sender
    event: FlowEvent | None = None


_ACCEPT = Decision(Verdict.ACCEPT)
_LEFT_TO_THE_KERNEL = (
    _ACCEPT,
    _ACCEPT,
    Decision(Verdict.OFFLOAD_OPENER),
    Decision(Verdict.OFFLOAD_FLOW),
)  # by ``Offload``
_ANSWERED, _FLOW = FlowState.ANSWERED, Offload.FLOW  # looking a member up takes longer than the packet path has


@dataclass(slots=True)
class _Passage:
    """By what right a packet passes, and what is to be noted of it once it does."""

    mark: StampTemplate | None  # the stamp that it shall bear
    flow: Flow | None = None  # the known flow to which it belongs
    judgement: PolicyVerdict | None = None
    opens: bool = False  # the judgement makes a flow
    renews: bool = False  # the judgement takes the place of the one that the flow was opened by
    answers: bool = False  # it comes from the flow's other end, which has just been checked


class Enforcer:
    """Decides packets, one after another, by the snapshot that was last put in ``snapshot``."""

    def __init__(
        self, snapshot: Snapshot, flows: Conntrack, *, can_requeue: bool = False, has_next: bool = False
    ) -> None:
        """Start with this snapshot and table of flows.

        ``can_requeue``: there are other queues, for packets that have to be rewritten and cannot be as they came.
        ``has_next``: there is another worker, with flows of its own, to be asked about what is not known here.
        """
        self.snapshot = snapshot
        self.flows = flows
        self._hands_on = can_requeue
        self._has_next = has_next
        self._identification = 0

    def decide(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int = 0
    ) -> Decision:
        """Return the decision on an IP packet; never raise, whatever the bytes.

        ``payload`` may be cut short by the queue as long as its headers are whole. ``indev`` is None for a packet
        that this host sends itself, ``outdev`` for one that is delivered to it. ``now`` is in seconds and never goes
        back. ``skb`` are bits of NFQA_SKB_INFO (see ``offload``), and those of ``arrival``.
        """
        decision = self._at_a_glance(payload, indev, outdev, now, skb)
        return decision or self.consider(payload, indev, outdev, now, skb)

    def _at_a_glance(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision | None:
        """Decide a plain packet that only goes on with its flow; return None if there is more to it."""
        seen = parse_fast(payload)
        if seen is None:
            return None
        key, claim, flags, _, _ = seen
        flow = self.flows.lookup(key, now)
        snapshot = self.snapshot
        if flow is None or flow.revision != snapshot.revision:
            return None
        reply = key != flow.key
        origin, mark = (flow.reply_origin, flow.reply_stamp) if reply else (flow.origin, flow.stamp)
        if origin != (indev.name if indev else None, claim):
            return None
        if mark is None:
            self.flows.see(flow, reply, flags, now)
            return _ACCEPT if snapshot.epoch is None else self._hand_over(flow, reply, claim is not None, now)
        if skb & SEGMENTS and not flow.fits:
            return None
        stamped = press(payload, seen, mark, outdev, skb)
        if stamped is None:
            return None
        self.flows.see(flow, reply, flags, now)
        return Decision(Verdict.ACCEPT, stamped)

    def consider(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision:
        """Return the same decision without a glance, as it takes for all that is not plain or not of a known flow."""
        arrival = PacketContext(payload, _UNREADABLE, indev, outdev, now, skb, (None, None))
        try:
            arrival.packet = parse(payload, segments=arrival.segments)
            claim = _claim(self.snapshot, arrival) if arrival.packet.options else None
            arrival.origin = _origin(arrival.indev.name if arrival.indev else None, claim)
            arrival.stamped = claim is not None
            passage = self._relate(arrival) if arrival.packet.error else self._admit(arrival)
            return self._forward(arrival, passage)
        except Requeue as handed:
            return Decision(handed.verdict)
        except PacketError as error:
            return Decision(Verdict.DROP, event=self._dropped(arrival, error))

    def _admit(self, arrival: PacketContext) -> _Passage:
        """Return by what right the packet passes: its flow's, or a rule's."""
        packet = arrival.packet
        flow = self.flows.lookup(packet.key, arrival.now)
        if self.snapshot.epoch is not None:
            flow = self._remember(arrival, flow)
        if flow is None or _opens_anew(packet, flow):
            return self._judge_alone(arrival) if _only_answers(packet) else self._open(arrival, flow)
        if flow.revision != self.snapshot.revision or arrival.origin != flow.origin_of(packet):
            return self._judge_again(arrival, flow)
        return _Passage(flow.stamp_on(packet), flow)

    def _remember(self, arrival: PacketContext, flow: Flow | None) -> Flow | None:
        """Return the flow, known or only on the kernel's record; what it sends without a stamp counts as its own."""
        packet = arrival.packet
        if flow is None and arrival.on_record and not packet.opens:
            opened_by = packet.key if arrival.skb & OPENERS else reply_key(packet.key)
            flow = self.flows.restore(opened_by, arrival.now)
        if flow is None or _opens_anew(packet, flow):
            return flow
        if arrival.on_record or (flow.revision != REVISION_NONE and flow.state >= FlowState.ANSWERED):
            expected = flow.origin if flow.masqueraded and packet.key == flow.key else None
            arrival.origin = _origin(*presumed_origin(self.snapshot, arrival.origin, packet.src, expected))
        return flow

    def _judge_alone(self, arrival: PacketContext) -> _Passage:
        """Judge a packet that belongs to no known flow and can open none: an answer, or an ICMP error."""
        packet = arrival.packet
        judgement = evaluate(self.snapshot, arrival.opening, arrival.origin, answers=not packet.error)
        return _Passage(_imprint(judgement.stamp, packet.key), judgement=judgement)

    def _open(self, arrival: PacketContext, known: Flow | None) -> _Passage:
        """Judge a packet that opens a flow."""
        packet = arrival.packet
        judgement = evaluate(self.snapshot, arrival.opening, arrival.origin)
        if known is not None and not _is_over(known) and known.revision == self.snapshot.revision:
            # Both ends open at once (RFC 9293 section 3.5): one flow.
            return _Passage(known.stamp_on(packet), known, judgement)
        return _Passage(_imprint(judgement.stamp, packet.key), judgement=judgement, opens=True)

    def _judge_again(self, arrival: PacketContext, flow: Flow) -> _Passage:
        """Hold a known flow against the policy in force, and its packet against where the flow comes from."""
        packet, origin = arrival.packet, arrival.origin
        reply = packet.key != flow.key
        if flow.revision == REVISION_NONE:  # the kernel did not say so
            flow.to_host = arrival.indev is None if reply else arrival.outdev is None
        passage = _Passage(flow.stamp_on(packet), flow, answers=reply)
        stranger = not reply and origin != flow.origin
        if stranger or flow.revision != self.snapshot.revision:
            opener = self._opener_of(flow, from_host=arrival.outdev is None) if reply else origin
            judgement = self._judge_opener(flow, opener, stranger=stranger)
            mark = judgement.reply_stamp if reply else judgement.stamp
            passage = _Passage(_imprint(mark, packet.key), flow, judgement, renews=True, answers=reply)
        if reply:
            check_reply(self.snapshot, packet.src, packet.dst, flow.to_host, origin)
        return passage

    def _opener_of(self, flow: Flow, *, from_host: bool) -> Origin:
        """Return where the opener of a flow is, of whom there is no packet now; ``from_host``: if it is this host."""
        interface, opener = flow.origin[0], flow.opening.src
        if interface == ORIGIN_UNKNOWN[0]:
            return likely_origin(self.snapshot, opener, from_host)
        if self.snapshot.epoch is None or flow.masqueraded:
            return flow.origin
        return presumed_origin(self.snapshot, (interface, None), opener, None)

    def _judge_opener(self, flow: Flow, opener: Origin, *, stranger: bool = False) -> PolicyVerdict:
        """Judge the opening of a known flow as if ``opener`` were at it now, who may be a stranger to it.

        A stranger's packet must not cut the flow. One of TCP that is cut stays known, and is judged at each packet:
        else its other end, if it may open connections of its own, would revive it with its next segment.
        """
        opening = flow.opening
        try:
            return evaluate(self.snapshot, opening, opener)
        except PacketError:
            if not stranger and opening.proto != TCP:
                self.flows.remove(flow)
            raise

    def _relate(self, arrival: PacketContext) -> _Passage:
        """Return by what right an ICMP error passes: its flow's whose packet it quotes, else a rule's.

        It goes to the sender of what it quotes. Any router may have sent it, but an endpoint only speaks of what it
        was sent itself. Whose flow it is about cannot be told from its addresses, so workers are asked one by one.
        """
        packet = arrival.packet
        quoted = parse_quoted(arrival.payload, packet)
        source = source_endpoint(self.snapshot, packet.src, arrival.origin)
        concerns = source is None or self.snapshot.endpoints.get(quoted.dst) is source
        flow = self.flows.lookup(quoted.key, arrival.now) if concerns and quoted.src == packet.dst else None
        if flow is None or flow.origin[0] == ORIGIN_UNKNOWN[0]:
            if self._has_next:
                raise Requeue(Verdict.REQUEUE_NEXT)
            return self._judge_alone(arrival)
        mark = _imprint(stamp_toward(self.snapshot, arrival.opening, source), packet.key)
        if flow.revision == self.snapshot.revision:
            return _Passage(mark)
        opener = self._opener_of(flow, from_host=flow.origin[0] is None)
        return _Passage(mark, flow, self._judge_opener(flow, opener), renews=True)

    def _forward(self, arrival: PacketContext, passage: _Passage) -> Decision:
        """Let the packet go on, with the stamp it shall bear and no other."""
        changed = None
        if passage.mark or self._is_forged(arrival):
            fits = passage.flow is not None and passage.flow.fits
            changed = rewrite(arrival, passage.mark, can_requeue=self._hands_on, fits=fits)
        event = self._note(arrival, passage)
        if changed is None:
            decision, flow, packet = _ACCEPT, passage.flow, arrival.packet
            if flow is not None and self.snapshot.epoch is not None and not packet.error:
                decision = self._hand_over(flow, packet.key != flow.key, arrival.stamped, arrival.now)
            return Decision(decision.verdict, event=event) if event else decision
        outdev = arrival.outdev
        if outdev is not None and arrival.packet.df and len(changed) > outdev.mtu and not arrival.segments:
            return self._fit(arrival, changed, outdev, event)
        return Decision(Verdict.ACCEPT, changed, event=event)

    def _hand_over(self, flow: Flow, reply: bool, stamped: bool, now: float) -> Decision:
        """Accept a packet of a known flow, ``stamped`` or not when it came, and leave to the kernel what may be."""
        if not reply and not stamped and flow.state >= _ANSWERED:
            flow.reply_stamp = None  # the opener's node has seen it
        passes = bypass(flow, reply)
        if passes is not flow.offload:
            self.flows.hand_over(flow, passes, now)
        return _LEFT_TO_THE_KERNEL[passes]

    def _is_forged(self, arrival: PacketContext) -> bool:
        """Say whether an endpoint of this node has put a stamp there itself."""
        packet = arrival.packet
        return packet.options and packet.src in self.snapshot.endpoints and stamp.is_stamped(arrival.payload, packet)

    def _note(self, arrival: PacketContext, passage: _Passage) -> FlowEvent | None:
        """Note a packet that passes in its flow; return what is to be logged: a new flow, or what only audit lets pass.

        What is handed on is noted when it comes again.
        """
        packet, flow, judgement = arrival.packet, passage.flow, passage.judgement
        if passage.opens:
            flow = self.flows.create(packet, arrival.now)
        elif flow is not None and not packet.error:
            self.flows.see(flow, packet.key != flow.key, packet.tcp_flags, arrival.now)
        if flow is not None and judgement is not None and (passage.opens or passage.renews):
            self._settle(flow, judgement)
            if arrival.stamped and packet.key == flow.key:
                flow.masqueraded = is_masqueraded(self.snapshot, packet.src)
        if flow is not None and passage.answers:
            flow.reply_origin = arrival.origin
        if judgement is None or not (passage.opens or judgement.refused):
            return None
        return self._judged(arrival, judgement)

    def _settle(self, flow: Flow, judgement: PolicyVerdict) -> None:
        opening = judgement.opening
        flow.to_host, flow.source, flow.destination = opening.to_host, opening.source, opening.destination
        flow.origin = judgement.origin
        flow.stamp = _imprint(judgement.stamp, flow.key)
        flow.reply_stamp = _imprint(judgement.reply_stamp, flow.key)
        flow.reply_origin = reply_origin(self.snapshot, opening)  # or to be learned again
        flow.offload = Offload.NEVER if judgement.refused else Offload.NONE
        flow.revision = self.snapshot.revision

    def _fit(self, arrival: PacketContext, changed: bytes, outdev: Interface, event: FlowEvent | None) -> Decision:
        """Deal with a packet that its stamp has made too long for the way, and that must not be fragmented.

        What this host sends itself is given to the kernel to fragment (it does so with IPv6 of its own anyway);
        another sender is told the size that fits, unless it sends an ICMP error (RFC 1122 section 3.2.2). A packet
        that was too long before came in fragments, which the kernel has put together and will cut again. An IPv6
        packet may have, and does not show it: it goes on too, for the kernel to cut again or to refuse.
        """
        packet = arrival.packet
        if arrival.indev is None:
            self._identification = self._identification % 0xFFFF + 1
            fragmentable = icmp.clear_df(changed, self._identification) if packet.version == 4 else changed
            return Decision(Verdict.ACCEPT, fragmentable, event=event)
        if packet.length > outdev.mtu:
            return Decision(Verdict.ACCEPT, changed, event=event)
        source = self.snapshot.node_addresses.get(packet.version)
        fitting = outdev.mtu - stamp.overhead(packet.version)
        answer = icmp.too_big(arrival.payload, packet, fitting, source) if source and not packet.error else None
        if packet.version == 6:
            return Decision(Verdict.ACCEPT, changed, answer, event)
        dropped = self._dropped(arrival, PacketError(DropReason.FRAG_NEEDED))
        return Decision(Verdict.DROP, answer=answer, event=dropped)

    def _judged(self, arrival: PacketContext, judgement: PolicyVerdict) -> FlowEvent:
        both_pass = Direction.INGRESS if judgement.opening.dst in self.snapshot.endpoints else Direction.EGRESS
        return FlowEvent(
            arrival.now,
            FlowVerdict.AUDIT if judgement.refused else FlowVerdict.FORWARDED,
            judgement.reason,
            judgement.refused or both_pass,
            judgement.opening,
            arrival.packet.tcp_flags,
            is_reply=arrival.packet.src != judgement.opening.src,
            allowed_by=judgement.allowed_by[:_NAMED],
            enforced_by=judgement.enforced_by[:_NAMED],
            denied_by=judgement.denied_by[:_NAMED],
        )

    def _dropped(self, arrival: PacketContext, error: PacketError) -> FlowEvent:
        packet = arrival.packet
        judged = error.judgement if isinstance(error, PolicyDenied) else PolicyVerdict(arrival.opening, arrival.origin)
        opening, side = judged.opening, judged.refused
        leaves = self.snapshot.leaves(packet.src, arrival.indev.name if arrival.indev else None)
        return FlowEvent(
            arrival.now,
            FlowVerdict.DROPPED,
            error.reason,
            side or (Direction.EGRESS if leaves else Direction.INGRESS),
            opening,
            packet.tcp_flags,
            is_reply=packet.src != opening.src,
            enforced_by=judged.enforced_by[:_NAMED],
            denied_by=judged.denied_by[:_NAMED],
        )


@lru_cache(maxsize=4096)
def _origin(interface: str | None, claim: Identity | None) -> Origin:
    """Return where packets come from, as one object for all flows that come from there."""
    return interface, claim


def _imprint(mark: Stamp | None, key: bytes) -> StampTemplate | None:
    """Return the stamp ready for packets of a flow with this key."""
    return stamp_template(mark, 4 if len(key) == _IPV4_KEY else 6, key[0]) if mark else None


def _claim(snapshot: Snapshot, arrival: PacketContext) -> Identity | None:
    """Return the identity on the packet's stamp, None without one; raise PacketError for a stamp not to be believed.

    What a local endpoint or the host itself puts there counts for nothing: it is replaced on the way out.
    """
    if arrival.indev is None or arrival.packet.src in snapshot.endpoints:
        return None
    found = stamp.read(arrival.payload, arrival.packet)
    if found is None:
        return None
    if arrival.indev.name not in snapshot.cluster_interfaces:
        raise PacketError(DropReason.STAMP_UNTRUSTED)
    return found.identity


def _opens_anew(packet: Packet, flow: Flow) -> bool:
    """Say whether the packet opens a connection of its own although a flow has its key.

    The other end may not open one under cover of a flow, and a port may be used again after a flow has closed.
    """
    return packet.opens and (packet.key != flow.key or _is_over(flow))


def _is_over(flow: Flow) -> bool:
    """Say whether a TCP flow is closed, or may be: the end of one that the kernel passes is not seen."""
    return flow.state >= FlowState.CLOSING or flow.offload is _FLOW


def _only_answers(packet: Packet) -> bool:
    """Say whether the packet can only answer another one, so that it opens no flow."""
    return packet.is_syn_ack or packet.is_rst or packet.icmp_type in _ICMP_REPLIES.get(packet.proto, ())
