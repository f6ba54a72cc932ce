"""What the entries of a Cilium policy come to.

What one entry opens (of ``ingressDeny`` and ``egressDeny``: denies), with "peers" for fromEndpoints, fromCIDR,
fromCIDRSet and fromEntities and their twins, and "ports" for toPorts or icmps (as upstream):

=============  =================  ==========================================
peers          ports              opens
=============  =================  ==========================================
missing        missing or empty   nothing; it closes what no other rule opens
missing        ports              these ports to anyone, world and host included
empty          any                nothing
given          missing or empty   every protocol and port to those selected
given          ports              these ports to those selected
=============  =================  ==========================================

A port without a protocol is that of TCP, UDP and SCTP; only ``icmps`` and entries without ports open ICMP.
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
    Peer,
    PolicyRule,
    PortProtocol,
    PortRule,
    RuleEntry,
)
from nfq_enforcer.policy.rules import (
    ALL,
    PROTOCOLS,
    Block,
    NamedPort,
    Opening,
    Port,
    Rule,
    icmp_type,
    numbered,
    once,
)
from nfq_enforcer.policy.selectors import ENDPOINTS, EVERYBODY, Selector, node_subject, peer, reserved, subject

_ICMP = {"IPv4": ICMP, "IPv6": ICMPV6}
_CLUSTER = ("host", "remote-node", "init", "health", "unmanaged", "kube-apiserver", "ingress")
_WORLD = {"world-ipv4": ip_network("0.0.0.0/0"), "world-ipv6": ip_network("::/0")}


def resolve(document: CiliumPolicy) -> Iterator[Rule]:
    """Yield the rules of a document; ``ref.spec`` counts from the rule in ``spec``, if there is one, to ``specs``."""
    for spec, written in enumerate(document.rules):
        selects = _subject(written, document.namespace)
        for direction, deny, entries in _sections(written):
            isolates = _isolates(written, direction)
            for number, entry in enumerate(entries):
                ref = RuleRef(document.kind, document.namespace, document.name, direction, number, spec, deny)
                opens = _openings(entry, lifted=not isolates)
                yield Rule(ref, selects, _peers(entry, document.namespace), opens, isolates)


def _subject(rule: PolicyRule, namespace: str) -> Selector:
    if rule.endpoint_selector is not None:
        return subject(rule.endpoint_selector, namespace)
    assert rule.node_selector is not None  # the document has one of both
    return node_subject(rule.node_selector)


def _sections(rule: PolicyRule) -> Iterator[tuple[Direction, bool, tuple[RuleEntry, ...]]]:
    yield Direction.INGRESS, False, rule.ingress
    yield Direction.INGRESS, True, rule.ingress_deny
    yield Direction.EGRESS, False, rule.egress
    yield Direction.EGRESS, True, rule.egress_deny


def _isolates(rule: PolicyRule, direction: Direction) -> bool:
    """Say whether the entries that a rule has for a direction close it; asking for it without any has no effect."""
    return getattr(rule.enable_default_deny, direction) is not False


def _peers(entry: RuleEntry, namespace: str) -> tuple[Selector | Block, ...] | None:
    if entry.peers is None:
        return None
    return tuple(dict.fromkeys(one for written in entry.peers for one in _resolved(written, namespace)))


def _resolved(written: Peer, namespace: str) -> Iterator[Selector | Block]:
    if isinstance(written, str):
        yield from _entity(written)
    elif isinstance(written, CidrRule):
        yield Block(written.cidr, frozenset(written.except_), everybody=False)
    elif isinstance(written, IPv4Network | IPv6Network):
        yield Block(written, frozenset(), everybody=False)
    else:
        yield peer(written, namespace)


def _entity(name: str) -> Iterator[Selector | Block]:
    if name == "all":
        yield EVERYBODY
    elif name == "cluster":
        yield ENDPOINTS
        yield from map(reserved, _CLUSTER)
    elif name in _WORLD:
        yield Block(_WORLD[name], frozenset(), everybody=False)
    else:
        yield reserved(name)


def _openings(entry: RuleEntry, *, lifted: bool) -> tuple[Opening, ...]:
    """Return what an entry is about; with default deny off, what its L7 rules do not match passes too: ``lifted``."""
    if entry.ports:
        return tuple(_opening(ports, lifted=lifted) for ports in entry.ports)
    if entry.icmps:
        return (Opening(once(_type(field) for icmps in entry.icmps for field in icmps.fields_)),)
    return () if entry.peers is None else ALL


def _opening(written: PortRule | DenyPortRule, *, lifted: bool) -> Opening:
    ports = once(port for one in written.ports for port in _ports(one))
    rules = written.rules if isinstance(written, PortRule) and not lifted else None
    return Opening(ports, rules.matches() if rules else ())


def _ports(written: PortProtocol) -> Iterator[Port | NamedPort]:
    if written.named:
        return (NamedPort(written.port, proto) for proto in PROTOCOLS[written.protocol])
    return numbered(written.protocol, int(written.port), written.end_port or int(written.port))


def _type(field: IcmpField) -> Port:
    assert isinstance(field.type, int)  # names are resolved as they are read
    return icmp_type(_ICMP[field.family], field.type)
