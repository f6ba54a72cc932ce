"""The fields of documents, and the error messages of invalid ones: the place, the field and the allowed values."""

import json
from ipaddress import ip_address
from itertools import product

import pytest

from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy.cilium import CiliumNetworkPolicy, CiliumPolicy
from nfq_enforcer.policy.documents import (
    ClusterMetadata,
    Document,
    Endpoint,
    Metadata,
    Namespace,
)
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.loader import parse

ENDPOINT = "apiVersion: nfq-enforcer.io/v1\nkind: Endpoint\n"
NAMESPACE = "apiVersion: v1\nkind: Namespace\n"
POLICY = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\n"
PLAIN = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n"
CLUSTERWIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\n"
RULE = f"{POLICY}spec:\n  endpointSelector: {{}}\n"
PORTS = f"{RULE}  ingress:\n  - toPorts:\n    - ports:\n      - "
SELECTOR = f"{POLICY}spec:\n  ingress: [{{}}]\n  endpointSelector:\n    "
PLACE = "metadata: {name: web}\nspec:\n  "
PLACED = f"{ENDPOINT}{PLACE}ips: [10.0.0.1]\n  "


def document(text: str) -> Document:
    (parsed,) = parse(text, "x.yaml")
    return parsed.document


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentErrors) as caught:
        parse(text, "x.yaml")
    return [str(error) for error in caught.value.errors]


def test_an_endpoint_needs_little() -> None:
    endpoint = document(f"{ENDPOINT}{PLACE}ips: [10.0.0.1]\n")

    assert isinstance(endpoint, Endpoint)
    assert (endpoint.kind, endpoint.namespace, endpoint.name) == ("Endpoint", "default", "web")
    assert endpoint.spec.ips == (ip_address("10.0.0.1"),)
    assert (endpoint.spec.node, endpoint.spec.interface, endpoint.spec.service_account) == (None, None, "default")
    assert endpoint.origin == "x.yaml:1"


def test_an_endpoint_may_say_everything() -> None:
    endpoint = document(
        f"{ENDPOINT}metadata: {{name: web-0.a, namespace: shop, labels: {{app: web, 'container:app': x, a/b: ''}}}}\n"
        "spec: {ips: [10.0.0.1, '2001:DB8::1'], node: Node_1.lan, interface: eth0.100, serviceAccount: web,\n"
        "       ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}\n"
    )

    assert isinstance(endpoint, Endpoint)
    assert endpoint.metadata.labels == {"app": "web", "container:app": "x", "a/b": ""}
    assert list(map(str, endpoint.spec.ips)) == ["10.0.0.1", "2001:db8::1"]
    assert (endpoint.spec.node, endpoint.spec.interface, endpoint.spec.service_account) == (
        "Node_1.lan",
        "eth0.100",
        "web",
    )
    assert [(port.name, port.port, port.protocol) for port in endpoint.spec.ports] == [
        ("http", 80, "TCP"),
        ("dns", 53, "UDP"),
    ]


def test_a_namespace_belongs_to_no_namespace() -> None:
    namespace = document(
        f"{NAMESPACE}metadata: {{name: shop, labels: {{team: a}}}}\n"
        "spec: {finalizers: [kubernetes]}\nstatus: {phase: Active}\n"
    )

    assert isinstance(namespace, Namespace)
    assert (namespace.namespace, namespace.name, namespace.metadata.labels) == ("", "shop", {"team": "a"})


@pytest.mark.parametrize(
    ("head", "spec"),
    [
        (NAMESPACE, "spec: {}"),
        (CLUSTERWIDE, "spec: {endpointSelector: {}, ingress: [{}]}"),
        (CLUSTERWIDE.replace("Policy", "PolicyList"), ""),
    ],
)
@pytest.mark.parametrize("namespace", ["shop", "default", "''", "null"])
def test_a_document_of_the_whole_cluster_has_no_namespace_whatever_it_names(
    head: str, spec: str, namespace: str
) -> None:
    metadata = f"metadata: {{name: a, namespace: {namespace}}}"
    item = f"items: [{{{metadata}, spec: {{endpointSelector: {{}}, ingress: [{{}}]}}}}]"
    one = document(f"{head}{metadata}\n{spec}\n" if spec else f"{head}{item}\n")

    assert (one.namespace, one.metadata.namespace, one.title) == ("", "", f"{one.kind} a")


@pytest.mark.parametrize("spec", ["", "spec: null\n"])
def test_a_network_policy_without_a_spec_has_an_empty_one(spec: str) -> None:
    policy, empty = document(PLAIN + spec), document(f"{PLAIN}spec: {{}}\n")

    assert isinstance(policy, NetworkPolicy)
    assert isinstance(empty, NetworkPolicy)
    assert policy.spec == empty.spec


def test_what_kubectl_prints_around_a_document_has_no_effect() -> None:
    printed = document(
        f"{CLUSTERWIDE}metadata:\n  name: web\n  uid: 1234\n  resourceVersion: '7'\n  generation: 1\n"
        "  creationTimestamp: 2026-01-01T00:00:00Z\n  managedFields: [{manager: kubectl}]\n"
        "  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}\n  labels: {team: a}\n"
        "spec: {endpointSelector: {}, ingress: [{}], description: why, labels: [{key: k, value: v, source: s}]}\n"
        "status: {conditions: []}\n"
    )

    assert isinstance(printed, CiliumPolicy)
    assert isinstance(printed.metadata, ClusterMetadata)
    assert not isinstance(printed.metadata, Metadata)
    assert printed.namespace == ""
    assert printed.rules[0].description == "why"


def test_a_policy_may_have_spec_and_specs() -> None:
    rule = "{{endpointSelector: {{}}, ingress: [{{}}], description: {}}}".format
    policy = document(f"{POLICY}specs: [{rule('b')}, {rule('c')}]\nspec: {rule('a')}\n")

    assert isinstance(policy, CiliumNetworkPolicy)
    assert [rule.description for rule in policy.rules] == ["a", "b", "c"]


def test_null_is_a_missing_field_and_differs_from_an_empty_list() -> None:
    policy = document(f"{RULE}  egress: null\n  ingress: [{{fromEndpoints: null}}, {{fromEndpoints: []}}]\n")

    assert isinstance(policy, CiliumPolicy)
    assert policy.rules[0].egress == ()
    assert [entry.peers for entry in policy.rules[0].ingress] == [None, ()]
    assert policy.rules[0].ingress[0].to_ports is None


def test_an_unsupported_field_that_is_null_is_missing_too() -> None:
    assert document(f"{RULE}  ingress: [{{fromNodes: null, fromRequires: null}}]\n  log: null\n").name == "web"


def test_a_port_may_be_every_port_and_needs_no_protocol() -> None:
    policy = document(f'{PORTS}{{port: "0"}}\n      - {{port: "65535", protocol: SCTP}}\n')

    assert isinstance(policy, CiliumPolicy)
    (ports,) = policy.rules[0].ingress[0].to_ports or ()
    assert [(port.port, port.protocol) for port in ports.ports] == [("0", "ANY"), ("65535", "SCTP")]


def test_a_selector_may_name_sources_and_have_expressions() -> None:
    policy = document(
        f"{SELECTOR}matchLabels: {{'k8s:app': web, 'reserved:host': '', 'any:a/b': c}}\n"
        "    matchExpressions: [{key: tier, operator: NotIn, values: [a]}, {key: 'k8s:x', operator: Exists}]\n"
    )

    assert isinstance(policy, CiliumPolicy)
    selector = policy.rules[0].endpoint_selector
    assert selector is not None
    assert selector.match_labels == {"k8s:app": "web", "reserved:host": "", "any:a/b": "c"}
    assert [(one.key, one.operator, one.values) for one in selector.match_expressions] == [
        ("tier", "NotIn", ("a",)),
        ("k8s:x", "Exists", ()),
    ]


WRONG = {
    "nothing but a list": ("- a", "x.yaml:1:1: a document must be a mapping", "Namespace (v1)"),
    "no kind": ("apiVersion: v1", "x.yaml:1:1: kind: required field is missing", "Endpoint (nfq-enforcer.io/v1)"),
    "unknown kind": (
        "apiVersion: v1\nkind: Pod",
        "x.yaml:2:7: kind: unknown kind 'Pod'; allowed: Endpoint (nfq-enforcer.io/v1), Namespace (v1)",
        "CiliumNetworkPolicy (cilium.io/v2), CiliumClusterwideNetworkPolicy (cilium.io/v2)",
    ),
    "a kind of another case": ("kind: endpoint", "unknown kind 'endpoint'; did you mean 'Endpoint'? allowed:", ""),
    "a kind that is no text": ("apiVersion: v1\nkind: [a]", "x.yaml:2:7: kind: must be a string", "allowed: Endpoint"),
    "a kind for later": (
        "apiVersion: cilium.io/v2\nkind: CiliumEnvoyConfig",
        "x.yaml:2:7: kind: CiliumEnvoyConfig is not supported by this version",
        "allowed: Endpoint",
    ),
    "another apiVersion": (
        "kind: Endpoint\napiVersion: v1",
        "x.yaml:2:13: apiVersion: the apiVersion of Endpoint is nfq-enforcer.io/v1, not v1",
        "",
    ),
    **{
        f"the {kind} of {version}": (
            f"kind: {kind}\napiVersion: {version}",
            f"apiVersion: a {kind} of {version.partition('/')[0]} belongs to another product",
            f"allowed: {kind} of networking.k8s.io/v1",
        )
        for version in ("projectcalico.org/v3", "crd.projectcalico.org/v1", "crd.antrea.io/v1beta1", "example.org/v1")
        for kind in ("NetworkPolicy", "NetworkPolicyList")
    },
    **{
        f"{kind} of {version}": (
            f"kind: {kind}\napiVersion: {version}",
            f"apiVersion: the apiVersion of {kind} is {right}, not {version}",
            "",
        )
        for kind, version, right in (
            ("NetworkPolicy", "extensions/v1beta1", "networking.k8s.io/v1"),
            ("NetworkPolicy", "networking.k8s.io/v1beta1", "networking.k8s.io/v1"),
            ("NetworkPolicy", "networking.k8.io/v1", "networking.k8s.io/v1"),
            ("NetworkPolicy", "policy.networking.k8s.io/v1alpha2", "networking.k8s.io/v1"),
            ("NetworkPolicy", "cilium.io/v2", "networking.k8s.io/v1"),
            ("CiliumNetworkPolicy", "cilium.io/v3", "cilium.io/v2"),
            ("CiliumNetworkPolicyList", "cillium.io/v2", "cilium.io/v2"),
        )
    },
    "no apiVersion": ("kind: Namespace", "x.yaml:1:1: apiVersion: the apiVersion of Namespace is v1, not None", ""),
    "no metadata": (f"{NAMESPACE}", "x.yaml:1:1: metadata: required field is missing", ""),
    "no name": (f"{NAMESPACE}metadata: {{}}", "x.yaml:3:11: metadata.name: required field is missing", ""),
    "a name that is a number": (
        f"{NAMESPACE}metadata: {{name: 0x10}}",
        "x.yaml:3:18: metadata.name: must be a string, not a number",
        '; quote it: "0x10"',
    ),
    "a name that is a boolean": (
        f"{NAMESPACE}metadata: {{name: on}}",
        "x.yaml:3:18: metadata.name: must be a string, not a boolean",
        '; quote it: "on"',
    ),
    **{
        f"a label value {text}": (
            f"{NAMESPACE}metadata:\n  name: a\n  labels: {{a: {text}}}",
            f"x.yaml:5:15: metadata.labels.a: must be a string, not {noun}",
            f'; quote it: "{text}"',
        )
        for text, noun in (
            *((word, "a boolean") for word in ("y", "Y", "n", "N", "yes", "on", "off")),
            *((number, "a number") for number in ("1", "1e3", "0o17", "08", "1_000", "1.0")),
            *((fraction, "a fraction") for fraction in ("1.5", ".5", "1e-3")),
        )
    },
    "a bad name": (
        f"{NAMESPACE}metadata: {{name: Shop}}",
        "x.yaml:3:18: metadata.name: 'Shop' is not a name",
        "allowed: 1 to 63 lower-case letters, digits and '-'",
    ),
    "a bad name of a policy": (
        f"{CLUSTERWIDE}metadata: {{name: a..b}}\nspec: {{endpointSelector: {{}}, ingress: [{{}}]}}",
        "x.yaml:3:18: metadata.name: 'a..b' is not a name",
        "allowed: 1 to 253 lower-case letters, digits, '-' and '.'",
    ),
    "a namespace that is no text": (
        f"{NAMESPACE}metadata: {{name: a, namespace: [b]}}",
        "x.yaml:3:32: metadata.namespace: must be a string, not a list",
        "",
    ),
    "a bad namespace": (
        f"{ENDPOINT}metadata: {{name: a, namespace: b.c}}\nspec: {{ips: [10.0.0.1]}}",
        "x.yaml:3:32: metadata.namespace: 'b.c' is not a name",
        "allowed: 1 to 63",
    ),
    "an audit annotation": (
        f"{NAMESPACE}metadata:\n  name: a\n  annotations:\n    nfq-enforcer.io/audit: 'true'",
        'x.yaml:6:5: metadata.annotations["nfq-enforcer.io/audit"]: nfq-enforcer.io/audit is not supported',
        "by this version",
    ),
    "an annotation that is a number": (
        f"{NAMESPACE}metadata:\n  name: a\n  annotations: {{a: 1}}",
        "x.yaml:5:20: metadata.annotations.a: must be a string, not a number",
        "",
    ),
    "a bad label key": (
        f"{NAMESPACE}metadata:\n  name: a\n  labels: {{-a: b}}",
        "x.yaml:5:12: metadata.labels[\"-a\"]: '-a' is not a label key",
        "a key is [source:][prefix/]name; a name has 1 to 63 letters",
    ),
    "a bad label key of a policy": (
        f"{CLUSTERWIDE}metadata: {{name: a, labels: {{A_/b: c}}}}\nspec: {{endpointSelector: {{}}, ingress: [{{}}]}}",
        "x.yaml:3:30: metadata.labels[\"A_/b\"]: 'A_/b' is not a label key",
        "a key is [source:][prefix/]name",
    ),
    "a bad label value": (
        f"{NAMESPACE}metadata:\n  name: a\n  labels: {{a: 'b c'}}",
        "x.yaml:5:15: metadata.labels.a: 'b c' is not a label value",
        "a value is empty or has 1 to 63 letters",
    ),
    "a label without a value": (
        f"{NAMESPACE}metadata:\n  name: a\n  labels: {{a: }}",
        "x.yaml:5:15: metadata.labels.a: must be a string, not null",
        'write "" for an empty one',
    ),
    "a label twice": (
        f"{NAMESPACE}metadata:\n  name: a\n  labels: {{a: b, 'k8s:a': c}}",
        "x.yaml:5:11: metadata.labels: 'a' and 'k8s:a' are the same label",
        "one of them is allowed",
    ),
    "a label of a reserved identity": (
        f"{ENDPOINT}metadata:\n  name: a\n  labels: {{'reserved:host': ''}}\nspec: {{ips: [10.0.0.1]}}",
        "x.yaml:5:12: metadata.labels[\"reserved:host\"]: label source 'reserved' is taken",
        "allowed: k8s",
    ),
    "a label that claims a namespace": (
        f"{ENDPOINT}metadata:\n  name: a\n  labels: {{io.kubernetes.pod.namespace: b}}\nspec: {{ips: [10.0.0.1]}}",
        "x.yaml:5:12: metadata.labels[\"io.kubernetes.pod.namespace\"]: label 'io.kubernetes.pod.namespace' is taken",
        "made from cluster, namespace",
    ),
    "a label that claims an account": (
        f"{ENDPOINT}metadata:\n  name: a\n  labels: {{k8s:io.cilium.k8s.policy.serviceaccount: b}}\n"
        "spec: {ips: [10.0.0.1]}",
        "label 'io.cilium.k8s.policy.serviceaccount' is taken",
        "and service account",
    ),
    "labels that are a list": (
        f"{NAMESPACE}metadata: {{name: a, labels: [b]}}",
        "x.yaml:3:29: metadata.labels: must be a mapping, not a list",
        "",
    ),
    "no addresses": (
        f"{ENDPOINT}{PLACE}node: a",
        "x.yaml:5:3: spec.ips: an endpoint has at least one address; allowed: a list of",
        "or a cgroup",
    ),
    "an empty list of addresses": (
        f"{ENDPOINT}{PLACE}ips: []",
        "x.yaml:5:8: spec.ips: an endpoint has at",
        "allowed: ",
    ),
    "addresses beside a cgroup": (
        f"{ENDPOINT}{PLACE}cgroup: /a.slice/b.service\n  ips: [10.0.0.1]",
        "x.yaml:6:8: spec.ips: an endpoint with a cgroup has the addresses of its node",
        "allowed: no others",
    ),
    "an interface beside a cgroup": (
        f"{ENDPOINT}{PLACE}cgroup: /a.slice/b.service\n  interface: eth0",
        "x.yaml:6:14: spec.interface: an endpoint with a cgroup is on its node itself",
        "allowed: no interface",
    ),
    "a cgroup that is no path": (
        f"{ENDPOINT}{PLACE}cgroup: /a/../b",
        "x.yaml:5:11: spec.cgroup: '/a/../b' is not the path of a cgroup",
        "allowed: absolute",
    ),
    "an address that is no list": (
        f"{ENDPOINT}{PLACE}ips: 10.0.0.1",
        "x.yaml:5:8: spec.ips: must be a list, not a string",
        "",
    ),
    "no address": (
        f"{ENDPOINT}{PLACE}ips: [10.0.0.0/8]",
        "x.yaml:5:9: spec.ips[0]: '10.0.0.0/8' is not an address",
        "allowed: IPv4 or IPv6, without a prefix length",
    ),
    "an address that is a number": (f"{ENDPOINT}{PLACE}ips: [10]", "spec.ips[0]: must be a string, not a number", ""),
    "an interface behind an address": (f"{ENDPOINT}{PLACE}ips: ['fe80::1%a']", "spec.ips[0]: 'fe80::1%a' is not", "%"),
    "a mapped address": (
        f"{ENDPOINT}{PLACE}ips: ['::ffff:10.0.0.1']",
        "x.yaml:5:9: spec.ips[0]: '::ffff:10.0.0.1' is not allowed",
        "write an IPv4 address as such",
    ),
    "a node that is empty": (
        f"{PLACED}node: ''",
        "x.yaml:6:9: spec.node: '' is not a",
        "allowed: 1",
    ),
    "an interface that is too long": (
        f"{PLACED}interface: abcdefghijklmnop",
        "x.yaml:6:14: spec.interface: 'abcdefghijklmnop' is not an interface's name",
        "allowed: 1 to 15 letters, digits",
    ),
    "an interface that is a path": (
        f"{PLACED}interface: ../a",
        "spec.interface: '../a'",
        "allowed: 1 to 15 letters, digits",
    ),
    "an interface that is a folder": (
        f"{PLACED}interface: ..",
        "spec.interface: '..'",
        "a letter, digit or '_' first",
    ),
    "an interface that iptables takes for a prefix of many": (
        f"{PLACED}interface: veth+",
        "spec.interface: 'veth+'",
        "allowed: 1 to 15 letters, digits",
    ),
    "an account that is no label value": (
        f"{PLACED}serviceAccount: {'a' * 64}",
        f"x.yaml:6:19: spec.serviceAccount: '{'a' * 64}' is not a label value",
        "1 to 63",
    ),
    "a port's name of digits": (
        f"{PLACED}ports: [{{name: '80', port: 80}}]",
        "x.yaml:6:18: spec.ports[0].name: '80' is not a port's name",
        "at least one letter",
    ),
    "two ports of a name": (
        f"{PLACED}ports: [{{name: a, port: 1}}, {{name: A, port: 2}}]",
        "x.yaml:6:10: spec.ports: two ports have the same name",
        "each name is allowed once",
    ),
    "a port in quotes where it is a number": (
        f"{PLACED}ports: [{{name: a, port: '1'}}]",
        "x.yaml:6:27: spec.ports[0].port: must be a number, not a string",
        "",
    ),
    "an endpoint's port 70000": (
        f"{PLACED}ports: [{{name: a, port: 70000}}]",
        "x.yaml:6:27: spec.ports[0].port: port 70000 is out of range",
        "allowed: 1 to 65535",
    ),
    "an endpoint's port of any protocol": (
        f"{PLACED}ports: [{{name: a, port: 1, protocol: ANY}}]",
        "x.yaml:6:40: spec.ports[0].protocol: 'ANY' is not allowed",
        "allowed: 'TCP', 'UDP' or 'SCTP'",
    ),
    "an unknown field": (
        f"{PLACED}color: red",
        "x.yaml:6:3: spec.color: unknown field 'color'; allowed: cgroup, ips, node, interface, serviceAccount,",
        "",
    ),
    "an unknown field that is null": (
        f"{PLACED}color:",
        "x.yaml:6:3: spec.color: unknown",
        "",
    ),
    "a misspelt field": (
        f"{ENDPOINT}{PLACE}ip: [10.0.0.1]\n  ips: [10.0.0.1]",
        "x.yaml:5:3: spec.ip: unknown field 'ip'; did you mean 'ips'?",
        "allowed: cgroup, ips, node",
    ),
    "a field in Python's spelling": (
        f"{PLACED}service_account: a",
        "x.yaml:6:3: spec.service_account: unknown field 'service_account'; did you mean 'serviceAccount'?",
        "",
    ),
    "a spec that is a list": (
        f"{ENDPOINT}metadata: {{name: a}}\nspec: []",
        "x.yaml:4:7: spec: must be a mapping, not a list",
        "",
    ),
    "a policy without rules": (POLICY, "x.yaml:1:1: specs: a policy without a rule", "allowed: one in spec"),
    "a policy with empty specs": (
        f"{POLICY}specs: []",
        "x.yaml:4:8: specs: a policy without a rule",
        "in specs, or both",
    ),
    "a rule without effect": (
        f"{RULE}  ingress: []\n",
        "x.yaml:5:3: spec: a rule without effect",
        "allowed: at least one entry in ingress, egress, ingressDeny or egressDeny",
    ),
    "one rule without effect among others": (
        f"{POLICY}specs:\n- {{endpointSelector: {{}}, egress: [{{}}]}}\n- {{endpointSelector: {{}}}}",
        "x.yaml:6:3: specs[1]: a rule without effect",
        "",
    ),
    "a rule without a selector": (
        f"{POLICY}spec:\n  ingress: [{{}}]",
        "x.yaml:5:3: spec: a rule needs a selector",
        "allowed: either endpointSelector or nodeSelector",
    ),
    "an unknown field in a rule": (
        f"{RULE}  ingress: [{{}}]\n  igress: []",
        "x.yaml:7:3: spec.igress: unknown field 'igress'; did you mean 'ingress'?",
        "allowed: endpointSelector, nodeSelector, ingress, egress, ingressDeny, egressDeny, enableDefaultDeny",
    ),
    "an unknown field in a list of a list": (
        f"{PORTS}{{port: '80', prot: TCP}}",
        "x.yaml:9:22: spec.ingress[0].toPorts[0].ports[0].prot: unknown field 'prot'; did you mean 'port'?",
        "allowed: port, endPort, protocol",
    ),
    "a port that is a number": (
        f"{PORTS}{{port: 80}}",
        "x.yaml:9:16: spec.ingress[0].toPorts[0].ports[0].port: must be a string, not a number",
        'quote it: "80"',
    ),
    "port 70000": (
        f"{PORTS}{{port: '70000'}}",
        "x.yaml:9:16: spec.ingress[0].toPorts[0].ports[0].port: port 70000 is out of range",
        'allowed: "1" to "65535", "0" for all ports, or the name of a port',
    ),
    "a port without end": (f"{PORTS}{{port: '{'9' * 5000}'}}", "is out of range", "allowed: "),
    "a negative port": (f"{PORTS}{{port: '-1'}}", "ports[0].port: '-1' is not a port", 'allowed: "1" to "65535"'),
    "a port in octal": (f"{PORTS}{{port: '080'}}", "ports[0].port: '080' is not a port", 'allowed: "1" to "65535"'),
    "no port": (
        f"{PORTS}{{protocol: TCP}}",
        "x.yaml:9:9: spec.ingress[0].toPorts[0].ports[0].port: required field is",
        "",
    ),
    "a protocol in small letters": (
        f"{PORTS}{{port: '1', protocol: tcp}}",
        "x.yaml:9:31: spec.ingress[0].toPorts[0].ports[0].protocol: 'tcp' is not allowed",
        "allowed: 'TCP', 'UDP', 'SCTP' or 'ANY'",
    ),
    "too many ports": (
        PORTS + "\n      - ".join(["{port: '1'}"] * 41),
        "x.yaml:9:7: spec.ingress[0].toPorts[0].ports: 41 ports are too many",
        "allowed: at most 40",
    ),
    "a null among peers": (
        f"{RULE}  ingress: [{{fromEndpoints: [null]}}]",
        "x.yaml:6:30: spec.ingress[0].fromEndpoints[0]: must be a mapping, not null",
        "",
    ),
    "peers that are a mapping": (
        f"{RULE}  egress: [{{toEndpoints: {{}}}}]",
        "x.yaml:6:26: spec.egress[0].toEndpoints: must be a list, not a mapping",
        "",
    ),
    "the other direction's peers": (
        f"{RULE}  egress: [{{fromEndpoints: []}}]",
        "x.yaml:6:13: spec.egress[0].fromEndpoints: unknown field 'fromEndpoints'; did you mean 'toEndpoints'?",
        "allowed: icmps, toPorts, toEndpoints, toCIDR, toCIDRSet, toEntities",
    ),
    "names of peers in a deny": (
        f"{RULE}  egressDeny: [{{toFQDNs: [{{matchName: a}}]}}]",
        "x.yaml:6:17: spec.egressDeny[0].toFQDNs: toFQDNs exists in egress only",
        "allowed: icmps, toPorts, toEndpoints, toCIDR, toCIDRSet, toEntities",
    ),
    **{
        f"protocol {protocol} with {port}": (
            f"{RULE}  {section}: [{{toPorts: [{{ports: [{{{port}protocol: {protocol}}}]}}]}}]",
            f"spec.{section}[0].toPorts[0].ports[0]: protocol {protocol} is not supported by this version",
            "allowed: TCP, UDP, SCTP and ANY",
        )
        for protocol in ("GRE", "IPIP", "IPV6", "ESP", "AH", "VRRP", "IGMP")
        for section, port in (("ingress", ""), ("egressDeny", "port: '0', "))
    },
    "a selector's bad key": (
        f"{SELECTOR}matchLabels: {{'a b': c}}",
        "x.yaml:7:19: spec.endpointSelector.matchLabels[\"a b\"]: 'a b' is not a label key",
        "a key is [source:][prefix/]name",
    ),
    "a selector's bad value": (
        f"{SELECTOR}matchLabels: {{a: b/c}}",
        "x.yaml:7:22: spec.endpointSelector.matchLabels.a: 'b/c' is not a label value",
        "a value is empty or has",
    ),
    "an unknown operator": (
        f"{SELECTOR}matchExpressions: [{{key: a, operator: in, values: [b]}}]",
        "x.yaml:7:43: spec.endpointSelector.matchExpressions[0].operator: 'in' is not allowed",
        "allowed: 'In', 'NotIn', 'Exists' or 'DoesNotExist'",
    ),
    "an operator without its values": (
        f"{SELECTOR}matchExpressions: [{{key: a, operator: In}}]",
        "x.yaml:7:24: spec.endpointSelector.matchExpressions[0].values: operator In needs at least one value",
        "",
    ),
    "an operator with values it does not take": (
        f"{SELECTOR}matchExpressions: [{{key: a, operator: Exists, values: [b]}}]",
        "x.yaml:7:59: spec.endpointSelector.matchExpressions[0].values: operator Exists takes no values",
        "",
    ),
    **{
        name: (f"{RULE}  {entry}\n", says, allowed)
        for name, (entry, says, allowed) in {
            "an end before the beginning": (
                "ingress: [{toPorts: [{ports: [{port: '80', endPort: 79}]}]}]",
                "spec.ingress[0].toPorts[0].ports[0]: endPort 79 does not fit port 80",
                "allowed: port to 65535",
            ),
            "an end of all ports": (
                "ingress: [{toPorts: [{ports: [{port: '0', endPort: 79}]}]}]",
                "ports[0]: endPort 79 does not fit port 0",
                "from port 1 on",
            ),
            "an end out of range": (
                "ingress: [{toPorts: [{ports: [{port: '1', endPort: 65536}]}]}]",
                "ports[0].endPort: port 65536 is out of range",
                "allowed: 1 to 65535",
            ),
            "an end in quotes": (
                "ingress: [{toPorts: [{ports: [{port: '1', endPort: '2'}]}]}]",
                "ports[0].endPort: must be a number, not a string",
                "",
            ),
            "two kinds of peers": (
                "ingress: [{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}]",
                "spec.ingress[0]: fromEndpoints and fromCIDR cannot be combined",
                "the other in a rule of its own",
            ),
            "two kinds of peers of egress": (
                "egressDeny: [{toEntities: [world], toCIDRSet: [{cidr: 10.0.0.0/8}]}]",
                "spec.egressDeny[0]: toCIDRSet and toEntities cannot be combined",
                "allowed: one of them",
            ),
            "ports and types of ICMP": (
                "ingress: [{toPorts: [{ports: [{port: '1'}]}], icmps: [{fields: [{type: 8}]}]}]",
                "spec.ingress[0]: toPorts and icmps cannot be combined",
                "allowed: one of them",
            ),
            "a type that ICMP has not": (
                "ingress: [{icmps: [{fields: [{type: 256}]}]}]",
                "icmps[0].fields[0].type: 256 is not an ICMP type of IPv4",
                "allowed: 0 to 255, EchoReply",
            ),
            "a type of the other family": (
                "ingress: [{icmps: [{fields: [{type: PacketTooBig}]}]}]",
                "fields[0].type: 'PacketTooBig' is not an ICMP type of IPv4",
                "TimeExceeded",
            ),
            "a type that is a boolean": ("ingress: [{icmps: [{fields: [{type: true}]}]}]", "True is not an ICMP", ""),
            "a type that is missing": ("ingress: [{icmps: [{fields: [{}]}]}]", "fields[0].type: ", ""),
            "an unknown family": (
                "ingress: [{icmps: [{fields: [{family: ipv4, type: 8}]}]}]",
                "fields[0].family: 'ipv4' is not allowed",
                "allowed: 'IPv4' or 'IPv6'",
            ),
            "too many types": (
                f"ingress: [{{icmps: [{{fields: [{', '.join(['{type: 8}'] * 41)}]}}]}}]",
                "icmps[0].fields: 41 types are too many",
                "at most 40 in one entry of icmps",
            ),
            "an unknown entity": (
                "ingress: [{fromEntities: [worlds]}]",
                "spec.ingress[0].fromEntities[0]: 'worlds' is not allowed",
                "'world'",
            ),
            "no CIDR": ("ingress: [{fromCIDR: [10.0.0]}]", "fromCIDR[0]: '10.0.0' is not a CIDR", "as in 10.0.0.0/8"),
            "a CIDR too long": ("ingress: [{fromCIDR: [10.0.0.0/33]}]", "'10.0.0.0/33' is not a CIDR", "allowed: "),
            "a netmask": ("egress: [{toCIDR: [10.0.0.0/255.0.0.0]}]", "'10.0.0.0/255.0.0.0' is not a CIDR", ""),
            "a CIDR that is a number": ("egress: [{toCIDR: [10]}]", "toCIDR[0]: must be a string, not a number", ""),
            "a mapped CIDR": ("egress: [{toCIDR: ['::ffff:10.0.0.0/104']}]", "write IPv4 addresses as such", ""),
            "a set of no CIDR": (
                "ingress: [{fromCIDRSet: [{cidr: 10.0.0.1}]}]",
                "fromCIDRSet[0].cidr: '10.0.0.1' is not a CIDR",
                "allowed: an IPv4 or IPv6 prefix",
            ),
            "a hole outside": (
                "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]",
                "fromCIDRSet[0]: except 11.0.0.0/16 is not within 10.0.0.0/8",
                "allowed: prefixes that the block contains",
            ),
            "a hole of the other family": (
                "ingress: [{fromCIDRSet: [{cidr: 0.0.0.0/0, except: ['fd00::/8']}]}]",
                "except fd00::/8 is not within 0.0.0.0/0",
                "",
            ),
            "rules without ports": (
                "ingress: [{toPorts: [{rules: {http: [{}]}}]}]",
                "toPorts[0]: rules without ports",
                "allowed: at least one port",
            ),
            "http rules for all ports": (
                "ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}]}]",
                'toPorts[0]: rules are not allowed with port "0"',
                "",
            ),
            "http rules for any protocol": (
                "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]",
                "toPorts[0]: http rules are for TCP",
                "allowed: ports with protocol: TCP",
            ),
            "a server name that is none": (
                "egress: [{toPorts: [{ports: [{port: '443'}], serverNames: [a.example, '***.example']}]}]",
                "serverNames[1]: '***.example' is not a server name",
                "allowed: letters, digits, '-', '_', '.', '*' for some of a label, and '**'",
            ),
            "server names without ports": (
                "egress: [{toPorts: [{serverNames: [a]}]}]",
                "toPorts[0]: serverNames without ports",
                'allowed: ports "1" to "65535"',
            ),
            "server names for all ports": (
                "egress: [{toPorts: [{ports: [{port: '0'}], serverNames: [a]}]}]",
                "toPorts[0]: serverNames without ports",
                'allowed: ports "1" to "65535"',
            ),
            "server names of UDP": (
                "egress: [{toPorts: [{ports: [{port: '443', protocol: UDP}], serverNames: [a]}]}]",
                "toPorts[0]: serverNames are those of TLS over TCP",
                "allowed: ports with protocol: TCP or ANY",
            ),
            "server names and rules": (
                "egress: [{toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a], rules: {http: [{}]}}]}]",
                "toPorts[0]: serverNames and rules",
                "allowed: one of them, because the proxy does not decrypt TLS",
            ),
            "dns rules for a range": (
                "egress: [{toPorts: [{ports: [{port: '53', endPort: 54}], rules: {dns: [{matchName: a}]}}]}]",
                "toPorts[0]: dns rules are for single ports of TCP and UDP",
                "allowed: protocol TCP, UDP or ANY, and no endPort above its port",
            ),
            "dns rules of SCTP": (
                "egress: [{toPorts: [{ports: [{port: '53', protocol: SCTP}], rules: {dns: [{matchName: a}]}}]}]",
                "toPorts[0]: dns rules are for single ports of TCP and UDP",
                "allowed: protocol TCP, UDP or ANY",
            ),
            **{
                f"rules that are {rules}": (
                    f"{section}: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {rules}}}]}}]",
                    f"{section}[0].toPorts[0].rules: rules without http and dns",
                    "allowed: one of them, or no rules, which opens the ports",
                )
                for section in ("ingress", "egress")
                for rules in ("{}", "{http: null}", "{dns: null, http: null, kafka: null}")
            },
            "no server names": (
                "egress: [{toPorts: [{ports: [{port: '443'}], serverNames: []}]}]",
                "toPorts[0].serverNames: serverNames without a name",
                "allowed: at least one, or no serverNames, which allows every name",
            ),
            **{
                f"the type {text}": (
                    f"ingress: [{{icmps: [{{fields: [{{type: '{text}'}}]}}]}}]",
                    f"fields[0].type: '{text}' is not an ICMP type of IPv4",
                    "allowed: 0 to 255",
                )
                for text in ("08", "00", "008", "٨", "+8", "-8", " 8", "", "256", "1000")
            },
            "dns rules of ingress": (
                "ingress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: a}]}}]}]",
                "spec.ingress[0]: dns rules are not allowed in ingress",
                "allowed: in egress",
            ),
            "rules of two protocols": (
                "egress: [{toPorts: [{ports: [{port: '53'}], rules: {http: [{}], dns: [{matchName: a}]}}]}]",
                "toPorts[0].rules: rules of two protocols",
                "allowed: either http or dns",
            ),
            "rules in a deny": (
                "ingressDeny: [{toPorts: [{rules: {http: [{}]}}]}]",
                "spec.ingressDeny[0].toPorts[0].rules: unknown field 'rules'",
                "allowed: ports",
            ),
            "a bad expression": (
                "ingress: [{toPorts: [{rules: {http: [{path: '/a['}]}}]}]",
                "rules.http[0].path: '/a[' is not a regular expression: ",
                "",
            ),
            "an expression that looks ahead": (
                "ingress: [{toPorts: [{rules: {http: [{host: 'a(?=b)'}]}}]}]",
                "http[0].host: 'a(?=b)' is not a regular expression: invalid perl operator: (?=",
                "allowed: the syntax of RE2 and Go",
            ),
            "a header without a name": (
                "ingress: [{toPorts: [{rules: {http: [{headers: [': a']}]}}]}]",
                "http[0].headers[0]: '' is not the name of a header",
                "allowed: letters",
            ),
            **{
                f"a header that is {line!r}": (
                    f"ingress: [{{toPorts: [{{rules: {{http: [{{headers: [{json.dumps(line)}]}}]}}}}]}}]",
                    f"' is not a header; write '{meant}'; ",
                    "allowed: 'Name: value' with one blank, or 'Name'",
                )
                for line, meant in (
                    ("X-A:true", "X-A: true"),
                    ("X-A:\ttrue", "X-A: true"),
                    ("X-A:", "X-A"),
                    ("X-A: ", "X-A"),
                    ("X-A ", "X-A"),
                    (" X-A", "X-A"),
                    (" X-A: true", "X-A: true"),
                    ("X-A:  true", "X-A: true"),
                    ("X-A  true", "X-A: true"),
                    ("X-A: true ", "X-A: true"),
                    ("X-A: \ttrue", "X-A: true"),
                    ("X-A : true", "X-A: true"),
                    ("X-A a:b ", "X-A: a:b"),
                    ("X-A:a b", "X-A: a b"),
                )
            },
            "a header's bad name": (
                "ingress: [{toPorts: [{rules: {http: [{headerMatches: [{name: 'a b'}]}]}}]}]",
                "headerMatches[0].name: 'a b' is not the name of a header",
                "",
            ),
            "a name that DNS has not": (
                "egress: [{toPorts: [{rules: {dns: [{matchName: 'a*'}]}}]}]",
                "dns[0].matchName: 'a*' is not a name",
                "allowed: labels of letters, digits, '-' and '_', between labels one dot, at most 255 characters",
            ),
            "a name of DNS that is too long": (
                f"egress: [{{toFQDNs: [{{matchName: {'a.' * 128}}}]}}]",
                "toFQDNs[0].matchName: 'a.a.",
                "at most 255",
            ),
            "a pattern of DNS that is too long": (
                f"egress: [{{toFQDNs: [{{matchPattern: '*{'.a' * 128}'}}]}}]",
                "toFQDNs[0].matchPattern: '*.a.a",
                "at most 255",
            ),
            **{
                f"{field} {dots} of {place}": (
                    f"egress: [{before}{{{field}: '{dots}'}}{after}]",
                    f"{place}[0].{field}: '{dots}' is not a ",
                    "between labels one dot",
                )
                for place, before, after in (
                    ("toFQDNs", "{toFQDNs: [", "]}"),
                    ("rules.dns", "{toPorts: [{ports: [{port: '53'}], rules: {dns: [", "]}}]}"),
                )
                for field, dots in (
                    *product(("matchName", "matchPattern"), (".example.com", "a..b", ".", "a..", "")),
                    ("matchPattern", "*..example.com"),
                    ("matchPattern", ".*"),
                )
            },
            "a pattern that DNS has not": (
                "egress: [{toPorts: [{rules: {dns: [{matchPattern: 'a b'}]}}]}]",
                "dns[0].matchPattern: 'a b' is not a pattern",
                "'*' for some of a label",
            ),
            "a DNS rule of nothing": (
                "egress: [{toPorts: [{rules: {dns: [{}]}}]}]",
                "dns[0]: a DNS rule has either matchName or matchPattern",
                "allowed: one of them",
            ),
            "two selectors": (
                "ingress: [{}]\n  nodeSelector: {}",
                "spec: a rule needs a selector",
                "allowed: either endpointSelector or nodeSelector",
            ),
            "a default deny in words": (
                "ingress: [{}]\n  enableDefaultDeny: {ingress: 'no'}",
                "spec.enableDefaultDeny.ingress: must be true or false, not a string",
                "",
            ),
        }.items()
    },
    "nodes in a namespace": (
        f"{POLICY}spec: {{nodeSelector: {{}}, ingress: [{{}}]}}",
        "nodeSelector selects nodes, which have no namespace",
        "allowed: in a CiliumClusterwideNetworkPolicy",
    ),
    "server names of a node": (
        f"{CLUSTERWIDE}metadata: {{name: a}}\nspec: {{nodeSelector: {{}}, egress: [{{toPorts: "
        "[{ports: [{port: '443'}], serverNames: [a]}]}]}",
        "spec: serverNames are not allowed with nodeSelector",
        "allowed: with endpointSelector",
    ),
    "http rules of a node": (
        f"{CLUSTERWIDE}metadata: {{name: a}}\nspec: {{nodeSelector: {{}}, ingress: [{{toPorts: "
        "[{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]}",
        "spec: http rules are not allowed with nodeSelector",
        "allowed: with endpointSelector",
    ),
    **{
        name: (f"{PLAIN}{entry}\n", says, allowed)
        for name, (entry, says, allowed) in {
            "three policyTypes": (
                "spec: {podSelector: {}, policyTypes: [Ingress, Egress, Ingress]}",
                "spec.policyTypes: 3 types are too many",
                "allowed: at most two",
            ),
            "a peer that is nobody": (
                "spec: {podSelector: {}, ingress: [{from: [{}]}]}",
                "spec.ingress[0].from[0]: a peer is either ipBlock, or podSelector, namespaceSelector or both",
                "allowed: one of these",
            ),
            "an ipBlock with a selector": (
                "spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
                "spec.egress[0].to[0]: a peer is either ipBlock",
                "",
            ),
            "a hole outside an ipBlock": (
                "spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}",
                "to[0].ipBlock: except 11.0.0.0/8 is not within 10.0.0.0/8",
                "",
            ),
            "a hole that is the ipBlock": (
                "spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
                "to[0].ipBlock: except 10.0.0.0/8 leaves nothing of the block",
                "allowed: longer prefixes",
            ),
            "an end without a port": (
                "spec: {podSelector: {}, ingress: [{ports: [{endPort: 80}]}]}",
                "spec.ingress[0].ports[0]: endPort 80 without port",
                "allowed: beside the number of a port",
            ),
            "an end behind a name": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: http, endPort: 80}]}]}",
                "ports[0]: endPort 80 beside the name of a port, 'http'",
                "allowed: beside the number of a port",
            ),
            "an end below its port": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: 81, endPort: 80}]}]}",
                "ports[0]: endPort 80 is below port 81",
                "allowed: 81 to 65535",
            ),
            "a port number in quotes": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: '80'}]}]}",
                "ports[0].port: '80' is not the name of a port; write it without quotes",
                "allowed: 1 to 65535, or the name",
            ),
            "a port name in capitals": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: HTTP}]}]}",
                "ports[0].port: 'HTTP' is not the name of a port",
                "in lower case",
            ),
            "a port that is a boolean": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: true}]}]}",
                "ports[0].port: a port must be a number or a name",
                "",
            ),
            "port 0 of Kubernetes": (
                "spec: {podSelector: {}, ingress: [{ports: [{port: 0}]}]}",
                "ports[0].port: port 0 is out of range",
                "allowed: 1 to 65535",
            ),
            "protocol ANY of Kubernetes": (
                "spec: {podSelector: {}, ingress: [{ports: [{protocol: ANY}]}]}",
                "ports[0].protocol: 'ANY' is not allowed",
                "allowed: 'TCP', 'UDP' or 'SCTP'",
            ),
            "an unknown type of policy": (
                "spec: {podSelector: {}, policyTypes: [ingress]}",
                "spec.policyTypes[0]: 'ingress' is not allowed",
                "allowed: 'Ingress' or 'Egress'",
            ),
            "a label source in Kubernetes": (
                "spec: {podSelector: {matchLabels: {'k8s:app': a}}}",
                "matchLabels[\"k8s:app\"]: 'k8s:app' is not a label key; selectors of Kubernetes have no label sources",
                "[prefix/]name",
            ),
            **{
                f"a bad key in Kubernetes, {key}": (
                    f"spec: {{podSelector: {{{selector.replace('$', key)}}}}}",
                    f"'{key}' is not a label key: a key is [prefix/]name; a name has 1 to 63 letters",
                    "begins and ends with a letter or digit",
                )
                for key in ("a b", "app@b", "", "/a", "A_/a", "a/b/c")
                for selector in ("matchExpressions: [{key: '$', operator: Exists}]", "matchLabels: {'$': a}")
            },
        }.items()
    },
    "a List of another version": (
        "apiVersion: v2\nkind: List\nitems: []",
        "x.yaml:1:13: apiVersion: the apiVersion of List is v1, not v2",
        "",
    ),
    "a List in a List": (
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: []}",
        "x.yaml:4:26: items[0].kind: a List in a list is not read",
        "write its items into the outer list",
    ),
    "a NetworkPolicyList in a List": (
        "apiVersion: v1\nkind: List\nitems:\n- {kind: NetworkPolicyList, items: []}",
        "x.yaml:4:10: items[0].kind: a NetworkPolicyList in a list is not read",
        "write its items into the outer list",
    ),
    "a null in a List": ("apiVersion: v1\nkind: List\nitems: [null]", "x.yaml:3:9: items[0]: a document must be a", ""),
}


@pytest.mark.parametrize(("text", "says", "allowed"), WRONG.values(), ids=WRONG)
def test_a_wrong_document_is_refused_with_one_sentence(text: str, says: str, allowed: str) -> None:
    (problem,) = problems(text)

    assert says in problem
    assert allowed in problem
    assert problem.startswith("x.yaml:")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_an_address_that_is_no_endpoints_is_refused(address: str) -> None:
    assert problems(f"{ENDPOINT}{PLACE}ips: ['{address}']") == [
        f"x.yaml:5:9: spec.ips[0]: '{address}' is not allowed; "
        "a multicast, loopback or unspecified address is no endpoint's"
    ]


LATER = {
    "spec": ("log",),
    "spec.ingress[0]": ("fromGroups", "fromNodes"),
    "spec.egress[0]": ("toGroups", "toNodes"),
    "spec.ingress[0].toPorts[0]": ("listener", "originatingTLS", "terminatingTLS"),
    "spec.ingress[0].toPorts[0].rules": ("kafka", "l7", "l7proto"),
    "spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0]": ("secret",),
}
INTO = {
    "spec": "  ingress: [{}]\n  ",
    "spec.ingress[0]": "  ingress:\n  - ",
    "spec.egress[0]": "  egress:\n  - ",
    "spec.ingress[0].toPorts[0]": "  ingress:\n  - toPorts:\n    - ",
    "spec.ingress[0].toPorts[0].rules": "  ingress:\n  - toPorts:\n    - rules:\n        ",
    "spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0]": (
        "  ingress:\n  - toPorts:\n    - rules: {http: [{headerMatches: [{name: a, $}]}]}\n"
    ),
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in LATER.items() for name in names])
def test_what_upstream_has_beyond_this_version_is_refused_with_that_reason(part: str, name: str) -> None:
    text = f"{RULE}{INTO[part]}{name}: []\n" if "$" not in INTO[part] else RULE + INTO[part].replace("$", f"{name}: []")
    (problem,) = problems(text)

    assert problem.endswith(f" {part}.{name}: {name} is not supported by this version")


@pytest.mark.parametrize(("section", "name"), [("ingress", "fromRequires"), ("egress", "toRequires")])
def test_what_upstream_has_removed_is_refused_unless_it_says_nothing(section: str, name: str) -> None:
    (problem,) = problems(f"{RULE}  {section}: [{{{name}: [{{}}]}}]\n")

    assert f"spec.{section}[0].{name}: {name} was removed upstream" in problem
    assert document(f"{RULE}  {section}: [{{{name}: []}}]\n").name == "web"


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_lines() -> None:
    text = f"{RULE}  color: red\n  ingress: {{}}\n---\nkind: Pod\n---\n{NAMESPACE}metadata: {{name: 1, color: red}}\n"

    assert [problem.split(": ")[:2] for problem in problems(text)] == [
        ["x.yaml:6:3", "spec.color"],
        ["x.yaml:7:12", "spec.ingress"],
        ["x.yaml:9:7", "kind"],
        ["x.yaml:13:18", "metadata.name"],
        ["x.yaml:13:21", "metadata.color"],
    ]
