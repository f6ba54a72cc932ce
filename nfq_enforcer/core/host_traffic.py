"""Host traffic: packets by which a host configures itself, and which policy therefore allows without a rule.

DHCP between an endpoint and its own host (a server or a relay on the host), and of a host that is an endpoint itself,
whose reports of multicast groups are allowed as well. Deny rules hold. Only the host serves: a DHCP answer of an
endpoint, or a request to one, needs a rule. Both ports have to be those of the protocol, and the packet must not be
forwarded, so these packets connect no two endpoints.

A DHCP answer may have other addresses than the request, or a broadcast address, so no flow connects the two: each of
these packets is accepted by itself, and none opens a flow. Neighbour discovery and the group reports of endpoints pass
by rules of the kernel (``dataplane/rules/link_rules.py``). Docs: host-traffic.md.
"""

from collections.abc import Set

from nfq_enforcer.core.identity import travels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.snapshot import LocalEndpoint
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import IGMP, UDP

_EGRESS, _INGRESS = Direction.EGRESS, Direction.INGRESS
_NO_SIDES: Set[Direction] = frozenset()
_PORTS = {4: (68, 67), 16: (546, 547)}  # of DHCP client and server, by the length of an address: RFC 2131, RFC 8415


def exempt_sides(
    opening: Opening, source: LocalEndpoint | None, destination: LocalEndpoint | None, *, from_host: bool
) -> Set[Direction]:
    """Return the sides whose policy needs no rule for this packet; empty: the packet is no host traffic.

    ``from_host``: this host sends the packet itself.
    """
    if opening.proto == IGMP:
        return {_EGRESS} if from_host and source is not None else _NO_SIDES
    if opening.proto != UDP:
        return _NO_SIDES
    client, server = _PORTS[len(opening.src)]
    if (opening.sport, opening.dport) == (client, server):
        return _of_request(opening, source, destination, from_host)
    if (opening.sport, opening.dport) == (server, client):
        return _of_answer(opening, source, destination, from_host)
    return _NO_SIDES


def _of_request(
    opening: Opening, source: LocalEndpoint | None, destination: LocalEndpoint | None, from_host: bool
) -> Set[Direction]:
    """Return the exempt sides of a DHCP request: an endpoint asks its host, or the host asks any server."""
    if source is None:
        return _NO_SIDES
    if from_host:
        return {_EGRESS}
    if not opening.to_host:
        return _NO_SIDES
    return {_EGRESS} if destination is None else {_EGRESS, _INGRESS}


def _of_answer(
    opening: Opening, source: LocalEndpoint | None, destination: LocalEndpoint | None, from_host: bool
) -> Set[Direction]:
    """Return the exempt sides of a DHCP answer: the host answers an endpoint, or a server the host."""
    if destination is None:
        return _NO_SIDES
    if from_host:
        return {_INGRESS} if source is None else {_EGRESS, _INGRESS}
    from_endpoint = source is not None or travels(opening.source)
    return {_INGRESS} if opening.to_host and not from_endpoint else _NO_SIDES
