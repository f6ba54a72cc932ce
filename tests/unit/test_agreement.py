"""What ``policy matrix`` foretells is what nodes decide: the same documents, asked on paper and in the data path."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.policy_verdict import PolicyDenied, evaluate
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import Documents, load
from nfq_enforcer.policy.ports import Question
from nfq_enforcer.policy.probes import Family
from nfq_enforcer.policy.simulation import Pair, Simulation
from tests.support.replicas import replica_of, with_peers

FOLDER = Path(__file__).parents[2] / "policies"
ENDPOINTS = FOLDER / "endpoints.yaml"
NODES = ("n1", "n2", "n3")
WIRE = "eth0"  # between the nodes
QUESTIONS = (
    *(Question(6, port) for port in (21, 23, 53, 80, 443, 5432, 8000, 8100, 9100, 9187, 30064, 30101)),
    Question(17, 53),
)
OUTSIDE = ("ip:203.0.113.1", "ip:203.0.113.53", "ip:198.51.100.7", "ip:198.51.100.200", "ip:2001:db8:7::1")


def enforceable(example: Path) -> bool:
    rules = (rule for one in load([example]).policies if isinstance(one, CiliumPolicy) for rule in one.rules)
    return not any(rule.has_http or rule.has_dns for rule in rules)


EXAMPLES = [example for example in sorted(set(FOLDER.glob("*.yaml")) - {ENDPOINTS}) if enforceable(example)]


def snapshots(documents: Documents, mode: Enforcement) -> dict[str, Snapshot]:
    """Return what each node makes of the documents."""
    return {
        node: with_peers(
            replica_of(documents, NodeSettings(node, cluster_interfaces=frozenset((WIRE,)), enforcement=mode))
        )
        for node in NODES
    }


def opening(source: bytes, target: bytes, question: Question) -> Opening:
    icmp = question.proto in {ICMP, ICMPV6}
    port, type_ = (0, question.port) if icmp else (question.port, -1)
    return Opening(source, target, question.proto, 40000, port, type_, 0 if icmp else -1, False, WORLD, WORLD)


def passes(nodes: dict[str, Snapshot], homes: dict[str, str], pair: Pair, question: Question) -> bool:
    """Say whether a connection passes every node that it crosses: its opener's, then that of the other end."""
    return all(judged(nodes[node], pair, question, origin) for node, origin in crossed(homes, pair))


def crossed(homes: dict[str, str], pair: Pair) -> Iterator[tuple[str, Origin]]:
    source, target = pair.egress.subject, pair.ingress.subject
    here, there = homes.get(source.name), homes.get(target.name)
    if here is not None:
        yield here, ("veth", None)
    if there is not None and there != here:
        yield there, (WIRE, source.identity if here else None)


def judged(snapshot: Snapshot, pair: Pair, question: Question, origin: Origin) -> bool:
    source, target = (end.address(pair.family) for end in (pair.egress.subject, pair.ingress.subject))
    assert source is not None
    assert target is not None
    asked = opening(source.network_address.packed, target.network_address.packed, question)
    try:
        evaluate(snapshot, asked, origin)
    except PolicyDenied:
        return False
    return True


def pairs(simulation: Simulation) -> Iterator[Pair]:
    families: tuple[Family, ...] = ("IPv4", "IPv6")
    for source, target, family in product(
        (*simulation.endpoints, *OUTSIDE), (*simulation.endpoints, *OUTSIDE), families
    ):
        ends = simulation.end(source), simulation.end(target)
        if source != target and not {source, target} <= set(OUTSIDE) and all(end.speaks(family) for end in ends):
            yield simulation.pair(source, target, family)


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
@pytest.mark.parametrize("example", [*EXAMPLES, None], ids=lambda path: path.stem if path else "all")
def test_paper_and_nodes_agree(example: Path | None, mode: Enforcement) -> None:
    documents = load([ENDPOINTS, *([example] if example else EXAMPLES)])
    simulation, nodes = Simulation(documents, mode), snapshots(documents, mode)
    homes = {f"{one.namespace}/{one.name}": str(one.spec.node) for one in documents.endpoints}

    for pair in pairs(simulation):
        ping = Question(ICMP, 8) if pair.family == "IPv4" else Question(ICMPV6, 128)
        for question in (*QUESTIONS, ping):
            foretold = simulation.judge(pair, question)
            assert passes(nodes, homes, pair, question) == foretold.allowed, (str(question), foretold.reason)
