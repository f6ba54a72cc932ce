"""What policy says of an opening: who both ends are, and whether each side that policy guards lets it pass."""

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
    """An opening with both identities found, what policy says of it, and what follows for its flow."""

    opening: Opening
    origin: Origin
    refused: Direction | None = None  # the side that refuses it; with audit it passes all the same
    reason: DropReason | None = None  # why it does
    allowed_by: tuple[RuleRef, ...] = ()
    enforced_by: tuple[RuleRef, ...] = ()  # the rules that closed the side that refuses
    denied_by: tuple[RuleRef, ...] = ()  # the deny rules that refuse it
    stamp: Stamp | None = None  # to put on the opener's packets
    reply_stamp: Stamp | None = None  # to put on replies


class PolicyDenied(PacketError):
    """Policy refuses an opening."""

    def __init__(self, judgement: PolicyVerdict, reason: DropReason) -> None:
        """Keep the judgement for the log."""
        super().__init__(reason)
        self.judgement = judgement


def evaluate(snapshot: Snapshot, asked: Opening, origin: Origin, *, answers: bool = False) -> PolicyVerdict:
    """Return the judgement on an opening; raise Refused, or PacketError where an end cannot be what it says.

    What only ``answers``, and nothing that is known, can open nothing: it passes where policy guards neither end.

    Where established flows go unstamped (see ``bypass``), what has no stamp may be of one that is forgotten here. If it
    bears the address of another node's endpoint, it has to be allowed to that one, and not just to the world.
    """
    if snapshot.epoch is not None:
        presumed = presumed_origin(snapshot, origin, asked.src, None)
        if presumed != origin:
            evaluate(snapshot, asked, presumed, answers=answers)
    source = source_endpoint(snapshot, asked.src, origin)
    destination = snapshot.endpoints.get(asked.dst)
    if source is None and destination is None:
        raise PacketError(DropReason.NO_ENDPOINT)
    peers = _source_identity(snapshot, source, asked.src, origin), _destination_identity(snapshot, destination, asked)
    opening = Opening(*asked[:-2], *peers)
    mark = stamp_toward(snapshot, asked, source)
    reply_mark = _stamp_back(snapshot, asked, origin, source, destination)
    allowed_by: tuple[RuleRef, ...] = ()
    for direction, policy, peer, address in _guarded_sides(source, destination, opening):
        also = snapshot.ipcache.local_identities(address)
        outcome = policy.lookup(peer, opening.proto, _port(opening), also)
        reason = _refusal(snapshot, outcome, policy, opening, direction, answers=answers)
        if reason is not None:
            enforced_by = () if outcome.denied else policy.enforced_by
            denied_by = outcome.rules if outcome.denied else ()
            refusal = PolicyVerdict(opening, origin, direction, reason, (), enforced_by, denied_by, mark, reply_mark)
            if snapshot.audit:
                return refusal
            raise PolicyDenied(refusal, reason)
        allowed_by += outcome.rules
    return PolicyVerdict(opening, origin, allowed_by=allowed_by, stamp=mark, reply_stamp=reply_mark)


def _port(opening: Opening) -> int:
    return opening.icmp_type if opening.proto in {ICMP, ICMPV6} else opening.dport


def _refusal(
    snapshot: Snapshot,
    outcome: LookupResult,
    policy: PolicyMap,
    opening: Opening,
    direction: Direction,
    *,
    answers: bool,
) -> DropReason | None:
    """Return why a side refuses, None if it does not.

    The host's own openings to its endpoints only heed deny rules, if the node is told so, or if nothing closes them to
    the host. An entry that lets some requests pass and not others is for a proxy to apply; without one it lets nothing
    pass.
    """
    if outcome.denied:
        return DropReason.POLICY_DENY
    from_host = direction is Direction.INGRESS and opening.source == HOST
    if not policy.enforced or (from_host and (snapshot.allow_localhost or not policy.closes_host)):
        return None
    if answers:
        return DropReason.CT_NO_MATCH
    return None if outcome.allowed and not outcome.l7 else DropReason.POLICY_DENIED


def source_endpoint(snapshot: Snapshot, address: bytes, origin: Origin) -> LocalEndpoint | None:
    """Return the local endpoint a packet comes from, None if from elsewhere; raise PacketError for a forged source."""
    try:
        return snapshot.source_endpoint(address, origin[0])
    except LookupError:
        raise PacketError(DropReason.INVALID_SOURCE_IP) from None


def unstamped_identity(snapshot: Snapshot, address: bytes) -> Identity:
    """Return who sends without a stamp: never the endpoint whose address it bears, unless the node is told so."""
    identity = snapshot.ipcache.lookup(address).identity
    return WORLD if travels(identity) and not snapshot.believe_ipcache else identity


def likely_origin(snapshot: Snapshot, opener: bytes, from_host: bool) -> Origin:
    """Return where packets of this address come from if they come from whom it belongs to.

    It stands in for the origin of an opener whom only the kernel has seen: enough to let a reply pass to that very
    address, and nothing that comes from there. ``from_host``: the flow leads back to this host itself.
    """
    endpoint = snapshot.endpoints.get(opener)
    if endpoint is not None:
        return endpoint.interface, None
    if from_host:
        return None, None
    identity = snapshot.ipcache.lookup(opener).identity
    return ORIGIN_UNKNOWN[0], identity if travels(identity) else None


def is_masqueraded(snapshot: Snapshot, address: bytes) -> bool:
    """Say whether who sends with a stamp from this address has another: no endpoint is known to have this one."""
    return snapshot.epoch is not None and not travels(snapshot.ipcache.lookup(address).identity)


def presumed_origin(snapshot: Snapshot, origin: Origin, address: bytes, expected: Origin | None) -> Origin:
    """Return where a packet of an established flow comes from, if it need not bear a stamp (see ``bypass``).

    Without one, what another node's endpoint may have sent counts as sent by whom the address belongs to. If that is
    no endpoint, it is whom the flow has ``expected``, who shows only where a router on the way has changed addresses.
    """
    interface, claim = origin
    if claim is not None or interface not in snapshot.cluster_interfaces or address in snapshot.endpoints:
        return origin
    identity = snapshot.ipcache.lookup(address).identity
    if travels(identity):
        return interface, identity
    return expected if expected is not None and expected[0] == interface else origin


def reply_origin(snapshot: Snapshot, opening: Opening) -> Origin | None:
    """Return where the replies of a flow come from, if nobody has to be believed for it; None if they have to show.

    This host's own have no interface, and an endpoint's come from the one behind which it lives.
    """
    if opening.to_host:
        return None, None
    replier = snapshot.endpoints.get(opening.dst)
    return (replier.interface, None) if replier is not None and replier.interface is not None else None


def check_reply(snapshot: Snapshot, replier: bytes, opener: bytes, to_host: bool, origin: Origin) -> None:
    """Raise PacketError for a reply that does not come from the other end of its flow.

    ``replier`` and ``opener`` are the addresses of its ends; ``to_host``: it was opened to this host itself. What the
    host answers comes from nowhere else. What an endpoint of another node answers bears that node's stamp, or somebody
    else has sent it; this is asked for where policy guards the opener.
    """
    interface, claim = origin
    if interface is None:
        return
    if to_host:
        raise PacketError(DropReason.INVALID_SOURCE_IP)
    if source_endpoint(snapshot, replier, origin) or claim is not None:
        return
    endpoint = snapshot.endpoints.get(opener)
    if endpoint is None or not endpoint.guarded or snapshot.audit or snapshot.believe_ipcache:
        return
    if travels(snapshot.ipcache.lookup(replier).identity):
        raise PacketError(DropReason.STAMP_MISSING)


def stamp_toward(snapshot: Snapshot, asked: Opening, source: LocalEndpoint | None) -> Stamp | None:
    """Return the stamp for what ``source`` sends: its identity, if the packet goes to another node of the cluster."""
    if source is None or asked.to_host or asked.dst in snapshot.endpoints:
        return None
    return Stamp(source.identity) if snapshot.ipcache.lookup(asked.dst).remote else None


def _stamp_back(
    snapshot: Snapshot,
    asked: Opening,
    origin: Origin,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
) -> Stamp | None:
    interface, claim = origin
    if source is not None or destination is None or interface is None:
        return None
    # A stamped opener is in the cluster even where a router on the way has changed its address.
    stamped = claim is not None or snapshot.ipcache.lookup(asked.src).remote
    return Stamp(destination.identity) if stamped else None


def _source_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, address: bytes, origin: Origin) -> Identity:
    interface, claim = origin
    if endpoint is not None:
        return endpoint.identity
    if interface is None:
        return HOST
    return unstamped_identity(snapshot, address) if claim is None else claim


def _destination_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, asked: Opening) -> Identity:
    if endpoint is not None:
        return endpoint.identity
    return HOST if asked.to_host else snapshot.ipcache.lookup(asked.dst).identity


def _guarded_sides(
    source: LocalEndpoint | None, destination: LocalEndpoint | None, opening: Opening
) -> Iterator[tuple[Direction, PolicyMap, Identity, bytes]]:
    """Yield each side of this node where policy can refuse, with its peer: egress of the source, then ingress."""
    if source is not None and destination is not None and source.name == destination.name:
        return  # nobody is cut off from itself
    if source is not None and source.egress.can_refuse:
        yield Direction.EGRESS, source.egress, opening.destination, opening.dst
    if destination is not None and destination.ingress.can_refuse:
        yield Direction.INGRESS, destination.ingress, opening.source, opening.src
