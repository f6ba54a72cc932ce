"""Offline evaluation of connections: the ends, the result of each side, and the reason in one sentence."""

import json
from ipaddress import ip_address

import pytest

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.explain import trace
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import ConnectionResult, Simulation
from tests.support.replicas import API_SERVER

ENDPOINTS = """
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, labels: {app: web}}
spec: {ips: [10.0.0.1, "fd00::1"]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: db, labels: {app: db}}
spec: {ips: [10.0.0.2, "fd00::2", 10.0.9.2], ports: [{name: sql, port: 5432}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: six, labels: {app: six}}
spec: {ips: ["fd00::6"]}
"""
PORTS = "toPorts: [{ports: [{port: '80', protocol: TCP}]}]"
WEB, DB = "[{matchLabels: {app: web}}]", "[{matchLabels: {app: db}}]"


def policy(body: str, name: str = "p", app: str = "db") -> str:
    return (
        "\n---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}}}\nspec: {{endpointSelector: {{matchLabels: {{app: {app}}}}}, {body}}}\n"
    )


def simulate(
    *policies: str,
    mode: Enforcement = Enforcement.AUTO,
    allow_localhost: bool = True,
    node_labels: Labels | None = None,
) -> Simulation:
    documents = group_documents(one.document for one in parse(ENDPOINTS + "".join(policies), "f"))
    return Simulation(documents, mode, allow_localhost=allow_localhost, node_labels=node_labels)


def evaluate(simulation: Simulation, source: str, target: str, **probe: object) -> ConnectionResult:
    probe_fields = {"from": source, "to": target, **({} if "protocol" in probe else {"port": 80}), **probe}
    return simulation.evaluate_probe(ProbeFile(json.dumps([probe_fields]), "p").probes[0])


def test_both_sides_are_judged_and_name_their_rules() -> None:
    simulation = simulate(
        policy(f"ingress: [{{fromEndpoints: {WEB}, {PORTS}}}]", "in"),
        policy(f"egress: [{{toEndpoints: {DB}}}]", "out", "web"),
    )

    assert evaluate(simulation, "default/web", "default/db").as_data() == {
        "verdict": "allow",
        "egress": {"verdict": "allow", "rules": ["default/out egress[0]"]},
        "ingress": {"verdict": "allow", "rules": ["default/in ingress[0]"]},
        "reason": "default/out egress[0] opens egress of default/web; "
        "default/in ingress[0] opens ingress of default/db",
    }


def test_what_no_rule_opens_names_the_documents_that_closed_it() -> None:
    simulation = simulate(
        *(policy(f"ingress: [{{fromEndpoints: {WEB}, {PORTS}}}]", f"p{number}") for number in range(5)),
        policy(f"egress: [{{toEndpoints: {WEB}}}]", "out", "web"),
    )

    result = evaluate(simulation, "default/six", "default/db", port=22)

    assert (result.verdict, result.egress.allowed, result.ingress.rules) == ("deny", False, ())
    assert result.reason == (
        "egress of default/six is closed by default/out, and no rule opens 22/TCP to default/db; "
        "ingress of default/db is closed by default/p0, default/p1, default/p2 and 2 more, "
        "and no rule opens 22/TCP from default/six"
    )


def test_a_deny_rule_is_named() -> None:
    result = evaluate(simulate(policy("ingressDeny: [{fromEntities: [world]}]")), "ip:192.0.2.1", "default/db")

    assert (result.verdict, list(map(str, result.ingress.rules))) == ("deny", ["default/p ingressDeny[0]"])
    assert result.reason == "default/p ingressDeny[0] denies 80/TCP from 192.0.2.1 (ingress of default/db)"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (Enforcement.NEVER, "nothing closes egress of default/web; nothing closes ingress of default/db"),
        (
            Enforcement.ALWAYS,
            "egress of default/web is closed by enforcement mode always, and no rule opens 80/TCP to default/db; "
            "ingress of default/db is closed by enforcement mode always, and no rule opens 80/TCP from default/web",
        ),
    ],
)
def test_a_mode_that_opens_or_closes_everything_is_named(mode: Enforcement, reason: str) -> None:
    assert evaluate(simulate(mode=mode), "default/web", "default/db").reason == reason


def test_an_endpoint_is_never_cut_off_from_itself() -> None:
    result = evaluate(simulate(mode=Enforcement.ALWAYS), "default/web", "ip:fd00::1")

    assert (result.verdict, result.reason) == ("allow", "an endpoint cannot be cut off from itself")


def test_between_two_ends_that_are_no_endpoints_no_policy_applies() -> None:
    result = evaluate(simulate(mode=Enforcement.ALWAYS), "reserved:world", "ip:192.0.2.1")

    assert (result.verdict, result.reason) == ("allow", "neither end is an endpoint, so no policy applies")


def test_the_host_reaches_its_endpoints_unless_policy_is_to_say() -> None:
    closed, denied = policy("ingress: [{}]"), policy("ingressDeny: [{fromEntities: [host]}]", "deny")

    always = evaluate(simulate(closed), "reserved:host", "default/db")
    probe_fields = evaluate(simulate(closed, allow_localhost=False), "reserved:host", "default/db")

    assert (always.verdict, always.reason) == ("allow", "the host may reach the endpoints it runs (allow-localhost)")
    assert probe_fields.verdict == "deny"
    assert evaluate(simulate(denied), "reserved:host", "default/db").verdict == "deny"


def test_a_network_policy_closes_no_endpoint_to_its_host() -> None:
    plain = """---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: plain}
spec: {podSelector: {}}
"""
    alone = evaluate(simulate(plain, allow_localhost=False), "reserved:host", "default/db")
    beside = evaluate(simulate(plain, policy("ingress: [{}]"), allow_localhost=False), "reserved:host", "default/db")

    assert (alone.verdict, alone.reason) == ("allow", "a NetworkPolicy closes no endpoint to its own host")
    assert evaluate(simulate(plain, allow_localhost=False), "reserved:world", "default/db").verdict == "deny"
    assert beside.verdict == "deny"


def test_an_address_is_the_endpoint_that_has_it() -> None:
    simulation = simulate(policy(f"ingress: [{{fromEndpoints: {WEB}}}]"))

    assert evaluate(simulation, "ip:10.0.0.1", "default/db").verdict == "allow"
    assert (
        evaluate(simulation, "ip:fd00:0::1", "ip:10.0.9.2").ingress.rules
        == evaluate(simulation, "default/web", "default/db").ingress.rules
    )
    assert evaluate(simulation, "ip:10.0.0.9", "default/db").verdict == "deny"


@pytest.mark.parametrize(
    ("block", "verdicts"),
    [
        ("fromCIDR: [0.0.0.0/0]", ["allow", "allow", "deny", "deny"]),
        ("fromCIDR: ['::/0']", ["deny", "deny", "allow", "deny"]),
        ("fromCIDRSet: [{cidr: 0.0.0.0/0, except: [192.0.2.0/24]}]", ["deny", "allow", "deny", "deny"]),
        ("fromCIDR: [192.0.2.0/24]", ["allow", "deny", "deny", "deny"]),
        ("fromEntities: [world]", ["allow", "allow", "allow", "deny"]),
    ],
)
def test_the_world_is_every_address_outside(block: str, verdicts: list[str]) -> None:
    simulation = simulate(policy(f"ingress: [{{{block}}}]"))

    sources = ("ip:192.0.2.1", "reserved:world", "ip:2001:db8::1", "default/web")

    assert [evaluate(simulation, source, "default/db").verdict for source in sources] == verdicts


def test_an_ip_block_of_kubernetes_means_the_world_and_whoever_has_the_address() -> None:
    block = "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"
    simulation = simulate(
        f"\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: k}}\n"
        f"spec: {{podSelector: {{}}, {block}}}\n"
    )

    probe_fields = {"default/web": "IPv4", "reserved:world": "IPv4", "default/six": "IPv6", "reserved:health": "IPv4"}

    assert {
        source: evaluate(simulation, source, "default/db", family=family).verdict
        for source, family in probe_fields.items()
    } == {
        "default/web": "allow",
        "reserved:world": "allow",
        "default/six": "deny",
        "reserved:health": "deny",
    }


def test_ping_is_of_the_family_that_both_ends_have() -> None:
    four = simulate(policy("ingress: [{icmps: [{fields: [{type: 8}]}]}]"))
    six = simulate(policy("ingress: [{icmps: [{fields: [{type: 128, family: IPv6}]}]}]"))

    def ping(simulation: Simulation, source: str, **probe: object) -> str:
        return evaluate(simulation, source, "default/db", protocol="ICMP", **probe).verdict

    assert [ping(one, "default/web") for one in (four, six)] == ["allow", "deny"]
    assert [ping(one, "default/six") for one in (four, six)] == ["deny", "allow"]
    assert [ping(one, "default/web", family="IPv6") for one in (four, six)] == ["deny", "allow"]
    assert [ping(one, "default/web", icmp={"type": 8, "family": "IPv6"}) for one in (four, six)] == ["deny", "deny"]


def test_a_named_port_is_the_destinations() -> None:
    named = "toPorts: [{ports: [{port: sql, protocol: TCP}]}]"
    simulation = simulate(policy(f"egress: [{{toEndpoints: [{{}}], {named}}}]", app="web"))

    assert [evaluate(simulation, "default/web", "default/db", port=port).verdict for port in (5432, 80)] == [
        "allow",
        "deny",
    ]
    assert evaluate(simulation, "default/web", "default/six", port=5432).verdict == "deny"


REQUESTS = policy(
    f"ingress: [{{fromEndpoints: {WEB}, toPorts: [{{ports: [{{port: '80', protocol: TCP}}], "
    "rules: {http: [{method: GET, path: /a}, {path: /b}]}}]}]"
)


@pytest.mark.parametrize(
    ("http", "verdict", "rules", "reason"),
    [
        ({"path": "/a"}, "allow", 1, "default/p ingress[0] lets GET /a pass at ingress of default/db"),
        (
            {"path": "/a", "method": "PUT"},
            "deny",
            0,
            "PUT /a is no request that default/p ingress[0] lists for ingress of default/db",
        ),
        (
            {"path": "/b/%2e%2e/a"},
            "allow",
            1,
            "default/p ingress[0] lets GET /b/%2e%2e/a (at the proxy: GET /a) pass at ingress of default/db",
        ),
        (
            {"path": "/a/../c"},
            "deny",
            0,
            "GET /a/../c (at the proxy: GET /c) is no request that default/p ingress[0] lists for ingress of "
            "default/db",
        ),
        (
            {"path": "/b%2f"},
            "deny",
            0,
            "GET /b%2f reaches no rule for ingress of default/db: the proxy answers 400: its path has an escaped slash "
            "or backslash (%2f, %5c)",
        ),
        (None, "allow", 1, "default/p ingress[0] opens ingress of default/db, but only requests that it lists pass"),
    ],
)
def test_a_request_is_held_against_the_requests_that_a_rule_lists(
    http: dict[str, str] | None, verdict: str, rules: int, reason: str
) -> None:
    result = evaluate(simulate(REQUESTS), "default/web", "default/db", **({"http": http} if http else {}))

    assert (result.verdict, len(result.ingress.rules), result.restricted) == (verdict, rules, http is None)
    assert result.reason == f"nothing closes egress of default/web; {reason}" if result.allowed else reason


SERVER_NAMES = policy(
    "egress: [{toEntities: [world], toPorts: [{ports: [{port: '443'}], serverNames: ['*.example', b.test]}]}]"
)


@pytest.mark.parametrize(
    ("probed", "verdict", "reason"),
    [
        ({"sni": "A.example"}, "allow", "default/p egress[0] lets TLS to A.example pass at egress of default/db"),
        (
            {"sni": "c.test"},
            "deny",
            "TLS to c.test is no request that default/p egress[0] lists for egress of default/db",
        ),
        (
            {"sni": ""},
            "deny",
            "TLS without a server name is no request that default/p egress[0] lists for egress of default/db",
        ),
        ({}, "allow", "default/p egress[0] opens egress of default/db, but only requests that it lists pass"),
        (
            {"protocol": "UDP"},
            "deny",
            "default/p egress[0] lists server names for egress of default/db, and only TLS over TCP has them",
        ),
    ],
)
def test_tls_passes_to_the_server_names_of_a_rule(probed: dict[str, str], verdict: str, reason: str) -> None:
    result = evaluate(simulate(SERVER_NAMES), "default/db", "ip:192.0.2.1", port=443, **probed)

    assert (result.verdict, result.egress.reason) == (verdict, reason)


NAMES = policy(
    "egress: [{toEntities: [world], toPorts: [{ports: [{port: '53'}], "
    "rules: {dns: [{matchName: a.example}, {matchPattern: '*.b.example'}]}}]}]"
)


@pytest.mark.parametrize(
    ("probed", "verdict", "reason"),
    [
        (
            {"dns": "A.example."},
            "allow",
            "default/p egress[0] lets a query for A.example. pass at egress of default/db",
        ),
        (
            {"dns": "x.b.example"},
            "allow",
            "default/p egress[0] lets a query for x.b.example pass at egress of default/db",
        ),
        (
            {"dns": "b.example"},
            "deny",
            "a query for b.example is no request that default/p egress[0] lists for egress of default/db",
        ),
        ({}, "allow", "default/p egress[0] opens egress of default/db, but only requests that it lists pass"),
        (
            {"protocol": "TCP"},
            "allow",
            "default/p egress[0] opens egress of default/db, but only requests that it lists pass",
        ),
        (
            {"protocol": "TCP", "dns": "b.example"},
            "deny",
            "a query for b.example is no request that default/p egress[0] lists for egress of default/db",
        ),
        (
            {"protocol": "SCTP"},
            "deny",
            "default/p egress[0] lists DNS names for egress of default/db, and only UDP and TCP have them",
        ),
    ],
)
def test_a_query_is_held_against_the_names_that_a_rule_lists(probed: dict[str, str], verdict: str, reason: str) -> None:
    probed = {"protocol": "UDP"} | probed
    result = evaluate(simulate(NAMES), "default/db", "reserved:world", port=53, **probed)

    assert (result.verdict, result.reason) == (verdict, reason)


FQDNS = policy(
    "egress: [{toFQDNs: [{matchName: a.example}, {matchPattern: '*.b.example'}], toPorts: [{ports: [{port: '443'}]}]}, "
    "{toCIDR: [192.0.2.0/24]}]"
)


@pytest.mark.parametrize(
    ("target", "verdicts"),
    [
        ("fqdn:A.example.", ["allow", "deny"]),
        ("fqdn:x.b.example", ["allow", "deny"]),
        ("fqdn:b.example", ["deny", "deny"]),
        ("ip:192.0.2.9", ["allow", "allow"]),
        ("ip:198.51.100.7", ["deny", "deny"]),
        ("reserved:world", ["deny", "deny"]),
        ("default/web", ["deny", "deny"]),
    ],
)
def test_a_name_outside_is_a_peer(target: str, verdicts: list[str]) -> None:
    simulation = simulate(FQDNS)

    assert [evaluate(simulation, "default/db", target, port=port).verdict for port in (443, 80)] == verdicts


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (
            "default/dbb",
            "did you mean default/db? allowed: NAMESPACE/NAME of an endpoint, ip:ADDRESS, fqdn:NAME or ",
        ),
        ("db", "did you mean default/db? allowed: "),
        ("reserved:wrld", "did you mean reserved:world? allowed: "),
        ("#", "'#' is nobody that the documents know; allowed: "),
        ("ip:fe80::1%eth0", "'fe80::1%eth0' is not an address; allowed: ip: and an IPv4 or IPv6 address"),
        ("ip:10.0.0", "'10.0.0' is not an address; allowed: ip: and an IPv4 or IPv6 address"),
    ],
)
def test_a_reference_to_nobody_is_refused_with_names_that_are_close(reference: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        simulate().end(reference)

    assert expected in str(caught.value)


def test_a_policy_of_nodes_is_asked_where_the_host_is_an_end() -> None:
    nodes = (
        "\n---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: 'n'}\n"
        f"spec: {{nodeSelector: {{}}, ingress: [{{fromEntities: [cluster], {PORTS}}}]}}\n"
    )

    assert [evaluate(simulate(nodes), "default/web", "reserved:host", port=port).verdict for port in (80, 22)] == [
        "allow",
        "deny",
    ]


EXISTS = "{key: io.cilium.k8s.policy.cluster, operator: Exists}"
IN = "{key: 'k8s:io.cilium.k8s.policy.cluster', operator: In, values: [default, west]}"


@pytest.mark.parametrize(
    ("requirement", "cluster", "allowed"),
    [
        (f"matchExpressions: [{EXISTS}]", "default", True),
        (f"matchExpressions: [{IN}]", "default", True),
        (f"matchExpressions: [{IN}]", "east", False),
        ("matchLabels: {io.cilium.k8s.policy.cluster: east}", "east", True),
        ("matchLabels: {'any:io.cilium.k8s.policy.cluster': west}", "east", False),
        (f"matchExpressions: [{IN.replace('In,', 'NotIn,')}]", "default", False),
    ],
)
def test_every_endpoint_has_the_label_of_its_cluster(requirement: str, cluster: str, allowed: bool) -> None:
    for text in (
        policy(f"ingress: [{{fromEndpoints: [{{{requirement}}}]}}]"),
        policy(f"egress: [{{toEndpoints: [{{{requirement}}}]}}]", app="web"),
        policy("ingress: [{}]") + policy(f"ingress: [{{fromEndpoints: [{{{requirement}}}]}}]", "q"),
    ):
        documents = group_documents(one.document for one in parse(ENDPOINTS + text, "f"))
        simulation = Simulation(documents, cluster=cluster)

        assert evaluate(simulation, "default/web", "default/db").allowed is allowed


def test_a_subject_can_be_selected_by_its_cluster() -> None:
    selects = policy("ingress: [{}]").replace("{matchLabels: {app: db}}", f"{{matchExpressions: [{EXISTS}]}}")
    other = policy("ingress: [{}]").replace("{app: db}", "{io.cilium.k8s.policy.cluster: west}")

    assert not evaluate(simulate(selects, mode=Enforcement.PER_ENDPOINT), "default/web", "default/db").allowed
    assert evaluate(simulate(other, mode=Enforcement.PER_ENDPOINT), "default/web", "default/db").allowed


APISERVER = (ip_address("192.0.2.9"), ip_address("fd00::9"), ip_address("10.0.0.1"))


@pytest.mark.parametrize(
    ("entry", "target", "allowed"),
    [
        ("toEntities: [kube-apiserver]", "ip:192.0.2.9", True),
        ("toEntities: [kube-apiserver]", "ip:fd00::9", True),
        ("toEntities: [kube-apiserver]", "ip:192.0.2.8", False),
        ("toEntities: [kube-apiserver]", "reserved:kube-apiserver", True),
        ("toEntities: [kube-apiserver]", "default/web", True),
        ("toEntities: [cluster]", "ip:192.0.2.9", True),
        ("toEntities: [world]", "ip:192.0.2.9", True),
        ("toEntities: [world-ipv4]", "ip:192.0.2.9", True),
        ("toEntities: [world]", "default/web", False),
        ("toEntities: [host]", "ip:192.0.2.9", False),
        ("toCIDR: [192.0.2.0/24]", "ip:192.0.2.9", True),
        ("toCIDR: [192.0.2.9/32]", "ip:192.0.2.9", True),
        ("toCIDR: [192.0.3.0/24]", "ip:192.0.2.9", False),
        ("toEndpoints: [{}]", "ip:192.0.2.9", False),
    ],
)
def test_addresses_of_the_api_server_are_that_entity_and_what_they_were(entry: str, target: str, allowed: bool) -> None:
    documents = group_documents(one.document for one in parse(ENDPOINTS + policy(f"egress: [{{{entry}}}]"), "f"))
    simulation = Simulation(documents, kube_apiserver=APISERVER)

    assert evaluate(simulation, "default/db", target).allowed is allowed
    pair = simulation.pair("default/db", target)
    (rule,) = trace(simulation, pair, TrafficSpec(TCP, 80)).egress.rules
    assert rule.matches is allowed


@pytest.mark.parametrize("target", ["198.51.100.1", "2001:db8::1"])
def test_backends_of_the_service_of_the_api_server_are_that_entity(target: str) -> None:
    text = policy("egress: [{toEntities: [kube-apiserver]}]") + API_SERVER
    documents = group_documents(one.document for one in parse(ENDPOINTS + text, "f"))

    assert evaluate(Simulation(documents), "default/db", f"ip:{target}").allowed
    assert not evaluate(Simulation(documents), "default/db", "ip:198.51.100.2").allowed


def test_a_deny_of_the_world_holds_for_the_api_server_too() -> None:
    text = policy("egress: [{toEntities: [kube-apiserver]}], egressDeny: [{toEntities: [world]}]")
    documents = group_documents(one.document for one in parse(ENDPOINTS + text, "f"))

    assert not evaluate(Simulation(documents, kube_apiserver=APISERVER), "default/db", "ip:192.0.2.9").allowed


def test_labels_of_the_node_select_the_host() -> None:
    nodes = (
        "\n---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: 'n'}\n"
        "spec: {nodeSelector: {matchLabels: {role: gateway}}, ingress: [{fromEntities: [world]}]}\n"
    )

    def verdict(labels: dict[str, str]) -> str:
        simulation = simulate(nodes, node_labels=Labels.parse(labels))
        return str(evaluate(simulation, "default/web", "reserved:host", port=22).verdict)

    assert [verdict(labels) for labels in ({"role": "gateway"}, {"role": "store"}, {})] == ["deny", "allow", "allow"]
