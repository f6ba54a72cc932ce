"""Policy verdict: the identities of both ends of an opening, and the answer of each policy map that guards an end.

Beside the evaluation, this module has the checks of a packet's origin: source address against interface, stamp against
address, reply against the flow's other end.
"""

from collections.abc import Iterator
from typing import NamedTuple

from nfq_enforcer.core.identity import HOST, WORLD, Identity, travels
from nfq_enforcer.core.tables.conntrack import ORIGIN_UNKNOWN, Opening, Origin
from nfq_enforcer.core.tables.policymap import LookupResult, PolicyMap, RuleRef
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, PacketError
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.core.wire.stamp import Stamp


class PolicyVerdict(NamedTuple):
    """Policy verdict on an opening: identities, rules and stamps of the flow."""

    opening: Opening  # with both identities
    origin: Origin
    refused: Direction | None = None  # the side that denies the opening; audit mode accepts it all the same
    reason: DropReason | None = None  # of the denial
    allowed_by: tuple[RuleRef, ...] = ()
    enforced_by: tuple[RuleRef, ...] = ()  # the rules that enforce the denying side
    denied_by: tuple[RuleRef, ...] = ()  # the deny rules that match
    stamp: Stamp | None = None  # for the opener's packets
    reply_stamp: Stamp | None = None  # for replies


class PolicyDenied(PacketError):
    """Policy denies an opening."""

    def __init__(self, policy_verdict: PolicyVerdict, reason: DropReason) -> None:
        """Keep the policy verdict for the log."""
        super().__init__(reason)
        self.policy_verdict = policy_verdict


def evaluate(snapshot: Snapshot, asked: Opening, origin: Origin, *, stateless: bool = False) -> PolicyVerdict:
    """Return the policy verdict on an opening; raise PolicyDenied, or PacketError for an impossible source or end.

    ``stateless``: the packet is a stray reply or an ICMP error without a flow. It never opens a flow, and is accepted
    only if policy enforces neither end.
    """
    source = source_endpoint(snapshot, asked.src, origin)
    destination = snapshot.endpoints.get(asked.dst)
    if source is None and destination is None:
        raise PacketError(DropReason.NO_ENDPOINT)
    peers = _source_identity(snapshot, source, asked.src, origin), _destination_identity(snapshot, destination, asked)
    opening = Opening(*asked[:-2], *peers)
    stamp = stamp_toward(snapshot, asked, source)
    reply_stamp = _reply_stamp(snapshot, asked, origin, source, destination)
    allowed_by: tuple[RuleRef, ...] = ()
    for direction, policy, peer, address in _guarded_sides(source, destination, opening):
        local_identities = snapshot.ipcache.local_identities(address, peer)
        result = policy.lookup(peer, opening.proto, _port(opening), local_identities)
        reason = _denial(snapshot, result, policy, opening, direction, stateless=stateless)
        if reason is not None:
            enforced_by = () if result.denied else policy.enforced_by
            denied_by = result.rules if result.denied else ()
            denial = PolicyVerdict(opening, origin, direction, reason, (), enforced_by, denied_by, stamp, reply_stamp)
            if snapshot.audit:
                return denial
            raise PolicyDenied(denial, reason)
        allowed_by += result.rules
    return PolicyVerdict(opening, origin, allowed_by=allowed_by, stamp=stamp, reply_stamp=reply_stamp)


def _port(opening: Opening) -> int:
    return opening.icmp_type if opening.proto in {ICMP, ICMPV6} else opening.dport


def _denial(
    snapshot: Snapshot,
    result: LookupResult,
    policy: PolicyMap,
    opening: Opening,
    direction: Direction,
    *,
    stateless: bool,
) -> DropReason | None:
    """Return the reason for which a side denies the opening, None if it allows the opening.

    An opening by the host to one of its endpoints is subject to deny rules only, if the configuration says so
    (``allow_localhost``) or if no rule closes the endpoint to its host. An entry with layer-7 rules needs a proxy to
    apply them; without a proxy it allows nothing.
    """
    if result.denied:
        return DropReason.POLICY_DENY
    from_host = direction is Direction.INGRESS and opening.source == HOST
    if not policy.enforced or (from_host and (snapshot.allow_localhost or not policy.closes_host)):
        return None
    if stateless:
        return DropReason.CT_NO_MATCH
    return None if result.allowed and not result.l7 else DropReason.POLICY_DENIED


def source_endpoint(snapshot: Snapshot, address: bytes, origin: Origin) -> LocalEndpoint | None:
    """Return the local endpoint with this source address, None for a remote source; raise PacketError if forged."""
    try:
        return snapshot.source_endpoint(address, origin.interface)
    except LookupError:
        raise PacketError(DropReason.INVALID_SOURCE_IP) from None


def unstamped_identity(snapshot: Snapshot, address: bytes) -> Identity:
    """Return the identity of an unstamped remote source.

    Never the identity of an endpoint with this address, unless the configuration says so (``identity_source``).
    """
    identity = snapshot.ipcache.lookup(address).identity
    return WORLD if travels(identity) and not snapshot.trust_ipcache else identity


def likely_origin(snapshot: Snapshot, opener: bytes, from_host: bool) -> Origin:
    """Return the origin of packets that the owner of this address sends.

    It replaces the origin of an opener that only the kernel has seen: enough to accept a reply to that very address,
    and no packet that comes from there. ``from_host``: the flow leads back to this host itself.
    """
    endpoint = snapshot.endpoints.get(opener)
    if endpoint is not None:
        return Origin(endpoint.interface, None)
    if from_host:
        return Origin(None, None)
    identity = snapshot.ipcache.lookup(opener).identity
    return Origin(ORIGIN_UNKNOWN.interface, identity if travels(identity) else None)


def reply_origin(snapshot: Snapshot, opening: Opening) -> Origin | None:
    """Return the origin of a flow's replies where the interface proves it; None if the first reply has to show it.

    Replies of this host have no interface, and those of an endpoint come from the endpoint's own interface.
    """
    if opening.to_host:
        return Origin(None, None)
    replier = snapshot.endpoints.get(opening.dst)
    return Origin(replier.interface, None) if replier is not None and replier.interface is not None else None


def check_reply(snapshot: Snapshot, replier: bytes, opener: bytes, to_host: bool, origin: Origin) -> None:
    """Raise PacketError for a reply that does not come from the other end of its flow.

    ``replier`` and ``opener`` are the addresses of the flow's ends; ``to_host``: the flow was opened to this host
    itself, so no interface delivers its replies. A reply of another node's endpoint bears that node's stamp; an
    unstamped one is forged. The stamp is required where policy guards the opener.
    """
    if origin.interface is None:
        return
    if to_host:
        raise PacketError(DropReason.INVALID_SOURCE_IP)
    if source_endpoint(snapshot, replier, origin) or origin.identity is not None:
        return
    endpoint = snapshot.endpoints.get(opener)
    if endpoint is None or not endpoint.guarded or snapshot.audit or snapshot.trust_ipcache:
        return
    if travels(snapshot.ipcache.lookup(replier).identity):
        raise PacketError(DropReason.STAMP_MISSING)


def stamp_toward(snapshot: Snapshot, asked: Opening, source: LocalEndpoint | None) -> Stamp | None:
    """Return the stamp for packets of ``source``: its identity, if the packet goes to another node of the cluster."""
    if source is None or asked.to_host or asked.dst in snapshot.endpoints:
        return None
    return Stamp(source.identity) if snapshot.ipcache.lookup(asked.dst).remote else None


def _reply_stamp(
    snapshot: Snapshot,
    asked: Opening,
    origin: Origin,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
) -> Stamp | None:
    if source is not None or destination is None or origin.interface is None:
        return None
    # A stamped opener is in the cluster even if a router on the path has rewritten its address.
    in_cluster = origin.identity is not None or snapshot.ipcache.lookup(asked.src).remote
    return Stamp(destination.identity) if in_cluster else None


def _source_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, address: bytes, origin: Origin) -> Identity:
    if endpoint is not None:
        return endpoint.identity
    if origin.interface is None:
        return HOST
    return unstamped_identity(snapshot, address) if origin.identity is None else origin.identity


def _destination_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, asked: Opening) -> Identity:
    if endpoint is not None:
        return endpoint.identity
    return HOST if asked.to_host else snapshot.ipcache.lookup(asked.dst).identity


def _guarded_sides(
    source: LocalEndpoint | None, destination: LocalEndpoint | None, opening: Opening
) -> Iterator[tuple[Direction, PolicyMap, Identity, bytes]]:
    """Yield each side of this node whose policy can deny, with its peer: egress of the source, then ingress."""
    if source is not None and destination is not None and source.name == destination.name:
        return  # an endpoint cannot be cut off from itself
    if source is not None and source.egress.can_refuse:
        yield Direction.EGRESS, source.egress, opening.destination, opening.dst
    if destination is not None and destination.ingress.can_refuse:
        yield Direction.INGRESS, destination.ingress, opening.source, opening.src
