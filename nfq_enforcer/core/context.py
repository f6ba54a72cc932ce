"""A packet as it arrives at a hook of the kernel."""

from dataclasses import dataclass
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.wire.checksums import SEGMENTS
from nfq_enforcer.core.wire.packet import Packet

OPENERS, REPLIERS = 1 << 16, 1 << 17
"""Flags of a packet beside those of NFQA_SKB_INFO: the kernel has once passed its flow by itself, and has it on record
that the packet comes from the flow's opener, or from the other end."""

_UNKNOWN = Identity(0)


class Interface(NamedTuple):
    """A network interface of this host, as far as a verdict needs it."""

    name: str
    mtu: int


@dataclass(slots=True)
class PacketContext:
    """A packet, what its headers say, where it comes from and where it goes."""

    payload: bytes
    packet: Packet
    indev: Interface | None  # None: this host sends it itself
    outdev: Interface | None  # None: it is delivered to this host
    now: float
    skb: int  # bits of NFQA_SKB_INFO, see ``offload``, and the two above
    origin: Origin
    stamped: bool = False  # it came with a stamp that is believed

    @property
    def segments(self) -> bool:
        """Say whether the kernel will yet cut it into segments."""
        return bool(self.skb & SEGMENTS)

    @property
    def on_record(self) -> bool:
        """Say whether the kernel has once passed its flow by itself."""
        return bool(self.skb & (OPENERS | REPLIERS))

    @property
    def opening(self) -> Opening:
        """Return what it would open, both identities yet to be found."""
        packet = self.packet
        ends = packet.src, packet.dst, packet.proto, packet.sport, packet.dport
        return Opening(*ends, packet.icmp_type, packet.icmp_code, self.outdev is None, _UNKNOWN, _UNKNOWN)
