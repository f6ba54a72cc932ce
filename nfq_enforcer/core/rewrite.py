"""The bytes with which a packet goes on: with its sender's stamp, or without one that the sender has put there.

What is rewritten is final, so an unfinished checksum is finished. What cannot be rewritten as it came is handed on to
another queue, where it comes whole or in segments; nothing must have been noted of it until then.
"""

from nfq_enforcer.core.context import Interface, PacketContext
from nfq_enforcer.core.verdict import DropReason, PacketError, Verdict
from nfq_enforcer.core.wire import checksums, stamp
from nfq_enforcer.core.wire.checksums import SEGMENTS, UNFINISHED
from nfq_enforcer.core.wire.fast_parse import FastPacket
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.core.wire.stamp import StampTemplate

LONGEST = 65_531  # bytes of a packet that can be copied, or put in its place: what a netlink attribute can carry


class Requeue(Exception):
    """A packet for another queue, of this worker or the next; ``verdict`` says which."""

    def __init__(self, verdict: Verdict) -> None:
        """Keep the verdict; it is all there is to say."""
        super().__init__(verdict.value)
        self.verdict = verdict


def press(payload: bytes, seen: FastPacket, mark: StampTemplate, outdev: Interface | None, skb: int) -> bytes | None:
    """Return a plain packet with this stamp; None where it takes more than that."""
    key, claim, _, l4, whole = seen
    if not whole or claim is not None or outdev is None:
        return None
    if len(payload) + mark.growth > (LONGEST if skb & SEGMENTS else min(outdev.mtu, LONGEST)):
        return None
    if skb & (UNFINISHED | SEGMENTS):
        proto = key[0]
        if not checksums.is_left(payload, key, l4) or (skb & SEGMENTS and proto != TCP):
            return None
        if not skb & SEGMENTS:
            payload = checksums.finish(payload, proto, l4)
    return mark.press(payload)


def rewrite(arrival: PacketContext, mark: StampTemplate | None, *, can_requeue: bool, fits: bool) -> bytes:
    """Return the packet with this stamp, or with none; raise Requeue, or without ``can_requeue`` PacketError.

    Nobody says how long the segments will be into which a packet is yet to be cut. Unless they are known to leave room
    (``fits``), they are better cut first: each is held against the MTU then, and its sender told what fits.
    """
    payload, packet = arrival.payload, arrival.packet
    too_long = packet.length + (mark.growth if mark else 0) > LONGEST
    hindrance = _hindrance(arrival, too_long)
    if hindrance is not None and can_requeue:
        raise Requeue(hindrance)
    if mark and arrival.segments and not fits and can_requeue:
        raise Requeue(Verdict.REQUEUE_SEGMENTED)
    if packet.truncated:
        raise PacketError(DropReason.PAYLOAD_TOO_LONG)
    if hindrance is not None or too_long:
        raise PacketError(DropReason.STAMP_NO_ROOM)
    if arrival.skb & UNFINISHED and not arrival.segments:
        payload = checksums.finish(payload, packet.proto, packet.l4_offset)
    if mark is None:
        return stamp.strip(payload, packet)
    return mark.press(payload) if packet.is_bare else stamp.put(payload, packet, mark)


def _hindrance(arrival: PacketContext, too_long: bool) -> Verdict | None:
    """Return how another queue has to hand the packet over so that it can be rewritten, None if none helps or needs to.

    Only segments of TCP get their checksums from the kernel although the packet has been changed: a rewritten skb is
    CHECKSUM_NONE, which ``tcp4_gso_segment`` mends and others do not. Datagrams are better cut before anyway: each is
    held against the MTU then.
    """
    packet = arrival.packet
    if arrival.segments and (too_long or packet.proto != TCP):
        return Verdict.REQUEUE_SEGMENTED
    if packet.truncated:
        return None if too_long else Verdict.REQUEUE_WHOLE
    left = arrival.skb & (UNFINISHED | SEGMENTS)
    if left and not checksums.is_left(arrival.payload, packet.key, packet.l4_offset):
        return Verdict.REQUEUE_SEGMENTED
    return None
