"""Warnings: each part of a document that can never match is named, and nothing else is."""

import pytest

from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.warnings import ClusterFacts, warnings
from tests.support.replicas import API_SERVER

HEAD = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: "
CLUSTERWIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\nspec: "
KUBERNETES = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: "
ENTRY = "{{endpointSelector: {{}}, ingress: [{{{}}}]}}"

NOT_SYSTEM = "{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}"
NAMESPACED = "{key: io.kubernetes.pod.namespace, operator: Exists}"


def warned(text: str, facts: ClusterFacts | None = None, in_force: str = "") -> list[str]:
    policies, others = (group_documents(one.document for one in parse(each, "f")).policies for each in (text, in_force))
    return list(warnings(policies, facts or ClusterFacts(), others))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("fromEntities: [health]", "the entity health has no addresses in this version"),
        ("fromEntities: [host, kube-apiserver]", "the entity kube-apiserver has no addresses"),
        ("fromEntities: [init]", "the entity init has no addresses"),
        ("fromEntities: [unmanaged]", "the entity unmanaged has no addresses"),
        ("fromEntities: [kube-apiserver]", "or kube_apiserver in the configuration, sets them"),
        ("fromEndpoints: [{matchLabels: {'reserved:kube-apiserver': ''}}]", "the entity kube-apiserver has no"),
        ("fromEndpoints: [{matchLabels: {'container:app': a}}]", "labels of the source 'container'"),
        ("fromEndpoints: [{matchLabels: {pod-template-hash: a}}]", "the label pod-template-hash is not part of"),
        ("fromEndpoints: [{matchExpressions: [{key: etcd_node, operator: Exists}]}]", "etcd_node is not part of"),
        ("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: east}}]", "it wants the cluster east, and this"),
        (
            "fromEndpoints: [{matchLabels: {a: x}, matchExpressions: [{key: a, operator: In, values: [w, z]}]}]",
            "it wants two values of the label a",
        ),
    ],
)
def test_a_peer_that_can_never_match_is_named(entry: str, reason: str) -> None:
    (sentence,) = warned(HEAD + ENTRY.format(entry))

    assert sentence.startswith("f:1: CiliumNetworkPolicy shop/p: ingress[0] has a peer that never matches: ")
    assert reason in sentence


@pytest.mark.parametrize(
    "text",
    [
        HEAD + ENTRY.format("fromEntities: [all]"),
        HEAD + ENTRY.format("fromEntities: [cluster]"),
        HEAD + ENTRY.format("fromEntities: [remote-node, health]"),
        HEAD + ENTRY.format("fromEntities: [world, host, remote-node, none, world-ipv4]"),
        HEAD + ENTRY.format("fromEndpoints: []"),
        HEAD + ENTRY.format("fromCIDR: [10.0.0.0/8]"),
        HEAD + ENTRY.format("fromEndpoints: [{matchExpressions: [{key: 'x:a', operator: DoesNotExist}]}]"),
        HEAD + ENTRY.format(f"fromEndpoints: [{{matchExpressions: [{NOT_SYSTEM}, {NAMESPACED}]}}]"),
        HEAD + ENTRY.format(f"fromEndpoints: [{{matchLabels: {{a: b}}, matchExpressions: [{NOT_SYSTEM}]}}]"),
        HEAD + ENTRY.format("fromEndpoints: [{matchExpressions: [{key: etcd_node, operator: NotIn, values: [a]}]}]"),
        HEAD + ENTRY.format("fromEndpoints: [{matchLabels: {'any:a': b, 'k8s:io.kubernetes.pod.namespace': c}}]"),
        HEAD
        + ENTRY.format("fromEndpoints: [{matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]}]"),
        CLUSTERWIDE + "{nodeSelector: {}, egress: [{}]}",
        CLUSTERWIDE + "{nodeSelector: {}, ingressDeny: [{}]}",
        CLUSTERWIDE + "{nodeSelector: {matchLabels: {pod-template-hash: a}}, egress: [{}]}",
        KUBERNETES + "{podSelector: {}, ingress: [], policyTypes: [Ingress, Egress]}",
        KUBERNETES
        + "{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}}]}]}",
    ],
)
def test_what_can_match_gets_no_warning(text: str) -> None:
    assert warned(text) == []


@pytest.mark.parametrize(
    "requirement",
    [
        NOT_SYSTEM,
        "{key: 'k8s:io.cilium.k8s.namespace.labels.team', operator: DoesNotExist}",
        "{key: 'reserved:host', operator: DoesNotExist}",
    ],
)
def test_a_peer_that_matches_the_world_by_what_it_lacks_is_named(requirement: str) -> None:
    (sentence,) = warned(HEAD + ENTRY.format(f"fromEndpoints: [{{matchExpressions: [{requirement}]}}]"))

    assert "ingress[0] has a peer that also matches the world, this host and other nodes" in sentence


FQDN = "{{endpointSelector: {{}}, egress: [{{toFQDNs: [{{{}}}]}}{}]}}"
DNS = "{{toEntities: [world], toPorts: [{{ports: [{{port: '53'}}], rules: {{dns: [{{{}}}]}}}}]}}"


@pytest.mark.parametrize(
    ("selector", "queried"),
    [
        ("matchName: a.example", ""),
        ("matchPattern: '*.example'", ""),
        ("matchName: a.example", "matchName: b.example"),
        ("matchName: a.example", "matchPattern: '*.a.example'"),
    ],
)
def test_a_name_of_which_nothing_can_be_learned_is_named(selector: str, queried: str) -> None:
    (sentence,) = warned(HEAD + FQDN.format(selector, f", {DNS.format(queried)}" if queried else ""))

    name = selector.split(": ")[1].strip("'")
    assert sentence.startswith(
        f"f:1: CiliumNetworkPolicy shop/p: egress[0] has {name} in toFQDNs, and no DNS rule here allows a query for it"
    )


@pytest.mark.parametrize(
    ("selector", "queried"),
    [
        ("matchName: a.example", "matchPattern: '*'"),
        ("matchName: a.example", "matchName: A.example."),
        ("matchPattern: '*.example'", "matchName: a.example"),
    ],
)
def test_a_name_that_can_be_queried_gets_no_warning(selector: str, queried: str) -> None:
    assert warned(HEAD + FQDN.format(selector, f", {DNS.format(queried)}")) == []
    other = f"{HEAD.replace('name: p', 'name: q')}{{endpointSelector: {{}}, egress: [{DNS.format(queried)}]}}"
    assert warned(f"{HEAD}{FQDN.format(selector, '')}\n---\n{other}") == []
    assert warned(f"{HEAD}{FQDN.format(selector, '')}", in_force=other) == []


@pytest.mark.parametrize("entries", ["[{}]", "[{fromEntities: [cluster]}]"])
def test_a_rule_that_closes_nodes_is_named(entries: str) -> None:
    (sentence,) = warned(f"{CLUSTERWIDE}{{nodeSelector: {{}}, ingress: {entries}}}")

    assert sentence.startswith("f:1: CiliumClusterwideNetworkPolicy p: closes the nodes that it selects, SSH and every")


SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop, labels: {tier: data}}\n"
TO_SERVICES = "{{endpointSelector: {{}}, egress: [{{toServices: [{{{}}}]}}]}}"


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("k8sService: {serviceName: api}", "named api"),
        ("k8sService: {serviceName: db, namespace: other}", "named other/db"),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: web}}}", "with the labels of a k8sServiceSelector"),
    ],
)
def test_a_service_that_is_not_here_is_named(entry: str, named: str) -> None:
    text = HEAD + TO_SERVICES.format(entry)

    assert warned(f"{text}\n---\n{SERVICE}") == [
        f"f:1: CiliumNetworkPolicy shop/p: no Service {named} is here, so toServices stands for nobody"
    ]


def test_a_service_that_is_here_is_not_named() -> None:
    text = HEAD + TO_SERVICES.format("k8sService: {serviceName: db}")

    assert warned(f"{text}\n---\n{SERVICE}") == warned(text, in_force=SERVICE) == []


GROUP = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: office, labels: {kind: site}}\nspec: "


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("cidrGroupRef: office", "named office"),
        ("cidrGroupSelector: {matchLabels: {kind: site}}", "with the labels of a cidrGroupSelector"),
    ],
)
def test_a_cidr_group_that_is_not_here_is_named(entry: str, named: str) -> None:
    text = HEAD + ENTRY.format(f"fromCIDRSet: [{{{entry}}}]")

    assert warned(text) == [
        f"f:1: CiliumNetworkPolicy shop/p: no CiliumCIDRGroup {named} is here, so it stands for no address"
    ]
    assert warned(f"{text}\n---\n{GROUP}{{externalCIDRs: []}}") == warned(
        text, in_force=f"{GROUP}{{externalCIDRs: []}}"
    )
    assert warned(text, in_force=f"{GROUP}{{externalCIDRs: []}}") == []


def test_a_subject_that_can_never_match_is_named_once() -> None:
    text = "{endpointSelector: {matchLabels: {'x:a': b}}, ingress: [{}, {}], egress: [{}]}"
    other = "{endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [o]}]}, "

    (sentence,) = warned(HEAD + text)
    assert "spec selects no endpoint: no endpoint known here has labels of the source 'x'" in sentence
    (sentence,) = warned(f"{HEAD}{other}ingress: [{{}}]}}")
    assert "spec selects no endpoint: it wants two values of the label io.kubernetes.pod.namespace" in sentence


def test_an_empty_section_beside_another_is_named() -> None:
    assert warned(HEAD + "{endpointSelector: {}, ingress: [], egress: [{}]}") == [
        "f:1: CiliumNetworkPolicy shop/p: ingress: [] has no effect; for default deny write ingress: [{}]"
    ]


def test_a_peer_of_a_network_policy_is_named() -> None:
    (sentence,) = warned(
        KUBERNETES + "{podSelector: {}, egress: [{to: [{podSelector: {matchLabels: {kubernetes.io/os: linux}}}]}]}"
    )

    assert "egress[0] has a peer that never matches: the label kubernetes.io/os is not part of identities" in sentence


def test_the_service_of_the_api_server_gives_its_entity_addresses() -> None:
    policy = HEAD + ENTRY.format("fromEntities: [kube-apiserver]")
    backends = API_SERVER.replace("default", "other")

    assert len(warned(policy + backends)) == 1
    assert warned(policy + API_SERVER) == []


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ("fromEntities: [kube-apiserver]", ClusterFacts(has_apiserver=True)),
        ("fromEndpoints: [{matchLabels: {'container:app': a}}]", ClusterFacts(sources=("container",))),
        ("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: east}}]", ClusterFacts("east")),
        (
            "fromEndpoints: [{matchLabels: {pod-template-hash: a}}]",
            ClusterFacts(relevant=LabelFilter(["pod-template-hash"])),
        ),
    ],
)
def test_the_facts_of_the_cluster_decide(entry: str, facts: ClusterFacts) -> None:
    assert warned(HEAD + ENTRY.format(entry)) != []
    assert warned(HEAD + ENTRY.format(entry), facts) == []


ORDERED = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n"
    "spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{{subject}}}}}, {rules}}}\n---\n"
)
INGRESS = "ingress: [{action: Deny, from: [{namespaces: {}}]}]"
EGRESS = INGRESS.replace("in", "e", 1).replace("from", "to")


def ordered(name: str, tier: str = "Admin", priority: int = 5, subject: str = "", rules: str = INGRESS) -> str:
    return ORDERED.format(name=name, tier=tier, priority=priority, subject=subject, rules=rules)


@pytest.mark.parametrize("in_force", [True, False])
def test_two_policies_of_one_priority_that_may_select_one_endpoint_are_named(in_force: bool) -> None:
    both = ordered("b", subject="matchLabels: {team: red}"), ordered("a")
    (sentence,) = warned(both[0], None, both[1]) if in_force else warned("".join(both))

    assert sentence == (
        "f:1: ClusterNetworkPolicy b: ClusterNetworkPolicy a has the priority 5 of the tier Admin, too, and can select "
        "the same endpoints: the first by name precedes here, and upstream leaves the order open"
    )


def test_a_policy_in_force_with_a_later_name_is_named_too() -> None:
    (sentence,) = warned(ordered("a"), None, ordered("b"))

    assert "ClusterNetworkPolicy a: ClusterNetworkPolicy b has the priority 5" in sentence


@pytest.mark.parametrize(
    "other",
    [
        ordered("b", tier="Baseline"),
        ordered("b", priority=6),
        ordered("b", rules=EGRESS),
        ordered("b", subject="matchLabels: {team: blue}"),
        ordered("a"),
    ],
)
def test_policies_that_never_decide_about_the_same_traffic_are_not_named(other: str) -> None:
    assert warned(ordered("a", subject="matchLabels: {team: red}"), None, other) == []


def test_an_ordered_policy_without_rules_is_named() -> None:
    assert warned(ordered("a", rules="ingress: []")) == [
        "f:1: ClusterNetworkPolicy a: it has no rules, so it has no effect"
    ]


def test_domain_names_are_learned_without_a_dns_rule() -> None:
    rules = "egress: [{action: Accept, to: [{domainNames: [a.example.com]}]}]"

    assert warned(ordered("a", rules=rules)) == []
