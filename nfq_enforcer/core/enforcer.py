"""Enforcer: the verdict on one packet.

Fast path: a plain packet of a known flow, evaluated under the policy in force and arriving from the flow's origin, is
accepted by slices of its header, and stamped if it leaves for another node; if the flow has DNS rules, its message has
to meet them. Slow path, for every other packet: parse
it, read its stamp, find its flow; classify it as packet of a known flow, opener of a new flow, or stateless reply;
evaluate policy unless its flow has a valid policy verdict; inspect its message if its flow has layer-7 rules; insert or
strip the stamp; update the flow. Each step that refuses the packet raises PacketError with a drop reason.

A connection with HTTP rules or server names is redirected to the proxy: before routing, its first packet gets the
number of a slot. The proxy opens a connection to the server. Each of the two is a flow with the slot; its packets take
the fast path only on their way to or from the proxy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nfq_enforcer.core.context import LOOPBACK, Interface, PacketContext
from nfq_enforcer.core.dns import DnsInspector, Inspected
from nfq_enforcer.core.dns_stream import Part
from nfq_enforcer.core.events import ACCEPT, Decision, FlowEnd, FlowEvent
from nfq_enforcer.core.identity import Identity, travels
from nfq_enforcer.core.offload import datapath_mode
from nfq_enforcer.core.policy_verdict import (
    PolicyDenied,
    PolicyVerdict,
    check_identity,
    check_reply,
    evaluate,
    evaluate_leg,
    likely_origin,
    presumed_key,
    source_endpoint,
    stamp_toward,
    transit_stamp,
)
from nfq_enforcer.core.process_sockets import FindSocket, find_nothing
from nfq_enforcer.core.rewrite import rewrite
from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_L7,
    REVISION_NONE,
    REVISION_UNREPORTED,
    Conntrack,
    Flow,
    FlowL7,
    Offload,
    Opening,
    Origin,
    shared_origin,
)
from nfq_enforcer.core.tables.dns_names import NamePatterns
from nfq_enforcer.core.tables.flow_ends import EndCause, traffic
from nfq_enforcer.core.tables.names import NameTable
from nfq_enforcer.core.tables.policymap import DnsRules, RuleRef
from nfq_enforcer.core.tables.slots import UNKNOWN_SLOT, SlotTable
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, PacketError, Verdict
from nfq_enforcer.core.wire import icmp, stamp, tcp, udp
from nfq_enforcer.core.wire.fast_parse import FastPacket, insert_fast, parse_fast
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP, Packet, parse, parse_quoted
from nfq_enforcer.core.wire.scopes import depends_on_link, is_link_local
from nfq_enforcer.core.wire.skb import ASKS_SLOT, GSO, OF_PROCESS, OF_PROXY, PROXIED, PROXY_LEG, SENT_BY_PROCESS
from nfq_enforcer.core.wire.stamp import Stamp, StampTemplate, stamp_template

_UNUSUAL = OF_PROXY | OF_PROCESS
_MAX_RULES = 8  # rules named in one event
_ICMP_REPLIES = {ICMP: frozenset({0, 14, 16, 18}), ICMPV6: frozenset({129})}
_IPV4_KEY = 13
_UNREADABLE = Packet(4, 0, b"", 0, False, 0, False, False, 0, -1, -1)
_NO_ORIGIN = Origin(None, None)
_REQUEUE_NEXT = Decision(Verdict.REQUEUE_NEXT)
_UNDECIDED = Decision(Verdict.UNDECIDED)
_MAX_ANSWERS = 256  # packets sent by the worker itself that have not come by yet


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
    names: tuple[str, ...] = ()  # of the new flow's destination
    inspected: tuple[Inspected, ...] = ()  # its messages, if its flow has DNS rules
    part: Part | None = None  # of the stream of its messages

    @property
    def l7(self) -> DnsRules | None:
        """Return the layer-7 rules of the packet's flow."""
        if self.policy_verdict is not None:
            return self.policy_verdict.l7
        return self.flow.l7.dns if self.flow is not None and self.flow.l7 is not None else None

    @property
    def opening(self) -> Opening:
        """Return the opening of the packet's flow."""
        if self.policy_verdict is not None:
            return self.policy_verdict.opening
        assert self.flow is not None  # one of the two has layer-7 rules
        return self.flow.opening


class _MessageDenied(PolicyDenied):
    """A message breaks the layer-7 rules of its flow."""

    def __init__(self, policy_verdict: PolicyVerdict, reason: DropReason, inspected: Inspected) -> None:
        """Keep the message for the log, and its answer."""
        super().__init__(policy_verdict, reason)
        self.inspected = inspected

    def answer(self, context: PacketContext) -> bytes | None:
        """Return the packet that answers a refused query, None for any other message."""
        refusal, packet = self.inspected.refusal, context.packet
        if refusal is None:
            return None
        if packet.proto == TCP:
            return tcp.last_words(packet, tcp.read(context.payload, packet), refusal)
        return udp.reply(packet, refusal)


class Enforcer:
    """Enforcer: decides packets, one after another, by the snapshot in force and the worker's flows."""

    def __init__(
        self,
        snapshot: Snapshot,
        flows: Conntrack,
        *,
        can_requeue: bool = False,
        has_next: bool = False,
        names: NameTable | None = None,
        slots: SlotTable | None = None,
        find_socket: FindSocket = find_nothing,
    ) -> None:
        """Start with a snapshot and a table of flows.

        ``can_requeue``: the driver has further queues, which deliver packets whole or in segments. ``has_next``:
        another worker, with flows of its own, may know the flow that an ICMP error quotes. ``names``: of addresses;
        ``slots``: of the proxy; their owner may continue to change both between packets. ``find_socket``: finds the
        socket of this host at an end of a packet, for process endpoints.
        """
        self.flows = flows
        self._can_requeue = can_requeue
        self._has_next = has_next
        self._identification = 0
        self._dns = DnsInspector()
        self.names = NameTable() if names is None else names
        self.slots = SlotTable() if slots is None else slots
        self._find_socket = find_socket
        self._answers: dict[tuple[bytes, bytes], None] = {}  # sent by the worker itself: flow key and rest of each
        self.stamps_made = 0  # packets that got a stamp of this node
        self.stamps_read = 0  # accepted packets with the stamp of another node
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
        self._dns.questions.keep(snapshot.endpoints)
        self._dns.streams.keep(snapshot.endpoints)
        self.name_patterns = NamePatterns(snapshot.name_identities.items())
        self._names_matter = bool(snapshot.name_identities)

    def decide(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int = 0
    ) -> Decision:
        """Return the decision on an IP packet; never raise, whatever the bytes.

        ``payload`` may be truncated by the queue as long as its headers are complete. ``indev`` is None for a packet
        sent by this host itself, ``outdev`` for one delivered to it. ``now`` is in seconds and never decreases. ``skb``
        has the bits of ``SkbFlags``.
        """
        if skb & _UNUSUAL:
            if skb & OF_PROXY:
                return self._decide_proxied(payload, indev, outdev, now, skb)
            decision = self._fast_path(payload, indev, outdev, now, skb, of_process=True)
        else:
            decision = self._fast_path(payload, indev, outdev, now, skb)
        return decision or self.slow_path(payload, indev, outdev, now, skb)

    def _decide_proxied(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision:
        """Decide a packet to or from the proxy, or choose the slot to which it is redirected."""
        if skb & ASKS_SLOT:
            return self._choose_slot(PacketContext(payload, _UNREADABLE, indev, outdev, now, skb, _NO_ORIGIN))
        decision = self._fast_path(payload, indev, outdev, now, skb, proxied=True)
        return decision or self.slow_path(payload, indev, outdev, now, skb)

    def _choose_slot(self, context: PacketContext) -> Decision:
        """Choose the slot of the proxy for the first packet of a connection with HTTP rules or server names.

        Every other packet is decided, and logged, at its ordinary hook.
        """
        try:
            self._read(context)
            if self._snapshot.processes and self._has_process_end(context):
                return _UNDECIDED  # none of its layer-7 rules can be checked
            verdict = self._evaluate(
                self._opening(context), context.origin, None, self._identities_of(self._names_of(context)), proxied=True
            )
        except PacketError:
            return _UNDECIDED
        if verdict.refused or not verdict.needs_proxy or self._snapshot.audit:
            return _UNDECIDED
        key = verdict.slot_key
        assert key is not None  # of a proxied verdict
        return Decision(Verdict.REDIRECT, slot=self.slots.find(key) if self.slots.is_open(key) else 0, wants=key)

    def _fast_path(
        self,
        payload: bytes,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
        skb: int,
        *,
        proxied: bool = False,
        of_process: bool = False,
    ) -> Decision | None:
        """Decide a plain packet of a known flow; return None for every other packet.

        ``of_process``: the kernel has classified it as one of a process endpoint. Its flow may be the host's, by an
        earlier owner of the ports.
        """
        fast = parse_fast(payload)
        if fast is None:
            return None
        key, identity, tcp_flags, _, length = fast
        flow = self.flows.lookup(key, now)
        if flow is None:
            return None
        reply = key != flow.key
        if proxied:
            if flow.evaluated != self._snapshot.revision or _role(flow) != (-1 if reply is bool(skb & PROXIED) else 1):
                return None
        elif of_process and not (flow.sender or flow.receiver):
            return None
        elif flow.revision != self._snapshot.revision:
            return self._fast_message(payload, fast, flow, indev, outdev, now, skb)
        origin, template = (flow.reply_origin, flow.reply_stamp) if reply else (flow.origin, flow.stamp)
        if origin != (indev.name if indev else None, identity):
            return None
        if template is None:
            if identity is not None:
                self.stamps_read += 1
            self.flows.update(flow, reply, tcp_flags, length, now)
            return self._mode.accept(flow, reply, identity is not None, now) if self._offloads else ACCEPT
        if skb & GSO and not flow.fits:
            return None
        stamped = insert_fast(payload, fast, template, outdev.mtu, skb) if outdev else None
        if stamped is None:
            return None
        self.stamps_made += 1
        self.flows.update(flow, reply, tcp_flags, length, now)
        return Decision(Verdict.ACCEPT, stamped)

    def _fast_message(
        self,
        payload: bytes,
        fast: FastPacket,
        flow: Flow,
        indev: Interface | None,
        outdev: Interface | None,
        now: float,
        skb: int,
    ) -> Decision | None:
        """Decide a plain packet of a known flow with DNS rules; None for one that is denied, and for every other."""
        key, identity, _, l4, length = fast
        l7 = flow.l7
        if l7 is None or l7.dns is None or l7.revision != self._snapshot.revision:
            return None
        if key[0] != UDP or length != len(payload) or skb & GSO:
            return None
        reply = key != flow.key
        origin, template = (flow.reply_origin, flow.reply_stamp) if reply else (flow.origin, flow.stamp)
        if origin != (indev.name if indev else None, identity) or (indev is None and self._answers):
            return None
        stamped = None
        if template is not None:
            stamped = insert_fast(payload, fast, template, outdev.mtu, skb) if outdev else None
            if stamped is None:
                return None
        inspected = self._inspected(payload, l4, l7.opening.src, flow.key, l7.dns, now, is_query=not reply)
        if inspected.reason is not None:
            return None
        if stamped is not None:
            self.stamps_made += 1
        if identity is not None:
            self.stamps_read += 1
        self.flows.update(flow, reply, 0, length, now)
        self._dns.accept(inspected, now)
        event = _message_event(l7.opening, inspected, inspected.rules, now, is_reply=reply)
        return Decision(Verdict.ACCEPT, stamped, None, event, inspected.learned)

    def slow_path(
        self, payload: bytes, indev: Interface | None, outdev: Interface | None, now: float, skb: int
    ) -> Decision:
        """Decide any packet: the decision that the fast path reaches for its packets, with a full parse.

        A packet that this host receives by its loopback interface is one of its own.
        """
        if indev is not None and indev.name == LOOPBACK:
            indev = None
        context = PacketContext(payload, _UNREADABLE, indev, outdev, now, skb, _NO_ORIGIN)
        try:
            self._read(context)
            if self._answers and indev is None and self._is_own_answer(context):
                return ACCEPT
            if self._is_transit(context):
                world = transit_stamp(self._snapshot, context.packet, context.origin)
                return self._accept(context, _Accepted(_template(world, context.packet.key)))
            accepted = self._related_icmp(context) if context.packet.error else self._classify(context)
            return _REQUEUE_NEXT if accepted is None else self._accept(context, accepted)
        except PacketError as error:
            answer = error.answer(context) if isinstance(error, _MessageDenied) else None
            if answer is not None:
                self._expect_own(answer)
            return Decision(Verdict.DROP, answer=answer, event=self._dropped(context, error))

    def _read(self, context: PacketContext) -> None:
        """Parse the packet, and read its origin; raise PacketError for malformed packets and untrusted stamps."""
        context.packet = parse(context.payload, gso=context.gso)
        identity = self._stamped_identity(context) if context.packet.options else None
        context.origin = shared_origin(context.indev.name if context.indev else None, identity)
        context.stamped = identity is not None

    def _expect_own(self, answer: bytes) -> None:
        """Remember a datagram that the worker sends for a server: it comes by here, with the server's address."""
        if len(self._answers) >= _MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        packet = parse(answer)
        self._answers[packet.key, answer[packet.l4_offset :]] = None

    def _is_own_answer(self, context: PacketContext) -> bool:
        """Tell whether a packet of this host is one that the worker has sent itself; each is accepted once."""
        key = context.packet.key, context.payload[context.packet.l4_offset :]
        known = key in self._answers
        self._answers.pop(key, None)
        return known

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

        Such a packet is queued because it may have a stamp, or because it goes to a remote endpoint and this node may
        translate its source. A stamp set by this host itself is stripped; one that arrived from elsewhere has been
        refused, or another node has set it and this node only routes the packet.
        """
        packet, outdev, endpoints = context.packet, context.outdev, self._snapshot.endpoints
        if outdev is None or outdev.name not in self._snapshot.cluster_interfaces or packet.dst in endpoints:
            return False
        if context.skb & OF_PROCESS:
            return False
        return source_endpoint(self._snapshot, packet.src, context.origin) is None

    def _classify(self, context: PacketContext) -> _Accepted:
        """Classify the packet: known flow, new flow, or stateless reply."""
        packet = context.packet
        flow = self._mode.find_flow(context, self.flows.lookup(packet.key, context.now))
        if flow is None or flow.is_reopened_by(packet):
            self._find_processes(context)
            return self._evaluate_stateless(context) if _is_stray_reply(packet) else self._evaluate_new(context, flow)
        if flow.revision != REVISION_NONE and _role(flow) != context.proxy_role(flow.key):
            raise PacketError(DropReason.PROXY_SLOT)
        is_new_process = context.skb & OF_PROCESS and not (flow.sender or flow.receiver)
        if is_new_process or flow.evaluated != self._snapshot.revision or context.origin != flow.origin_of(packet):
            return self._reevaluate(context, flow)
        return _Accepted(flow.stamp_on(packet), flow)

    def _find_processes(self, context: PacketContext) -> None:
        """Find the process endpoints at the ends of a packet; raise PacketError if it should have one and has none.

        Only a packet that the kernel has classified by its socket, or by its connection, costs a look-up.
        """
        if not context.skb & OF_PROCESS:
            return
        context.sender, context.receiver = self._sockets_of(context, to_host=context.to_host)
        if not (context.sender or (context.receiver and not context.skb & SENT_BY_PROCESS)):
            raise PacketError(DropReason.UNKNOWN_PROCESS)

    def _sockets_of(self, context: PacketContext, *, to_host: bool) -> tuple[int, int]:
        """Return the cgroups of the process endpoints that send and receive a packet, 0 for any other end."""
        packet = context.packet
        source, destination = (packet.src, packet.sport), (packet.dst, packet.dport)
        interface = context.outdev or context.indev
        link = interface.name if interface else None
        sender = self._find_socket(packet.proto, source, destination, link) if context.indev is None else None
        receiver = self._find_socket(packet.proto, destination, source, link) if to_host else None
        return self._known_process(sender), self._known_process(receiver)

    def _has_process_end(self, context: PacketContext) -> bool:
        """Tell whether a packet that is not routed yet comes from, or goes to, a process endpoint.

        Only this host's own addresses count: a listener on all addresses would be found for any other one as well.
        """
        to_host = context.to_host and context.packet.dst in self._snapshot.own_addresses
        return any(self._sockets_of(context, to_host=to_host))

    def _known_process(self, cgroup: int | None) -> int:
        return cgroup if cgroup is not None and cgroup in self._snapshot.processes else 0

    def _evaluate(
        self,
        asked: Opening,
        origin: Origin,
        link: str | None,
        names: tuple[Identity, ...] = (),
        *,
        stateless: bool = False,
        proxied: bool = False,
    ) -> PolicyVerdict:
        """Evaluate policy for an opening from this origin, and from the presumed origin where the mode has another.

        An unstamped packet with the address of another node's endpoint may belong to an offloaded flow that this node
        no longer knows. Policy has to allow it to that endpoint, and not just to the world.
        """
        presumed = self._mode.presumed_origin(origin, asked.src)
        if presumed != origin:
            evaluate(self._snapshot, asked, presumed, link, names=names, stateless=stateless, proxied=proxied)
        return evaluate(self._snapshot, asked, origin, link, names=names, stateless=stateless, proxied=proxied)

    def _evaluate_redirected(
        self, asked: Opening, origin: Origin, names: tuple[Identity, ...], slot: int
    ) -> PolicyVerdict:
        """Evaluate policy for a flow that the proxy receives in this slot, or in any (``UNKNOWN_SLOT``)."""
        verdict = self._evaluate(asked, origin, None, names, proxied=True)
        assert verdict.slot_key is not None  # of a proxied verdict
        found = self.slots.find_serving(verdict.slot_key, slot)
        if not found:
            raise PacketError(DropReason.PROXY_SLOT)
        return verdict._replace(slot=found)

    def _evaluate_leg(self, asked: Opening, origin: Origin, link: str | None, slot: int) -> PolicyVerdict:
        """Evaluate a flow that the proxy has opened for a client of this slot."""
        key = presumed_key(self._snapshot, asked, link) if slot == UNKNOWN_SLOT else self.slots.key(slot)
        return evaluate_leg(self._snapshot, asked, origin, link, slot, key)

    def _opening(self, context: PacketContext) -> Opening:
        """Return the opening that the packet would make; a packet on its way to the proxy has another receiver."""
        opening = context.opening
        if context.skb & (ASKS_SLOT | PROXIED):
            return opening._replace(to_host=opening.dst in self._snapshot.own_addresses)
        return opening

    def _named(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the names, each once, whose addresses have an identity by policy."""
        return tuple(dict.fromkeys(filter(self.name_patterns.find, names)))

    def _identities_of(self, names: tuple[str, ...]) -> tuple[Identity, ...]:
        """Return the identities that policy gives to the addresses of these names."""
        find = self.name_patterns.find
        return tuple(dict.fromkeys(identity for name in names for identity in find(name))) if names else ()

    def _evaluate_stateless(self, context: PacketContext) -> _Accepted:
        """Evaluate a packet without a flow that never opens one: a stray reply, or an ICMP error."""
        packet = context.packet
        verdict = self._evaluate(context.opening, context.origin, context.link(), stateless=not packet.error)
        return _Accepted(_template(verdict.stamp, packet.key), policy_verdict=verdict)

    def _evaluate_new(self, context: PacketContext, known: Flow | None) -> _Accepted:
        """Evaluate a packet that opens a flow."""
        packet = context.packet
        names = self._names_of(context)
        verdict = self._verdict_on(context, self._identities_of(names))
        if known is not None and not known.is_over and known.revision == self._snapshot.revision:
            # Simultaneous open (RFC 9293 section 3.5): both openers share one flow.
            return _Accepted(known.stamp_on(packet), known, verdict)
        template = _template(verdict.stamp, packet.key)
        return _Accepted(template, policy_verdict=verdict, creates=verdict.opens_flow, names=names)

    def _names_of(self, context: PacketContext) -> tuple[str, ...]:
        """Return the names of the destination that matter to policy."""
        return self._named(self.names.current(context.packet.dst, context.now)) if self._names_matter else ()

    def _verdict_on(self, context: PacketContext, names: tuple[Identity, ...]) -> PolicyVerdict:
        """Return the policy verdict on the opening that a packet makes: to the proxy, by the proxy, or without it."""
        if context.skb & PROXIED:
            return self._evaluate_redirected(self._opening(context), context.origin, names, context.slot)
        if context.skb & PROXY_LEG:
            return self._evaluate_leg(context.opening, context.origin, context.link(), context.slot)
        return self._evaluate(context.opening, context.origin, context.link(), names)

    def _reevaluate(self, context: PacketContext, flow: Flow) -> _Accepted:
        """Evaluate a known flow under the policy in force, and check its packet's origin against the flow's."""
        packet, origin = context.packet, context.origin
        reply = packet.key != flow.key
        if flow.revision == REVISION_NONE:  # the kernel's conntrack does not record them
            flow.to_host = context.indev is None if reply else self._opening(context).to_host
            flow.slot = context.proxy_role(flow.key) * (context.slot or UNKNOWN_SLOT)
        is_new_process = context.skb & OF_PROCESS and not (flow.sender or flow.receiver)
        if is_new_process:
            self._find_processes(context)
            ends = context.sender, context.receiver
            flow.sender, flow.receiver = ends[::-1] if reply else ends
        accepted = _Accepted(flow.stamp_on(packet), flow, is_reply=reply)
        if reply and _is_on_other_link(packet.src, flow.reply_origin, origin):
            raise PacketError(DropReason.INVALID_SOURCE_IP)
        stranger = not reply and origin != flow.origin
        if stranger or is_new_process or flow.evaluated != self._snapshot.revision:
            opener = self._opener_origin(flow, from_host=context.outdev is None) if reply else origin
            verdict = self._evaluate_opener(flow, opener, context.link(reply=reply), context.now, stranger=stranger)
            template = _template(verdict.reply_stamp if reply else verdict.stamp, packet.key)
            accepted = _Accepted(template, flow, verdict, replaces=True, is_reply=reply)
        if reply:
            check_reply(self._snapshot, packet.src, packet.dst, flow.to_host, origin, flow.sender)
        return accepted

    def _opener_origin(self, flow: Flow, *, from_host: bool) -> Origin:
        """Return the origin of a flow's opener without a packet of it; ``from_host``: an unknown one is this host."""
        interface, opener = flow.origin.interface, flow.opening.src
        if interface == ORIGIN_UNKNOWN.interface:
            return likely_origin(self._snapshot, opener, from_host)
        if flow.masqueraded or not self._offloads:
            return flow.origin
        return self._mode.presumed_origin(Origin(interface, None), opener)

    def _evaluate_opener(
        self, flow: Flow, opener: Origin, link: str | None, now: float, *, stranger: bool = False
    ) -> PolicyVerdict:
        """Evaluate the opening of a known flow for the origin ``opener``, possibly a ``stranger`` to the flow.

        A stranger's packet must not cut the flow. A denied TCP flow stays in the table and is evaluated at each packet:
        otherwise the replier, if policy lets it open connections, would revive the flow with its next segment.
        """
        opening = flow.opening
        if self._names_matter:
            flow.names = self._named((*flow.names, *self.names.known(opening.dst)))
        names = self._identities_of(flow.names)
        try:
            if flow.slot > 0:
                return self._evaluate_redirected(opening, opener, names, flow.slot)
            if flow.slot < 0:
                return self._evaluate_leg(opening, opener, link, -flow.slot)
            return self._evaluate(opening, opener, link, names)
        except PacketError:
            if not stranger:
                self._cut(flow, now)
            raise

    def _cut(self, flow: Flow, now: float) -> None:
        """End a flow that policy no longer allows."""
        if flow.key[0] == TCP:
            self.flows.ends.add(flow, EndCause.CUT, now)
        else:
            self.flows.remove(flow, EndCause.CUT, now)

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
        if flow is not None:
            receiver = flow.reply_origin if quoted.key == flow.key else flow.origin
            flow = None if _is_on_other_link(quoted.dst, receiver, context.origin) else flow
        if flow is None or flow.origin.interface == ORIGIN_UNKNOWN.interface:
            return None if self._has_next else self._evaluate_stateless(context)
        process = flow.sender if quoted.key == flow.key else flow.receiver
        check_identity(self._snapshot, packet.dst, context.origin, process)
        template = _template(stamp_toward(self._snapshot, context.opening, source), packet.key)
        stamped = flow.stamp_on(quoted) is not None
        if flow.revision == self._snapshot.revision:
            return _Accepted(template, quotes_stamped=stamped)
        opener = self._opener_origin(flow, from_host=flow.origin.interface is None)
        verdict = self._evaluate_opener(flow, opener, context.link(reply=quoted.key == flow.key), context.now)
        replaces = flow.revision != REVISION_UNREPORTED  # the flow's next packet has to be evaluated, and reported
        return _Accepted(template, flow, verdict, replaces=replaces, quotes_stamped=stamped)

    def _may_quote(self, context: PacketContext, source: LocalEndpoint | None, quoted_dst: bytes) -> bool:
        """Tell whether the sender of an ICMP error may have received a packet to this address.

        A local endpoint may by any of its own addresses, unless it is the host, which routes. A remote endpoint (by its
        stamp, or by its address) may by the address that it sends from. Every other sender, a node included, may be a
        router.
        """
        if source is not None:
            link = context.indev.name if context.indev else None
            return source.is_host or self._snapshot.destination_endpoint(quoted_dst, link) is source
        src = context.packet.src
        peer = self._snapshot.ipcache.lookup(src)
        is_endpoint = context.origin.endpoint is not None or travels(peer.identity)
        return peer.is_node or not is_endpoint or quoted_dst == src

    def _accept(self, context: PacketContext, accepted: _Accepted) -> Decision:
        """Accept the packet, with the stamp of its flow and no other."""
        rewritten: bytes | None = None
        l7 = accepted.l7
        if l7 is not None and not context.packet.error:
            form = self._complete_form(context)
            if form is not None:
                return Decision(form)
            self._inspect(context, accepted, l7)
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
        if accepted.stamp is not None:
            self.stamps_made += 1
        if context.stamped:
            self.stamps_read += 1
        event = self._update_flow(context, accepted)
        messages = accepted.inspected
        learned = tuple(learned for one in messages for learned in one.learned) if messages else ()
        further = tuple(self._message_event(context, accepted, one) for one in messages[1:]) if messages else ()
        if rewritten is None:
            decision, flow, packet = ACCEPT, accepted.flow, context.packet
            if accepted.creates and flow is not None:
                decision = self._mode.opened(flow, context.now)
            elif flow is not None and not packet.error:
                decision = self._mode.accept(flow, packet.key != flow.key, context.stamped, context.now)
            return Decision(decision.verdict, event=event, learned=learned, further=further) if event else decision
        outdev = context.outdev
        if outdev is not None and context.packet.df and len(rewritten) > outdev.mtu and not context.gso:
            return self._enforce_mtu(context, rewritten, outdev, event)
        return Decision(Verdict.ACCEPT, rewritten, event=event, learned=learned, further=further)

    def _complete_form(self, context: PacketContext) -> Verdict | None:
        """Return the requeue verdict that yields the complete packet of a message, None for a complete packet."""
        if not (context.gso or context.packet.truncated):
            return None
        if not self._can_requeue:
            raise PacketError(DropReason.PAYLOAD_TOO_LONG)
        return Verdict.REQUEUE_SEGMENTED if context.gso else Verdict.REQUEUE_WHOLE

    def _inspect(self, context: PacketContext, accepted: _Accepted, rules: DnsRules) -> None:
        """Inspect the messages of a packet; raise PacketError for a denied one, unless audit mode accepts it."""
        packet, client = context.packet, accepted.opening.src
        flow = accepted.flow.key if accepted.flow is not None else packet.key
        is_query = packet.key == flow
        if packet.proto == TCP:
            self._inspect_segment(context, accepted, rules, flow)
        else:
            payload = context.payload[: packet.length]
            one = self._inspected(payload, packet.l4_offset, client, flow, rules, context.now, is_query=is_query)
            accepted.inspected = (one,)
        denied = next((one for one in accepted.inspected if one.reason is not None), None)
        if denied is None or denied.reason is None or self._snapshot.audit:
            return
        verdict = PolicyVerdict(accepted.opening, context.origin, Direction.EGRESS, denied.reason, (), rules.values)
        raise _MessageDenied(verdict, denied.reason, denied)

    def _inspect_segment(self, context: PacketContext, accepted: _Accepted, rules: DnsRules, flow: bytes) -> None:
        """Inspect the messages of a TCP segment; a SYN-ACK begins the stream of its connection."""
        packet, client = context.packet, accepted.opening.src
        segment, is_query = tcp.read(context.payload, packet), packet.key == flow
        if packet.is_syn_ack and not is_query:
            self._dns.streams.begin(client, flow, segment)
        if segment.data or packet.tcp_flags & tcp.URG:  # the pointer to an urgent byte may lead ahead
            accepted.inspected, accepted.part = self._dns.inspect_segment(
                segment, client, flow, rules, context.now, is_query=is_query
            )

    def _inspected(
        self, payload: bytes, l4: int, client: bytes, flow: bytes, rules: DnsRules, now: float, *, is_query: bool
    ) -> Inspected:
        """Inspect the message of a complete datagram, with its transport header at ``l4``."""
        try:
            message = udp.data(payload, l4)
        except PacketError as error:
            return Inspected(client, flow, reason=error.reason)
        return self._dns.inspect(message, client, flow, rules, now, is_query=is_query)

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
        opens = accepted.creates
        if accepted.creates:
            flow = accepted.flow = self.flows.create(packet, context.now)
            flow.names = accepted.names
        elif flow is not None and not packet.error:
            self.flows.update(flow, packet.key != flow.key, packet.tcp_flags, packet.length, context.now)
        if flow is not None and verdict is not None and (accepted.creates or accepted.replaces):
            opens |= not accepted.creates and flow.revision == REVISION_UNREPORTED
            self._apply_verdict(flow, verdict)
            if context.stamped and packet.key == flow.key:
                flow.masqueraded = self._mode.is_masqueraded(packet.src)
        if flow is not None and accepted.is_reply:
            flow.reply_origin = context.origin
        if accepted.part is not None:
            accepted.part.accept()
        for one in accepted.inspected:
            self._dns.accept(one, context.now)
        if accepted.inspected:
            return self._message_event(context, accepted, accepted.inspected[0])
        if verdict is None or verdict.slot < 0 or not (opens or verdict.refused):  # the client's flow has the event
            return None
        return self._forwarded(context, verdict)

    def _message_event(self, context: PacketContext, accepted: _Accepted, inspected: Inspected) -> FlowEvent:
        """Return the event of a message."""
        opening, verdict, rules = accepted.opening, accepted.policy_verdict, inspected.rules
        if verdict is not None:  # its rules, but of those with DNS rules only the ones that match
            rules += tuple(ref for ref in verdict.allowed_by if ref.direction is Direction.INGRESS)
        is_reply = context.packet.src != opening.src
        return _message_event(opening, inspected, rules, context.now, is_reply=is_reply)

    def _apply_verdict(self, flow: Flow, verdict: PolicyVerdict) -> None:
        """Store a policy verdict in its flow.

        Where the destination depends on the link, packets with one key may go to several links: a multicast router
        sends a copy to each. The verdict is valid on one link, so every packet of such a flow is evaluated.
        """
        opening = verdict.opening
        every_packet = depends_on_link(opening.dst)
        flow.to_host, flow.source, flow.destination = opening.to_host, opening.source, opening.destination
        flow.sender, flow.receiver = opening.sender, opening.receiver
        flow.origin = verdict.origin
        flow.stamp = _template(verdict.stamp, flow.key)
        flow.reply_stamp = _template(verdict.reply_stamp, flow.key)
        flow.reply_origin = verdict.reply_origin
        flow.offload = Offload.NEVER if verdict.refused or every_packet or verdict.l7 else Offload.NONE
        flow.revision = REVISION_NONE if every_packet else self._snapshot.revision
        flow.l7 = None
        flow.slot = verdict.slot
        if verdict.l7 is not None or verdict.slot:
            flow.l7 = FlowL7(verdict.l7, flow.revision, opening)
            flow.revision = REVISION_NONE if every_packet else REVISION_L7

    def _enforce_mtu(
        self, context: PacketContext, rewritten: bytes, outdev: Interface, event: FlowEvent | None
    ) -> Decision:
        """Decide a packet whose stamp makes it longer than the MTU, and that must not be fragmented.

        A packet sent by this host itself is left to the kernel to fragment (the kernel does so with its own IPv6
        packets in any case), and so is an IPv4 packet in transit: the kernel may translate its addresses, and its
        sender would not know those in an answer of ours. Another sender is told the size that fits, unless the packet
        is an ICMP error (RFC 1122 section 3.2.2). A packet that exceeded the MTU before arrived in fragments, which the
        kernel has reassembled and will cut again. An IPv6 packet may have been reassembled without a trace of it: it is
        accepted as well, and the kernel cuts or refuses it.
        """
        packet = context.packet
        if context.indev is None or (packet.version == 4 and self._is_transit(context)):
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
        flow = self.flows.lookup(packet.key, context.now) if event is not None else None
        if flow is not None:  # its event is for the first packet that passes
            flow.revision = REVISION_UNREPORTED
        return Decision(Verdict.DROP, answer=answer, event=dropped)

    def _forwarded(self, context: PacketContext, verdict: PolicyVerdict) -> FlowEvent:
        """Return the event of a new flow, or of a denial that audit mode accepts."""
        return FlowEvent(
            context.now,
            FlowVerdict.AUDIT if verdict.refused else FlowVerdict.FORWARDED,
            verdict.reason,
            verdict.refused or self._last_side(verdict.opening),
            verdict.opening,
            context.packet.tcp_flags,
            is_reply=context.packet.src != verdict.opening.src,
            allowed_by=verdict.allowed_by[:_MAX_RULES],
            enforced_by=verdict.enforced_by[:_MAX_RULES],
            denied_by=verdict.denied_by[:_MAX_RULES],
        )

    def ended(self, now: float) -> Iterator[FlowEvent]:
        """Yield the events of the flows that are over, each once."""
        for flow, cause in self.flows.ends.take(now):
            opening = flow.opening
            yield FlowEvent(
                *(now, FlowVerdict.TRACED, None, self._last_side(opening), opening, 0, False), end=_end(flow, cause)
            )

    def _last_side(self, opening: Opening) -> Direction:
        """Return the side that decides last on this node: ingress if the destination is an endpoint of it."""
        to_endpoint = opening.receiver or opening.dst in self._snapshot.endpoints
        return Direction.INGRESS if to_endpoint else Direction.EGRESS

    def _dropped(self, context: PacketContext, error: PacketError) -> FlowEvent:
        """Return the event of a drop."""
        packet = context.packet
        unevaluated = PolicyVerdict(context.opening, context.origin)
        verdict = error.policy_verdict if isinstance(error, PolicyDenied) else unevaluated
        leaves = bool(context.sender) or self._snapshot.is_from_endpoint(
            packet.src, context.indev.name if context.indev else None
        )
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
            l7=error.inspected.message if isinstance(error, _MessageDenied) else None,
        )


def _end(flow: Flow, cause: EndCause) -> FlowEnd:
    duration = None if flow.started is None else flow.last_seen - flow.started
    return FlowEnd(cause, duration, traffic(flow.traffic), traffic(flow.reply_traffic))


def _message_event(
    opening: Opening, inspected: Inspected, rules: tuple[RuleRef, ...], now: float, *, is_reply: bool
) -> FlowEvent:
    """Return the event of a message in a flow with DNS rules, which these rules allow, or audit mode."""
    return FlowEvent(
        now,
        FlowVerdict.AUDIT if inspected.reason else FlowVerdict.FORWARDED,
        inspected.reason,
        Direction.EGRESS,
        opening,
        0,
        is_reply,
        rules[:_MAX_RULES],
        l7=inspected.message,
    )


def _is_on_other_link(sender: bytes, known: Origin | None, origin: Origin) -> bool:
    """Tell whether a packet's sender is only a namesake of a flow's end: a link-local address exists on several links.

    ``known``: the origin of that end's packets, None until its first packet.
    """
    return is_link_local(sender) and known not in {None, origin}


def _template(stamp: Stamp | None, key: bytes) -> StampTemplate | None:
    """Return the stamp as template for packets of a flow with this key."""
    return stamp_template(stamp, 4 if len(key) == _IPV4_KEY else 6, key[0]) if stamp else None


def _role(flow: Flow) -> int:
    """Return the role of the proxy in a flow: 1 receives it, -1 has opened it, 0 neither."""
    return (flow.slot > 0) - (flow.slot < 0)


def _is_stray_reply(packet: Packet) -> bool:
    """Tell whether the packet, without a flow, is a stray reply: a SYN-ACK, RST or ICMP reply never opens a flow."""
    return packet.is_syn_ack or packet.is_rst or packet.icmp_type in _ICMP_REPLIES.get(packet.proto, ())
