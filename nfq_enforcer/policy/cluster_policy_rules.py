"""Resolution of ClusterNetworkPolicy documents to rules.

A rule never isolates its subjects: traffic that no rule matches is left to the other policies, and to the default. Its
peers are pods, and at egress also addresses: ``networks`` has those of pods and nodes in it, like an ipBlock. This
node's own traffic to its pods is no peer of any ingress rule. Traffic without protocols includes ICMP.

A policy with ``domainNames`` has one rule more, for the name servers that its subjects ask: it decides nothing, but
the DNS answers that they get on port 53 are read for addresses of these names.
"""

from collections.abc import Iterable, Iterator

from nfq_enforcer.core.tables.dns_names import EVERY_NAME, normalised
from nfq_enforcer.core.tables.l7 import DnsMatch
from nfq_enforcer.core.tables.policymap import PORT_BITS, Action, RuleOrder, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.policy.cluster_policy import (
    ClusterEgressRule,
    ClusterIngressRule,
    ClusterNetworkPolicy,
    EgressPeer,
    IngressPeer,
    NamespacedPods,
    ProtocolMatch,
)
from nfq_enforcer.policy.kubernetes import KubernetesSelector
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
    port_range,
    unique,
)
from nfq_enforcer.policy.selectors import Selector, pod_peer_selector, reserved_selector

_EVERY_NODE = (reserved_selector("host"), reserved_selector("remote-node"))
_DNS = (L4Filter(tuple(PortBlock(proto, 53, PORT_BITS) for proto in (UDP, TCP)), (DnsMatch(EVERY_NAME),)),)


def resolve(document: ClusterNetworkPolicy) -> Iterator[Rule]:
    """Yield the rules of a document."""
    spec = document.spec
    subject = _pods(spec.subject.namespaces, spec.subject.pods)
    sections: dict[Direction, tuple[ClusterIngressRule | ClusterEgressRule, ...]] = {
        Direction.INGRESS: spec.ingress,
        Direction.EGRESS: spec.egress,
    }
    for direction, entries in sections.items():
        for number, entry in enumerate(entries):
            title = "".join(character if character.isprintable() else " " for character in entry.name)
            order = RuleOrder(*spec.place, Action(entry.action), title)
            ref = RuleRef(document.kind, "", document.name, direction, number, order=order)
            peers = tuple(dict.fromkeys(peer for one in entry.peers for peer in _peers(one)))
            yield Rule(ref, subject, peers, _filters(entry.protocols), isolates=False)
            if any(isinstance(peer, NamePeer) for peer in peers):
                yield Rule(ref, subject, None, _DNS, isolates=False, learns=True)


def _pods(namespaces: KubernetesSelector | None, pods: NamespacedPods | None) -> Selector:
    if pods is not None:
        return pod_peer_selector(pods.pod_selector, pods.namespace_selector, "")
    assert namespaces is not None  # validated: one of the two
    return pod_peer_selector(None, namespaces, "")


def _peers(peer: IngressPeer | EgressPeer) -> Iterator[RulePeer]:
    if isinstance(peer, EgressPeer):
        if peer.nodes is not None:
            yield from _EVERY_NODE
            return
        if peer.networks is not None:
            yield from (AddressBlock(network, NO_EXCLUSIONS, includes_endpoints=True) for network in peer.networks)
            return
        if peer.domain_names is not None:
            yield from map(_name_peer, peer.domain_names)
            return
    yield _pods(peer.namespaces, peer.pods)


def _name_peer(name: str) -> NamePeer:
    """Return the peer of a domain name, in which a star stands for several labels, as in the pattern ``**.``."""
    return NamePeer(normalised(f"*{name}" if name.startswith("*") else name))


def _filters(protocols: Iterable[ProtocolMatch] | None) -> tuple[L4Filter, ...]:
    return (
        ALL_TRAFFIC if protocols is None else (L4Filter(unique(block for one in protocols for block in _blocks(one))),)
    )


def _blocks(match: ProtocolMatch) -> Iterator[PortBlock | NamedPortRef]:
    if match.destination_named_port is not None:
        yield from (NamedPortRef(str(match.destination_named_port), proto) for proto in PROTOCOL_NUMBERS["ANY"])
    for protocol, transport in (("TCP", match.tcp), ("UDP", match.udp), ("SCTP", match.sctp)):
        if transport is not None:
            yield from port_range(protocol, *transport.destination_port.bounds)
