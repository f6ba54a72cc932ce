"""An ICMP error reaches a closed endpoint only if it quotes a packet of the endpoint that its sender may have received.

A rewritten error keeps its addresses, its quote and a valid checksum.
"""

from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire import icmp
from nfq_enforcer.core.wire.packet import ICMPV6, Packet, checksum, parse, parse_quoted
from tests.fuzz.inputs import Input
from tests.support.nodes import CLIENT, CLOSED, ETH0, FAMILIES, OTHER, VETH_DB, VETH_WEB, WAN0, Node, accepted
from tests.support.packets import TOO_BIG, error, packed, ping, stamped, syn, udp

_SENT = [build(at.web, other) for at in FAMILIES for other in (at.client, at.world) for build in (syn, udp, ping)]
_SENT_KEYS = {parse(payload).key for payload in _SENT}
_REMOTE_ENDPOINTS = {packed(address) for at in FAMILIES for address in (at.client, at.other)}
_WAYS = [(ETH0, VETH_WEB), (WAN0, VETH_WEB), (VETH_DB, VETH_WEB)]

_ERRORS = [
    [
        (0, error(at.second_node, at.web, udp(at.web, at.client))),
        (0, error(at.second_node, at.web, ping(at.web, at.client))),
        (0, stamped(error(at.other, at.web, syn(at.web, at.client)), OTHER)),
        (0, stamped(error(at.client, at.web, syn(at.web, at.client), TOO_BIG), CLIENT)),
        (1, error(at.world, at.web, stamped(udp(at.web, at.client), 300), TOO_BIG)),
        (2, error(at.db, at.web, udp(at.web, at.client))),
    ]
    for at in FAMILIES
]
SEEDS = [bytes((way,)) + payload for errors in _ERRORS for way, payload in errors]


def check(data: bytes) -> None:
    given = Input(data)
    come_by, leave_by = given.choose(_WAYS)
    payload = given.rest()
    node = Node()
    node.load(ingress=CLOSED)
    for sent in _SENT:
        assert accepted(node.forward(sent, VETH_WEB, ETH0))
    decision = node.forward(payload, come_by, leave_by)
    try:
        packet = parse(payload)
    except PacketError:
        assert not accepted(decision)
        return
    if not packet.error:
        return
    _check_lowered(payload, packet)
    if accepted(decision) and packet.dst in (packed(at.web) for at in FAMILIES):
        quoted = parse_quoted(payload, packet)
        assert quoted.key in _SENT_KEYS
        assert quoted.src == packet.dst
        assert packet.src not in _REMOTE_ENDPOINTS or packet.src == quoted.dst


def _check_lowered(payload: bytes, packet: Packet) -> None:
    lowered = icmp.lower_mtu(payload, packet, 16)
    after = parse(lowered)
    assert (after.key, len(lowered)) == (packet.key, len(payload))
    assert lowered[: packet.l4_offset] == payload[: packet.l4_offset]
    assert lowered[packet.l4_offset + 8 :] == payload[packet.l4_offset + 8 :]
    if not packet.truncated and _is_summed(payload, packet):
        assert _is_summed(lowered, after)


def _is_summed(payload: bytes, packet: Packet) -> bool:
    message = payload[packet.l4_offset : packet.length]
    pseudo_header = packet.src + packet.dst + len(message).to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6))
    return checksum((pseudo_header if packet.version == 6 else b"") + message) == 0
