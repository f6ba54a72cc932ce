"""The scenarios of upstream's conformance tests of ClusterNetworkPolicy (network-policy-api, v1alpha2), as verdicts.

Upstream's tests need a cluster; these have the same constellations as documents. Four namespaces have two pods each.
Not here: rules for nodes by their labels, which this version refuses.
"""

from itertools import product
from typing import Any

import pytest
import yaml

from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.simulation import Simulation

Spec = dict[str, Any]
HOUSES = ("red", "green", "yellow", "blue")
PORTS = [{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]
ANY_PORT = ("80/TCP", "8080/TCP", "53/UDP", "5353/UDP", "9003/SCTP", "9005/SCTP")
NUMBERS = {"tcp": 80, "udp": 53, "sctp": 9003}


def endpoint(house: str, number: int) -> Spec:
    address = f"10.0.{HOUSES.index(house)}.{number}"
    metadata = {"name": f"pod-{number}", "namespace": house, "labels": {"house": house}}
    spec = {"ips": [address, f"fd00::{HOUSES.index(house)}:{number}"], "ports": PORTS}
    return {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}


CLUSTER: list[Spec] = [
    *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": one, "labels": {"house": one}}} for one in HOUSES),
    *(endpoint(*one) for one in product(HOUSES, (1, 2))),
]


def namespaces(house: str) -> Spec:
    return {"namespaces": {"matchLabels": {"house": house}}}


def pods(house: str) -> Spec:
    labels = {"matchLabels": {"house": house}}
    return {"pods": {"namespaceSelector": labels, "podSelector": labels}}


def rule(action: str, peers: list[Spec], ports: dict[str, int] | None = None) -> Spec:
    protocols = [{name: {"destinationPort": {"number": port}}} for name, port in (ports or {}).items()]
    return {"action": action, "peers": peers, **({"protocols": protocols} if ports else {})}


def policy(
    name: str,
    subject: Spec,
    *,
    ingress: list[Spec] | None = None,
    egress: list[Spec] | None = None,
    tier: str = "Admin",
    priority: int = 10,
) -> Spec:
    def directed(rules: list[Spec] | None, field: str) -> list[Spec]:
        return [{field if key == "peers" else key: value for key, value in one.items()} for one in rules or ()]

    sections = {"ingress": directed(ingress, "from"), "egress": directed(egress, "to")}
    spec = {"tier": tier, "priority": priority, "subject": subject, **sections}
    version = "policy.networking.k8s.io/v1alpha2"
    return {"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec}


def both_ways(name: str, subject: Spec, rules: list[Spec], tier: str = "Admin", priority: int = 10) -> Spec:
    return policy(name, subject, ingress=rules, egress=rules, tier=tier, priority=priority)


class Verdicts:
    """Verdicts: those on connections between the pods, under some policies."""

    def __init__(self, *policies: Spec, cluster: list[Spec] | None = None) -> None:
        text = yaml.safe_dump_all([*(cluster or CLUSTER), *policies])
        documents = group_documents(one.document for one in parse(text, "x.yaml"))
        self._simulation = Simulation(documents, Enforcement.PER_ENDPOINT)

    def allows(self, source: str, target: str, way: str) -> bool:
        port, _, protocol = way.partition("/")
        found = {
            self._simulation.evaluate(
                self._simulation.pair(source, target, family), TrafficSpec(PROTOCOLS[protocol], int(port))
            ).allowed
            for family in ("IPv4", "IPv6")
        }
        (allowed,) = found
        return allowed

    def open_ways(self, source: str, target: str) -> list[str]:
        return [way for way in ANY_PORT if self.allows(source, target, way)]

    def both(self, own: str, other: str) -> tuple[list[str], list[str]]:
        """Return the ways that are open from another pod to the own pod, and back."""
        return self.open_ways(other, own), self.open_ways(own, other)


ALL, NONE = list(ANY_PORT), list[str]()


def test_priority_decides_between_policies_of_one_tier() -> None:
    deny = both_ways("deny", pods("red"), [rule("Deny", [pods("green")])], priority=50)
    accept = both_ways("default", pods("red"), [rule("Accept", [pods("green")])], tier="Baseline")

    def passing(priority: int) -> Spec:
        return both_ways("pass", pods("red"), [rule("Pass", [pods("green")])], priority=priority)

    assert Verdicts(deny, accept, passing(60)).both("red/pod-1", "green/pod-2") == (NONE, NONE)
    assert Verdicts(deny, accept, passing(40)).both("red/pod-1", "green/pod-2") == (ALL, ALL)


def test_admin_passes_to_network_policies_and_these_precede_baseline() -> None:
    subject, peers = namespaces("red"), [namespaces("green")]
    selector = {"namespaceSelector": {"matchLabels": {"house": "green"}}}
    network_policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "green", "namespace": "red"},
        "spec": {
            "podSelector": None,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [selector]}],
            "egress": [{"to": [selector]}],
        },
    }
    baseline = both_ways("default", subject, [rule("Deny", peers)], tier="Baseline")
    deny, leave = (both_ways("admin", subject, [rule(action, peers)]) for action in ("Deny", "Pass"))
    only_ingress = policy("admin", subject, ingress=[rule("Pass", peers)], egress=[rule("Deny", peers)])

    pair = "red/pod-1", "green/pod-1"
    assert Verdicts(deny, network_policy, baseline).both(*pair) == (NONE, NONE)
    assert Verdicts(only_ingress, network_policy, baseline).both(*pair) == (ALL, NONE)
    assert Verdicts(leave, network_policy, baseline).both(*pair) == (ALL, ALL)
    assert Verdicts(leave, network_policy, baseline).both("red/pod-1", "blue/pod-1") == (NONE, NONE)
    assert Verdicts(leave, baseline).both(*pair) == (NONE, NONE)
    assert Verdicts(leave, baseline).both("red/pod-1", "blue/pod-1") == (ALL, ALL)


@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
class TestOneProtocol:
    """The rules of one document, which is about one protocol, in both directions and in every order."""

    def rules(self, protocol: str) -> list[Spec]:
        first = {protocol: NUMBERS[protocol]}
        return [
            rule("Accept", [namespaces("blue")]),
            rule("Deny", [namespaces("blue")]),
            rule("Pass", [namespaces("blue")]),
            rule("Deny", [namespaces("green")], first),
            rule("Pass", [namespaces("green")], first),
            rule("Accept", [namespaces("yellow")], first),
            rule("Deny", [namespaces("yellow")]),
        ]

    def test_rules_apply_in_their_order(self, tier: str, protocol: str) -> None:
        found = Verdicts(both_ways("one", namespaces("red"), self.rules(protocol), tier))

        first = f"{NUMBERS[protocol]}/{protocol.upper()}"
        others = [way for way in ANY_PORT if way != first]
        assert found.both("red/pod-1", "blue/pod-1") == (ALL, ALL)
        assert found.both("red/pod-2", "green/pod-1") == (others, others)
        assert found.both("red/pod-1", "yellow/pod-2") == ([first], [first])
        assert found.both("blue/pod-1", "green/pod-1") == (ALL, ALL)

    def test_another_order_has_another_first_rule(self, tier: str, protocol: str) -> None:
        accept, deny, leave, deny_port, leave_port, accept_port, deny_rest = self.rules(protocol)

        denied = Verdicts(both_ways("one", namespaces("red"), [deny, accept, leave], tier))
        assert denied.both("red/pod-1", "blue/pod-1") == (NONE, NONE)
        passed = Verdicts(both_ways("one", namespaces("red"), [leave, deny, accept], tier))
        assert passed.both("red/pod-1", "blue/pod-1") == (ALL, ALL)
        ports = Verdicts(both_ways("one", namespaces("red"), [leave_port, deny_port, deny_rest, accept_port], tier))
        assert ports.both("red/pod-1", "green/pod-1") == (ALL, ALL)
        assert ports.both("red/pod-1", "yellow/pod-1") == (NONE, NONE)


@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_one_rule_has_ports_of_several_protocols(tier: str) -> None:
    ports, others = {"tcp": 80, "udp": 53, "sctp": 9003}, {"tcp": 8080, "udp": 5353, "sctp": 9003}
    rules = [
        rule("Deny", [namespaces("green")], ports),
        rule("Pass", [namespaces("green")], ports),
        rule("Accept", [namespaces("yellow")], others),
        rule("Deny", [namespaces("yellow")]),
    ]
    found = Verdicts(both_ways("combined", namespaces("red"), rules, tier))

    spared = ["8080/TCP", "5353/UDP", "9005/SCTP"]
    assert found.both("red/pod-1", "green/pod-1") == (spared, spared)
    opened = ["8080/TCP", "5353/UDP", "9003/SCTP"]
    assert found.both("red/pod-1", "yellow/pod-1") == (opened, opened)


@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_networks_match_pods_and_a_rule_for_pods_before_them_spares_these(tier: str) -> None:
    accept, deny = rule("Accept", [pods("green")]), rule("Deny", [{"networks": ["0.0.0.0/0", "::/0"]}])
    whole = policy("cidrs", pods("red"), egress=[accept, deny], tier=tier)
    addresses = ["10.0.3.1/32", "10.0.2.1/32", "fd00::3:1/128", "fd00::2:1/128"]
    some = policy("cidrs", pods("red"), egress=[rule("Accept", [{"networks": addresses}]), accept, deny], tier=tier)
    moved = [one for one in CLUSTER if one["metadata"]["name"] != "green"]  # the namespace without its label

    assert [Verdicts(whole).open_ways("red/pod-2", f"{house}/pod-1") for house in HOUSES[1:]] == [ALL, NONE, NONE]
    assert Verdicts(whole, cluster=moved).open_ways("red/pod-2", "green/pod-1") == NONE
    for house in ("blue", "yellow"):
        assert [Verdicts(some).open_ways("red/pod-2", f"{house}/pod-{number}") for number in (1, 2)] == [ALL, NONE]


@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_named_ports_are_those_of_the_destination(tier: str) -> None:
    protocols = [{"destinationNamedPort": "web"}, {"destinationNamedPort": "dns"}]
    named = {"action": "Accept", "peers": [pods("green")], "protocols": protocols}
    rest = rule("Deny", [pods("green")])
    found = Verdicts(both_ways("named", pods("red"), [named, rest], tier))

    assert found.both("red/pod-1", "green/pod-1") == (["80/TCP", "53/UDP"], ["80/TCP", "53/UDP"])


@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_a_range_has_both_of_its_ends(tier: str) -> None:
    protocols = [{"tcp": {"destinationPort": {"range": {"start": 80, "end": 8080}}}}]
    ranged = {"action": "Deny", "peers": [pods("green")], "protocols": protocols}
    found = Verdicts(both_ways("ranged", pods("red"), [ranged], tier))

    assert not found.allows("green/pod-1", "red/pod-1", "80/TCP")
    assert not found.allows("green/pod-1", "red/pod-1", "8080/TCP")
    assert found.allows("green/pod-1", "red/pod-1", "79/TCP")
    assert found.allows("green/pod-1", "red/pod-1", "8081/TCP")
    assert found.allows("green/pod-1", "red/pod-1", "80/UDP")
