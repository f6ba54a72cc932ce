"""What the entries of a NetworkPolicy come to.

Other than in a Cilium policy a peer list that is missing or empty is anyone, so ``ingress: [{}]`` opens everything; a
port has protocol TCP if it says none; and a policy closes the directions of its policyTypes, whatever else it has.
"""

from collections.abc import Iterable, Iterator

from nfq_enforcer.core.tables.policymap import WHOLE, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.kubernetes import EgressRule, IngressRule, NetworkPolicy, PeerRule, PortRule
from nfq_enforcer.policy.rules import ALL, PROTOCOLS, Block, NamedPort, Opening, Port, Rule, numbered, once
from nfq_enforcer.policy.selectors import Selector, pod_peer, pod_subject


def resolve(document: NetworkPolicy) -> Iterator[Rule]:
    """Yield the rules of a document; a direction that it closes and has no entry for has a rule without number."""
    spec, namespace = document.spec, document.namespace
    selects = pod_subject(spec.pod_selector, namespace)
    sections: dict[Direction, tuple[IngressRule | EgressRule, ...]] = {
        Direction.INGRESS: spec.ingress,
        Direction.EGRESS: spec.egress,
    }
    for direction, entries in sections.items():
        if direction.capitalize() not in spec.types:
            continue
        if not entries:
            ref = RuleRef(document.kind, namespace, document.name, direction, WHOLE)
            yield Rule(ref, selects, (), (), isolates=True)
        for number, entry in enumerate(entries):
            ref = RuleRef(document.kind, namespace, document.name, direction, number)
            yield Rule(ref, selects, _peers(entry.peers, namespace), _openings(entry.ports), isolates=True)


def _peers(written: Iterable[PeerRule], namespace: str) -> tuple[Selector | Block, ...] | None:
    return tuple(dict.fromkeys(_peer(one, namespace) for one in written)) or None


def _peer(written: PeerRule, namespace: str) -> Selector | Block:
    if written.ip_block is not None:
        return Block(written.ip_block.cidr, frozenset(written.ip_block.except_), everybody=True)
    return pod_peer(written.pod_selector, written.namespace_selector, namespace)


def _openings(written: Iterable[PortRule]) -> tuple[Opening, ...]:
    ports = once(port for one in written for port in _ports(one))
    return (Opening(ports),) if ports else ALL


def _ports(written: PortRule) -> Iterator[Port | NamedPort]:
    if isinstance(written.port, str):
        return iter([NamedPort(written.port, *PROTOCOLS[written.protocol])])
    first = written.port or 0
    return numbered(written.protocol, first, written.end_port or first)
