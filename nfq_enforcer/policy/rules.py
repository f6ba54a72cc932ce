"""Resolved rules: the common form of every entry of every policy document.

``cilium_rules``, ``kubernetes_rules`` and ``cluster_policy_rules`` resolve documents to these rules: selectors are
scoped to their namespace, and port ranges are blocks of port numbers. The compiler and the trace read resolved rules
only, never documents.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import L7Match
from nfq_enforcer.core.tables.policymap import PORT_BITS, RuleRef, port_blocks
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.core.wire.packet import SCTP, TCP, UDP
from nfq_enforcer.policy.selectors import Selector

PROTOCOL_NUMBERS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}


class AddressBlock(NamedTuple):
    """AddressBlock: the addresses of a prefix, without those of the excluded prefixes.

    ``includes_endpoints``: true for an ipBlock of Kubernetes, which matches any address in the block, also addresses of
    endpoints and nodes; false for a CIDR of Cilium, which matches only addresses outside the cluster.
    """

    prefix: Network
    excluded: frozenset[Network]
    includes_endpoints: bool

    def __contains__(self, network: object) -> bool:
        """Return whether a prefix is in the block and in none of the excluded prefixes."""
        return _is_subnet(network, self.prefix) and not any(_is_subnet(network, prefix) for prefix in self.excluded)


NO_EXCLUSIONS: frozenset[Network] = frozenset()


def _is_subnet(network: object, outer: Network) -> bool:
    if isinstance(network, IPv4Network) and isinstance(outer, IPv4Network):
        return network.subnet_of(outer)
    return isinstance(network, IPv6Network) and isinstance(outer, IPv6Network) and network.subnet_of(outer)


class NamePeer(NamedTuple):
    """NamePeer: the addresses that DNS answers give to the names of a pattern (see ``core.tables.dns_names``)."""

    pattern: str


RulePeer = Selector | AddressBlock | NamePeer


class PortBlock(NamedTuple):
    """PortBlock: the ports of a protocol that share their leading bits; for ICMP, a message type."""

    proto: int  # 0: every protocol, ICMP included
    number: int
    bits: int  # 16: this port alone, 0: every port


class NamedPortRef(NamedTuple):
    """NamedPortRef: a port name in a rule, resolved to the number of the destination's port of that name and protocol.

    It matches no port of a destination without such a port.
    """

    name: str
    proto: int


class NamedPort(NamedTuple):
    """NamedPort: a port of an endpoint with its name, in lower case."""

    name: str
    proto: int
    number: int


PortSet = frozenset[NamedPort]
"""The named ports of one endpoint."""

ANY_PORT = PortBlock(0, 0, 0)


class L4Filter(NamedTuple):
    """L4Filter: the ports that a rule allows or denies, with the layer-7 matches that restrict them."""

    ports: tuple[PortBlock | NamedPortRef, ...]
    l7: tuple[L7Match, ...] = ()  # if not empty: only requests that one of these matches


ALL_TRAFFIC = (L4Filter((ANY_PORT,)),)


@dataclass(frozen=True, slots=True)
class Rule:
    """Rule: one resolved entry of a policy document."""

    ref: RuleRef
    subject: Selector
    peers: tuple[RulePeer, ...] | None  # None: any peer
    filters: tuple[L4Filter, ...]  # the allowed ports, of a deny rule the denied ports
    isolates: bool  # whether the rule puts its subjects into default deny in its direction
    learns: bool = False  # it decides nothing; the DNS answers that its subjects get from its peers are read

    @property
    def matches_any_peer(self) -> bool:
        """Return whether the rule is about any peer."""
        return self.peers is None or any(isinstance(peer, Selector) and not peer.requirements for peer in self.peers)

    @property
    def has_local_peers(self) -> bool:
        """Return whether any peer is an address block or a name, which has a local identity on each node."""
        return any(isinstance(peer, AddressBlock | NamePeer) for peer in self.peers or ())

    @property
    def address_blocks(self) -> Iterator[AddressBlock]:
        """Yield the peers that are address blocks."""
        return (peer for peer in self.peers or () if isinstance(peer, AddressBlock))


def exclusions(prefixes: Collection[Network]) -> frozenset[Network]:
    """Return the excluded prefixes of an address block; one object for all blocks without any."""
    return frozenset(prefixes) if prefixes else NO_EXCLUSIONS  # since Python 3.10 each frozenset() takes 216 bytes


def port_range(protocol: str, first: int, last: int) -> Iterator[PortBlock]:
    """Yield the port blocks of a range, both ends included; port 0 stands for every port."""
    blocks = tuple(port_blocks(first, last)) if first else ((0, 0),)
    return (PortBlock(proto, *block) for proto in PROTOCOL_NUMBERS[protocol] for block in blocks)


def icmp_type(proto: int, number: int) -> PortBlock:
    """Return the port block of one ICMP message type."""
    return PortBlock(proto, number, PORT_BITS)


def unique(ports: Iterable[PortBlock | NamedPortRef]) -> tuple[PortBlock | NamedPortRef, ...]:
    """Return the ports without repetition, in their order."""
    return tuple(dict.fromkeys(ports))
