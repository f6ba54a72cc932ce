"""Datapath modes: per-packet, and per-flow, in which the kernel passes established flows without verdicts.

Per-flow: once both ends of a flow have sent packets and policy has allowed it, nothing remains to be decided until
policy changes, so the verdict tells the kernel to pass the flow's packets by itself. Those packets bear no stamp, and
the other node has to accept that. The order of events ensures it. A node offloads the opener's packets after a reply
with the replier's stamp: the replier's node knows the flow by then. It offloads the replies after an unstamped packet
of the opener: the opener's node has received its stamp by then. One-way flows stay stamped, packet for packet.

A flow needs no reply if no packet of it needs a stamp, and if its replies can come from one place only: this host, or
an endpoint with an interface, where the kernel checks all sources. Such a flow is offloaded with its first packet.

Of another flow without a reply, the kernel may pass the opener's packets if they need no stamp; the first reply is
still checked here. Without a reply, such a TCP flow is not offloaded at all.

Each mode answers the same questions, so the enforcer needs no knowledge of the mode.
"""

from nfq_enforcer.core.context import PacketContext
from nfq_enforcer.core.events import ACCEPT, Decision
from nfq_enforcer.core.identity import travels
from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_NONE,
    Conntrack,
    Flow,
    FlowState,
    Offload,
    Origin,
    shared_origin,
)
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.packet import TCP, reply_key
from nfq_enforcer.core.wire.skb import FLOW_OPENER

_NEW, _ANSWERED, _CLOSING = FlowState.NEW, FlowState.ANSWERED, FlowState.CLOSING  # as in ``conntrack``
_NEVER, _OPENER, _FLOW = Offload.NEVER, Offload.OPENER, Offload.FLOW
_DECISIONS = ACCEPT, ACCEPT, Decision(Verdict.OFFLOAD_OPENER), Decision(Verdict.OFFLOAD_FLOW)  # by ``Offload``


class PerPacket:
    """Mode per-packet: every packet gets a verdict; nothing is offloaded, restored or presumed."""

    offloads = False

    def accept(self, flow: Flow, reply: bool, stamped: bool, now: float) -> Decision:
        """Return the decision on an accepted packet of a known flow that leaves without a stamp.

        ``stamped``: the packet arrived with a stamp.
        """
        return ACCEPT

    def opened(self, flow: Flow, now: float) -> Decision:
        """Return the decision on the accepted first packet of a flow, which leaves without a stamp."""
        return ACCEPT

    def find_flow(self, context: PacketContext, flow: Flow | None) -> Flow | None:
        """Return the packet's flow, given the one in the table; may restore a flow and presume the packet's origin."""
        return flow

    def presumed_origin(self, origin: Origin, address: bytes, expected: Origin | None = None) -> Origin:
        """Return the origin that an unstamped packet with this source address is presumed to have."""
        return origin

    def is_masqueraded(self, address: bytes) -> bool:
        """Tell whether a stamped packet from this address has had its address rewritten by a router."""
        return False


class PerFlow(PerPacket):
    """Mode per-flow: established flows are offloaded to the kernel and restored from its record."""

    offloads = True

    def __init__(self, snapshot: Snapshot, flows: Conntrack) -> None:
        """Take the snapshot in force and the table of flows."""
        self._snapshot = snapshot
        self._flows = flows

    def accept(self, flow: Flow, reply: bool, stamped: bool, now: float) -> Decision:
        """Offload the flow to the extent that this packet permits."""
        if not reply and not stamped and flow.state >= _ANSWERED:
            flow.reply_stamp = None  # the opener's node has received it
        extent = offload_extent(flow, reply)
        if extent is not flow.offload:
            self._flows.offload(flow, extent, now)
        return _DECISIONS[extent]

    def opened(self, flow: Flow, now: float) -> Decision:
        """Offload the flow if its replies need no check; other datagrams may be the only ones of their flow."""
        return self.accept(flow, False, False, now) if _is_complete(flow) else ACCEPT

    def find_flow(self, context: PacketContext, flow: Flow | None) -> Flow | None:
        """Return the flow in the table, or one restored from the kernel's record; presume the packet's origin."""
        packet = context.packet
        if flow is None and context.offloaded_before and not packet.opens:
            opened_by = packet.key if context.skb & FLOW_OPENER else reply_key(packet.key)
            flow = self._flows.restore(opened_by, context.now)
        if flow is None or flow.is_reopened_by(packet):
            return flow
        if context.offloaded_before or (flow.revision != REVISION_NONE and flow.state >= _ANSWERED):
            expected = flow.origin if flow.masqueraded and packet.key == flow.key else None
            context.origin = self.presumed_origin(context.origin, packet.src, expected)
        return flow

    def presumed_origin(self, origin: Origin, address: bytes, expected: Origin | None = None) -> Origin:
        """Return the presumed origin of a packet of an established flow, which need not bear a stamp.

        An unstamped packet from a cluster interface counts as sent by the owner of its address. If no endpoint owns the
        address, it counts as sent from the origin that the flow has ``expected``: a router on the path has rewritten
        the address of that flow.
        """
        if (
            origin.identity is not None
            or origin.interface not in self._snapshot.cluster_interfaces
            or address in self._snapshot.endpoints
        ):
            return origin
        identity = self._snapshot.ipcache.lookup(address).identity
        if travels(identity):
            return shared_origin(origin.interface, identity)
        return expected if expected is not None and expected.interface == origin.interface else origin

    def is_masqueraded(self, address: bytes) -> bool:
        """Tell whether no endpoint is known to own this address, so that a router has rewritten it."""
        return not travels(self._snapshot.ipcache.lookup(address).identity)


_PER_PACKET = PerPacket()


def datapath_mode(snapshot: Snapshot, flows: Conntrack) -> PerPacket:
    """Return the mode of a snapshot: per-flow if it has an epoch."""
    return _PER_PACKET if snapshot.epoch is None else PerFlow(snapshot, flows)


def offload_extent(flow: Flow, reply: bool) -> Offload:
    """Return the extent to which the kernel may pass a flow after this packet of it, which leaves without a stamp."""
    state = flow.state
    if flow.offload is _NEVER or state >= _CLOSING:
        return flow.offload
    if reply:
        return _FLOW if flow.origin.interface != ORIGIN_UNKNOWN.interface else flow.offload
    if _is_complete(flow):
        return _FLOW
    return flow.offload if state is _NEW and flow.key[0] == TCP else max(flow.offload, _OPENER)


def _is_complete(flow: Flow) -> bool:
    """Tell whether the replies of a flow need neither a stamp nor a check: their origin is known."""
    return flow.reply_stamp is None and flow.reply_origin is not None
