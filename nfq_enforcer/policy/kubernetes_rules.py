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
    exclusions,
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


def _peers(peers: Iterable[NetworkPolicyPeer], namespace: str) -> tuple[Selector | AddressBlock, ...] | None:
    return tuple(dict.fromkeys(_peer(peer, namespace) for peer in peers)) or None


def _peer(peer: NetworkPolicyPeer, namespace: str) -> Selector | AddressBlock:
    if peer.ip_block is not None:
        return AddressBlock(peer.ip_block.cidr, exclusions(peer.ip_block.except_), includes_endpoints=True)
    return pod_peer_selector(peer.pod_selector, peer.namespace_selector, namespace)


def _filters(ports: Iterable[NetworkPolicyPort]) -> tuple[L4Filter, ...]:
    blocks = unique(block for port in ports for block in _blocks(port))
    return (L4Filter(blocks),) if blocks else ALL_TRAFFIC


def _blocks(port: NetworkPolicyPort) -> Iterator[PortBlock | NamedPortRef]:
    if isinstance(port.port, str):
        return iter([NamedPortRef(port.port, *PROTOCOL_NUMBERS[port.protocol])])
    first = port.port or 0
    return port_range(port.protocol, first, port.end_port or first)
