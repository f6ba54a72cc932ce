"""Rewriting on the slow path: insert the sender's stamp, or strip a stamp that the sender itself has set.

The kernel takes the bytes of a verdict as final, so an unfinished checksum is finished here. A packet that cannot be
rewritten in the form in which it was queued is requeued: another queue delivers it whole, or in segments. The flow must
not be updated before that.
"""

from nfq_enforcer.core.context import PacketContext
from nfq_enforcer.core.verdict import DropReason, PacketError, Verdict
from nfq_enforcer.core.wire import checksums, stamp
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.core.wire.skb import CHECKSUM_UNFINISHED, GSO, MAX_PAYLOAD
from nfq_enforcer.core.wire.stamp import StampTemplate


def rewrite(
    context: PacketContext, template: StampTemplate | None, *, can_requeue: bool, fits: bool
) -> bytes | Verdict:
    """Return the packet with this stamp or without any, or the verdict that requeues it.

    Raise PacketError where only another queue could deliver the packet in a form that can be rewritten, and the driver
    has none (not ``can_requeue``).

    The length of the segments of a GSO packet is unknown here. Unless the flow's MSS leaves room for a stamp
    (``fits``), the kernel segments the packet first: each segment is then compared with the MTU, and its sender told
    the size that fits.
    """
    payload, packet = context.payload, context.packet
    too_long = packet.length + (template.growth if template else 0) > MAX_PAYLOAD
    required = _required_form(context, too_long)
    if required is not None and can_requeue:
        return required
    if template and context.gso and not fits and can_requeue:
        return Verdict.REQUEUE_SEGMENTED
    if packet.truncated:
        raise PacketError(DropReason.PAYLOAD_TOO_LONG)
    if required is not None or too_long:
        raise PacketError(DropReason.STAMP_NO_ROOM)
    if context.skb & CHECKSUM_UNFINISHED and not context.gso:
        payload = checksums.finish(payload, packet.proto, packet.l4_offset)
    if template is None:
        return stamp.strip(payload, packet)
    return template.insert(payload) if packet.is_bare else stamp.replace(payload, packet, template)


def _required_form(context: PacketContext, too_long: bool) -> Verdict | None:
    """Return the requeue verdict that yields a rewritable form of the packet; None if none helps or is needed.

    Only segments of TCP get their checksums from the kernel after a rewrite: a rewritten skb is CHECKSUM_NONE, which
    ``tcp4_gso_segment`` (net/ipv4/tcp_offload.c) repairs and other protocols do not. Datagrams are segmented first in
    any case: each is then compared with the MTU.
    """
    packet = context.packet
    if context.gso and (too_long or packet.proto != TCP):
        return Verdict.REQUEUE_SEGMENTED
    if packet.truncated:
        return None if too_long else Verdict.REQUEUE_WHOLE
    unfinished = context.skb & (CHECKSUM_UNFINISHED | GSO)
    if unfinished and not checksums.is_unfinished(context.payload, packet.key, packet.l4_offset):
        return Verdict.REQUEUE_SEGMENTED
    return None
