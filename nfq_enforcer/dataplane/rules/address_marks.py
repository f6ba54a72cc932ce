"""Address marks, as text: chains of nftables that give each packet its class, right before the rules of iptables.

The class is in the packet mark (``packet_mark``). So no rule of iptables names a set: a file of iptables-save, written
while the agent runs, can be restored on a host where no set of ours exists yet (docs/decisions/0017-address-marks.md).
The chains have the priorities next to that of table ``security``, so no chain of others comes between that could change
the mark. The first ones set all our bits, so no bit of a packet from elsewhere counts; the last ones clear them, so no
rule of others meets one.

Connections from the host itself to the store, and their replies, have no class, even if the host is an endpoint: a
policy must not cut the agent off from its source of policy. The address that counts is the one that the host connects
to, also if its rules translate it. Replies of servers with a translated address have chains of their own
(``translated_replies``).

A packet that this node only routes to an endpoint of another node (*in transit*) has the class of packets to an
endpoint if its source may be translated later (SNAT comes after our hooks): the first packets of a connection, and all
of its opener's if conntrack has a translation for it.
"""

from collections.abc import Collection, Iterable, Set
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses

from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.dataplane.rules import process_rules, translated_replies
from nfq_enforcer.dataplane.rules.filter_table import FAMILIES, Chain, Members
from nfq_enforcer.dataplane.rules.packet_mark import ASKING, FROM_ENDPOINT, KNOWN_SOURCE, MASK, TO_ENDPOINT

Service = tuple[IPv4Address | IPv6Address, int]
"""Service: an address and a TCP port."""

STORE = ("store4", "store6")  # the sets of the store's addresses and ports
ENDS = ("ends4", "ends6")  # the sets of the endpoints' addresses
_SEEN = "size 524288; flags dynamic,timeout; timeout 5s;"  # the kernel adds the members: sources of openings
SETS = {
    "ends4": "type ipv4_addr;",
    "ends6": "type ipv6_addr;",
    "end_interfaces": "type ifname;",
    "remote4": "type ipv4_addr; flags interval;",
    "remote6": "type ipv6_addr; flags interval;",
    "store4": "type ipv4_addr . inet_service;",
    "store6": "type ipv6_addr . inet_service;",
    "seen4": f"type ipv4_addr; {_SEEN}",
    "seen6": f"type ipv6_addr; {_SEEN}",
}
_OTHERS = ~MASK & 0xFFFFFFFF
_UNASKED = ~(MASK | ASKING) & 0xFFFFFFFF  # a SYN that passed before routing without an answer asks no more
_SOURCES = {4: "ip saddr", 6: "ip6 saddr & ffff:ffff:ffff:ffff::"}  # a source of openings: an address, a link
# Destinations that depend on the link, by which a packet leaves: groups, broadcast, link-local addresses.
_ON_LINK = ("ip daddr 224.0.0.0/3", "ip6 daddr { fe80::/10, ff00::/8 }")


def ends(permitted: Members, interfaces: Iterable[str]) -> Members:
    """Return the addresses and interfaces of endpoints of this node, as members of the sets.

    The addresses are those that the source filter permits.
    """
    return {"ends4": permitted["local4"], "ends6": permitted["local6"], "end_interfaces": frozenset(interfaces)}


def remote(networks: Set[Network]) -> Members:
    """Return the networks of endpoints of other nodes, as members of the sets."""
    v4 = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    v6 = collapse_addresses(network for network in networks if isinstance(network, IPv6Network))
    return {"remote4": frozenset(map(str, v4)), "remote6": frozenset(map(str, v6))}


def store(services: Iterable[Service]) -> Members:
    """Return the services of the store, as members of the sets."""
    services = tuple(services)
    return {
        f"store{version}": frozenset(
            (str(address), str(port)) for address, port in services if address.version == version
        )
        for version, _ in FAMILIES
    }


def chains(cluster_interfaces: Iterable[str], security: Collection[int], *, uses_marks: bool) -> dict[str, Chain]:
    """Return the chains.

    ``security``: the priorities of table security in all IP families; ``uses_marks``: flows have connmarks of ours.
    """
    to_store = [
        f"meta l4proto tcp ct original {ip} daddr . ct original proto-dst @store{version}" for version, ip in FAMILIES
    ]
    exempt_out = [f"{match} ct direction original goto others" for match in to_store]
    exempt_in = [f"{match} ct state established ct direction reply" for match in to_store]
    late = translated_replies.are_late(security)
    sources = [f"{ip} saddr @ends{version} goto from_endpoint" for version, ip in FAMILIES]
    arrived = ["iifname @end_interfaces goto from_endpoint"]
    destinations = [f"{ip} daddr @ends{version} goto to_endpoint" for version, ip in FAMILIES]
    leaving = [f"{match} oifname @end_interfaces goto to_endpoint" for match in _ON_LINK]
    transit = [
        f'oifname "{name}" ct direction original {state} {ip} daddr @remote{version} goto to_endpoint'
        for name in sorted(cluster_interfaces)
        for state in ("ct state new,related", "ct status snat,dnat")
        for version, ip in FAMILIES
    ]
    switch_in, switch_out = f"jump {process_rules.SWITCH_IN}", f"jump {process_rules.SWITCH_OUT}"
    rules = {
        "input": [
            *([translated_replies.decided_rule()] if late else []),
            switch_in,
            *(f"{match} goto others" for match in exempt_in),
            'iifname "lo" goto others',
            *sources,
            *arrived,
            *destinations,
        ],
        "forward": [*sources, *arrived, *destinations, *leaving, *transit],
        "output": [switch_out, *exempt_out, *sources, *destinations, *leaving],
    }
    hook, before, after = "type filter hook {} priority {}; policy accept;", min(security) - 1, max(security) + 1
    classified = f"meta mark & {MASK:#x} != 0"
    clear = f"{classified} meta mark set meta mark & {_OTHERS:#x}"
    return {
        "others": Chain("", [clear]),
        "from_endpoint": Chain("", [_set(FROM_ENDPOINT)]),
        "to_endpoint": Chain(
            "",
            [
                f"ct state established {_set(TO_ENDPOINT)} accept",
                f"meta l4proto != tcp ct state new ct status confirmed {_set(TO_ENDPOINT)} accept",
                *(
                    f"{source} @seen{version} {_set(TO_ENDPOINT | KNOWN_SOURCE)} accept"
                    for version, source in _SOURCES.items()
                ),
                _set(TO_ENDPOINT),
                *(f"add @seen{version} {{ {source} }}" for version, source in _SOURCES.items()),
            ],
        ),
        **process_rules.chains(),
        **(translated_replies.chains(exempt_in, uses_marks=uses_marks) if late else {}),
        "clear": process_rules.clear_chain(_OTHERS),
        **{f"mark_{name}": Chain(hook.format(name, before), [*each, "goto others"]) for name, each in rules.items()},
        **{f"clear_{name}": Chain(hook.format(name, after), [f"{classified} goto clear"]) for name in rules},
    }


def _set(bits: int) -> str:
    return f"meta mark set meta mark & {_UNASKED:#x} | {bits:#x}"
