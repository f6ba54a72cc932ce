"""Flags of a queued packet beside its bytes: NFQA_SKB_INFO of the kernel, and the connmark of its flow.

The verdict loop carries them as a plain ``int`` and tests it with the constants below: a bitwise operation on an
``IntFlag`` costs about as much as the whole fast path.
"""

from enum import IntFlag

MAX_PAYLOAD = 65_531  # bytes that a queue can copy of a packet, or take in its place: the limit of a netlink attribute


class SkbFlags(IntFlag):
    """Flags of a queued packet."""

    CHECKSUM_UNFINISHED = 1 << 0  # NFQA_SKB_CSUMNOTREADY: the transport checksum is left to the device
    GSO = 1 << 1  # NFQA_SKB_GSO: the kernel cuts the packet into segments after the verdict
    FLOW_OPENER = 1 << 16  # by connmark: the kernel has offloaded the flow before, and its opener sent this packet
    FLOW_REPLIER = 1 << 17  # by connmark: the same, and its replier sent this packet
    ASKS_SLOT = 1 << 18  # queued before routing: the only question is to which slot of the proxy it is redirected
    PROXIED = 1 << 19  # on its way to the proxy, from a client, or from a server to which the proxy has connected
    PROXY_LEG = 1 << 20  # sent by the proxy
    OF_PROCESS = 1 << 21  # the kernel found a socket of a process endpoint of this node at an end of its flow
    SENT_BY_PROCESS = 1 << 22  # with OF_PROCESS: such a socket has sent it


CHECKSUM_UNFINISHED: int = SkbFlags.CHECKSUM_UNFINISHED.value
GSO: int = SkbFlags.GSO.value
FLOW_OPENER: int = SkbFlags.FLOW_OPENER.value
FLOW_REPLIER: int = SkbFlags.FLOW_REPLIER.value
ASKS_SLOT: int = SkbFlags.ASKS_SLOT.value
PROXIED: int = SkbFlags.PROXIED.value
PROXY_LEG: int = SkbFlags.PROXY_LEG.value
OF_PROCESS: int = SkbFlags.OF_PROCESS.value
SENT_BY_PROCESS: int = SkbFlags.SENT_BY_PROCESS.value
OF_PROXY = ASKS_SLOT | PROXIED | PROXY_LEG
SLOT_SHIFT = 24  # the slot's number is above all flags
