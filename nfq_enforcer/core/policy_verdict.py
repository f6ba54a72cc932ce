"""Policy verdict: the identities of both ends of an opening, and the answer of each policy map that guards an end.

Beside the evaluation, this module has the checks of a packet's origin: source address against interface, stamp against
address, reply against the flow's other end.
"""

from collections.abc import Iterator, Set
from typing import NamedTuple

from nfq_enforcer.core.host_traffic import exempt_sides
from nfq_enforcer.core.identity import ANY, HOST, REMOTE_NODE, WORLD, Identity, travels
from nfq_enforcer.core.source_address import is_exempt
from nfq_enforcer.core.tables.conntrack import ORIGIN_UNKNOWN, Opening, Origin
from nfq_enforcer.core.tables.l7 import EVERY_PROTOCOL, ProxyProtocols
from nfq_enforcer.core.tables.policymap import DnsRules, LookupResult, PolicyMap, RuleRef
from nfq_enforcer.core.tables.slots import SlotKey
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, PacketError
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP, Packet
from nfq_enforcer.core.wire.scopes import is_group
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
    reply_origin: Origin | None = None  # of replies; None: the first reply has to show it
    opens_flow: bool = True  # False: host traffic, each packet of which is accepted by itself
    l7: DnsRules | None = None  # the rules that each message of the flow has to meet
    needs_proxy: bool = False  # HTTP rules or server names apply to it
    slot_key: SlotKey | None = None  # of a flow that the proxy receives
    slot: int = 0  # of a flow that the proxy receives; negative: of one that the proxy has opened


class PolicyDenied(PacketError):
    """Policy denies an opening."""

    def __init__(self, policy_verdict: PolicyVerdict, reason: DropReason) -> None:
        """Keep the policy verdict for the log."""
        super().__init__(reason)
        self.policy_verdict = policy_verdict


def evaluate(
    snapshot: Snapshot,
    asked: Opening,
    origin: Origin,
    link: str | None = None,
    *,
    names: tuple[Identity, ...] = (),
    stateless: bool = False,
    proxied: bool = False,
) -> PolicyVerdict:
    """Return the policy verdict on an opening; raise PolicyDenied, or PacketError for an impossible source or end.

    ``link``: the interface by which the opener's packets leave, None if this host receives them. ``names``: identities
    of the destination by its names, which count for a destination outside the cluster only. ``stateless``: the
    packet is a stray reply or an ICMP error without a flow. It never opens a flow, and is accepted only if policy
    enforces neither end. ``proxied``: the proxy receives the flow, and checks its content.
    """
    source = _process(snapshot, asked.sender) or _opener_endpoint(snapshot, asked, origin)
    destination = _process(snapshot, asked.receiver) or snapshot.destination_endpoint(asked.dst, link)
    if source is None and destination is None:
        raise PacketError(DropReason.NO_ENDPOINT)
    peers = _source_identity(snapshot, source, asked.src, origin), _destination_identity(snapshot, destination, asked)
    opening = Opening(*asked[:-4], *peers, *asked[-2:])
    exempt: Set[Direction] = frozenset()  # host traffic is that of the host itself, and of endpoints with an address
    if not (asked.sender or asked.receiver):
        exempt = exempt_sides(opening, source, destination, from_host=origin.interface is None)
    opens_flow = not exempt or len(exempt) < (source is not None) + (destination is not None)
    stamp = stamp_toward(snapshot, asked, source)
    reply_stamp = _reply_stamp(snapshot, asked, origin, source, destination)
    names = names if _is_outside(opening.destination) else ()
    effects = stamp, reply_stamp, _reply_origin(asked, destination), opens_flow
    allowed_by: tuple[RuleRef, ...] = ()
    l7: DnsRules | None = None
    needs_proxy = False
    protocols = EVERY_PROTOCOL  # that each side allows
    for direction, policy, peer, address in _guarded_sides(source, destination, opening):
        also = _local_identities(snapshot, address, peer)
        if direction is Direction.EGRESS:
            also += names
        result = policy.lookup(peer, opening.proto, _port(opening), also)
        reason = _denial(snapshot, result, policy, opening, direction, origin, stateless=stateless)
        if _cannot_check(reason, result, direction, source, destination):
            reason = DropReason.PROCESS_L7
        elif reason is DropReason.PROXY_MISSING:
            needs_proxy = True
            protocols = result.protocols if protocols is EVERY_PROTOCOL else protocols & result.protocols
            reason = None if proxied else reason
        if reason is not None and (result.denied or direction not in exempt):
            enforced_by = () if result.denied else policy.enforced_by
            denied_by = result.rules if result.denied else ()
            denial = PolicyVerdict(opening, origin, direction, reason, (), enforced_by, denied_by, *effects)
            if snapshot.audit:
                return denial
            raise PolicyDenied(denial, reason)
        if (
            direction is Direction.EGRESS
            and direction not in exempt
            and not (opening.proto == TCP and result.protocols)
        ):
            l7 = result.dns
        allowed_by += result.rules
    verdict = PolicyVerdict(opening, origin, None, None, allowed_by, (), (), *effects, l7, needs_proxy)
    return _redirected(snapshot, verdict, source, destination, names, protocols) if proxied else verdict


def _redirected(
    snapshot: Snapshot,
    verdict: PolicyVerdict,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
    names: tuple[Identity, ...],
    protocols: ProxyProtocols,
) -> PolicyVerdict:
    """Return the verdict for a flow that the proxy receives: it has a slot, and this host sends its replies.

    ``protocols``: those that each side allows. Without any, the slot is one for HTTP, which refuses all requests.
    """
    opening = verdict.opening
    is_self = source is not None and destination is not None and source.name and source.name == destination.name
    key = SlotKey(
        "" if source is None or is_self else source.name,
        "" if destination is None or is_self else destination.name,
        opening.source,
        opening.destination,
        (opening.source, *_local_identities(snapshot, opening.src, opening.source)),
        (opening.destination, *_local_identities(snapshot, opening.dst, opening.destination), *names),
        opening.dport,
        protocols or ProxyProtocols.HTTP,
    )
    return verdict._replace(stamp=None, reply_origin=Origin(None, None), slot_key=key)


def evaluate_leg(
    snapshot: Snapshot, asked: Opening, origin: Origin, link: str | None, slot: int, key: SlotKey | None
) -> PolicyVerdict:
    """Return the verdict on a connection that the proxy has opened for a client of the slot with this key.

    Policy has decided about the client's connection, and the proxy about its requests or its server name. Raise
    PacketError unless the connection's ends are those of the slot.
    """
    source = snapshot.endpoints.get(asked.src)
    destination = snapshot.destination_endpoint(asked.dst, link)
    if key is None or not _are_ends(snapshot, asked, source, destination, key):
        raise PacketError(DropReason.PROXY_SLOT)
    return PolicyVerdict(
        Opening(*asked[:-4], key.source, key.destination, *asked[-2:]),
        origin,
        stamp=stamp_toward(snapshot, asked, source),
        reply_origin=_reply_origin(asked, destination),
        slot=-slot,
    )


def presumed_key(snapshot: Snapshot, asked: Opening, link: str | None) -> SlotKey:
    """Return the key of a connection of the proxy that only the kernel has seen, without its slot: as its ends are."""
    source, destination = snapshot.endpoints.get(asked.src), snapshot.destination_endpoint(asked.dst, link)
    identity = snapshot.ipcache.lookup(asked.src).identity if source is None else source.identity
    ends = identity, _destination_identity(snapshot, destination, asked)
    names = (source.name if source else ""), (destination.name if destination else "")
    return SlotKey(*names, *ends, ends[:1], ends[1:], asked.dport)


def _are_ends(
    snapshot: Snapshot,
    asked: Opening,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
    key: SlotKey,
) -> bool:
    """Tell whether the ends of a connection are those of a slot."""
    for name, identity, endpoint in ((key.client, key.source, source), (key.server, key.destination, destination)):
        if (endpoint.name if endpoint else "") != name or (endpoint is not None and endpoint.identity != identity):
            return False
    return asked.dport == key.port and _destination_identity(snapshot, destination, asked) == key.destination


def _process(snapshot: Snapshot, cgroup: int) -> LocalEndpoint | None:
    """Return the process endpoint with this cgroup, None without a cgroup; raise PacketError if it is gone."""
    if not cgroup:
        return None
    endpoint = snapshot.processes.get(cgroup)
    if endpoint is None:
        raise PacketError(DropReason.UNKNOWN_PROCESS)
    return endpoint


def _opener_endpoint(snapshot: Snapshot, asked: Opening, origin: Origin) -> LocalEndpoint | None:
    """Return the local endpoint that sends an opening, None for a remote one; raise PacketError if forged.

    An address that is none of its endpoint's own is believed in few kinds of packets only.
    """
    source = source_endpoint(snapshot, asked.src, origin)
    if source is not None and asked.src not in snapshot.endpoints and not is_exempt(asked):
        raise PacketError(DropReason.INVALID_SOURCE_IP)
    return source


def _local_identities(snapshot: Snapshot, address: bytes, peer: Identity) -> tuple[Identity, ...]:
    """Return the local identities of a peer's address; for this host, the group to which it receives the packet."""
    found = snapshot.ipcache.local_identities(address, ANY if address in snapshot.endpoints else peer)
    group = snapshot.ipcache.named_group(address) if peer == HOST and is_group(address) else None
    return found if group is None else (*found, group)


def _is_outside(identity: Identity) -> bool:
    """Tell whether an identity is neither of an endpoint nor of a node: DNS decides about neither."""
    return not travels(identity) and identity not in {HOST, REMOTE_NODE}


def _cannot_check(
    reason: DropReason | None,
    result: LookupResult,
    direction: Direction,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
) -> bool:
    """Tell whether layer-7 rules would allow the opening, but its messages cannot be checked.

    Neither the proxy nor the inspector of DNS messages knows the process endpoints that share an address.
    """
    if reason is DropReason.PROXY_MISSING:
        return _is_process(source) or _is_process(destination)
    return reason is None and result.dns is not None and direction is Direction.EGRESS and _is_process(source)


def _is_process(endpoint: LocalEndpoint | None) -> bool:
    return endpoint is not None and endpoint.is_process


def _port(opening: Opening) -> int:
    return opening.icmp_type if opening.proto in {ICMP, ICMPV6} else opening.dport


def _denial(
    snapshot: Snapshot,
    result: LookupResult,
    policy: PolicyMap,
    opening: Opening,
    direction: Direction,
    origin: Origin,
    *,
    stateless: bool,
) -> DropReason | None:
    """Return the reason for which a side denies the opening, None if it allows the opening.

    An identity that nobody in the cluster has is no peer of any rule, not even of one that allows every peer.
    An opening by the host to one of its endpoints is subject to deny rules only, if the configuration says so
    (``allow_localhost``) or if no rule closes the endpoint to its host. Of an entry with layer-7 rules, the proxy
    applies HTTP rules and server names to TCP, and this engine applies DNS rules to UDP, and to TCP that has no other
    such rules; the others allow nothing.
    """
    if result.denied:
        return DropReason.POLICY_DENY
    if direction is Direction.INGRESS and _is_unknown(snapshot, origin):
        return DropReason.INVALID_IDENTITY
    from_host = direction is Direction.INGRESS and opening.source == HOST
    if not snapshot.enforces(policy, from_host=from_host):
        return None
    if stateless:
        return DropReason.CT_NO_MATCH
    if not result.l7:
        return None if result.allowed else DropReason.POLICY_DENIED
    if opening.proto == TCP and result.protocols:
        return DropReason.PROXY_MISSING
    applied = result.dns is not None and opening.proto in {UDP, TCP} and direction is Direction.EGRESS
    return None if applied else DropReason.POLICY_DENIED


def _is_unknown(snapshot: Snapshot, origin: Origin) -> bool:
    """Tell whether a packet bears the stamp of an identity that nobody in the cluster has."""
    return origin.endpoint is not None and origin.endpoint not in snapshot.identities


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


def _world_identity(snapshot: Snapshot, address: bytes) -> Identity:
    """Return the identity of a source that its node has stamped as ``world``: of its address, but of no cluster member.

    The address is that of the node itself, if the node has translated it.
    """
    peer = snapshot.ipcache.lookup(address)
    return WORLD if peer.is_node or travels(peer.identity) else peer.identity


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


def _reply_origin(asked: Opening, destination: LocalEndpoint | None) -> Origin | None:
    """Return the origin of a flow's replies where the interface proves it; None if the first reply has to show it.

    Replies of this host have no interface, and those of an endpoint come from the endpoint's own interface.
    """
    if asked.to_host:
        return Origin(None, None)
    return Origin(destination.interface, None) if destination is not None and destination.interface else None


def check_reply(
    snapshot: Snapshot, replier: bytes, opener: bytes, to_host: bool, origin: Origin, process: int = 0
) -> None:
    """Raise PacketError for a reply that does not come from the other end of its flow.

    ``replier`` and ``opener`` are the addresses of the flow's ends, ``process`` the opener's cgroup. ``to_host``: the
    flow was opened to this host itself, so no interface delivers its replies. A reply of another node's endpoint bears
    that node's stamp; one that is unstamped, or has a stamp with an unknown identity, is forged. Stamps are checked
    where policy guards the opener.
    """
    if origin.interface is None:
        return
    if to_host:
        raise PacketError(DropReason.INVALID_SOURCE_IP)
    if source_endpoint(snapshot, replier, origin):
        return
    check_identity(snapshot, opener, origin, process)
    if origin.endpoint is not None or snapshot.trust_ipcache or not _checks_stamps(snapshot, opener, process):
        return
    if travels(snapshot.ipcache.lookup(replier).identity):
        raise PacketError(DropReason.STAMP_MISSING)


def check_identity(snapshot: Snapshot, receiver: bytes, origin: Origin, process: int = 0) -> None:
    """Raise PacketError for a packet of a known flow with an identity that nobody in the cluster has.

    Policy guards its receiver, an address or a ``process`` endpoint by its cgroup.
    """
    if _is_unknown(snapshot, origin) and _checks_stamps(snapshot, receiver, process):
        raise PacketError(DropReason.INVALID_IDENTITY)


def _checks_stamps(snapshot: Snapshot, receiver: bytes, process: int) -> bool:
    endpoint = snapshot.processes.get(process) or snapshot.endpoints.get(receiver)
    return endpoint is not None and endpoint.guarded and not snapshot.audit


def stamp_toward(snapshot: Snapshot, asked: Opening, source: LocalEndpoint | None) -> Stamp | None:
    """Return the stamp for packets of ``source``: its identity, if the packet goes to another node of the cluster.

    Packets of the host itself bear none: other nodes know the host by its address.
    """
    if source is None or not travels(source.identity) or asked.to_host or asked.dst in snapshot.endpoints:
        return None
    return Stamp(source.identity) if snapshot.ipcache.lookup(asked.dst).remote else None


def transit_stamp(snapshot: Snapshot, packet: Packet, origin: Origin) -> Stamp | None:
    """Return the stamp for a packet that this node only routes to the cluster: ``world`` toward a remote endpoint.

    This node may translate its source address to its own (SNAT comes after our hooks), and is not its sender. A packet
    that another node has stamped, or that has the address of a node or endpoint of the cluster, keeps its form.
    """
    if origin.interface is None or origin.identity is not None or packet.error:
        return None
    lookup = snapshot.ipcache.lookup
    source = lookup(packet.src)
    from_cluster = origin.interface in snapshot.cluster_interfaces and (source.is_node or travels(source.identity))
    return None if from_cluster or not lookup(packet.dst).remote else Stamp(WORLD)


def _reply_stamp(
    snapshot: Snapshot,
    asked: Opening,
    origin: Origin,
    source: LocalEndpoint | None,
    destination: LocalEndpoint | None,
) -> Stamp | None:
    if source is not None or destination is None or origin.interface is None or not travels(destination.identity):
        return None
    if origin.identity == WORLD:  # at any address: a stamp would leave the cluster
        return None
    # A stamped opener is in the cluster even if a router on the path has rewritten its address.
    in_cluster = origin.identity is not None or snapshot.ipcache.lookup(asked.src).remote
    return Stamp(destination.identity) if in_cluster else None


def _source_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, address: bytes, origin: Origin) -> Identity:
    if endpoint is not None:
        return endpoint.identity
    if origin.interface is None:
        return HOST
    if origin.identity == WORLD:
        return _world_identity(snapshot, address)
    return unstamped_identity(snapshot, address) if origin.identity is None else origin.identity


def _destination_identity(snapshot: Snapshot, endpoint: LocalEndpoint | None, asked: Opening) -> Identity:
    if endpoint is not None and not is_group(asked.dst):
        return endpoint.identity
    return HOST if asked.to_host else snapshot.ipcache.lookup(asked.dst).identity


def _guarded_sides(
    source: LocalEndpoint | None, destination: LocalEndpoint | None, opening: Opening
) -> Iterator[tuple[Direction, PolicyMap, Identity, bytes]]:
    """Yield each side of this node whose policy can deny, with its peer: egress of the source, then ingress."""
    if source is not None and destination is not None and source.name and source.name == destination.name:
        return  # an endpoint cannot be cut off from itself
    if source is not None and source.egress.can_refuse:
        yield Direction.EGRESS, source.egress, opening.destination, opening.dst
    if destination is not None and destination.ingress.can_refuse:
        yield Direction.INGRESS, destination.ingress, opening.source, opening.src
