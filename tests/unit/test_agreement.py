"""The results of ``policy matrix`` equal the decisions of nodes: the same documents, offline and on the data path."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

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
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.probes import Family
from nfq_enforcer.policy.simulation import EndPair, Simulation
from tests.support.replicas import replica_of, with_peers

FOLDER = Path(__file__).parents[2] / "policies"
ENDPOINTS = FOLDER / "endpoints.yaml"
NODES = ("n1", "n2", "n3")
WIRE = "eth0"  # between the nodes
TRAFFIC = (
    *(TrafficSpec(6, port) for port in (21, 23, 53, 80, 443, 5432, 8000, 8100, 9100, 9187, 30064, 30101)),
    TrafficSpec(17, 53),
)
OUTSIDE = ("ip:203.0.113.1", "ip:203.0.113.53", "ip:198.51.100.7", "ip:198.51.100.200", "ip:2001:db8:7::1")


def needs_no_proxy(example: Path) -> bool:
    """Return whether packets alone decide; tests/integration/test_http_rules.py sends the requests of the others."""
    rules = (rule for one in load([example]).policies if isinstance(one, CiliumPolicy) for rule in one.rules)
    return not any(rule.has_http or rule.has_server_names for rule in rules)


EXAMPLES = [example for example in sorted(set(FOLDER.glob("*.yaml")) - {ENDPOINTS}) if needs_no_proxy(example)]


class Home(NamedTuple):
    """Home of an endpoint: its node, and its interface there."""

    node: str
    interface: str | None


def snapshots(documents: Documents, mode: Enforcement) -> dict[str, Snapshot]:
    """Return the snapshot that each node builds from the documents."""
    return {
        node: with_peers(
            replica_of(documents, NodeSettings(node, cluster_interfaces=frozenset((WIRE,)), enforcement=mode))
        )
        for node in NODES
    }


def opening(source: bytes, target: bytes, traffic: TrafficSpec) -> Opening:
    icmp = traffic.proto in {ICMP, ICMPV6}
    port, type_ = (0, traffic.port) if icmp else (traffic.port, -1)
    return Opening(source, target, traffic.proto, 40000, port, type_, 0 if icmp else -1, False, WORLD, WORLD)


def passes(nodes: dict[str, Snapshot], homes: dict[str, Home], pair: EndPair, traffic: TrafficSpec) -> bool:
    """Return whether a connection passes each node on its way: the opener's, then that of the other end."""
    return all(allowed(nodes[node], pair, traffic, origin) for node, origin in crossed(homes, pair))


def crossed(homes: dict[str, Home], pair: EndPair) -> Iterator[tuple[str, Origin]]:
    source, target = pair.egress.subject, pair.ingress.subject
    here, there = homes.get(source.name), homes.get(target.name)
    if here is not None:
        yield here.node, Origin(here.interface, None)
    if there is not None and (here is None or there.node != here.node):
        yield there.node, Origin(WIRE, source.identity if here else None)


def allowed(snapshot: Snapshot, pair: EndPair, traffic: TrafficSpec, origin: Origin) -> bool:
    source, target = (end.address(pair.family) for end in (pair.egress.subject, pair.ingress.subject))
    assert source is not None
    assert target is not None
    attempt = opening(source.network_address.packed, target.network_address.packed, traffic)
    try:
        evaluate(snapshot, attempt, origin)
    except PolicyDenied:
        return False
    return True


def pairs(simulation: Simulation) -> Iterator[EndPair]:
    families: tuple[Family, ...] = ("IPv4", "IPv6")
    for source, target, family in product(
        (*simulation.endpoints, *OUTSIDE), (*simulation.endpoints, *OUTSIDE), families
    ):
        ends = simulation.end(source), simulation.end(target)
        if source != target and not {source, target} <= set(OUTSIDE) and all(end.supports(family) for end in ends):
            yield simulation.pair(source, target, family)


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
@pytest.mark.parametrize("example", [*EXAMPLES, None], ids=lambda path: path.stem if path else "all")
def test_paper_and_nodes_agree(example: Path | None, mode: Enforcement) -> None:
    documents = load([ENDPOINTS, *([example] if example else EXAMPLES)])
    simulation, nodes = Simulation(documents, mode), snapshots(documents, mode)
    homes = {f"{one.namespace}/{one.name}": Home(str(one.spec.node), one.spec.interface) for one in documents.endpoints}

    for pair in pairs(simulation):
        ping = TrafficSpec(ICMP, 8) if pair.family == "IPv4" else TrafficSpec(ICMPV6, 128)
        for traffic in (*TRAFFIC, ping):
            result = simulation.evaluate(pair, traffic)
            assert passes(nodes, homes, pair, traffic) == result.allowed, (str(traffic), result.reason)
