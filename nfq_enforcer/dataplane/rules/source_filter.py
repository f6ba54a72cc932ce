"""Source filter, as text: chains of nftables that drop packets with a forged source, before fragments are joined.

The kernel joins fragments for connection tracking at priority -400 of PREROUTING, so a chain at -450 sees each fragment
by itself, and each packet before a connmark can accept it. It checks the same as ``Snapshot.source_endpoint``:

- from an interface of endpoints come only the addresses of these endpoints, and the exempt sources of a host that
  configures itself (``core/source_address.py``);
- the address of an endpoint with an interface, or of this host, comes from nowhere else;
- the address of any other endpoint does not come from a cluster interface.

Nothing is bound to a device: an interface that does not exist yet is checked from its first packet on.

A packet from the port of a bridge has the bridge as its interface there. So a table of family ``bridge``, which sees
each frame with its port, checks those of endpoints whose interface is a port: the source of IP, and the sender's
address of ARP.
"""

from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_ntop

from nfq_enforcer.core.source_address import EXEMPT_SOURCES, ExemptSource
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.rules.filter_table import FAMILIES, Chain, Member, Members

DROPS = "drops"  # the set that counts drops for each interface
LOG_GROUP = 28262  # of NFLOG; ulogd and tcpdump use low numbers
_PRIORITY = -450  # before NF_IP_PRI_CONNTRACK_DEFRAG (-400)
_COPIED = 256  # bytes of a logged packet
_SAMPLED, _SAMPLED_IN_ALL = "rate 10/second burst 50 packets", "rate 100/second burst 200 packets"
_LOOPBACK = "lo"
MEMBERS = {
    "interfaces": "type ifname;",
    "owned4": "type ifname . ipv4_addr;",
    "owned6": "type ifname . ipv6_addr;",
    "bound4": "type ipv4_addr;",
    "bound6": "type ipv6_addr;",
    "local4": "type ipv4_addr;",
    "local6": "type ipv6_addr;",
}
_COUNTING = "type ifname; size 65535; flags dynamic;"  # the kernel adds the members: interfaces
SETS = {**MEMBERS, DROPS: f"{_COUNTING} counter;", "samples": _COUNTING}


def sources(snapshot: Snapshot) -> Members:
    """Return the sources that a snapshot permits, as members of the sets."""
    members: dict[str, set[Member]] = {name: set() for name in MEMBERS}
    of_host = {_LOOPBACK}
    for packed, endpoint in snapshot.endpoints.items():
        version, number = (4, AF_INET) if len(packed) == 4 else (6, AF_INET6)
        address = inet_ntop(number, packed)
        members[f"local{version}"].add(address)
        if endpoint.interface is not None or endpoint.is_host:
            members[f"bound{version}"].add(address)
        if endpoint.interface is not None:
            members[f"owned{version}"].add((endpoint.interface, address))
        if endpoint.is_host and endpoint.interface is not None:
            of_host.add(endpoint.interface)
    members["interfaces"] |= snapshot.endpoint_interfaces - of_host
    return {name: frozenset(each) for name, each in members.items()}


BRIDGE_MEMBERS = ("interfaces", "owned4", "owned6")
BRIDGE_SETS = {name: SETS[name] for name in (*BRIDGE_MEMBERS, DROPS, "samples")}


def bridge_chains() -> dict[str, Chain]:
    """Return the chains of the table of family ``bridge``: frames from ports that are interfaces of endpoints.

    A frame of any other protocol than IP and ARP has no source that an endpoint document could name.
    """
    return {
        "forged": Chain("", _forged()),
        "claims": Chain(
            "",
            [
                "iifname . arp saddr ip @owned4 accept",
                "arp saddr ip 0.0.0.0 accept",  # a probe for an address in use, RFC 5227 section 2.1.1
                f"update @{DROPS} {{ iifname }}",
                "drop",
            ],
        ),
        "endpoints": Chain(
            "", ["ether type arp goto claims", *map(_exemption, EXEMPT_SOURCES), "ether type { ip, ip6 } goto forged"]
        ),
        "prerouting": Chain(
            f"type filter hook prerouting priority {_PRIORITY}; policy accept;",
            [
                *(f"iifname . {ip} saddr @owned{version} accept" for version, ip in FAMILIES),
                "iifname @interfaces goto endpoints",
            ],
        ),
    }


def _forged() -> list[str]:
    """Return the rules that count and drop a packet, and send a sample of such packets to the log group."""
    return [
        f"update @{DROPS} {{ iifname }}",
        f"update @samples {{ iifname limit {_SAMPLED} }} limit {_SAMPLED_IN_ALL} "
        f"log group {LOG_GROUP} snaplen {_COPIED}",
        "drop",
    ]


def chains(cluster_interfaces: Iterable[str]) -> dict[str, Chain]:
    """Return the chains.

    Most packets meet one set: those of cluster interfaces the local addresses, those of endpoints their own.
    """
    owned = [f"iifname . {ip} saddr @owned{version} accept" for version, ip in FAMILIES]
    return {
        "forged": Chain("", _forged()),
        "endpoints": Chain("", [*map(_exemption, EXEMPT_SOURCES), "goto forged"]),
        # A packet that a bridge passes to iptables (br_netfilter) has the bridge as its interface here. The worker
        # knows its port.
        "elsewhere": Chain("", [*owned, 'meta iifkind "bridge" accept', "goto forged"]),
        "cluster": Chain("", [f"{ip} saddr @local{version} goto elsewhere" for version, ip in FAMILIES]),
        "prerouting": Chain(
            f"type filter hook prerouting priority {_PRIORITY}; policy accept;",
            [
                *(f'iifname "{name}" goto cluster' for name in sorted(cluster_interfaces)),
                *owned,
                f'iifname "{_LOOPBACK}" accept',
                "iifname @interfaces goto endpoints",
                *(f"{ip} saddr @bound{version} goto elsewhere" for version, ip in FAMILIES),
            ],
        ),
    }


def _exemption(exempt: ExemptSource) -> str:
    ip = "ip" if exempt.sources.version == 4 else "ip6"
    matches = [f"{ip} saddr {exempt.sources}", f"{ip} daddr {exempt.destinations}"]
    if exempt.proto is not None:
        matches.append(f"meta l4proto {exempt.proto}")
    if exempt.ports is not None:
        matches.append("th sport {} th dport {}".format(*exempt.ports))
    if exempt.icmp_types is not None:
        matches.append(f"icmpv6 type {{ {', '.join(map(str, exempt.icmp_types))} }}")
    return f"{' '.join(matches)} accept"
