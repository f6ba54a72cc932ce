"""Any text gives documents, or errors in printable lines that name the file; the store keeps a document as it is.

Policies compile to the same policy maps at once and one after another, and a map that is not enforced denies only
traffic that a deny rule names.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

import nfq_enforcer
from nfq_enforcer.cluster.records import Kind, document_name
from nfq_enforcer.core.identity import HOST, REMOTE_NODE, WORLD
from nfq_enforcer.core.tables.policymap import Action, RuleRef
from nfq_enforcer.core.wire.packet import ICMP, SCTP, TCP, UDP
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import loader, yaml_source
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.documents import Endpoint, Namespace, PolicyDocument
from nfq_enforcer.policy.model import build_model
from nfq_enforcer.store.redis import schema
from tests.support.clusters import CILIUM, CLUSTERWIDE, ENDPOINTS, ORDERED, PLAIN

_POLICIES = Path(nfq_enforcer.__file__).parents[1] / "policies"
_ODD = [
    b"a: &a [*a]",
    b"a: &a [1,1]\nb: [*a,*a]\n<<: {c: 1}",
    b"kind: List\napiVersion: v1\nitems: [{kind: Namespace, apiVersion: v1, metadata: {name: a}}]",
    b"%YAML 1.2\n---\n!!binary aGk=\n...\n---\n!x {}\n",
    b"{{- if .Values.x }}\nkind: NetworkPolicy\n{{- end }}",
    b"2001-01-01: 0x1f\n1_000: .inf\n~: on\n? [a]\n: 1:30",
]
_PEERS = "fromEndpoints: [{}, {matchExpressions: [{key: app, operator: NotIn, values: [a, b]}]}]"
_PARTS = [
    f"""{CILIUM}
  endpointSelector:
    {{matchExpressions: [{{key: "k8s:app", operator: In, values: [db]}}, {{key: x, operator: DoesNotExist}}]}}
  ingress:
  - {{{_PEERS}, toPorts: [{{ports: [{{port: "80", endPort: 90, protocol: TCP}}, {{port: http}}, {{port: "0"}}]}}]}}
  - {{fromCIDRSet: [{{cidr: 10.0.0.0/8, except: [10.0.0.0/9]}}], icmps: [{{fields: [{{type: EchoRequest}}]}}]}}
  - {{fromEntities: [cluster, world-ipv6], authentication: {{mode: disabled}}}}
  ingressDeny: [{{fromCIDR: ["fd00::/8", 192.0.2.1], toPorts: [{{ports: [{{port: "1", endPort: 3}}]}}]}}]
  egress: [{{toPorts: [{{ports: [{{port: "53"}}], rules: {{dns: [{{matchPattern: "*.a.b"}}, {{matchName: c.d}}]}}}}]}}]
  egressDeny: [{{toEntities: [kube-apiserver]}}]
  enableDefaultDeny: {{ingress: false}}
  labels: [{{key: a}}]
""",
    f"""{CILIUM}
  endpointSelector: {{}}
  ingress: [{{toPorts: [{{ports: [{{port: "8", protocol: TCP}}],
    rules: {{http: [{{method: GET, path: "/a[0-9]+", host: b, headers: ["X: y"]}}]}}}}]}}]
""",
    f"""{CLUSTERWIDE}{{nodeSelector: {{matchLabels: {{a: b}}}}, ingress: [{{}}]}}
specs:
- {{endpointSelector: {{matchLabels: {{"k8s:io.kubernetes.pod.namespace": far}}}}, egress: [{{toEndpoints: []}}]}}
""",
    f"""{PLAIN}
  podSelector: {{matchExpressions: [{{key: app, operator: Exists}}]}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {{from: [{{namespaceSelector: {{matchLabels: {{team: red}}}}, podSelector: {{}}}}], ports: [{{port: http}}]}}
  - {{from: [{{ipBlock: {{cidr: 10.0.0.0/24, except: [10.0.0.4/30]}}}}],
    ports: [{{port: 5, endPort: 9, protocol: SCTP}}]}}
  egress: [{{to: [{{ipBlock: {{cidr: "::/0"}}}}]}}, {{ports: [{{protocol: UDP}}]}}]
""",
    f"""{ORDERED}
  tier: Baseline
  priority: 7
  subject: {{namespaces: {{matchExpressions: [{{key: team, operator: Exists}}]}}}}
  ingress:
  - {{name: a, action: Pass, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: db}}}}}}}}]}}
  - {{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{destinationNamedPort: http}},
    {{tcp: {{destinationPort: {{number: 80}}}}}}, {{sctp: {{destinationPort: {{range: {{start: 1, end: 9}}}}}}}}]}}
  egress:
  - {{action: Accept, to: [{{domainNames: ["*.a.b"]}}, {{nodes: {{}}}}]}}
  - {{action: Deny, to: [{{networks: [0.0.0.0/0, "::/0"]}}]}}
""",
]
_INVALID = [
    f"""{CILIUM}
  endpointSelector: {{matchLabels: {{"a b": x, "reserved:q": y}}, matchExpressions: [{{key: a, operator: In}}]}}
  ingress:
  - {{fromCIDR: [1, 10.0.0.1/255.0.0.0, "::ffff:1.2.3.4", x], fromEntities: [nobody],
    authentication: {{mode: required}}}}
  - {{fromCIDRSet: [{{cidr: 10.0.0.1}}, {{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}}
  - {{toPorts: [{{ports: [{{port: "99999"}}, {{port: "-1"}}, {{port: "5", endPort: 3}},
    {{port: "5", endPort: 70000}}]}}]}}
  - {{toPorts: [{{ports: [{{port: "0"}}], rules: {{http: [{{path: "("}}]}}}},
    {{rules: {{dns: [{{matchName: "a..b"}}]}}}}]}}
  - {{icmps: [{{fields: [{{family: IPv5}}, {{type: 300}}, {{type: Nope}}]}}],
    toPorts: [{{ports: []}}], fromRequires: []}}
""",
    f"""{CILIUM}{{endpointSelector: {{}}, nodeSelector: {{}}, ingress: [{{toPorts: [{{ports: [{{port: "1"}}]}}],
  icmps: [{{fields: []}}]}}], egress: [{{toFQDNs: [], toCIDR: [10.0.0.0/8], toEntities: [all]}}]}}
""",
    f"""{PLAIN}
  podSelector: {{matchLabels: {{"k8s:a": b}}}}
  policyTypes: [Ingress, Egress, Ingress]
  ingress: [{{ports: [{{port: true}}, {{port: "80"}}, {{port: 0}}, {{endPort: 5}}], from: [{{}}]}}]
  egress: [{{to: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}}},
    {{podSelector: {{}}, ipBlock: {{cidr: x/y}}}}]}}]
""",
    f"""{ORDERED}
  tier: Platform
  priority: 1001
  subject: {{namespaces: {{}}, pods: {{}}}}
  ingress: [{{name: {"x" * 101}, action: Allow, from: [{{}}], protocols: [{{tcp: {{}}}}, {{}}]}}]
  egress: [{{action: Deny, to: [{{domainNames: [a]}}, {{nodes: {{matchLabels: {{a: b}}}}}}, {{networks: [x]}}],
    protocols: [{{udp: {{destinationPort: {{range: {{start: 5, end: 5}}}}}}}}, {{destinationNamedPort: 1}}]}}]
""",
    """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: A b, labels: {"reserved:a": b, io.kubernetes.pod.namespace: c, "k8s:d": e, d: f}}
spec: {ips: [10.0.0.0/8, 127.0.0.1, "::ffff:1.2.3.4", "fe80::1%1", 5], ports: [{name: 1, port: 0}], interface: a/b}
""",
]
_ENDPOINTS = [one.document for one in loader.parse(ENDPOINTS, "endpoints.yaml")]
_IDENTITIES = [HOST, WORLD, REMOTE_NODE]
_PORTS = [(TCP, 80), (UDP, 53), (SCTP, 7), (ICMP, 8), (47, 0)]
SEEDS = [
    *map(str.encode, (*_PARTS, *_INVALID)),
    *(path.read_bytes() for path in sorted(_POLICIES.glob("*.yaml"))),
    *_ODD,
]


def check(data: bytes) -> None:
    try:
        parsed = loader.parse_all([loader.File("f.yaml", yaml_source.decode(data, "f.yaml"))])
    except (DocumentError, DocumentErrors) as refusal:
        assert refusal.errors
        for line in str(refusal).split("\n"):
            assert line.isprintable()
            assert line.startswith("f.yaml:")
        return
    for item in parsed:
        _check_stored(item.document)
    documents = [*_ENDPOINTS, *(item.document for item in parsed if not isinstance(item.document, Endpoint))]
    grouped = loader.group_documents(documents)
    if grouped.policies:
        _check_compiled(grouped)


def _check_stored(document: object) -> None:
    if isinstance(document, PolicyDocument | Namespace):
        value = schema.encode_document(document).encode()
        stored = schema.decode(Kind.DOCUMENT, document_name(document), value)
        assert isinstance(stored, PolicyDocument | Namespace)
        assert (stored.key, stored.data) == (document.key, document.data)
    else:
        assert isinstance(document, Endpoint)


def _check_compiled(documents: loader.Documents) -> None:
    whole = build_model(documents, Enforcement.PER_ENDPOINT)
    grown = build_model(replace(documents, policies=()), Enforcement.PER_ENDPOINT).policy
    for number in range(len(documents.policies)):
        grown = grown.with_documents(documents.policies[: number + 1])
    identities = [*_IDENTITIES, *(endpoint.identity for endpoint in whole.endpoints)]
    for endpoint in whole.endpoints:
        for at_once, grew in zip(
            whole.maps(endpoint), grown.maps_for(endpoint.identity_labels, endpoint.ports), strict=True
        ):
            assert (at_once.entries, at_once.enforced) == (grew.entries, grew.enforced)
            for identity, port in product(identities, _PORTS):
                result = at_once.lookup(identity, *port)
                assert result == grew.lookup(identity, *port)
                assert result.allowed or at_once.enforced or result.denied
                assert result.denied == any(map(_denies, result.rules))


def _denies(rule: RuleRef) -> bool:
    return rule.deny if rule.order is None else rule.order.action is Action.DENY
