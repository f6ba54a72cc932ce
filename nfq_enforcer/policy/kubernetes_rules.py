"""Resolution of NetworkPolicy documents to rules.

Unlike in a Cilium policy, a missing or empty peer list means any peer, so ``ingress: [{}]`` allows all traffic; the
default protocol of a port is TCP; and a policy isolates its subjects in the directions of its policyTypes, with or
without entries.
"""

from collections.abc import Iterable, Iterator

from nfq_enforcer.core.tables.policymap import WHOLE, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.kubernetes import (
    NetworkPolicy,
    NetworkPolicyEgressRule,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
)
from nfq_enforcer.policy.rules import (
    ALL_TRAFFIC,
    PROTOCOL_NUMBERS,
    AddressBlock,
    L4Filter,
    NamedPortRef,
    PortBlock,
    Rule,
    port_range,
    unique,
)
from nfq_enforcer.policy.selectors import Selector, pod_peer_selector, pod_subject_selector


def resolve(document: NetworkPolicy) -> Iterator[Rule]:
    """Yield the rules of a document; an isolated direction without entries yields one rule, with number ``WHOLE``."""
    spec, namespace = document.spec, document.namespace
    subject = pod_subject_selector(spec.pod_selector, namespace)
    sections: dict[Direction, tuple[NetworkPolicyIngressRule | NetworkPolicyEgressRule, ...]] = {
        Direction.INGRESS: spec.ingress,
        Direction.EGRESS: spec.egress,
    }
    for direction, entries in sections.items():
        if direction.capitalize() not in spec.types:
            continue
        if not entries:
            ref = RuleRef(document.kind, namespace, document.name, direction, WHOLE)
            yield Rule(ref, subject, (), (), isolates=True)
        for number, entry in enumerate(entries):
            ref = RuleRef(document.kind, namespace, document.name, direction, number)
            yield Rule(ref, subject, _peers(entry.peers, namespace), _filters(entry.ports), isolates=True)


def _peers(written: Iterable[NetworkPolicyPeer], namespace: str) -> tuple[Selector | AddressBlock, ...] | None:
    return tuple(dict.fromkeys(_peer(peer, namespace) for peer in written)) or None


def _peer(written: NetworkPolicyPeer, namespace: str) -> Selector | AddressBlock:
    if written.ip_block is not None:
        return AddressBlock(written.ip_block.cidr, frozenset(written.ip_block.except_), includes_endpoints=True)
    return pod_peer_selector(written.pod_selector, written.namespace_selector, namespace)


def _filters(written: Iterable[NetworkPolicyPort]) -> tuple[L4Filter, ...]:
    ports = unique(port for entry in written for port in _ports(entry))
    return (L4Filter(ports),) if ports else ALL_TRAFFIC


def _ports(written: NetworkPolicyPort) -> Iterator[PortBlock | NamedPortRef]:
    if isinstance(written.port, str):
        return iter([NamedPortRef(written.port, *PROTOCOL_NUMBERS[written.protocol])])
    first = written.port or 0
    return port_range(written.protocol, first, written.end_port or first)
