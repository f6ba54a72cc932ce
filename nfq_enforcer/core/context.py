"""Packet context: one packet at a hook of the kernel, with its interfaces, parsed headers and origin."""

from dataclasses import dataclass
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.wire.packet import Packet
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER, GSO

_UNRESOLVED = Identity(0)


class Interface(NamedTuple):
    """Network interface of this host: the fields that a verdict needs."""

    name: str
    mtu: int


@dataclass(slots=True)
class PacketContext:
    """Context of one verdict on the slow path."""

    payload: bytes
    packet: Packet
    indev: Interface | None  # None: sent by this host itself (hook OUTPUT)
    outdev: Interface | None  # None: delivered to this host (hook INPUT)
    now: float
    skb: int  # SkbFlags
    origin: Origin
    stamped: bool = False  # arrived with a valid stamp

    @property
    def gso(self) -> bool:
        """Tell whether the kernel cuts the packet into segments after the verdict."""
        return bool(self.skb & GSO)

    @property
    def offloaded_before(self) -> bool:
        """Tell whether the kernel has passed the packet's flow before without verdicts."""
        return bool(self.skb & (FLOW_OPENER | FLOW_REPLIER))

    @property
    def opening(self) -> Opening:
        """Return the opening that the packet would make; both identities are unresolved."""
        packet = self.packet
        ends = packet.src, packet.dst, packet.proto, packet.sport, packet.dport
        return Opening(*ends, packet.icmp_type, packet.icmp_code, self.outdev is None, _UNRESOLVED, _UNRESOLVED)
