"""Enforcer: the verdict on one packet.

Fast path: a plain packet of a known flow, evaluated under the policy in force and arriving from the flow's origin, is
accepted by slices of its header, and stamped if it leaves for another node. Slow path, for every other packet: parse
it, read its stamp, find its flow; classify it as packet of a known flow, opener of a new flow, or stateless reply;
evaluate policy unless its flow has a valid policy verdict; insert or strip the stamp; update the flow. Each step that
refuses the packet raises PacketError with a drop reason.
"""

from dataclasses import dataclass

from nfq_enforcer.core.context import Interface, PacketContext
from nfq_enforcer.core.events import ACCEPT, Decision, FlowEvent
from nfq_enforcer.core.identity import Identity, travels
from nfq_enforcer.core.offload import datapath_mode
from nfq_enforcer.core.policy_verdict import (
    PolicyDenied,
    PolicyVerdict,
    check_reply,
    evaluate,
    likely_origin,
    reply_origin,
    source_endpoint,
    stamp_toward,
)
from nfq_enforcer.core.rewrite import rewrite
from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_NONE,
    Conntrack,
    Flow,
    Offload,
    Opening,
    Origin,
    shared_origin,
)
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, PacketError, Verdict
from nfq_enforcer.core.wire import icmp, stamp
from nfq_enforcer.core.wire.fast_parse import insert_fast, parse_fast
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, Packet, parse, parse_quoted
from nfq_enforcer.core.wire.skb import GSO
from nfq_enforcer.core.wire.stamp import Stamp, StampTemplate, stamp_template

_MAX_RULES = 8  # rules named in one event
_ICMP_REPLIES = {ICMP: frozenset({0, 14, 16, 18}), ICMPV6: frozenset({129})}
_IPV4_KEY = 13
_UNREADABLE = Packet(4, 0, b"", 0, False, 0, False, False, 0, -1, -1)
_NO_ORIGIN = Origin(None, None)
_REQUEUE_NEXT = Decision(Verdict.REQUEUE_NEXT)


@dataclass(slots=True)
class _Accepted:
    """Acceptance: the flow or the policy verdict that admits a packet, and the updates that follow from it."""

    stamp: StampTemplate | None  # for this packet
    flow: Flow | None = None  # the known flow of the packet
    policy_verdict: PolicyVerdict | None = None
    creates: bool = False  # the policy verdict creates a flow
    replaces: bool = False  # the policy verdict replaces that of the known flow
    is_reply: bool = False  # from the flow's other end, whose origin has been checked
    quotes_stamped: bool = False  # an ICMP error about a packet that left this node with a stamp


class Enforcer:
    """Enforcer: decides packets, one after another, by the snapshot in force and the worker's flows."""

    def __init__(
        self, snapshot: Snapshot, flows: Conntrack, *, can_requeue: bool = False, has_next: bool = False
    ) -> None:
        """Start with a snapshot and a table of flows.

        ``can_requeue``: the driver has further queues, which deliver packets whole or in segments. ``has_next``:
        another worker, with flows of its own, may know the flow that an ICMP error quotes.
        """
        self.flows = flows
        self._can_requeue = can_requeue
        self._has_next = has_next
        self._identification = 0
        self.snapshot = snapshot

    @property
    def snapshot(self) -> Snapshot:
        """Return the snapshot in force; an assignment takes effect with the next packet."""
        return self._snapshot

    @snapshot.setter
    def snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._mode = datapath_mode(snapshot, self.flows)
        self._offloads = self._mode.offloads

    def decide(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int = 0
    ) -> Decision:
        """Return the decision on an IP packet; never raise, whatever the bytes.

        ``payload`` may be truncated by the queue as long as its headers are complete. ``indev`` is None for a packet
        sent by this host itself, ``outdev`` for one delivered to it. ``now`` is in seconds and never decreases. ``skb``
        has the bits of ``SkbFlags``.
        """
        decision = self._fast_path(payload, indev, outdev, now, skb)
        return decision or self.slow_path(payload, indev, outdev, now, skb)

    def _fast_path(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision | None:
        """Decide a plain packet of a known flow; return None for every other packet."""
        fast = parse_fast(payload)
        if fast is None:
            return None
        key, identity, tcp_flags, _, _ = fast
        flow = self.flows.lookup(key, now)
        if flow is None or flow.revision != self._snapshot.revision:
            return None
        reply = key != flow.key
        origin, template = (flow.reply_origin, flow.reply_stamp) if reply else (flow.origin, flow.stamp)
        if origin != (indev.name if indev else None, identity):
            return None
        if template is None:
            self.flows.update(flow, reply, tcp_flags, now)
            return self._mode.accept(flow, reply, identity is not None, now) if self._offloads else ACCEPT
        if skb & GSO and not flow.fits:
            return None
        stamped = insert_fast(payload, fast, template, outdev.mtu, skb) if outdev else None
        if stamped is None:
            return None
        self.flows.update(flow, reply, tcp_flags, now)
        return Decision(Verdict.ACCEPT, stamped)

    def slow_path(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision:
        """Decide any packet: the decision that the fast path reaches for its packets, with a full parse."""
        context = PacketContext(payload, _UNREADABLE, indev, outdev, now, skb, _NO_ORIGIN)
        try:
            context.packet = parse(payload, gso=context.gso)
            identity = self._stamped_identity(context) if context.packet.options else None
            context.origin = shared_origin(indev.name if indev else None, identity)
            context.stamped = identity is not None
            if context.packet.options and self._is_transit(context):
                return self._accept(context, _Accepted(None))
            accepted = self._related_icmp(context) if context.packet.error else self._classify(context)
            return _REQUEUE_NEXT if accepted is None else self._accept(context, accepted)
        except PacketError as error:
            return Decision(Verdict.DROP, event=self._dropped(context, error))

    def _stamped_identity(self, context: PacketContext) -> Identity | None:
        """Return the identity on the packet's stamp, None without a stamp; raise PacketError for an untrusted stamp.

        A stamp set by a local endpoint or by the host itself has no meaning: it is replaced on egress.
        """
        if context.indev is None or context.packet.src in self._snapshot.endpoints:
            return None
        found = stamp.read(context.payload, context.packet)
        if found is None:
            return None
        if context.indev.name not in self._snapshot.cluster_interfaces:
            raise PacketError(DropReason.STAMP_UNTRUSTED)
        return found.identity

    def _is_transit(self, context: PacketContext) -> bool:
        """Tell whether neither end of a packet is an endpoint of this node, and the packet leaves for the cluster.

        Such a packet is queued only because it may have a stamp: only this node's own stamps leave by a cluster
        interface. One set by this host itself is stripped; one that arrived from elsewhere has been refused, or another
        node has set it and this node only routes the packet.
        """
        packet, outdev, endpoints = context.packet, context.outdev, self._snapshot.endpoints
        if outdev is None or outdev.name not in self._snapshot.cluster_interfaces:
            return False
        return source_endpoint(self._snapshot, packet.src, context.origin) is None and packet.dst not in endpoints

    def _classify(self, context: PacketContext) -> _Accepted:
        """Classify the packet: known flow, new flow, or stateless reply."""
        packet = context.packet
        flow = self._mode.find_flow(context, self.flows.lookup(packet.key, context.now))
        if flow is None or flow.is_reopened_by(packet):
            return self._evaluate_stateless(context) if _is_stray_reply(packet) else self._evaluate_new(context, flow)
        if flow.revision != self._snapshot.revision or context.origin != flow.origin_of(packet):
            return self._reevaluate(context, flow)
        return _Accepted(flow.stamp_on(packet), flow)

    def _evaluate(self, asked: Opening, origin: Origin, *, stateless: bool = False) -> PolicyVerdict:
        """Evaluate policy for an opening from this origin, and from the presumed origin where the mode has another.

        An unstamped packet with the address of another node's endpoint may belong to an offloaded flow that this node
        no longer knows. Policy has to allow it to that endpoint, and not just to the world.
        """
        presumed = self._mode.presumed_origin(origin, asked.src)
        if presumed != origin:
            evaluate(self._snapshot, asked, presumed, stateless=stateless)
        return evaluate(self._snapshot, asked, origin, stateless=stateless)

    def _evaluate_stateless(self, context: PacketContext) -> _Accepted:
        """Evaluate a packet without a flow that never opens one: a stray reply, or an ICMP error."""
        packet = context.packet
        verdict = self._evaluate(context.opening, context.origin, stateless=not packet.error)
        return _Accepted(_template(verdict.stamp, packet.key), policy_verdict=verdict)

    def _evaluate_new(self, context: PacketContext, known: Flow | None) -> _Accepted:
        """Evaluate a packet that opens a flow."""
        packet = context.packet
        verdict = self._evaluate(context.opening, context.origin)
        if known is not None and not known.is_over and known.revision == self._snapshot.revision:
            # Simultaneous open (RFC 9293 section 3.5): both openers share one flow.
            return _Accepted(known.stamp_on(packet), known, verdict)
        return _Accepted(_template(verdict.stamp, packet.key), policy_verdict=verdict, creates=True)

    def _reevaluate(self, context: PacketContext, flow: Flow) -> _Accepted:
        """Evaluate a known flow under the policy in force, and check its packet's origin against the flow's."""
        packet, origin = context.packet, context.origin
        reply = packet.key != flow.key
        if flow.revision == REVISION_NONE:  # the kernel's conntrack does not record it
            flow.to_host = context.indev is None if reply else context.outdev is None
        accepted = _Accepted(flow.stamp_on(packet), flow, is_reply=reply)
        stranger = not reply and origin != flow.origin
        if stranger or flow.revision != self._snapshot.revision:
            opener = self._opener_origin(flow, from_host=context.outdev is None) if reply else origin
            verdict = self._evaluate_opener(flow, opener, stranger=stranger)
            template = _template(verdict.reply_stamp if reply else verdict.stamp, packet.key)
            accepted = _Accepted(template, flow, verdict, replaces=True, is_reply=reply)
        if reply:
            check_reply(self._snapshot, packet.src, packet.dst, flow.to_host, origin)
        return accepted

    def _opener_origin(self, flow: Flow, *, from_host: bool) -> Origin:
        """Return the origin of a flow's opener without a packet of it; ``from_host``: an unknown one is this host."""
        interface, opener = flow.origin.interface, flow.opening.src
        if interface == ORIGIN_UNKNOWN.interface:
            return likely_origin(self._snapshot, opener, from_host)
        if flow.masqueraded or not self._offloads:
            return flow.origin
        return self._mode.presumed_origin(Origin(interface, None), opener)

    def _evaluate_opener(self, flow: Flow, opener: Origin, *, stranger: bool = False) -> PolicyVerdict:
        """Evaluate the opening of a known flow for the origin ``opener``, possibly a ``stranger`` to the flow.

        A stranger's packet must not cut the flow. A denied TCP flow stays in the table and is evaluated at each packet:
        otherwise the replier, if policy lets it open connections, would revive the flow with its next segment.
        """
        opening = flow.opening
        try:
            return self._evaluate(opening, opener)
        except PacketError:
            if not stranger and opening.proto != TCP:
                self.flows.remove(flow)
            raise

    def _related_icmp(self, context: PacketContext) -> _Accepted | None:
        """Classify an ICMP error by the flow of the packet that it quotes; None: the next worker may know that flow.

        The error goes to the sender of the quoted packet. Any router may have sent it, but an endpoint only quotes
        packets that it received itself. Its addresses do not name the quoted flow, so the workers are asked one after
        another.
        """
        packet = context.packet
        quoted = parse_quoted(context.payload, packet)
        source = source_endpoint(self._snapshot, packet.src, context.origin)
        related = quoted.src == packet.dst and self._may_quote(context, source, quoted.dst)
        flow = self.flows.lookup(quoted.key, context.now) if related else None
        if flow is None or flow.origin.interface == ORIGIN_UNKNOWN.interface:
            return None if self._has_next else self._evaluate_stateless(context)
        template = _template(stamp_toward(self._snapshot, context.opening, source), packet.key)
        stamped = flow.stamp_on(quoted) is not None
        if flow.revision == self._snapshot.revision:
            return _Accepted(template, quotes_stamped=stamped)
        opener = self._opener_origin(flow, from_host=flow.origin.interface is None)
        verdict = self._evaluate_opener(flow, opener)
        return _Accepted(template, flow, verdict, replaces=True, quotes_stamped=stamped)

    def _may_quote(self, context: PacketContext, source: LocalEndpoint | None, quoted_dst: bytes) -> bool:
        """Tell whether the sender of an ICMP error may have received a packet to this address.

        A local endpoint may by any of its own addresses, unless it is the host, which routes. A remote endpoint (by its
        stamp, or by its address) may by the address that it sends from. Every other sender, a node included, may be a
        router.
        """
        if source is not None:
            return source.is_host or self._snapshot.endpoints.get(quoted_dst) is source
        src = context.packet.src
        peer = self._snapshot.ipcache.lookup(src)
        is_endpoint = context.stamped or travels(peer.identity)
        return peer.is_node or not is_endpoint or quoted_dst == src

    def _accept(self, context: PacketContext, accepted: _Accepted) -> Decision:
        """Accept the packet, with the stamp of its flow and no other."""
        rewritten: bytes | None = None
        if accepted.quotes_stamped and context.indev is not None:  # this host's own errors have allowed for the stamp
            if context.packet.truncated and self._can_requeue:
                return Decision(Verdict.REQUEUE_WHOLE)
            lowered = icmp.lower_mtu(context.payload, context.packet, stamp.overhead(context.packet.version))
            if lowered is not context.payload:
                context.payload = rewritten = lowered
        if accepted.stamp or self._has_forged_stamp(context):
            fits = accepted.flow is not None and accepted.flow.fits
            result = rewrite(context, accepted.stamp, can_requeue=self._can_requeue, fits=fits)
            if isinstance(result, Verdict):
                return Decision(result)
            rewritten = result
        event = self._update_flow(context, accepted)
        if rewritten is None:
            decision, flow, packet = ACCEPT, accepted.flow, context.packet
            if flow is not None and not packet.error:
                decision = self._mode.accept(flow, packet.key != flow.key, context.stamped, context.now)
            return Decision(decision.verdict, event=event) if event else decision
        outdev = context.outdev
        if outdev is not None and context.packet.df and len(rewritten) > outdev.mtu and not context.gso:
            return self._enforce_mtu(context, rewritten, outdev, event)
        return Decision(Verdict.ACCEPT, rewritten, event=event)

    def _has_forged_stamp(self, context: PacketContext) -> bool:
        """Tell whether an endpoint of this node, or the host, has set a stamp itself."""
        packet = context.packet
        local = context.indev is None or packet.src in self._snapshot.endpoints
        return packet.options and local and stamp.is_stamped(context.payload, packet)

    def _update_flow(self, context: PacketContext, accepted: _Accepted) -> FlowEvent | None:
        """Create or update the flow of an accepted packet; return the event for a new flow, or for an audited denial.

        A requeued packet updates its flow when it arrives from the other queue.
        """
        packet, flow, verdict = context.packet, accepted.flow, accepted.policy_verdict
        if accepted.creates:
            flow = self.flows.create(packet, context.now)
        elif flow is not None and not packet.error:
            self.flows.update(flow, packet.key != flow.key, packet.tcp_flags, context.now)
        if flow is not None and verdict is not None and (accepted.creates or accepted.replaces):
            self._apply_verdict(flow, verdict)
            if context.stamped and packet.key == flow.key:
                flow.masqueraded = self._mode.is_masqueraded(packet.src)
        if flow is not None and accepted.is_reply:
            flow.reply_origin = context.origin
        if verdict is None or not (accepted.creates or verdict.refused):
            return None
        return self._forwarded(context, verdict)

    def _apply_verdict(self, flow: Flow, verdict: PolicyVerdict) -> None:
        """Store a policy verdict in its flow."""
        opening = verdict.opening
        flow.to_host, flow.source, flow.destination = opening.to_host, opening.source, opening.destination
        flow.origin = verdict.origin
        flow.stamp = _template(verdict.stamp, flow.key)
        flow.reply_stamp = _template(verdict.reply_stamp, flow.key)
        flow.reply_origin = reply_origin(self._snapshot, opening)  # None: the next reply shows it
        flow.offload = Offload.NEVER if verdict.refused else Offload.NONE
        flow.revision = self._snapshot.revision

    def _enforce_mtu(
        self, context: PacketContext, rewritten: bytes, outdev: Interface, event: FlowEvent | None
    ) -> Decision:
        """Decide a packet whose stamp makes it longer than the MTU, and that must not be fragmented.

        A packet sent by this host itself is left to the kernel to fragment (the kernel does so with its own IPv6
        packets in any case); another sender is told the size that fits, unless the packet is an ICMP error (RFC 1122
        section 3.2.2). A packet that exceeded the MTU before arrived in fragments, which the kernel has reassembled and
        will cut again. An IPv6 packet may have been reassembled without a trace of it: it is accepted as well, and the
        kernel cuts or refuses it.
        """
        packet = context.packet
        if context.indev is None:
            self._identification = self._identification % 0xFFFF + 1
            fragmentable = icmp.clear_df(rewritten, self._identification) if packet.version == 4 else rewritten
            return Decision(Verdict.ACCEPT, fragmentable, event=event)
        if packet.length > outdev.mtu:
            return Decision(Verdict.ACCEPT, rewritten, event=event)
        source = self._snapshot.node_addresses.get(packet.version)
        fitting = outdev.mtu - stamp.overhead(packet.version)
        answer = icmp.too_big(context.payload, packet, fitting, source) if source and not packet.error else None
        if packet.version == 6:
            return Decision(Verdict.ACCEPT, rewritten, answer, event)
        dropped = self._dropped(context, PacketError(DropReason.FRAG_NEEDED))
        return Decision(Verdict.DROP, answer=answer, event=dropped)

    def _forwarded(self, context: PacketContext, verdict: PolicyVerdict) -> FlowEvent:
        """Return the event of a new flow, or of a denial that audit mode accepts."""
        last_side = Direction.INGRESS if verdict.opening.dst in self._snapshot.endpoints else Direction.EGRESS
        return FlowEvent(
            context.now,
            FlowVerdict.AUDIT if verdict.refused else FlowVerdict.FORWARDED,
            verdict.reason,
            verdict.refused or last_side,
            verdict.opening,
            context.packet.tcp_flags,
            is_reply=context.packet.src != verdict.opening.src,
            allowed_by=verdict.allowed_by[:_MAX_RULES],
            enforced_by=verdict.enforced_by[:_MAX_RULES],
            denied_by=verdict.denied_by[:_MAX_RULES],
        )

    def _dropped(self, context: PacketContext, error: PacketError) -> FlowEvent:
        """Return the event of a drop."""
        packet = context.packet
        unevaluated = PolicyVerdict(context.opening, context.origin)
        verdict = error.policy_verdict if isinstance(error, PolicyDenied) else unevaluated
        leaves = self._snapshot.is_from_endpoint(packet.src, context.indev.name if context.indev else None)
        return FlowEvent(
            context.now,
            FlowVerdict.DROPPED,
            error.reason,
            verdict.refused or (Direction.EGRESS if leaves else Direction.INGRESS),
            verdict.opening,
            packet.tcp_flags,
            is_reply=packet.src != verdict.opening.src,
            enforced_by=verdict.enforced_by[:_MAX_RULES],
            denied_by=verdict.denied_by[:_MAX_RULES],
        )


def _template(stamp: Stamp | None, key: bytes) -> StampTemplate | None:
    """Return the stamp as template for packets of a flow with this key."""
    return stamp_template(stamp, 4 if len(key) == _IPV4_KEY else 6, key[0]) if stamp else None


def _is_stray_reply(packet: Packet) -> bool:
    """Tell whether the packet, without a flow, is a stray reply: a SYN-ACK, RST or ICMP reply never opens a flow."""
    return packet.is_syn_ack or packet.is_rst or packet.icmp_type in _ICMP_REPLIES.get(packet.proto, ())
