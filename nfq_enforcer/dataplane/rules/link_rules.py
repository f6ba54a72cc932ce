"""Link rules, as text: packets that a host needs on its link, and that stay on it.

Neighbour discovery (IPv6) and reports of group membership pass without a queue: a host needs them before it can use any
rule of a policy, and with the hop limit that they must have (255 or 1) none has come from or goes to another link. The
messages of routers (router advertisement, redirect, membership query) pass as well, except from an interface of
endpoints: for these an endpoint needs a rule, as for any packet. Docs: host-traffic.md.

The kernel delivers a copy of each packet of this host to a group to the host itself, as if it came by the same
interface. Such a copy of a router's message passes too; the kernel makes no use of one with its own address, even if it
is forged.

A routed packet has its hop limit lowered before the hook FORWARD. So there a limit of 255 proves a bridge (with
br_netfilter), and a limit of 1 proves nothing.

Packets to a link-local address or to a group have their class by the endpoint's interface by which they leave, and
packets with a foreign source address by the interface by which they arrive (``address_marks``).
"""

from collections.abc import Iterable
from typing import NamedTuple

from nfq_enforcer.dataplane.rules import packet_mark

CLASSIFIED = packet_mark.match(0, negated=True)
_NOT_FROM_ENDPOINT = packet_mark.match(packet_mark.FROM_ENDPOINT, negated=True)
DISCOVERY = "NFQE-ICMPV6"  # exempts neighbour discovery and group reports of IPv6
REPORTS = "NFQE-IGMP"  # exempts group reports of IPv4


class _Family(NamedTuple):
    chain: str
    entries: tuple[tuple[str, str], ...]  # base chain, and the packets that enter the chain there
    hosts: tuple[str, ...]  # messages of any host
    routers: tuple[str, ...]  # messages of a router


def _icmp6(numbers: Iterable[int], hops: int) -> tuple[str, ...]:
    return tuple(f"-p ipv6-icmp -m icmp6 --icmpv6-type {number} -m hl --hl-eq {hops}" for number in numbers)


_IGMP = "-d 224.0.0.0/4 -p igmp -m ttl --ttl-eq 1"
_FAMILIES = {
    4: _Family(
        REPORTS,
        (("INPUT", "-p igmp"), ("OUTPUT", "-p igmp")),
        # the first byte after the IP header is the type: reports of versions 1, 2 and 3, and leave (RFC 3376 section 4)
        (f'{_IGMP} -m u32 --u32 "0x0>>0x16&0x3c@0x0>>0x18=0x12,0x16:0x17,0x22"',),
        (_IGMP,),
    ),
    6: _Family(
        DISCOVERY,
        (("INPUT", "-p ipv6-icmp"), ("FORWARD", "-p ipv6-icmp -m hl --hl-eq 255"), ("OUTPUT", "-p ipv6-icmp")),
        (*_icmp6((133, 135, 136), 255), *_icmp6((131, 132, 143), 1)),  # RFC 4861 section 6.1 and 7.1, RFC 3810
        (*_icmp6((134, 137), 255), *_icmp6((130,), 1)),
    ),
}


def exempt_rules(version: int, entries: dict[str, str], queue: str) -> list[str]:
    """Return the rules that exempt discovery and reports, in a chain that ``entries`` (by base chain) go to.

    ``queue``: the chain of packets that are queued.
    """
    family = _FAMILIES[version]
    return [
        *(f"-A {entries[base]} {match} -g {family.chain}" for base, match in family.entries),
        *(f"-A {family.chain} {match} -j RETURN" for match in family.hosts),
        *(f"-A {family.chain} {match} -m addrtype --src-type LOCAL -j RETURN" for match in family.routers),
        *(f"-A {family.chain} {match} {_NOT_FROM_ENDPOINT} -j RETURN" for match in family.routers),
        f"-A {family.chain} {CLASSIFIED} -g {queue}",
    ]
