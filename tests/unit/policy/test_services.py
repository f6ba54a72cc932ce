"""Services: a rule that names them means their pods or their addresses, as they are now."""

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.registry import is_other_kind
from nfq_enforcer.policy.rules import AddressBlock
from nfq_enforcer.policy.rules_index import RulesIndex
from nfq_enforcer.policy.selectors import Selector
from nfq_enforcer.policy.services import api_servers
from tests.support.packets import packed

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: shop}}
spec: {{endpointSelector: {{}}, {section}: [{{toServices: [{entries}]}}]}}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}, labels: {{tier: {tier}}}}}
spec: {{{spec}}}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
addressType: {kind}
endpoints: [{{addresses: [{addresses}], conditions: {{ready: true}}}}]
ports: [{{name: x, port: 80}}]
"""
OLD = """
apiVersion: v1
kind: Endpoints
metadata: {name: outside, namespace: shop}
subsets: [{addresses: [{ip: 192.0.2.7}], notReadyAddresses: [{ip: 192.0.2.8}], ports: [{port: 80}]}]
"""


def policy(entries: str, section: str = "egress") -> str:
    return POLICY.format(section=section, entries=entries)


def service(name: str, spec: str = "", namespace: str = "shop", tier: str = "data") -> str:
    return SERVICE.format(name=name, spec=spec, namespace=namespace, tier=tier)


def endpoint_slice(name: str, addresses: str, labels: str, kind: str = "IPv4") -> str:
    return SLICE.format(name=name, addresses=addresses, labels=labels, kind=kind)


def documents(*texts: str) -> tuple[PolicyDocument, ...]:
    return group_documents(one.document for one in parse("---".join(texts), "f")).policies


def meant(*texts: str) -> list[str]:
    """Return the peers of the only rule of documents."""
    (rule,) = RulesIndex(documents(*texts)).rules
    assert rule.peers is not None
    return sorted(map(shown, rule.peers))


def shown(peer: object) -> str:
    if isinstance(peer, AddressBlock):
        assert not peer.includes_endpoints and not peer.excluded
        return str(peer.prefix)
    assert isinstance(peer, Selector)
    return ", ".join(sorted(f"{one.source}:{one.key}={'|'.join(sorted(one.values))}" for one in peer.requirements))


DB = service("db", "selector: {role: db}, clusterIP: 10.96.0.1, ports: [{port: 5432}], type: ClusterIP")
CACHE = service("cache", "selector: {role: cache, zone: a}", "other")
DB_ELSEWHERE = service("db", "selector: {role: db}", "other", "web")
OUTSIDE = service("outside", tier="web")
NAMED = "k8s:io.kubernetes.pod.namespace="
DB_PODS = f"{NAMED}shop, k8s:role=db"
OTHER_DB_PODS = f"{NAMED}other, k8s:role=db"
CACHE_PODS = f"{NAMED}other, k8s:role=cache, k8s:zone=a"
OF_OUTSIDE = "'kubernetes.io/service-name': outside"


@pytest.mark.parametrize("section", ["egress", "egressDeny"])
@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("k8sService: {serviceName: db, namespace: shop}", [DB_PODS]),
        ("k8sService: {serviceName: db}", [OTHER_DB_PODS, DB_PODS]),
        ("k8sService: {serviceName: db, namespace: nowhere}", []),
        ("k8sService: {serviceName: nobody}", []),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: data}}}", [CACHE_PODS, DB_PODS]),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: data}}, namespace: other}", [CACHE_PODS]),
        ("k8sServiceSelector: {selector: {}, namespace: other}", [CACHE_PODS, OTHER_DB_PODS]),
    ],
)
def test_an_entry_means_the_pods_of_the_services_that_it_refers_to(
    section: str, entry: str, expected: list[str]
) -> None:
    assert meant(policy(f"{{{entry}}}", section), DB, CACHE, DB_ELSEWHERE, OUTSIDE) == sorted(expected)


def test_several_entries_add_up() -> None:
    entries = "{k8sService: {serviceName: db, namespace: shop}}, {k8sService: {serviceName: cache}}"

    assert meant(policy(entries), DB, CACHE) == sorted([DB_PODS, CACHE_PODS])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], []),
        ([endpoint_slice("a", "192.0.2.1, 192.0.2.2", OF_OUTSIDE)], ["192.0.2.1/32", "192.0.2.2/32"]),
        ([endpoint_slice("a", "'2001:db8::1'", OF_OUTSIDE, "IPv6")], ["2001:db8::1/128"]),
        ([endpoint_slice("a", "db.example.com", OF_OUTSIDE, "FQDN")], []),
        ([endpoint_slice("a", "192.0.2.1", "'kubernetes.io/service-name': other")], []),
        ([endpoint_slice("a", "192.0.2.1", "")], []),
        ([OLD], ["192.0.2.7/32"]),
        ([OLD, endpoint_slice("a", "192.0.2.7, 192.0.2.9", OF_OUTSIDE)], ["192.0.2.7/32", "192.0.2.9/32"]),
    ],
)
def test_a_service_without_a_selector_means_the_addresses_of_its_backends(more: list[str], expected: list[str]) -> None:
    assert meant(policy("{k8sService: {serviceName: outside, namespace: shop}}"), OUTSIDE, *more) == expected


def test_backends_of_a_service_with_a_selector_add_nothing() -> None:
    slices = endpoint_slice("a", "192.0.2.1", "'kubernetes.io/service-name': db")

    assert meant(policy("{k8sService: {serviceName: db}}"), DB, slices) == [DB_PODS]


def test_a_changed_service_changes_the_rules_that_name_services_and_no_others() -> None:
    named = policy("{k8sService: {serviceName: db}}")
    other = policy("{k8sService: {serviceName: db}}").replace("toServices: [{k8sService: {serviceName: db}}]", "")
    before = RulesIndex(documents(named, other.replace("name: p", "name: q"), DB, OLD))
    first, second, *services = before.documents
    (moved,) = documents(service("db", "selector: {role: postgres}"))

    after = RulesIndex((first, second, moved, services[1]), before)
    assert [shown(peer) for peer in after.rules[0].peers or ()] == [f"{NAMED}shop, k8s:role=postgres"]
    assert after.rules[1] is before.rules[1]
    same = RulesIndex((second, first, *services), before)
    assert {id(rule) for rule in same.rules} == {id(rule) for rule in before.rules}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (policy("{}"), "none of them given; allowed: either k8sService or k8sServiceSelector"),
        (policy("{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}"), "both given; allowed: either"),
        (policy("{k8sService: {namespace: a}}"), "k8sService.serviceName: required field is missing"),
        (policy("{k8sServiceSelector: {namespace: a}}"), "selector: required field is missing"),
        (policy("{k8sService: {serviceName: a, namespaces: b}}"), "unknown field 'namespaces'"),
        (policy("{k8sService: {serviceName: a}}", "ingress"), "unknown field 'toServices'"),
        (
            policy("{k8sService: {serviceName: a}}").replace("{toServices", "{toEntities: [world], toServices"),
            "toEntities and toServices cannot be combined",
        ),
        (service("a", "selectors: {}"), "unknown field 'selectors'; did you mean 'selector'?"),
        (endpoint_slice("a", "10.0.0.300", OF_OUTSIDE), "'10.0.0.300' is not an address"),
        (endpoint_slice("a", "10.0.0.1", OF_OUTSIDE, "IPv5"), "addressType: 'IPv5' is not allowed"),
        (OLD.replace("192.0.2.7", "127.0.0.1"), "'127.0.0.1' is not allowed"),
    ],
)
def test_a_wrong_document_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, "f")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("version", "kind", "other"),
    [
        ("v1", "Service", False),
        ("serving.knative.dev/v1", "Service", True),
        ("v1", "Endpoints", False),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", False),
        ("discovery.k8s.io/v9", "EndpointSlice", True),
        ("v1", "ServiceAccount", True),
        ("cilium.io/v2", "CiliumEndpoint", True),
        ("v1", "Servce", False),
    ],
)
def test_services_of_other_products_are_other_kinds(version: str, kind: str, other: bool) -> None:
    assert is_other_kind({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}) is other


def test_documents_that_only_others_refer_to_have_no_rules() -> None:
    assert [one.has_rules for one in documents(DB, OLD, endpoint_slice("a", "10.0.0.1", OF_OUTSIDE))] == [False] * 3
    assert RulesIndex(documents(DB, OLD)).rules == ()


def test_the_api_server_has_the_addresses_of_its_own_service_only() -> None:
    named = "kubernetes.io/service-name: kubernetes"
    own = endpoint_slice("kubernetes", "192.0.2.1, 192.0.2.2", named).replace("namespace: shop", "namespace: default")
    own_v6 = own.replace("kubernetes,", "kubernetes-v6,", 1).replace("192.0.2.1, 192.0.2.2", "'2001:db8::1'")
    old = OLD.replace("outside", "kubernetes")
    others = (endpoint_slice("kubernetes", "192.0.2.3", named), old, service("kubernetes", namespace="default"))

    assert api_servers(documents(*others)) == frozenset()
    expected = {"192.0.2.1", "192.0.2.2", "2001:db8::1"}
    assert api_servers(documents(own, own_v6.replace("IPv4", "IPv6"), *others)) == set(map(packed, expected))
    assert api_servers(documents(old.replace("shop", "default"))) == {packed("192.0.2.7")}
