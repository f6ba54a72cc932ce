"""Explanations: the text about each rule, and its agreement with the verdict of the compiled maps."""

import json
from itertools import product
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, TlsHello
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.explain import SideTrace, Trace, trace
from nfq_enforcer.policy.loader import group_documents, load, parse
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.simulation import Simulation

HTTP = TrafficSpec(6, 80)
POLICIES = Path(__file__).parents[3] / "policies"

ENDPOINTS = """
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, labels: {app: web}}
spec: {ips: [10.0.0.1], ports: [{name: http, port: 8080}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: db, labels: {app: db, "container:tier": back}}
spec: {ips: [10.0.0.2], ports: [{name: sql, port: 5432}]}
"""


def simulate(spec: str) -> Simulation:
    document = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{app: db}}}}, {spec}}}\n"
    )
    return Simulation(group_documents(one.document for one in parse(document + ENDPOINTS, "f")))


def trace_to_db(spec: str, traffic: TrafficSpec = HTTP, source: str = "default/web") -> Trace:
    simulation = simulate(spec)
    return trace(simulation, simulation.pair(source, "default/db"), traffic)


def explanation_of(spec: str, traffic: TrafficSpec = HTTP, source: str = "default/web") -> str:
    (only,) = trace_to_db(spec, traffic, source).ingress.rules
    return only.explanation


def from_(labels: str) -> str:
    return f"ingress: [{{fromEndpoints: [{{{labels}}}]}}]"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ingress: [{}]", "closes ingress of default/db and opens nothing"),
        ("ingress: [{}], enableDefaultDeny: {ingress: false}", "opens nothing"),
        ("ingress: [{fromEndpoints: []}]", "its list of peers is empty, so it is about nobody"),
        (from_("matchLabels: {app: x}"), "default/web is none of its peers: wants app=x, and it has k8s:app=web"),
        (
            from_("matchLabels: {'k8s:tier': x}"),
            "default/web is none of its peers: wants k8s:tier=x, and it has no tier",
        ),
        (
            from_("matchExpressions: [{key: app, operator: NotIn, values: [web, b]}]"),
            "default/web is none of its peers: wants app not in (b, web), and it has k8s:app=web",
        ),
        (
            from_("matchExpressions: [{key: app, operator: In, values: [b, c]}]"),
            "default/web is none of its peers: wants app in (b, c), and it has k8s:app=web",
        ),
        (
            from_("matchExpressions: [{key: app, operator: DoesNotExist}, {key: tier, operator: Exists}]"),
            "default/web is none of its peers: wants no app, and it has k8s:app=web and wants tier, and it has no tier",
        ),
        (
            "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]",
            "default/web is none of its peers: wants an address in 10.0.0.0/8 without 10.1.0.0/16, "
            "and CIDRs are never endpoints or nodes",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '8000', endPort: 8010, protocol: TCP}, {port: '53'}]}]}]",
            "is about 8000-8010/TCP, 53/TCP, 53/UDP, 53/SCTP, not 80/TCP",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: sql, protocol: TCP}, {port: http, protocol: TCP}]}]}]",
            "is about 5432/TCP, a port named http, which is not there, not 80/TCP",
        ),
        ("ingress: [{icmps: [{fields: [{type: 8}]}]}]", "is about ICMP type 8, not 80/TCP"),
        ("ingress: [{fromEntities: [all], toPorts: [{}]}]", "is about no port, not 80/TCP"),
        (from_("matchLabels: {app: web}"), "allows 80/TCP from default/web"),
        ("ingressDeny: [{fromEntities: [cluster]}]", "denies 80/TCP from default/web"),
    ],
)
def test_a_rule_in_words(spec: str, words: str) -> None:
    assert explanation_of(spec) == words


def test_a_rule_that_selects_somebody_else_names_the_label() -> None:
    simulation = simulate("ingress: [{}]")

    found = trace(simulation, simulation.pair("default/db", "default/web"), TrafficSpec(6, 80))

    assert found.ingress.rules[0].explanation == "does not select default/web: wants app=db, and it has k8s:app=web"


def test_a_label_of_another_source_is_shown_as_what_is_there() -> None:
    simulation = simulate(from_("matchLabels: {'k8s:tier': back}"))

    found = trace(simulation, simulation.pair("default/db", "default/db"), TrafficSpec(6, 80))

    assert (found.ingress.rules, found.ingress.explanation) == ((), "default/db has no policy of its own")
    assert found.result.reason == "an endpoint cannot be cut off from itself"


def test_an_address_outside_is_held_against_prefixes() -> None:
    spec = "ingress: [{fromCIDR: [192.0.2.0/24]}]"

    assert explanation_of(spec, source="ip:192.0.2.9") == "allows 80/TCP from 192.0.2.9"
    assert explanation_of(spec, source="ip:192.0.3.9") == (
        "192.0.3.9 is none of its peers: wants an address in 192.0.2.0/24"
    )


def test_of_many_peers_the_first_ones_are_named() -> None:
    spec = f"ingress: [{{fromCIDR: [{', '.join(f'192.0.2.{number}/32' for number in range(8))}]}}]"

    explanation = explanation_of(spec, source="ip:192.0.3.9")
    assert explanation.count("wants an address in") == 5
    assert explanation.endswith("wants an address in 192.0.2.4/32, or wants one of 3 more")


def test_requests_in_words() -> None:
    rules = "[{method: GET, path: /a}, {host: h, headers: ['X-A: 1', X-B]}]"
    port = "ports: [{port: '80', protocol: TCP}]"
    spec = f"ingress: [{{toPorts: [{{{port}, rules: {{http: {rules}}}}}]}}]"

    refused = "lets only requests pass that are GET /a or any method any path at h with X-A: 1 with X-B"
    assert explanation_of(spec, TrafficSpec(6, 80, HttpRequest("GET", "/b"))) == refused
    assert (
        explanation_of(spec, TrafficSpec(6, 80, HttpRequest("GET", "/a"))) == "allows GET /a on 80/TCP from default/web"
    )
    assert explanation_of(spec) == "allows 80/TCP from default/web"
    assert explanation_of(spec, TrafficSpec(6, 80, HttpRequest("CONNECT", "a:80"))) == (
        "is not asked, because the proxy answers 403: CONNECT asks for a tunnel"
    )


def test_server_names_in_words() -> None:
    spec = "ingress: [{toPorts: [{ports: [{port: '443'}], serverNames: ['*.a', b]}]}]"

    assert explanation_of(spec, TrafficSpec(6, 443, TlsHello("c"))) == (
        "lets only requests pass that are TLS to *.a or TLS to b"
    )
    assert explanation_of(spec, TrafficSpec(6, 443, TlsHello("b"))) == "allows TLS to b on 443/TCP from default/web"
    assert explanation_of(spec, TrafficSpec(17, 443)) == "lists server names, and only TLS over TCP has them"


def test_dns_names_in_words() -> None:
    ports = "ports: [{port: '53'}, {port: '54', protocol: TCP}]"
    simulation = simulate(f"egress: [{{toPorts: [{{{ports}, rules: {{dns: [{{matchName: A.example.}}]}}}}]}}]")

    def explained(traffic: TrafficSpec) -> str:
        found = trace(simulation, simulation.pair("default/db", "default/web"), traffic)
        return found.egress.rules[0].explanation

    assert (
        explained(TrafficSpec(17, 53, DnsQuestion("b"))) == "lets only requests pass that are DNS queries for a.example"
    )
    assert explained(TrafficSpec(17, 53, DnsQuestion("a.Example"))).startswith(
        "allows a query for a.Example on 53/UDP to"
    )
    assert explained(TrafficSpec(6, 54, DnsQuestion("a.example"))).startswith("allows a query for a.example on 54/TCP")
    assert explained(TrafficSpec(132, 53)) == "lists DNS names, and only UDP and TCP have them"


def test_names_in_words() -> None:
    spec = "egress: [{toFQDNs: [{matchPattern: '*.example'}, {matchName: b.test}]}]"
    simulation = simulate(spec)

    def explained(target: str) -> str:
        return trace(simulation, simulation.pair("default/db", target), TrafficSpec(6, 80)).egress.rules[0].explanation

    assert explained("fqdn:a.example") == "allows 80/TCP to a.example"
    assert explained("fqdn:c.test") == (
        "c.test is none of its peers: wants an address that DNS has for *.example, "
        "or wants an address that DNS has for b.test"
    )


def test_the_deciding_rule_is_marked_and_what_it_beats_is_not() -> None:
    spec = "ingress: [{fromEntities: [all]}, {}], ingressDeny: [{fromEndpoints: [{}]}]"

    found = trace_to_db(spec).ingress

    assert [(str(one.rule), one.matches, one.decides) for one in found.rules] == [
        ("default/p ingress[0]", True, False),
        ("default/p ingress[1]", False, False),
        ("default/p ingressDeny[0]", True, True),
    ]


def test_a_trace_is_data_for_other_tools() -> None:
    assert json.loads(json.dumps(trace_to_db("ingress: [{fromEntities: [cluster]}]").as_data())) == {
        "from": "default/web",
        "to": "default/db",
        "asked": "80/TCP",
        "verdict": "allow",
        "reason": "nothing closes egress of default/web; default/p ingress[0] opens ingress of default/db",
        "egress": {"verdict": "allow", "why": "nothing closes egress of default/web", "considered": []},
        "ingress": {
            "verdict": "allow",
            "why": "default/p ingress[0] opens ingress of default/db",
            "considered": [
                {
                    "rule": "default/p ingress[0]",
                    "fits": True,
                    "decides": True,
                    "why": "allows 80/TCP from default/web",
                }
            ],
        },
    }


QUESTIONS = (
    *(TrafficSpec(6, port) for port in (21, 22, 23, 53, 80, 443, 5432, 8000, 9100, 9187, 30000, 30100)),
    TrafficSpec(17, 53),
    TrafficSpec(1, 8),
    TrafficSpec(6, 80, HttpRequest("GET", "/userdata/1")),
    TrafficSpec(6, 80, HttpRequest("GET", "/")),
)
OUTSIDE = ("reserved:world", "reserved:host", "ip:203.0.113.1", "ip:198.51.100.7", "ip:198.51.100.200")


def agrees(side: SideTrace, traffic: TrafficSpec) -> bool:
    """Return whether the rules that match by their explanations are the rules that the policy map decided by."""
    policy, outcome = side.side.policy, side.side.lookup(traffic)
    if policy is None or outcome is None:
        return not side.rules
    fitting = {one.rule for one in side.rules if one.matches}
    if any(rule.order for rule in outcome.rules):
        (decides,) = (one.rule for one in side.rules if one.decides)
        return outcome.rules == (decides,) and decides in fitting
    fitting = {rule for rule in fitting if rule.order is None}
    denying = {rule for rule in fitting if rule.deny}
    if denying or outcome.denied:
        return denying == set(outcome.rules) and not side.result.allowed
    if not policy.enforced or side.side.exemption:
        return side.result.allowed
    return set(side.result.rules) <= fitting and side.result.allowed is bool(fitting)


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT, Enforcement.ALWAYS])
@pytest.mark.parametrize(
    "example", [POLICIES, *sorted(set(POLICIES.glob("*.yaml")) - {POLICIES / "endpoints.yaml"})], ids=lambda p: p.stem
)
def test_words_and_maps_agree(example: Path, mode: Enforcement) -> None:
    simulation = Simulation(load({POLICIES / "endpoints.yaml", example}), mode, allow_localhost=False)

    for source, target in product((*simulation.endpoints, *OUTSIDE), repeat=2):
        pair = simulation.pair(source, target)
        for traffic in QUESTIONS:
            found = trace(simulation, pair, traffic)
            assert agrees(found.egress, traffic), (source, target, str(traffic))
            assert agrees(found.ingress, traffic), (source, target, str(traffic))


TIERS = """
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: {name}}}
spec: {{tier: {tier}, priority: 10, subject: {{namespaces: {{}}}}, {rules}}}
"""
FROM_PODS = "from: [{namespaces: {}}]"
OVERRULED = ", without effect: a rule or policy of higher precedence matches"


def trace_tiers(*policies: str, port: int = 80, target: str = "default/db", mode: str = "per-endpoint") -> Trace:
    text = "".join(policies) + ENDPOINTS
    simulation = Simulation(group_documents(one.document for one in parse(text, "f")), Enforcement(mode))
    return trace(simulation, simulation.pair("default/web", target), TrafficSpec(6, port))


def tier(name: str, *actions: str) -> str:
    rules = ", ".join(f"{{action: {action}, {FROM_PODS}}}" for action in actions)
    return TIERS.format(name=name.lower(), tier=name, rules=f"ingress: [{rules}]")


def told(side: SideTrace) -> list[tuple[str, bool, str]]:
    return [(one.rule.name, one.decides, one.explanation) for one in side.rules]


OPENS = (
    "\n---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
    "spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}\n"
)


def test_rules_are_told_in_the_order_in_which_they_decide() -> None:
    found = trace_tiers(tier("Baseline", "Deny"), OPENS, tier("Admin", "Pass", "Accept"))

    way = "80/TCP from default/web"
    assert told(found.ingress) == [
        ("admin", False, f"passes {way} to the rules outside the tier"),
        ("admin", False, f"accepts {way}{OVERRULED}"),
        ("p", True, f"allows {way}"),
        ("baseline", False, f"denies {way}{OVERRULED}"),
    ]


def test_a_rule_that_decides_leaves_the_others_without_effect() -> None:
    found = trace_tiers(tier("Baseline", "Pass"), OPENS, tier("Admin", "Deny", "Pass"))

    way = "80/TCP from default/web"
    assert told(found.ingress) == [
        ("admin", True, f"denies {way}"),
        ("admin", False, f"passes {way} to the rules outside the tier{OVERRULED}"),
        ("p", False, f"allows {way}{OVERRULED}"),
        ("baseline", False, f"passes {way} to the default"),
    ]
    assert (
        found.result.reason
        == "admin ingress[0] (Admin 10, Deny) denies 80/TCP from default/web (ingress of default/db)"
    )


@pytest.mark.parametrize("mode", ["per-endpoint", "always"])
def test_the_reason_of_an_accepted_connection_is_the_rule(mode: str) -> None:
    found = trace_tiers(tier("Baseline", "Accept"), tier("Admin", "Pass"), mode=mode)

    assert found.ingress.explanation == "baseline ingress[0] (Baseline 10, Accept) accepts 80/TCP from default/web"
    assert found.ingress.result.allowed


def test_the_reading_of_dns_answers_is_told_on_port_53_only() -> None:
    rules = "egress: [{action: Accept, to: [{domainNames: [a.example.com]}]}, {action: Pass, to: [{namespaces: {}}]}]"
    documents = TIERS.format(name="names", tier="Admin", rules=rules)

    name, answers, leave = told(trace_tiers(documents, port=53).egress)
    assert name[2] == "default/db is none of its peers: wants an address that DNS has for a.example.com"
    assert answers == (
        "names",
        False,
        "reads the answers of default/db on 53/TCP, if policy allows it, for its domainNames",
    )
    assert leave[2] == "passes 53/TCP to default/db to the rules outside the tier"
    assert [one[0:1] for one in told(trace_tiers(documents, port=80).egress)] == [("names",)] * 2
