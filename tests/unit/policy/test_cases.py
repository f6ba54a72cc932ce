"""Documents that people really have, in ``cases/``, with the verdict or the sentence wanted, and variants of each."""

from pathlib import Path

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import group_documents, load, parse
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.simulation import Simulation

CASES = Path(__file__).parent / "cases"
ENDPOINTS = "".join(
    f"""
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: {app}, namespace: {namespace}, labels: {{app: {app}}}}}
spec: {{ips: [10.0.0.{number}]}}
"""
    for number, (namespace, app) in enumerate((("shop", "web"), ("shop", "api"), ("other", "web")), 1)
)
TEAM = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: x}}\n"


def case(number: int) -> Path:
    (path,) = CASES.glob(f"{number:02}-*.yaml")
    return path


def simulate(text: str) -> Simulation:
    documents = group_documents(one.document for one in parse(text + ENDPOINTS + TEAM, "f"))
    return Simulation(documents, Enforcement.PER_ENDPOINT)


def allowed(text: str, source: str = "shop/web", target: str = "shop/api", path: str = "") -> bool:
    simulation = simulate(text)
    request = HttpRequest("GET", path) if path else None
    return simulation.evaluate(simulation.pair(source, target), TrafficSpec(TCP, 80, request)).allowed


def problems(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse(text, "f")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("number", "source", "path", "verdict"),
    [
        (1, "shop/web", "", True),
        (1, "other/web", "", False),
        (3, "shop/web", "/u/12", True),
        (3, "shop/web", "/u/\u0663\u0664", False),
        (4, "shop/web", "/abc", True),
        (4, "shop/web", "/1", False),
        (7, "shop/web", "", False),
        (8, "shop/web", "", True),
        (8, "other/web", "", True),
        (9, "shop/web", "", False),
        (12, "shop/web", "", False),  # it names a CIDR group, which this version does not refuse any more
    ],
)
def test_a_case_that_is_accepted_gives_its_verdict(number: int, source: str, path: str, verdict: bool) -> None:
    assert allowed(case(number).read_text(), source, path=path) is verdict


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (2, "'/a++' is not a regular expression: bad repetition operator: ++"),
        (5, "is not a regular expression: invalid escape sequence: \\Z"),
        (6, "spec.policyTypes: 3 types are too many; allowed: at most two, Ingress and Egress"),
        (10, "'{{ .Release.Name }}' is an unrendered template, as of Helm or Go; render it first, as with 'helm templ"),
        (11, "'${ROUTER_LAN}' is a variable without its value; substitute it first, as with envsubst or by Flux"),
        (13, "for default deny write ingress: [{}] and egress: [{}]"),
    ],
)
def test_a_case_that_is_refused_has_one_sentence(number: int, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        load([case(number)])

    (problem,) = str(caught.value).splitlines()
    assert sentence in problem


def test_every_case_is_tried() -> None:
    assert len(list(CASES.glob("*.yaml"))) == 13


SPEC = "metadata: {name: t, namespace: shop}\nspec:\n"
KUBERNETES = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{SPEC}"
PLAIN = f"{KUBERNETES}  podSelector: {{}}\n"
CILIUM = f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n{SPEC}"


@pytest.mark.parametrize("spec", ["  podSelector: {}\n", "  podSelector: ~\n", "  policyTypes: [Ingress, Ingress]\n"])
def test_a_missing_pod_selector_is_an_empty_one(spec: str) -> None:
    assert not allowed(KUBERNETES + spec)


def test_metadata_that_the_api_prints_has_no_effect() -> None:
    metadata = "metadata: {name: t, namespace: shop, selfLink: /x, generateName: t-, deletionTimestamp: x}"

    assert parse(f"{KUBERNETES}  podSelector: {{}}\n".replace(SPEC.splitlines()[0], metadata), "f")


@pytest.mark.parametrize(
    ("head", "item", "ends"),
    [
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList", "", "spec: {podSelector: {}}"),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicyList", "", "spec: {endpointSelector: {}, ingress: [{}]}"),
        (
            "apiVersion: v1\nkind: List",
            "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, ",
            "spec: {podSelector: {}}",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList",
            "apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, ",
            "spec: {endpointSelector: {}, ingress: [{}]}",
        ),
    ],
)
def test_lists_hold_documents_of_their_kind_or_of_another_that_they_name(head: str, item: str, ends: str) -> None:
    items = f"items:\n- {{{item}metadata: {{name: a, namespace: shop}}, {ends}}}\n"

    assert not allowed(f"{head}\nmetadata: {{resourceVersion: '1'}}\n{items}")


def test_a_list_of_clusterwide_policies_is_read() -> None:
    spec = "{endpointSelector: {}, ingress: [{}]}"
    text = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicyList\nitems: [{metadata: {name: a}, spec: "

    assert not allowed(f"{text}{spec}}}]\n")


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
        ("BaselineAdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
        ("AdminNetworkPolicyList", "policy.networking.k8s.io/v1alpha1"),
        ("GlobalNetworkPolicy", "projectcalico.org/v3"),
        ("CiliumLocalRedirectPolicy", "cilium.io/v2"),
        ("ApplicationNetworkPolicy", "networking.k8s.aws/v1alpha1"),
    ],
)
def test_a_policy_of_another_meaning_is_not_supported_and_never_a_mistyped_one(kind: str, version: str) -> None:
    (problem,) = problems(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")

    assert f"kind: {kind} is not supported by this version" in problem
    assert "did you mean" not in problem


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  endpointSelector: {}\n  ingress: []\n", "for default deny write ingress: [{}]"),
        ("  endpointSelector: {}\n  egress: []\n", "for default deny write egress: [{}]"),
        ("  endpointSelector: {}\n", "for default deny write ingress: [{}]"),
    ],
)
def test_a_rule_without_effect_says_what_denies_by_default(text: str, sentence: str) -> None:
    (problem,) = problems(CILIUM + text)

    assert problem.endswith(sentence)


def test_an_unsupported_field_is_one_error_also_beside_a_missing_one() -> None:
    match = "headerMatches: [{mismatch: LOG, secret: {name: a}}]"
    text = f"{CILIUM}  endpointSelector: {{}}\n  ingress:\n  - toPorts: [{{ports: [{{port: '80', protocol: TCP}}], "

    found = problems(f"{text}rules: {{http: [{{{match}}}]}}}}]\n")
    assert [problem.endswith("is not supported by this version") for problem in found] == [True]


@pytest.mark.parametrize("mode", ["required", "test-always-fail", "off"])
@pytest.mark.parametrize("section", ["ingress", "egress"])
def test_authentication_can_only_be_disabled(section: str, mode: str) -> None:
    spec = f"  endpointSelector: {{}}\n  {section}: [{{authentication: {{mode: %s}}}}]\n"

    assert parse(CILIUM + spec % "disabled", "f")
    (problem,) = problems(CILIUM + spec % f"'{mode}'")
    assert f"{section}[0].authentication.mode: '{mode}' is not " in problem


@pytest.mark.parametrize(
    ("text", "place", "mark", "remedy"),
    [
        ("{{- if .Values.policy }}\n" + KUBERNETES, "f:1:1", "{{- if .Values.policy }}", "helm template"),
        (KUBERNETES + "  podSelector: {{ .Values.x }}\n", "f:5:16", "{{ .Values.x }}", "helm template"),
        (
            KUBERNETES + "  podSelector:\n    {{- toYaml .x | nindent 4 }}\n",
            "f:6:5",
            "{{- toYaml .x | nindent 4 }}",
            "helm template",
        ),
        (
            KUBERNETES.replace("name: t", "name: '{{ .Release.Name }}-x'"),
            "f:3:18",
            "{{ .Release.Name }}",
            "helm template",
        ),
        (KUBERNETES.replace("{name: t", "{name: x-${A}"), "f:3:", "${A}", "envsubst"),
        (PLAIN.replace("name: t", "name: $NAME"), "f:3:18", "$NAME", "envsubst"),
        (PLAIN.replace("name: t", "name: $(NAME)-x"), "f:3:18", "$(NAME)", "envsubst"),
        (PLAIN.replace("name: t", "name: <your-name>"), "f:3:18", "<your-name>", "write the value"),
        ("{% if x %}\n" + KUBERNETES, "f:1:1", "{% if x %}", "helm template"),
        ("apiVersion: v1\nkind: '{{ .Values.kind }}'\n", "f:2:7", "{{ .Values.kind }}", "helm template"),
        ("kind: NetworkPolicy\napiVersion: '{{ .V.x }}/v1'\n", "f:2:13", "{{ .V.x }}", "helm template"),
        ('a:\n- b: "{{trim .T "."}}"\n', "f:2:7", '{{trim .T "."}}', "helm template"),
        ("a:\n- b: '{{ .T | quote 'x' }}'\n", "f:2:7", "{{ .T | quote 'x' }}", "helm template"),
        ('a: "${A:-"b"}"\n', "f:1:5", '${A:-"b"}', "envsubst"),
        ('"k8s:x": {{ .Values.ns }}\n', "f:1:10", "{{ .Values.ns }}", "helm template"),
        ("'k8s:x': {{ .Values.ns }}\n", "f:1:10", "{{ .Values.ns }}", "helm template"),
        ('{\'a\\\': "\\"", b: {{ .x }}}\n', "f:1:17", "{{ .x }}", "helm template"),
        ("don't: {{ .x }}\n", "f:1:8", "{{ .x }}", "helm template"),
        ("a#b: {{ .x }}\n", "f:1:6", "{{ .x }}", "helm template"),
    ],
)
def test_a_template_is_named_with_the_remedy_and_nothing_else(text: str, place: str, mark: str, remedy: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(place)
    assert f"'{mark}' is " in problem
    assert remedy in problem


def test_an_error_beside_a_variable_is_told_too_and_a_variable_once() -> None:
    egress = "  egress: [{toCIDR: ['${A}', '${B}/32', '10.0.0.0/8']}]\n"
    text = f"{CILIUM}  endpointSelector: {{}}\n  color: red\n{egress}"

    assert [problem.split(": ", 2)[1] for problem in problems(text)] == ["spec.color", "spec.egress[0].toCIDR[0]"]


@pytest.mark.parametrize(
    "text",
    [
        CILIUM + "  description: 'for {{ .Release.Name }}, ${X} and <y>'\n  endpointSelector: {}\n  ingress: [{}]\n",
        "# {{ not a template }}\n" + KUBERNETES + "  podSelector: {}\n",
    ],
)
def test_braces_without_an_error_are_text(text: str) -> None:
    assert parse(text, "f")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1\n---\nb: {{ x }}\n", "f:2:1"),
        ("a: '{{ x }}'\nb: [1\n---\n", "f:3:1"),
        ("a: \"{{ x }}\"\nb: 'c' d\n", "f:2:8"),
        ("b: 'c' d # {{ x }}\n", "f:1:8"),
    ],
)
def test_a_syntax_error_without_a_template_is_the_error(text: str, place: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(f"{place}: not valid YAML: ")


def http_rule(rule: str) -> str:
    rules = f"[{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{{rule}}}]}}}}]"
    return f"{CILIUM}  endpointSelector: {{}}\n  ingress: [{{toPorts: {rules}}}]\n"


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("{{ .Values.path }}", "{{ .Values.path }}"),
        ("/a/{{.x}}/[0-9]+", "{{.x}}"),
        ("{% if x %}/a{% endif %}", "{% if x %}"),
        ("/${PREFIX}/.*", "${PREFIX}"),
        ("/$(PREFIX)/.*", "$(PREFIX)"),
        ("$PATH", "$PATH"),
        ("<path>", "<path>"),
        ("/user/<user-id>/.*", "<user-id>"),
    ],
)
@pytest.mark.parametrize(
    "field",
    ["path: '%s'", "method: '%s'", "host: '%s'", "headers: ['X-A: %s']", "headerMatches: [{name: X-A, value: '%s'}]"],
)
def test_a_template_in_a_field_that_could_have_any_text_is_named(field: str, text: str, mark: str) -> None:
    (problem,) = problems(http_rule(field % text))

    assert f"'{mark}' is " in problem


@pytest.mark.parametrize(
    "expression",
    [
        "/a{2}",
        "/a{{2}",
        "/a{{2,3}}",
        "/[{][{] x }}",
        "/\\{\\{ x }}",
        "/\\{x\\}",
        "/{id}",
        "/a$",
        "/$",
        "/a$|b",
        "/a$(/b)?",
        "/a$(/b)*",
        "/a$(b){0,1}",
        "/\\${A}",
        "/[${A}]",
        "/\\Q${A}{{ x }}<b>\\E",
        "/(?P<name>x)",
        "/(?<name>x)",
        "/[<a>]",
        "/\\x{61}$",
        "/\\p{Greek}{2}",
    ],
)
def test_a_regular_expression_is_no_template(expression: str) -> None:
    assert parse(http_rule(f"path: '{expression}', method: '{expression}', host: '{expression}'"), "f")


@pytest.mark.parametrize(
    "value", ["<https://a.example/>; rel=next", "<a@b.example>", "a<b", "{a: {b: c}}", "$5", "a $b"]
)
def test_a_header_is_no_template_for_its_brackets(value: str) -> None:
    assert parse(http_rule(f"headers: ['X-A: {value}'], headerMatches: [{{name: X-A, value: '{value}'}}]"), "f")


def test_a_named_group_is_no_placeholder() -> None:
    rules = "[{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '(?<n>a'}]}}]"
    (problem,) = problems(f"{CILIUM}  endpointSelector: {{}}\n  ingress: [{{toPorts: {rules}}}]\n")

    assert "'(?<n>a' is not a regular expression: missing ): (?<n>a" in problem
