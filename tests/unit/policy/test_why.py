"""Why a connection is refused, and the smallest change: each proposal is verified, and opens what it says."""

from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello
from nfq_enforcer.core.wire.packet import ICMP, TCP, UDP
from nfq_enforcer.policy import change as changes
from nfq_enforcer.policy import why
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import Documents, from_data, group_documents, load, parse
from nfq_enforcer.policy.matrix import diff
from nfq_enforcer.policy.ports import TrafficSpec, render_spans
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.why import Connection, Explanation, diff_lines, explain, propose

POLICIES = Path(__file__).parents[3] / "policies"
ENDPOINTS = """
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: front, labels: {role: front}}
spec: {ips: [10.0.0.1]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: batch, labels: {"container:role": batch}}
spec: {ips: [10.0.0.2]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: other, namespace: far, labels: {role: other}}
spec: {ips: [10.0.0.3]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: db, labels: {role: db}}
spec: {ips: [10.0.0.4, "fd00::4"]}
---
"""
TO_DB = "endpointSelector: {matchLabels: {role: db}}"
FRONT, DB = "default/front", "default/db"


def policy(spec: str, kind: str = "CiliumNetworkPolicy", name: str = "p") -> str:
    version = {"NetworkPolicy": "networking.k8s.io/v1", "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2"}
    return f"---\napiVersion: {version.get(kind, 'cilium.io/v2')}\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n"


def simulate(*documents: str, enforcement: Enforcement = Enforcement.AUTO) -> Simulation:
    text = ENDPOINTS + "".join(documents)
    return Simulation(group_documents(one.document for one in parse(text, "f")), enforcement)


def ask(
    simulation: Simulation,
    port: int = 80,
    source: str = FRONT,
    target: str = DB,
    proto: int = TCP,
    request: L7Request | None = None,
) -> Explanation:
    connection = Connection(source, target, TrafficSpec(proto, port, request))
    explanation = explain(simulation, connection)
    if explanation.proposal is not None:
        check(simulation, connection, explanation)
    return explanation


def check(simulation: Simulation, connection: Connection, explanation: Explanation) -> None:
    """Assert that the connection passes with the proposal, and that the proposal opens exactly what it says."""
    proposal = explanation.proposal
    assert proposal is not None
    policies = {one.key: one for one in simulation.documents.policies}
    for changed in proposal.changes:
        policies.pop(changed.key, None)
        if changed.after is not None:
            (policies[changed.key],) = from_data([changed.after]).policies
    documents = Documents(simulation.documents.endpoints, simulation.documents.namespaces, tuple(policies.values()))
    after = simulation.with_documents(documents)
    assert connection.evaluate(after).allowed
    opened = {(one.source, one.target): set(render_spans(one.spans)) for one in proposal.opened.changes}
    everything = {
        (one.source, one.target): set(render_spans(one.spans)) for one in diff(simulation, after) if one.new != "deny"
    }
    asked = connection.source, connection.target
    assert {key: spans for key, spans in opened.items() if key != asked} == {
        key: spans for key, spans in everything.items() if key != asked
    }


def added(explanation: Explanation) -> list[str]:
    """Return the added lines of the proposal, without blanks at their ends."""
    assert explanation.proposal is not None
    lines = [line for one in explanation.proposal.changes for line in diff_lines(one)]
    return [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]


def removed(explanation: Explanation) -> list[str]:
    assert explanation.proposal is not None
    lines = [line for one in explanation.proposal.changes for line in diff_lines(one)]
    return [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]


FROM_FRONT_443 = policy(
    f"spec: {{{TO_DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{role: front}}}}], "
    "toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]}"
)


def test_a_connection_that_passes_needs_no_change() -> None:
    explanation = ask(simulate(FROM_FRONT_443), 443)

    assert explanation.trace.result.allowed
    assert explanation.proposal is None
    assert explanation.as_data()["change"] is None


def test_the_port_is_added_to_the_rule_that_has_the_peer() -> None:
    explanation = ask(simulate(FROM_FRONT_443))

    assert added(explanation) == ["- port: '80'", "protocol: TCP"]
    assert explanation.proposal is not None
    assert explanation.proposal.opened == why.Opened((), complete=True)
    data = explanation.as_data()["change"]
    assert data["documents"][0]["name"] == "p"
    assert (data["documents"][0]["new"], data["documents"][0]["deleted"]) == (False, False)
    assert (data["also_opens"], data["also_opens_is_complete"]) == ([], True)


def test_the_peer_is_added_to_the_rule_that_has_the_port() -> None:
    explanation = ask(simulate(FROM_FRONT_443), 443, source="default/batch")

    assert added(explanation) == ["- matchLabels:", "container:role: batch"]


def test_a_peer_of_another_namespace_is_named_with_it() -> None:
    explanation = ask(simulate(FROM_FRONT_443), 443, source="far/other")

    assert added(explanation) == ["- matchLabels:", "role: other", "k8s:io.kubernetes.pod.namespace: far"]


def test_a_rule_is_added_where_neither_the_peer_nor_the_port_is_there() -> None:
    explanation = ask(simulate(FROM_FRONT_443), source="default/batch")

    assert added(explanation)[:3] == ["- fromEndpoints:", "- matchLabels:", "container:role: batch"]


def test_the_change_that_opens_least_is_chosen() -> None:
    every_peer = policy(f"spec: {{{TO_DB}, ingress: [{{toPorts: [{{ports: [{{port: '443'}}]}}]}}]}}")

    assert "- fromEndpoints:" in added(ask(simulate(every_peer)))


def test_ports_beside_requests_are_a_list_of_their_own() -> None:
    with_http = policy(
        f"spec: {{{TO_DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{role: front}}}}], "
        "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]}]}"
    )

    assert added(ask(simulate(with_http), 81)) == ["- ports:", "- port: '81'", "protocol: TCP"]


@pytest.mark.parametrize(
    ("rules", "proto", "port", "request_", "expected"),
    [
        (
            "rules: {http: [{method: GET, path: /a}]}",
            *(TCP, 80, HttpRequest("POST", "http://db/user.s?x=1")),
            ["- method: POST", "path: /user\\.s(\\?.*)?"],
        ),
        ("rules: {dns: [{matchName: a.example}]}", UDP, 53, DnsQuestion("b.example"), ["- matchName: b.example"]),
        ("serverNames: [a.example]", TCP, 443, TlsHello("b.example"), ["- b.example"]),
    ],
    ids=["http", "dns", "tls"],
)
def test_a_request_is_added_to_the_rules_of_its_port(
    rules: str, proto: int, port: int, request_: L7Request, expected: list[str]
) -> None:
    protocol = "UDP" if proto == UDP else "TCP"
    document = policy(
        f"spec: {{endpointSelector: {{matchLabels: {{role: front}}}}, egress: [{{toEndpoints: [{{matchLabels: "
        f"{{role: db}}}}], toPorts: [{{ports: [{{port: '{port}', protocol: {protocol}}}], {rules}}}]}}]}}"
    )

    assert added(ask(simulate(document), port, proto=proto, request=request_)) == expected


def test_a_hello_without_a_name_needs_a_rule_without_names() -> None:
    document = policy(
        f"spec: {{{TO_DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{role: front}}}}], "
        "toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a.example]}]}]}"
    )

    assert added(ask(simulate(document), 443, request=TlsHello("")))[0] == "- fromEndpoints:"


def test_both_sides_are_opened_if_both_refuse() -> None:
    egress = policy("spec: {endpointSelector: {matchLabels: {role: front}}, egress: [{}]}", name="q")
    explanation = ask(simulate(FROM_FRONT_443, egress))

    assert explanation.proposal is not None
    assert [one.key[2] for one in explanation.proposal.changes] == ["q", "p"]


@pytest.mark.parametrize("proto", ["IPv4", "IPv6"])
def test_ping_is_opened_by_its_type(proto: str) -> None:
    connection = Connection("ip:10.9.9.9" if proto == "IPv4" else "ip:fd09::9", DB, TrafficSpec(ICMP, 8), None)
    if proto == "IPv6":
        connection = connection._replace(traffic=TrafficSpec(58, 128), family="IPv6")
    simulation = simulate(FROM_FRONT_443)
    explanation = explain(simulation, connection)

    check(simulation, connection, explanation)
    lines = added(explanation)
    assert lines[0] == "- fromCIDR:"
    assert lines[-2:] == [f"- type: {connection.traffic.port}", f"family: {proto}"]


def test_an_icmp_type_is_added_to_a_list_of_types() -> None:
    document = policy(
        f"spec: {{{TO_DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{role: front}}}}], "
        "icmps: [{fields: [{type: 3, family: IPv4}]}]}]}"
    )

    assert added(ask(simulate(document), 8, proto=ICMP)) == ["- fields:", "- type: 8", "family: IPv4"]
    assert added(ask(simulate(document), 80))[0] == "- fromEndpoints:"  # a rule cannot have types and ports


def test_an_entity_and_the_world_are_peers_by_their_names() -> None:
    assert "- remote-node" in added(ask(simulate(FROM_FRONT_443), source="reserved:remote-node"))
    assert "- 0.0.0.0/0" in added(ask(simulate(FROM_FRONT_443), source="reserved:world"))


KUBERNETES = policy(
    "spec: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: "
    "{matchLabels: {role: front}}}], ports: [{port: 443}]}]}",
    "NetworkPolicy",
)


def test_a_network_policy_is_changed_in_its_own_words() -> None:
    assert added(ask(simulate(KUBERNETES))) == ["- protocol: TCP", "port: 80"]
    assert added(ask(simulate(KUBERNETES), 443, source="far/other")) == [
        *("- podSelector:", "matchLabels:", "role: other"),
        *("namespaceSelector:", "matchLabels:", "kubernetes.io/metadata.name: far"),
    ]
    assert added(ask(simulate(KUBERNETES), 443, source="ip:192.0.2.9")) == ["- ipBlock:", "cidr: 192.0.2.9/32"]
    assert "- podSelector:" not in added(ask(simulate(KUBERNETES), 443, source="default/batch"))  # another source
    assert "kind: CiliumNetworkPolicy" in added(ask(simulate(KUBERNETES), 443, source="reserved:remote-node"))
    assert "kind: CiliumNetworkPolicy" in added(ask(simulate(KUBERNETES), 8, proto=ICMP))


def test_a_network_policy_that_isolates_gets_its_first_rule() -> None:
    isolated = policy("spec: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress]}", "NetworkPolicy")

    assert added(ask(simulate(isolated)))[:2] == ["ingress:", "- from:"]


def test_a_new_document_is_written_where_none_selects_the_endpoint() -> None:
    front_only = policy("spec: {endpointSelector: {matchLabels: {role: front}}, ingress: [{}]}", name="front-to-db")
    explanation = ask(simulate(front_only))

    assert explanation.proposal is not None
    (change,) = explanation.proposal.changes
    assert (change.key, change.before) == (("CiliumNetworkPolicy", "default", "front-to-db-2"), None)
    assert explanation.as_data()["change"]["documents"][0]["new"] is True


DENY_FRONT = f"spec: {{{TO_DB}, ingressDeny: [{{fromEndpoints: [{{matchLabels: {{role: front}}}}]}}]}}"


def test_a_document_that_only_denies_is_deleted() -> None:
    explanation = ask(simulate(policy(DENY_FRONT.replace("}]}]}", "}]}], enableDefaultDeny: {ingress: false}}"))))

    assert explanation.proposal is not None
    assert [one.after for one in explanation.proposal.changes] == [None]
    assert explanation.as_data()["change"]["documents"][0]["deleted"] is True
    assert {(one.source, one.target) for one in explanation.proposal.opened.changes} >= {(FRONT, DB)}


def test_a_deny_rule_is_removed_and_then_a_rule_is_added() -> None:
    denied = policy(DENY_FRONT.removesuffix("}") + ", ingress: [{}]}")
    twice = policy(DENY_FRONT.replace("ingressDeny: [", "ingressDeny: [{fromEntities: [remote-node]}, "), name="q")
    explanation = ask(simulate(denied, twice))

    assert "ingressDeny:" in removed(explanation)
    assert "- port: '80'" in added(explanation)


ADMIN = """spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: db}}}}
  ingress:
  - {name: none, action: Deny, from: [{namespaces: {}}]}
"""


def test_an_accepting_rule_is_inserted_before_an_ordered_one_that_denies() -> None:
    simulation = simulate(policy(ADMIN, "ClusterNetworkPolicy"))

    assert added(ask(simulation))[:2] == ["- name: accept 80/TCP", "action: Accept"]
    assert "- name: none" in removed(ask(simulation, 8, proto=ICMP))  # there is no such rule for ICMP


def test_no_proposal_is_made_if_no_small_change_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    never = simulate(FROM_FRONT_443, enforcement=Enforcement.ALWAYS)
    with monkeypatch.context() as changed:
        changed.setattr(why, "candidates", lambda *_: iter(()))
        assert propose(never, Connection(FRONT, DB, TrafficSpec(TCP, 80))) is None
    with monkeypatch.context() as changed:
        changed.setattr(why, "_MAX_STEPS", -1)
        assert propose(never, Connection(FRONT, DB, TrafficSpec(TCP, 80))) is None


def test_a_candidate_that_is_no_valid_document_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulate(FROM_FRONT_443)
    (policy_,) = simulation.documents.policies
    wrong = changes.Change(policy_.key, policy_.data, {**policy_.data, "spec": {}})
    with monkeypatch.context() as changed:
        changed.setattr(why, "candidates", lambda *_: iter((wrong,)))
        assert propose(simulation, Connection(FRONT, DB, TrafficSpec(TCP, 80))) is None


def test_many_opened_connections_are_counted_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulate(policy(ADMIN, "ClusterNetworkPolicy"))
    with monkeypatch.context() as changed:
        changed.setattr(why, "_MAX_OPENED", 1)
        explanation = explain(simulation, Connection(FRONT, DB, TrafficSpec(ICMP, 8)))

    assert explanation.proposal is not None
    assert (len(explanation.proposal.opened.changes), explanation.proposal.opened.complete) == (1, False)


def test_a_host_with_rules_of_its_own_gets_no_new_document() -> None:
    host = policy(
        "spec: {nodeSelector: {matchLabels: {a: b}}, ingress: [{}]}", "CiliumClusterwideNetworkPolicy", name="h"
    )
    documents = group_documents(one.document for one in parse(ENDPOINTS + host, "f"))
    from nfq_enforcer.core.labels import Labels

    simulation = Simulation(documents, node_labels=Labels.parse({"a": "b"}))
    explanation = explain(simulation, Connection(FRONT, "reserved:host", TrafficSpec(TCP, 22)))

    assert explanation.proposal is not None
    assert [one.key[2] for one in explanation.proposal.changes] == ["h"]


def refused_pairs() -> list[Any]:
    """Return refused connections between the example endpoints under each example policy."""
    endpoints = POLICIES / "endpoints.yaml"
    found = []
    for file in sorted(POLICIES.glob("*.yaml")):
        if file == endpoints:
            continue
        simulation = Simulation(load([endpoints, file]))
        names = [*simulation.endpoints, "ip:203.0.113.9"]
        for traffic in (TrafficSpec(TCP, 80), TrafficSpec(UDP, 53), TrafficSpec(ICMP, 8)):
            pairs = [(one, other) for one in names for other in names if one != other]
            refused = [p for p in pairs if not Connection(*p, traffic).evaluate(simulation).allowed]
            found += [(file.stem, simulation, Connection(*pair, traffic)) for pair in refused[:2]]
    return [pytest.param(*case, id=f"{case[0]}-{case[2].source}-{case[2].target}-{case[2].traffic}") for case in found]


@pytest.mark.parametrize(("file", "simulation", "connection"), refused_pairs())
def test_each_example_has_a_change_that_opens_what_it_says(
    file: str, simulation: Simulation, connection: Connection
) -> None:
    explanation = explain(simulation, connection)

    assert explanation.proposal is not None, file
    check(simulation, connection, explanation)
