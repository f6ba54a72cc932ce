"""Resolution of Cilium policy documents to rules.

The table lists the traffic that one entry allows (an entry of ``ingressDeny`` and ``egressDeny`` denies it), as
upstream. "peers" stands for fromEndpoints, fromCIDR, fromCIDRSet, fromEntities and the same fields of egress, "ports"
for toPorts or icmps (toFQDNs and toServices are peers of egress as well):

=============  =================  ============================================================
peers          ports              allows
=============  =================  ============================================================
missing        missing or empty   nothing; the subjects are in default deny
missing        ports              these ports from or to any peer, world and host included
empty          any                nothing
given          missing or empty   every protocol and port from or to the selected peers
given          ports              these ports from or to the selected peers
=============  =================  ============================================================

A port without protocol stands for TCP, UDP and SCTP; only ``icmps`` and entries without ports allow ICMP.
"""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.policy.cilium import (
    CidrRule,
    CiliumPolicy,
    DenyPortRule,
    IcmpField,
    PeerSpec,
    PolicyRule,
    PortProtocol,
    PortRule,
    RuleEntry,
    ServicePeer,
)
from nfq_enforcer.policy.l7_rules import DnsRule
from nfq_enforcer.policy.references import References
from nfq_enforcer.policy.rules import (
    ALL_TRAFFIC,
    NO_EXCLUSIONS,
    PROTOCOL_NUMBERS,
    AddressBlock,
    L4Filter,
    NamedPortRef,
    NamePeer,
    PortBlock,
    Rule,
    RulePeer,
    exclusions,
    icmp_type,
    port_range,
    unique,
)
from nfq_enforcer.policy.selectors import (
    ALL_ENDPOINTS,
    WILDCARD,
    Selector,
    node_selector,
    peer_selector,
    reserved_selector,
    subject_selector,
)

_ICMP = {"IPv4": ICMP, "IPv6": ICMPV6}
_CLUSTER = ("host", "remote-node", "init", "health", "unmanaged", "kube-apiserver", "ingress")
_WORLD = {"world-ipv4": ip_network("0.0.0.0/0"), "world-ipv6": ip_network("::/0")}


def resolve(document: CiliumPolicy, references: References) -> Iterator[Rule]:
    """Yield the rules of a document; ``ref.spec`` counts the rule in ``spec`` if present, then those in ``specs``."""
    for spec, policy_rule in enumerate(document.rules):
        subject = _subject(policy_rule, document.namespace)
        for direction, deny, entries in _sections(policy_rule):
            isolates = _isolates(policy_rule, direction)
            for number, entry in enumerate(entries):
                ref = RuleRef(document.kind, document.namespace, document.name, direction, number, spec, deny)
                filters = _filters(entry, without_l7=not isolates)
                yield Rule(ref, subject, _peers(entry, document.namespace, references), filters, isolates)


def _subject(rule: PolicyRule, namespace: str) -> Selector:
    if rule.endpoint_selector is not None:
        return subject_selector(rule.endpoint_selector, namespace)
    assert rule.node_selector is not None  # validated: a rule has exactly one of the two
    return node_selector(rule.node_selector)


def _sections(rule: PolicyRule) -> Iterator[tuple[Direction, bool, tuple[RuleEntry, ...]]]:
    yield Direction.INGRESS, False, rule.ingress
    yield Direction.INGRESS, True, rule.ingress_deny
    yield Direction.EGRESS, False, rule.egress
    yield Direction.EGRESS, True, rule.egress_deny


def _isolates(rule: PolicyRule, direction: Direction) -> bool:
    """Return whether the entries for a direction isolate the subjects; enableDefaultDeny alone does not isolate."""
    return getattr(rule.enable_default_deny, direction) is not False


def _peers(entry: RuleEntry, namespace: str, references: References) -> tuple[RulePeer, ...] | None:
    if entry.peers is None:
        return None
    return tuple(dict.fromkeys(peer for spec in entry.peers for peer in _resolve_peer(spec, namespace, references)))


def _resolve_peer(spec: PeerSpec, namespace: str, references: References) -> Iterator[RulePeer]:
    if isinstance(spec, str):
        yield from _entity(spec)
    elif isinstance(spec, CidrRule) and spec.cidr is not None:
        yield AddressBlock(spec.cidr, exclusions(spec.except_), includes_endpoints=False)
    elif isinstance(spec, CidrRule):
        for prefix, excluded in references.groups.blocks(spec):
            yield AddressBlock(prefix, exclusions(excluded), includes_endpoints=False)
    elif isinstance(spec, IPv4Network | IPv6Network):
        yield AddressBlock(spec, NO_EXCLUSIONS, includes_endpoints=False)
    elif isinstance(spec, ServicePeer):
        yield from references.services.peers(spec)
    elif isinstance(spec, DnsRule):
        yield NamePeer(spec.match().pattern)
    else:
        yield peer_selector(spec, namespace)


def _entity(name: str) -> Iterator[Selector | AddressBlock]:
    if name == "all":
        yield WILDCARD
    elif name in {"cluster", "cluster-mesh"}:  # one store is one cluster
        yield ALL_ENDPOINTS
        yield from map(reserved_selector, _CLUSTER)
    elif name in _WORLD:
        yield AddressBlock(_WORLD[name], NO_EXCLUSIONS, includes_endpoints=False)
    else:
        yield reserved_selector(name)


def _filters(entry: RuleEntry, *, without_l7: bool) -> tuple[L4Filter, ...]:
    """Return the L4 filters of an entry; ``without_l7`` (no default deny) also allows requests outside the L7 rules."""
    if entry.ports:
        return tuple(_filter(ports, without_l7=without_l7) for ports in entry.ports)
    if entry.icmps:
        return (L4Filter(unique(_icmp_block(field) for icmps in entry.icmps for field in icmps.fields_)),)
    return () if entry.peers is None else ALL_TRAFFIC


def _filter(port_rule: PortRule | DenyPortRule, *, without_l7: bool) -> L4Filter:
    blocks = unique(block for port in port_rule.ports for block in _blocks(port))
    return L4Filter(blocks, port_rule.matches() if isinstance(port_rule, PortRule) and not without_l7 else ())


def _blocks(port: PortProtocol) -> Iterator[PortBlock | NamedPortRef]:
    if port.named:
        return (NamedPortRef(port.port, proto) for proto in PROTOCOL_NUMBERS[port.protocol])
    return port_range(port.protocol, int(port.port), port.end_port or int(port.port))


def _icmp_block(field: IcmpField) -> PortBlock:
    assert isinstance(field.type, int)  # the model resolves names
    return icmp_type(_ICMP[field.family], field.type)
