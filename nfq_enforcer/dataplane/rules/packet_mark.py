"""Packet marks: bits of the mark of a packet, on its way through one hook or to and from the proxy.

A packet has the bits of ``MASK`` only between the chains of ``address_marks``, right before and right after the rules
of table ``security``. Its class comes first, from its addresses. A rule may replace it by the sender, for a known flow
whose connmark is of another epoch, and the verdict of a worker by a request (see ``connmark``).

The bits of ``WAY`` also have values without a meaning for the proxy: two for packets of process endpoints, between the
same chains, and one for packets to this host itself that have been decided in OUTPUT (see ``process_rules``).

The bits of ``WAY`` say that the packet goes to the proxy or comes from it (see ``redirect_rules``). The low 16 bits
then have the number of a slot, if it is a SYN.
"""

from nfq_enforcer.core.wire import skb
from nfq_enforcer.core.wire.skb import ASKS_SLOT, FLOW_OPENER, FLOW_REPLIER, PROXIED, PROXY_LEG, SLOT_SHIFT

LEGACY, NFT = 50, 150  # priority of table security: NF_IP_PRI_SECURITY, and that of iptables-nft
MASK = 0xF0000000

# Classes. Other packets (0) pass.
FROM_ENDPOINT = 0x10000000  # from an address, or by an interface, of an endpoint of this node
TO_ENDPOINT = 0x20000000  # to one, or in transit to one of another node
KNOWN_SOURCE = 0x80000000  # with TO_ENDPOINT: an opening, from a source that has sent another one within seconds

FROM_OPENER, FROM_REPLIER = FROM_ENDPOINT | KNOWN_SOURCE, FROM_ENDPOINT | TO_ENDPOINT  # no class has these two values
_SENDER_FLAGS = {FROM_OPENER: FLOW_OPENER, FROM_REPLIER: FLOW_REPLIER}

REQUEST = 0x40000000  # set by a verdict; the other bits are of ``connmark.request`` then


WAY = 0x0F000000
ASKING = 0x01000000  # a SYN, queued for a slot
REDIRECTED = 0x02000000  # a SYN that got a slot
TO_PROXY = 0x04000000  # of a redirected connection: delivered to this host
FROM_PROXY = 0x08000000
# No packet of the proxy has these values.
OF_PROCESS = TO_PROXY | FROM_PROXY
SENT_BY_PROCESS = OF_PROCESS | REDIRECTED
DECIDED = REDIRECTED | FROM_PROXY
_SLOT = 0xFFFF
_WAY_FLAGS = {
    ASKING: ASKS_SLOT,
    REDIRECTED: PROXIED,
    TO_PROXY: PROXIED,
    FROM_PROXY: PROXY_LEG,
    OF_PROCESS: skb.OF_PROCESS,
    SENT_BY_PROCESS: skb.OF_PROCESS | skb.SENT_BY_PROCESS,
}


def match(bits: int, mask: int = MASK, *, negated: bool = False) -> str:
    """Return the match of iptables for packets with exactly these bits of the mask."""
    return f"-m mark {'! ' * negated}--mark {bits:#x}/{mask:#x}"


def skb_flags(mark: int) -> int:
    """Return the flags of ``core.wire.skb`` for a packet: which end of its flow sent it, its way, its slot."""
    flags = _SENDER_FLAGS.get(mark & MASK, 0)
    return flags | _way_flags(mark) if mark & WAY else flags


def _way_flags(mark: int) -> int:
    way = _WAY_FLAGS.get(mark & WAY, 0)
    return way | (mark & _SLOT) << SLOT_SHIFT if way & (PROXIED | PROXY_LEG) else way


def undecided(mark: int) -> int:
    """Return the packet mark of a SYN that has asked for a slot, and gets none."""
    return mark & ~WAY


def redirected(mark: int, slot: int) -> int:
    """Return the packet mark of a SYN that got a slot; bits of others stay, but for those in the place of the slot."""
    return mark & ~(WAY | _SLOT) | REDIRECTED | slot


def from_proxy(slot: int) -> int:
    """Return the packet mark that the proxy sets on the packets of a slot."""
    return FROM_PROXY | slot
