"""The verdict on one packet.

A packet is parsed. If it belongs to a flow that was judged under the policy in force, and comes from where that flow
comes from, it passes. Else the identities of both ends are found, and policy says whether the first of them may open
this flow to the second; what may, makes a flow. A packet that leaves for another node gets its sender's stamp.
"""

from typing import NamedTuple

from nfq_enforcer.core import icmp, stamp
from nfq_enforcer.core.conntrack import Conntrack, Flow, Opening, Origin, State
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.judgement import Judgement, Refused, check_reply, judge, source_endpoint, stamp_toward
from nfq_enforcer.core.packet import ICMP, ICMPV6, TCP, Packet, parse, parse_quoted
from nfq_enforcer.core.policymap import RuleRef
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.core.stamp import Stamp
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, PacketError, Verdict

_UNKNOWN = Identity(0)
_NAMED = 8  # rules that an event names at most
_ICMP_REPLIES = {ICMP: frozenset({0, 14, 16, 18}), ICMPV6: frozenset({129})}


class Interface(NamedTuple):
    """A network interface of this host, as far as a verdict needs it."""

    name: str
    mtu: int


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


class Enforcer:
    """Decides packets, one after another, by the snapshot that was last put in ``snapshot``."""

    def __init__(self, snapshot: Snapshot, flows: Conntrack, *, hands_on: bool = False) -> None:
        """Start with this snapshot and table of flows; ``hands_on``: other queues may judge in place of a drop."""
        self._hands_on = hands_on
        self._skb = 0
        self.snapshot = snapshot
        self.flows = flows
        self._identification = 0

    def decide(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int = 0
    ) -> Decision:
        """Return the decision on an IP packet; never raise, whatever the bytes.

        ``payload`` may be cut short by the queue as long as its headers are whole. ``indev`` is None for a packet
        that this host sends itself, ``outdev`` for one that is delivered to it. ``now`` is in seconds and never goes
        back.
        """
        packet = None
        self._skb = skb
        try:
            packet = parse(payload)
            return self._decide(payload, packet, indev, outdev, now)
        except PacketError as error:
            return Decision(Verdict.DROP, event=self._dropped(packet, error, indev, outdev, now))

    def _decide(
        self, payload: bytes, packet: Packet, indev: Interface | None, outdev: Interface | None, now: float
    ) -> Decision:
        snapshot = self.snapshot  # read once: a packet sees one revision
        claim = _claim(snapshot, payload, packet, indev) if packet.options else None
        origin = (indev.name if indev else None, claim)
        if packet.error:
            return self._relate(payload, packet, origin, indev, outdev, now)
        flow, event = self.flows.lookup(packet.key, now), None
        if flow is None or _opens_anew(packet, flow):
            if _only_answers(packet):
                return self._judge_alone(payload, packet, origin, indev, outdev, now)
            flow, event = self._open(packet, origin, outdev, now)
        elif flow.revision != snapshot.revision or origin != flow.origin_of(packet):
            event = self._judge_again(flow, packet, origin, now)
        self.flows.see(flow, packet, now)
        return self._forward(payload, packet, flow.stamp_on(packet), indev, outdev, now, event)

    def _judge_alone(
        self,
        payload: bytes,
        packet: Packet,
        origin: Origin,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
    ) -> Decision:
        """Decide a packet that belongs to no known flow and can open none: an answer, or an ICMP error."""
        judgement = judge(self.snapshot, _opening(packet, outdev), origin, answers=not packet.error)
        event = self._audited(packet, judgement, now)
        return self._forward(payload, packet, judgement.stamp, indev, outdev, now, event)

    def _open(
        self, packet: Packet, origin: Origin, outdev: Interface | None, now: float
    ) -> tuple[Flow, FlowEvent | None]:
        """Return the flow that the packet opens, and its event."""
        judgement = judge(self.snapshot, _opening(packet, outdev), origin)
        flow = self.flows.lookup(packet.key, now)
        if flow is not None and flow.state < State.CLOSING and flow.revision == self.snapshot.revision:
            # Both ends open at once (RFC 9293 section 3.5): one flow.
            return flow, self._audited(packet, judgement, now)
        flow = self.flows.create(packet, now)
        self._settle(flow, judgement)
        return flow, self._judged(packet, judgement, now)

    def _judge_again(self, flow: Flow, packet: Packet, origin: Origin, now: float) -> FlowEvent | None:
        """Hold a known flow against the policy in force, and its packet against where the flow comes from."""
        reply = packet.key != flow.key
        opener = flow.origin if reply else origin
        event = None
        if flow.revision != self.snapshot.revision or opener != flow.origin:
            event = self._renew(flow, packet, opener, now)
        if reply and origin != flow.reply_origin:
            check_reply(self.snapshot, flow.opening, origin)
            flow.reply_origin = origin
        return event

    def _renew(self, flow: Flow, packet: Packet, opener: Origin, now: float) -> FlowEvent | None:
        """Judge the opening of a known flow as if ``opener`` were at it now; return an event if only audit allows it.

        A stranger's packet must not cut the flow. One of TCP that is cut stays known, and is judged at each packet:
        else its other end, if it may open connections of its own, would revive it with its next segment.
        """
        try:
            judgement = judge(self.snapshot, flow.opening, opener)
        except PacketError:
            if opener == flow.origin and flow.opening.proto != TCP:
                self.flows.remove(flow)
            raise
        self._settle(flow, judgement)
        return self._audited(packet, judgement, now)

    def _settle(self, flow: Flow, judgement: Judgement) -> None:
        flow.opening = judgement.opening
        flow.origin = judgement.origin
        flow.stamp = judgement.stamp
        flow.reply_stamp = judgement.reply_stamp
        flow.reply_origin = None  # to be learned again
        flow.revision = self.snapshot.revision

    def _relate(
        self,
        payload: bytes,
        packet: Packet,
        origin: Origin,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
    ) -> Decision:
        """Decide an ICMP error: it passes with the flow of the packet that it quotes, else as policy says of it.

        It goes to the sender of what it quotes. Any router may have sent it, but an endpoint only speaks of what it
        was sent itself.
        """
        quoted = parse_quoted(payload, packet)
        source = source_endpoint(self.snapshot, packet.src, origin)
        concerns = source is None or self.snapshot.endpoints.get(quoted.dst) is source
        flow = self.flows.lookup(quoted.key, now) if concerns and quoted.src == packet.dst else None
        if flow is None:
            return self._judge_alone(payload, packet, origin, indev, outdev, now)
        event = None
        if flow.revision != self.snapshot.revision:
            event = self._renew(flow, quoted, flow.origin, now)
        mark = stamp_toward(self.snapshot, _opening(packet, outdev), source)
        return self._forward(payload, packet, mark, indev, outdev, now, event)

    def _forward(
        self,
        payload: bytes,
        packet: Packet,
        mark: Stamp | None,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
        event: FlowEvent | None = None,
    ) -> Decision:
        """Let the packet go on, with the stamp it shall bear and no other."""
        forged = packet.options and packet.src in self.snapshot.endpoints
        if mark is None and not forged:
            return Decision(Verdict.ACCEPT, event=event) if event else _ACCEPT
        if self._skb & 2 and packet.proto != TCP and self._hands_on:
            return Decision(Verdict.HAND_ON_SEGMENTED)
        if packet.truncated:
            if self._hands_on:
                return Decision(Verdict.HAND_ON_WHOLE)
            raise PacketError(DropReason.PAYLOAD_TOO_LONG)
        try:
            changed = stamp.write(payload, packet, mark) if mark else stamp.strip(payload, packet)
        except PacketError:
            if self._hands_on and self._skb & 2:
                return Decision(Verdict.HAND_ON_SEGMENTED)
            raise
        if self._skb & 2:
            return Decision(Verdict.ACCEPT, changed, event=event)
        if self._skb & 1:
            changed = _summed(changed)
        if outdev is not None and packet.df and len(changed) > outdev.mtu:
            return self._fit(payload, changed, packet, indev, outdev, now, event)
        return Decision(Verdict.ACCEPT, changed, event=event)

    def _fit(
        self,
        payload: bytes,
        changed: bytes,
        packet: Packet,
        indev: Interface | None,
        outdev: Interface,
        now: float,
        event: FlowEvent | None,
    ) -> Decision:
        """Deal with a packet that its stamp has made too long for the way, and that must not be fragmented.

        What this host sends itself is given to the kernel to fragment (it does so with IPv6 of its own anyway);
        another sender is told the size that fits, unless it sends an ICMP error (RFC 1122 section 3.2.2). A packet
        that was too long before came in fragments, which the kernel has put together and will cut again. An IPv6
        packet may have, and does not show it: it goes on too, for the kernel to cut again or to refuse.
        """
        if indev is None:
            self._identification = self._identification % 0xFFFF + 1
            fragmentable = icmp.clear_df(changed, self._identification) if packet.version == 4 else changed
            return Decision(Verdict.ACCEPT, fragmentable, event=event)
        if packet.length > outdev.mtu:
            return Decision(Verdict.ACCEPT, changed, event=event)
        source = self.snapshot.node_addresses.get(packet.version)
        fitting = outdev.mtu - stamp.overhead(packet.version)
        answer = icmp.too_big(payload, packet, fitting, source) if source and not packet.error else None
        if packet.version == 6:
            return Decision(Verdict.ACCEPT, changed, answer, event)
        dropped = self._dropped(packet, PacketError(DropReason.FRAG_NEEDED), indev, outdev, now)
        return Decision(Verdict.DROP, answer=answer, event=dropped)

    def _audited(self, packet: Packet, judgement: Judgement, now: float) -> FlowEvent | None:
        """Return an event for what only audit lets pass."""
        return self._judged(packet, judgement, now) if judgement.refused else None

    def _judged(self, packet: Packet, judgement: Judgement, now: float) -> FlowEvent:
        both_pass = Direction.INGRESS if judgement.opening.dst in self.snapshot.endpoints else Direction.EGRESS
        return FlowEvent(
            now,
            FlowVerdict.AUDIT if judgement.refused else FlowVerdict.FORWARDED,
            judgement.reason,
            judgement.refused or both_pass,
            judgement.opening,
            packet.tcp_flags,
            is_reply=packet.src != judgement.opening.src,
            allowed_by=judgement.allowed_by[:_NAMED],
            enforced_by=judgement.enforced_by[:_NAMED],
            denied_by=judgement.denied_by[:_NAMED],
        )

    def _dropped(
        self,
        packet: Packet | None,
        error: PacketError,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
    ) -> FlowEvent:
        if isinstance(error, Refused):
            judged = error.judgement
            opening, side, closed_by, denied_by = judged.opening, judged.refused, judged.enforced_by, judged.denied_by
        else:
            opening, side, closed_by, denied_by = _opening(packet, outdev), None, (), ()
        leaves = self.snapshot.leaves(packet.src if packet else b"", indev.name if indev else None)
        return FlowEvent(
            now,
            FlowVerdict.DROPPED,
            error.reason,
            side or (Direction.EGRESS if leaves else Direction.INGRESS),
            opening,
            packet.tcp_flags if packet else 0,
            is_reply=packet is not None and packet.src != opening.src,
            enforced_by=closed_by[:_NAMED],
            denied_by=denied_by[:_NAMED],
        )


def _claim(snapshot: Snapshot, payload: bytes, packet: Packet, indev: Interface | None) -> Identity | None:
    """Return the identity on the packet's stamp, None without one; raise PacketError for a stamp not to be believed.

    What a local endpoint or the host itself puts there counts for nothing: it is replaced on the way out.
    """
    if indev is None or packet.src in snapshot.endpoints:
        return None
    found = stamp.read(payload, packet)
    if found is None:
        return None
    if indev.name not in snapshot.cluster_interfaces:
        raise PacketError(DropReason.STAMP_UNTRUSTED)
    return found.identity


def _summed(changed: bytes) -> bytes:
    packet = parse(changed)
    at = packet.l4_offset + {6: 16, 17: 6, 58: 2}.get(packet.proto, 0)
    if at == packet.l4_offset:
        return changed
    l4 = changed[packet.l4_offset :]
    total = (int.from_bytes(l4, "big") << 8 * (len(l4) % 2)) % 65535
    return changed[:at] + (0xFFFF - total or 0xFFFF).to_bytes(2, "big") + changed[at + 2 :]


def _opens_anew(packet: Packet, flow: Flow) -> bool:
    """Say whether the packet opens a connection of its own although a flow has its key.

    The other end may not open one under cover of a flow, and a port may be used again after a flow has closed.
    """
    return packet.opens and (packet.key != flow.key or flow.state >= State.CLOSING)


def _only_answers(packet: Packet) -> bool:
    """Say whether the packet can only answer another one, so that it opens no flow."""
    return packet.is_syn_ack or packet.is_rst or packet.icmp_type in _ICMP_REPLIES.get(packet.proto, ())


def _opening(packet: Packet | None, outdev: Interface | None) -> Opening:
    if packet is None:
        return Opening(b"", b"", 0, 0, 0, -1, -1, outdev is None, _UNKNOWN, _UNKNOWN)
    return Opening(
        packet.src,
        packet.dst,
        packet.proto,
        packet.sport,
        packet.dport,
        packet.icmp_type,
        packet.icmp_code,
        outdev is None,
        _UNKNOWN,
        _UNKNOWN,
    )
