"""Redirect rules, as text: chains of nftables that bring connections with HTTP rules to the proxy.

A SYN to an address and port in ``l7_in``, or from an address to a port in ``l7_out``, is queued before routing, after
DNAT. The verdict repeats the hook with a slot in the packet mark, or lets the packet pass. A SYN with a slot is
assigned to the slot's listener (TPROXY) and delivered to this host by a routing rule (``policy_routing``), although its
destination is another one; so is that of a client on this host, which first leaves and comes back by ``lo``.

The *way* of a packet is in four bits of its mark (``packet_mark.WAY``). Two bits of the connmark keep it for a
connection: that of a client (REDIRECTED), or that of the proxy to a server (FROM_PROXY). So its further packets need
neither queue nor slot, and they never take another way: without a socket of the proxy, the sender gets a RST. ICMP
errors about packets of the proxy reach it as well. Nothing but these rules sets the bits of the connmark. A process may
set a packet mark (SO_MARK): that of the proxy counts for its user only, and only to open a connection. The slot that
another one sets is compared by the worker like any other.

The proxy opens connections from the addresses of clients, with ports of its own choice. Where such a connection would
have the addresses and ports of one that a client has open, or the other way round, the later SYN is dropped. So
conntrack forgets both kinds of connections soon after their end: by default, that takes two minutes.

With br_netfilter, a packet from the port of a bridge traverses prerouting twice: as a frame, before the bridge decides
where it goes, and after IP has received it. Its hooks end the second traversal at once (ip_sabotage_in, with the lowest
priority), and IP removes the socket that TPROXY has assigned in the first one (ip_rcv_core). So a chain that comes
before that hook (``bridged_chain``) assigns a socket once more, and one of the table of family ``bridge`` turns frames
to other hosts up to this one (``bridge_chains``). A SYN without a socket never reaches one of another program.

The kernel's rule for a queue belongs to ``xt_NFQUEUE``, as in table ``security`` (see ``made_rules``).
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

from nfq_enforcer.core.tables.slots import MAX_SLOTS
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.dataplane.rules.filter_table import FAMILIES, Chain, Member, Members, QueueRule
from nfq_enforcer.dataplane.rules.opening_rules import Budgets
from nfq_enforcer.dataplane.rules.packet_mark import ASKING, FROM_PROXY, REDIRECTED, TO_PROXY, WAY

OPENINGS, EXCESS = "slot_openings", "slot_excess"  # chains with a rule that queues
SETS = {
    "l7_in4": "type ipv4_addr . inet_service; flags interval;",  # endpoints, and their ports with HTTP rules
    "l7_in6": "type ipv6_addr . inet_service; flags interval;",
    "l7_out4": "type ipv4_addr . inet_service; flags interval;",  # endpoints, and ports of servers
    "l7_out6": "type ipv6_addr . inet_service; flags interval;",
    "slots": "type mark : inet_service;",  # the port of each slot's listener
}
_ENDED = "proxied"
TIMEOUTS = {_ENDED: "protocol tcp ; policy = { time_wait : 1, close : 1 } ;"}  # s; of connections to and from the proxy
PORTS = "ports"  # of bridges, with their hardware addresses
BRIDGE_SETS = {PORTS: "type ifname : ether_addr;"}
BRIDGED = "bridged_prerouting"  # the chain that only a host with br_netfilter has
NO_TARGETS: Members = {name: frozenset() for name in ("l7_in4", "l7_in6", "l7_out4", "l7_out6")}
_SYN = "tcp flags & (syn | ack) == syn"
_NOT_SYN = "tcp flags & (syn | ack) != syn"
_ERROR = "meta l4proto { icmp, icmpv6 } ct state related"
_FORGET_SOON = f'ct timeout set "{_ENDED}"'
_BITS = connmark.REDIRECTED | connmark.FROM_PROXY
_SLOT = 0xFFFF
_PRIORITY, _AFTER = -90, -89  # after DNAT (NF_IP_PRI_NAT_DST, -100)
_FIRST = -(2**31)  # NF_IP_PRI_FIRST, that of ip_sabotage_in: the latest chain of a priority comes first
_AFTER_IP = 1  # in family bridge: right after br_netfilter has passed the frame to iptables (NF_BR_PRI_BRNF, 0)
_LISTENERS = {4: ("ipv4", "ip to 127.0.0.1"), 6: ("ipv6", "ip6 to [::1]")}


class ProxyRules(NamedTuple):
    """Proxy rules: the parameters of the proxy."""

    first_port: int  # the listener of a slot has this port, plus the slot's number
    uid: int  # of the proxy's processes, and of no others


def targets(snapshot: Snapshot) -> Members:
    """Return addresses and ports of endpoints under rules of the proxy, as members of the sets."""
    members: dict[str, set[Member]] = {name: set() for name in NO_TARGETS}
    for packed, endpoint in snapshot.endpoints.items():
        for direction, policy in (("in", endpoint.ingress), ("out", endpoint.egress)):
            if policy.proxy_ports:
                address = str(ip_address(packed))
                ports = (str(first) if first == last else f"{first}-{last}" for first, last in policy.proxy_ports)
                members[f"l7_{direction}{4 if len(packed) == 4 else 6}"].update((address, port) for port in ports)
    return {name: frozenset(each) for name, each in members.items()}


def slots(proxy: ProxyRules) -> Members:
    """Return the ports of all slots, as members of the map."""
    return {"slots": frozenset((str(slot), str(proxy.first_port + slot)) for slot in range(1, MAX_SLOTS + 1))}


def chains(proxy: ProxyRules, budgets: Budgets | None) -> dict[str, Chain]:
    """Return the chains; ``budgets``: of openings, for all workers."""
    return {**_common(), **_asking(budgets), **_incoming(), **_outgoing(proxy)}


def bridged_chain() -> Chain:
    """Return the chain that assigns a socket to a SYN from the port of a bridge, once IP has received it.

    It has to be made when br_netfilter already has its hooks. Only ``redirect_prerouting`` redirects a connection, and
    no connection is known yet in the first traversal, nor to a packet that has entered otherwise.
    """
    return Chain(
        _hook("filter", "prerouting", _FIRST),
        [f"{_way(TO_PROXY)} {_SYN} {_connection(connmark.REDIRECTED)} goto assigned"],
    )


def bridge_chains() -> dict[str, Chain]:
    """Return the chains of the table of family ``bridge``: frames that go to the proxy, whatever their destination.

    The hardware address of a port is one of this host's for its bridge.
    """
    return {
        "to_host": Chain(
            "",
            [
                "meta pkttype host accept",
                f"meta pkttype other ether daddr set iifname map @{PORTS} meta pkttype set host accept",
                "drop",  # from a port that the map does not have yet
            ],
        ),
        "redirect_prerouting": Chain(_hook("filter", "prerouting", _AFTER_IP), [f"{_way(TO_PROXY)} goto to_host"]),
    }


def queue_rules(queues: Sequence[QueueNumbers], *, bypass: bool) -> tuple[QueueRule, ...]:
    """Return the rules that queue: for the queues of openings, and of excess openings, of all workers."""
    return (
        QueueRule(OPENINGS, queues[0].openings, len(queues), bypass),
        QueueRule(EXCESS, queues[0].excess, len(queues), bypass),
    )


def _common() -> dict[str, Chain]:
    return {
        "to_proxy": Chain("", [f"socket transparent 1 {_set_way(TO_PROXY, _SLOT)} accept", "reject with tcp reset"]),
        "assigned": Chain(
            "",
            [
                *(
                    f"meta nfproto {family} meta l4proto tcp tproxy {listener}:meta mark & {_SLOT:#x} map @slots "
                    f"{_set_way(TO_PROXY)} accept"
                    for family, listener in _LISTENERS.values()
                ),
                "drop",  # no listener
            ],
        ),
        "redirected": Chain("", [f"ct mark set ct mark | {connmark.REDIRECTED:#x} {_FORGET_SOON}", "goto assigned"]),
        # A listener of another program, on all addresses, must not answer for another host.
        "delivered": Chain("", ["socket transparent 1 accept", "drop"]),
        "redirect_input": Chain(_hook("filter", "input", _PRIORITY), [f"{_way(TO_PROXY)} {_SYN} goto delivered"]),
        # An ICMP error about a packet that the proxy has sent, of either connection.
        "error_to_proxy": Chain(
            "",
            [
                f"{_connection(connmark.FROM_PROXY)} ct direction reply goto received",
                f"{_connection(connmark.REDIRECTED)} ct direction original goto received",
            ],
        ),
        "received": Chain("", [_set_way(TO_PROXY, _SLOT)]),
        "by_lo": Chain("", ['iifname "lo" accept', "drop"]),
        # Without the routing rules, packets to the proxy would leave for the server.
        "unrouted": Chain(
            _hook("filter", "postrouting", _PRIORITY),
            [f'meta mark & {REDIRECTED | TO_PROXY:#x} != 0 oifname != "lo" drop'],
        ),
    }


def _asking(budgets: Budgets | None) -> dict[str, Chain]:
    """Return the chains of a SYN that asks for a slot: a flood of others costs no opening of a known source."""
    known = [f"{ip} saddr @{name}{version} goto slot_known" for name in ("ends", "seen") for version, ip in FAMILIES]
    return {
        OPENINGS: Chain("", []),
        "slot_unknown": Chain("", [*_limited(budgets.excess if budgets else None, "drop"), f"goto {EXCESS}"]),
        "slot_known": Chain(
            "", [*_limited(budgets.guaranteed if budgets else None, "goto slot_unknown"), f"goto {OPENINGS}"]
        ),
        EXCESS: Chain("", []),
        "ask": Chain(
            "",
            [
                _set_way(ASKING),
                *known,
                "add @seen4 { ip saddr }",
                "add @seen6 { ip6 saddr & ffff:ffff:ffff:ffff:: }",
                "goto slot_unknown",
            ],
        ),
    }


def _incoming() -> dict[str, Chain]:
    return {
        "proxied_prerouting": Chain(
            "",
            [
                f"{_connection(connmark.FROM_PROXY)} ct direction original goto by_lo",
                f"{_connection(connmark.REDIRECTED)} ct direction reply goto by_lo",
                f"{_NOT_SYN} goto to_proxy",
                f"{_connection(connmark.FROM_PROXY)} goto to_proxy",
                f"{_way(REDIRECTED)} goto redirected",
                'iifname "lo" accept',
                "ct status assured socket transparent 1 goto to_proxy",
                f"ct mark set ct mark & {_without(connmark.REDIRECTED)}",
                *_asked(),
            ],
        ),
        "opening_prerouting": Chain("", [f"{_way(REDIRECTED)} goto redirected", 'iifname "lo" accept', *_asked()]),
        "redirect_prerouting": Chain(
            _hook("filter", "prerouting", _PRIORITY),
            [
                f'meta mark & {WAY & ~REDIRECTED:#x} != 0 iifname != "lo" {_set_way(0)}',
                f"meta l4proto tcp {_connection(_BITS)} goto proxied_prerouting",
                f"{_SYN} goto opening_prerouting",
                f"{_ERROR} {_connection(_BITS)} goto error_to_proxy",
            ],
        ),
    }


def _outgoing(proxy: ProxyRules) -> dict[str, Chain]:
    own = f"{_way(FROM_PROXY)} meta skuid {proxy.uid}"
    return {
        "sent": Chain("", [f"meta mark & {WAY:#x} != {FROM_PROXY:#x} {_set_way(FROM_PROXY, _SLOT)}"]),
        "opened": Chain(
            "", [f"ct state new ct mark set ct mark | {connmark.FROM_PROXY:#x} {_FORGET_SOON} accept", "drop"]
        ),
        "proxied_output": Chain(
            "",
            [
                f"{_connection(connmark.FROM_PROXY)} ct direction original goto sent",
                f"{_connection(connmark.REDIRECTED)} ct direction reply goto sent",
                f"{_connection(connmark.FROM_PROXY)} goto received",
                f"{_NOT_SYN} goto received",
                f"{own} drop",
                f"{_way(REDIRECTED)} accept",
                f"meta mark & {WAY:#x} != 0 {_set_way(0)}",
            ],
        ),
        "marked_output": Chain("", [f"{_SYN} {own} goto opened", f"{_SYN} {_way(REDIRECTED)} accept", _set_way(0)]),
        "redirect_output": Chain(
            _hook("route", "output", _PRIORITY),
            [
                f"meta l4proto tcp {_connection(_BITS)} goto proxied_output",
                f"meta mark & {WAY:#x} != 0 goto marked_output",
                f"{_ERROR} {_connection(_BITS)} goto error_to_proxy",
            ],
        ),
        "opening_output": Chain(
            "",
            [
                f"{_way(REDIRECTED)} ct mark set ct mark | {connmark.REDIRECTED:#x} {_FORGET_SOON} accept",
                f"{_way(FROM_PROXY)} accept",
                f"{_connection(connmark.REDIRECTED)} ct mark set ct mark & {_without(connmark.REDIRECTED)}",
                *_asked(),
            ],
        ),
        # In a chain of this type, a packet with another mark is not routed anew: neither for a question nor without a
        # slot, which only a SYN names. After the verdict with a slot it is.
        "ask_output": Chain(
            _hook("filter", "output", _AFTER),
            [
                f"{_SYN} goto opening_output",
                f"{_way(FROM_PROXY)} meta l4proto tcp meta mark set meta mark & {_without(_SLOT)}",
            ],
        ),
    }


def _asked() -> list[str]:
    return [
        f"{ip} {end} . tcp dport @l7_{direction}{version} goto ask"
        for direction, end in (("in", "daddr"), ("out", "saddr"))
        for version, ip in FAMILIES
    ]


def _limited(rate: int | None, beyond: str) -> list[str]:
    return [f"limit rate over {rate}/second burst {rate} packets {beyond}"] if rate else []


def _hook(kind: str, name: str, priority: int) -> str:
    return f"type {kind} hook {name} priority {priority}; policy accept;"


def _connection(bits: int) -> str:
    return f"ct mark & {bits:#x} != 0"


def _way(way: int) -> str:
    return f"meta mark & {WAY:#x} == {way:#x}"


def _set_way(way: int, cleared: int = 0) -> str:
    bits = f" | {way:#x}" if way else ""
    return f"meta mark set meta mark & {_without(WAY | cleared)}{bits}"


def _without(bits: int) -> str:
    return f"{~bits & 0xFFFFFFFF:#x}"
