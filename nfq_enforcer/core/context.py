"""Packet context: one packet at a hook of the kernel, with its interfaces, parsed headers and origin."""

from dataclasses import dataclass
from typing import NamedTuple

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.wire.packet import Packet
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER, GSO, PROXIED, PROXY_LEG, SLOT_SHIFT

_UNRESOLVED = Identity(0)
LOOPBACK = "lo"


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
    sender: int = 0  # cgroup of the socket that sent it, if it is that of a process endpoint
    receiver: int = 0  # cgroup of the socket that receives it, if it is that of a process endpoint

    @property
    def gso(self) -> bool:
        """Tell whether the kernel cuts the packet into segments after the verdict."""
        return bool(self.skb & GSO)

    @property
    def offloaded_before(self) -> bool:
        """Tell whether the kernel has passed the packet's flow before without verdicts."""
        return bool(self.skb & (FLOW_OPENER | FLOW_REPLIER))

    @property
    def to_host(self) -> bool:
        """Tell whether this host receives the packet, also by its loopback interface."""
        return self.outdev is None or self.outdev.name == LOOPBACK

    @property
    def slot(self) -> int:
        """Return the slot of the proxy that the packet mark names, 0 without one."""
        return self.skb >> SLOT_SHIFT

    def proxy_role(self, opener: bytes) -> int:
        """Return the role of the proxy in the flow with this opener's key, by this packet of it.

        1: it receives the flow, -1: it has opened the flow, 0: it is no end of the flow.
        """
        if not self.skb & (PROXIED | PROXY_LEG):
            return 0
        return 1 if bool(self.skb & PROXIED) is (self.packet.key == opener) else -1

    def link(self, *, reply: bool = False) -> str | None:
        """Return the interface toward the replier: by which the packet leaves or, for a ``reply``, arrived."""
        interface = self.indev if reply else self.outdev
        return interface.name if interface else None

    @property
    def opening(self) -> Opening:
        """Return the opening that the packet would make; both identities are unresolved."""
        packet = self.packet
        ends = packet.src, packet.dst, packet.proto, packet.sport, packet.dport
        icmp, processes = (packet.icmp_type, packet.icmp_code), (self.sender, self.receiver)
        return Opening(*ends, *icmp, self.to_host, _UNRESOLVED, _UNRESOLVED, *processes)
