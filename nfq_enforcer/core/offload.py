"""Flows that the kernel passes by itself (``datapath: per-flow``): from when on, and what that means for stamps.

Once both ends of a flow have spoken and been judged, there is nothing more to decide until policy changes. So the
kernel is told to pass its packets without asking. They bear no stamp then, and the node at the other end has to be
ready for that. It is by the order of things: a node lets its opener's packets go unstamped when it has seen a reply,
with the replier's stamp. So the replier's node knows the flow by then. It lets the replies go unstamped when it has
seen that the opener's packets do: for this says that its stamp has arrived. What is one-way stays stamped, packet for
packet.

Of a flow that has not been answered, the kernel may pass what the opener sends, if that bears no stamp; the first reply
still is for us to check. TCP that is not answered is for us altogether.
"""

from nfq_enforcer.core.tables.conntrack import ORIGIN_UNKNOWN, Flow, FlowState, Offload
from nfq_enforcer.core.wire.packet import TCP

_NEW, _CLOSING = FlowState.NEW, FlowState.CLOSING  # looking a member up takes longer than the packet path has
_NEVER, _OPENER, _FLOW = Offload.NEVER, Offload.OPENER, Offload.FLOW


def bypass(flow: Flow, reply: bool) -> Offload:
    """Return how much of a flow the kernel may pass behind this packet of it, which goes on without a stamp of ours."""
    state = flow.state
    if flow.offload is _NEVER or state >= _CLOSING or (state is _NEW and flow.key[0] == TCP):
        return flow.offload
    if reply:
        return _FLOW if flow.origin[0] != ORIGIN_UNKNOWN[0] else flow.offload
    if state is not _NEW and flow.reply_stamp is None and flow.reply_origin is not None:
        return _FLOW
    return max(flow.offload, _OPENER)
