"""Rules: what one entry of any policy document comes to, with selectors that are scoped and ports that are numbers.

Every kind of document is resolved to these, and everything behind them (compiler, trace) knows no documents.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import PORT_BITS, RuleRef, port_blocks
from nfq_enforcer.core.wire.packet import SCTP, TCP, UDP
from nfq_enforcer.policy.selectors import Selector

Network = IPv4Network | IPv6Network

PROTOCOLS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}


class Block(NamedTuple):
    """Addresses by prefix, with holes.

    ``everybody``: whoever has the address, as Kubernetes means it; else only those that are nobody's, as Cilium does.
    """

    prefix: Network
    holes: frozenset[Network]
    everybody: bool

    def __contains__(self, network: object) -> bool:
        """Say whether a prefix is in the block and in none of its holes."""
        return _within(network, self.prefix) and not any(_within(network, hole) for hole in self.holes)


def _within(network: object, outer: Network) -> bool:
    if isinstance(network, IPv4Network) and isinstance(outer, IPv4Network):
        return network.subnet_of(outer)
    return isinstance(network, IPv6Network) and isinstance(outer, IPv6Network) and network.subnet_of(outer)


class Port(NamedTuple):
    """Ports of a protocol whose leading bits are these; of ICMP: a type."""

    proto: int  # 0: every protocol, ICMP included
    number: int
    bits: int  # 16: this port alone, 0: every port


class NamedPort(NamedTuple):
    """The port that the destination calls so, if it is one of this protocol."""

    name: str
    proto: int


class PortOf(NamedTuple):
    """A port of an endpoint by its name, which is in lower case."""

    name: str
    proto: int
    number: int


PortSet = frozenset[PortOf]

EVERYTHING = Port(0, 0, 0)


class Opening(NamedTuple):
    """What a rule opens, or denies, to its peers."""

    ports: tuple[Port | NamedPort, ...]
    l7: tuple[HttpMatch | DnsMatch, ...] = ()  # if not empty: only requests that one of these matches


ALL = (Opening((EVERYTHING,)),)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a policy, resolved."""

    ref: RuleRef
    subject: Selector
    peers: tuple[Selector | Block, ...] | None  # None: anyone
    opens: tuple[Opening, ...]  # of a deny rule: what it denies
    isolates: bool  # whether it closes, for its subjects, what no rule opens

    @property
    def blocks(self) -> Iterator[Block]:
        """Yield the peers that are blocks of addresses."""
        return (peer for peer in self.peers or () if isinstance(peer, Block))


def numbered(protocol: str, first: int, last: int) -> Iterator[Port]:
    """Yield the ports of a range, both ends included; port 0 is every port."""
    blocks = tuple(port_blocks(first, last)) if first else ((0, 0),)
    return (Port(proto, *block) for proto in PROTOCOLS[protocol] for block in blocks)


def icmp_type(proto: int, number: int) -> Port:
    """Return what stands for one type of ICMP messages."""
    return Port(proto, number, PORT_BITS)


def once(ports: Iterable[Port | NamedPort]) -> tuple[Port | NamedPort, ...]:
    """Return the ports without repetition, in their order."""
    return tuple(dict.fromkeys(ports))
