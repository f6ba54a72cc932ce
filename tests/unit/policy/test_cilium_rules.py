"""Semantics of Cilium policies, rule by rule: the traffic that each field allows and denies."""

import pytest

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpRequest
from nfq_enforcer.core.tables.policymap import LookupResult
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.l7_match import matches, matches_name
from nfq_enforcer.policy.l7_rules import HttpRule
from tests.support.clusters import ALL_PEERS, CILIUM, CLUSTERWIDE, DB, WEB, PolicyCluster

NOBODY, ALL = [False] * 5, [True] * 5


def ingress(entries: str, rest: str = "") -> str:
    return f"{CILIUM}{{endpointSelector: {DB}, ingress: [{entries}]{rest}}}"


def egress(entries: str, rest: str = "") -> str:
    return f"{CILIUM}{{endpointSelector: {DB}, egress: [{entries}]{rest}}}"


def named(text: str, name: str) -> str:
    return text.replace("name: p,", f"name: {name},")


# --- peers ---


def test_an_empty_entry_closes_and_opens_nothing() -> None:
    assert PolicyCluster(ingress("{}")).ingress_allowed(*ALL_PEERS) == NOBODY


def test_an_empty_section_has_no_effect() -> None:
    cluster = PolicyCluster(egress("{toEndpoints: [{}]}", ", ingress: []"))

    assert not cluster.ingress().enforced


@pytest.mark.parametrize("field", ["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities"])
def test_an_empty_list_of_peers_is_nobody_with_ports_or_without(field: str) -> None:
    assert PolicyCluster(ingress(f"{{{field}: []}}")).ingress_allowed(*ALL_PEERS) == NOBODY
    assert (
        PolicyCluster(ingress(f"{{{field}: [], toPorts: [{{ports: [{{port: '80'}}]}}]}}")).ingress_allowed(*ALL_PEERS)
        == NOBODY
    )


def test_ports_without_peers_are_open_to_anyone() -> None:
    assert PolicyCluster(ingress("{toPorts: [{ports: [{port: '80'}]}]}")).ingress_allowed(*ALL_PEERS) == ALL


@pytest.mark.parametrize(
    ("entities", "allowed"),
    [
        ("all", ALL),
        ("world", [False, False, True, False, False]),
        ("cluster", [True, True, False, True, True]),
        ("cluster-mesh", [True, True, False, True, True]),
        ("host", [False, False, False, True, False]),
        ("remote-node", [False, False, False, False, True]),
        ("host, remote-node", [False, False, False, True, True]),
        ("none", NOBODY),
    ],
)
def test_an_entity_is_who_upstream_says(entities: str, allowed: list[bool]) -> None:
    assert PolicyCluster(ingress(f"{{fromEntities: [{entities}]}}")).ingress_allowed(*ALL_PEERS) == allowed
    assert PolicyCluster(egress(f"{{toEntities: [{entities}]}}")).egress_allowed(*ALL_PEERS) == allowed


@pytest.mark.parametrize("name", ["init", "health", "unmanaged", "kube-apiserver", "ingress"])
def test_every_reserved_identity_is_an_entity_and_of_the_cluster(name: str) -> None:
    assert PolicyCluster(ingress(f"{{fromEntities: [{name}]}}")).ingress_allowed(f"reserved:{name}", "shop/web") == [
        True,
        False,
    ]
    assert PolicyCluster(ingress("{fromEntities: [cluster]}")).ingress_allowed(f"reserved:{name}") == [True]


def test_the_world_has_a_half_for_each_family() -> None:
    cluster = PolicyCluster(ingress("{fromEntities: [world-ipv6]}"))

    assert cluster.ingress_allowed("2001:db8::1", "198.51.100.7", "fd00::1", "reserved:host") == [
        True,
        False,
        False,
        False,
    ]


def test_a_cidr_is_part_of_the_world() -> None:
    other = named(egress("{toCIDR: [198.51.100.0/24]}"), "q")

    assert PolicyCluster(ingress("{fromEntities: [world]}"), other).ingress_allowed("198.51.100.7", "192.0.2.1") == [
        True,
        True,
    ]


# --- CIDRs ---


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1"])
def test_a_cidr_never_matches_endpoints_host_or_nodes(cidr: str) -> None:
    cluster = PolicyCluster(ingress(f"{{fromCIDR: [{cidr}]}}"))

    assert cluster.ingress_allowed("shop/web", "far/web", "reserved:host", "reserved:remote-node") == [False] * 4


def test_a_cidr_is_of_its_own_family() -> None:
    cluster = PolicyCluster(ingress("{fromCIDR: [0.0.0.0/0]}"))

    assert cluster.ingress_allowed("198.51.100.7", "2001:db8::1") == [True, False]


def test_an_address_alone_is_a_cidr_and_bits_behind_a_prefix_do_not_count() -> None:
    assert PolicyCluster(ingress("{fromCIDR: [198.51.100.7]}")).ingress_allowed("198.51.100.7", "198.51.100.8") == [
        True,
        False,
    ]
    assert PolicyCluster(egress("{toCIDR: ['2001:db8::7/64']}")).egress_allowed("2001:db8::8", "2001:db8:1::7") == [
        True,
        False,
    ]


def test_except_is_a_hole_in_its_own_block_that_another_may_fill() -> None:
    block = "{fromCIDRSet: [{cidr: 198.51.0.0/16, except: [198.51.100.0/24]}]}"
    fill = "{fromCIDR: [198.51.100.128/25]}"

    assert PolicyCluster(ingress(block)).ingress_allowed("198.51.1.1", "198.51.100.7", "198.51.100.200") == [
        True,
        False,
        False,
    ]
    assert PolicyCluster(ingress(f"{block}, {fill}")).ingress_allowed(
        "198.51.1.1", "198.51.100.7", "198.51.100.200"
    ) == [
        True,
        False,
        True,
    ]


def test_a_longer_prefix_elsewhere_changes_nothing_for_a_shorter_one() -> None:
    other = named(egress("{toCIDR: [198.51.100.7/32]}"), "q")

    assert PolicyCluster(ingress("{fromCIDR: [198.51.0.0/16]}"), other).ingress_allowed(
        "198.51.100.7", "198.51.1.1"
    ) == [True, True]


# --- ports ---


@pytest.mark.parametrize(
    ("protocol", "allowed"),
    [("", [True, True, True, False]), (", protocol: TCP", [True, False, False, False])],
)
def test_a_port_without_protocol_is_that_of_three_and_never_icmp(protocol: str, allowed: list[bool]) -> None:
    cluster = PolicyCluster(ingress(f"{{toPorts: [{{ports: [{{port: '8'{protocol}}}]}}]}}"))

    assert [
        cluster.ingress_allowed("shop/web", port=f"8/{name}")[0] for name in ("TCP", "UDP", "SCTP", "ICMP")
    ] == allowed


def test_a_range_has_both_its_ends() -> None:
    cluster = PolicyCluster(ingress("{toPorts: [{ports: [{port: '1000', endPort: 2000, protocol: TCP}]}]}"))

    ports = (999, 1000, 1234, 2000, 2001)
    assert [cluster.ingress_allowed("shop/web", port=f"{port}/TCP")[0] for port in ports] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_named_port_of_ingress_is_the_subjects_own() -> None:
    spec = "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: HTTP, endPort: 3, protocol: TCP}]}]}]}"
    cluster = PolicyCluster(f"{CILIUM}{spec}")

    assert [cluster.ingress_allowed("shop/db", port=f"{port}/TCP", of="shop/web")[0] for port in (80, 81)] == [
        True,
        False,
    ]
    assert [cluster.ingress_allowed("shop/db", port=f"{port}/TCP", of="shop/twin1")[0] for port in (80, 81, 82)] == [
        False,
        True,
        False,
    ]
    assert cluster.ingress_allowed("shop/web", port="80/TCP", of="shop/db") == [
        False
    ]  # shop/db has no port of this name
    assert cluster.ingress_allowed("198.51.100.7", port="80/TCP", of="shop/web") == [True]


def test_a_named_port_of_another_protocol_is_not_meant() -> None:
    assert PolicyCluster(ingress("{toPorts: [{ports: [{port: stat, protocol: TCP}]}]}")).ingress_allowed(
        "shop/web", port="53/TCP"
    ) == [False]
    assert PolicyCluster(ingress("{toPorts: [{ports: [{port: stat}]}]}")).ingress_allowed(
        "shop/web", port="53/UDP"
    ) == [True]


def test_a_named_port_of_egress_is_each_destinations_own_and_nothing_outside() -> None:
    cluster = PolicyCluster(egress("{toPorts: [{ports: [{port: http, protocol: TCP}]}]}"))

    assert cluster.egress_allowed("shop/web", "far/web", "198.51.100.7", port="80/TCP") == [True, False, False]
    assert cluster.egress_allowed("shop/web", "far/web", "198.51.100.7", port="8080/TCP") == [False, True, False]


def test_endpoints_of_one_identity_may_have_different_ports_of_a_name() -> None:
    cluster = PolicyCluster(egress("{toEndpoints: [{matchLabels: {app: twin}}], toPorts: [{ports: [{port: http}]}]}"))

    assert cluster.egress_allowed("shop/twin1", "shop/twin2", "shop/web", port="81/TCP") == [True, False, False]
    assert cluster.egress_allowed("shop/twin1", "shop/twin2", "shop/web", port="82/TCP") == [False, True, False]


# --- ICMP ---


def test_an_entry_without_ports_allows_icmp_and_one_with_ports_blocks_it() -> None:
    echo = ("8/ICMP", "128/ICMPv6")

    assert [
        PolicyCluster(ingress("{fromEndpoints: [{}]}")).ingress_allowed("shop/web", port=port)[0] for port in echo
    ] == [True, True]
    closed = PolicyCluster(ingress("{fromEndpoints: [{}], toPorts: [{ports: [{port: '0'}]}]}"))
    assert [closed.ingress_allowed("shop/web", port=port)[0] for port in echo] == [False, False]


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("type: 8", ["8/ICMP"]),
        ("type: '8'", ["8/ICMP"]),
        ("type: EchoRequest", ["8/ICMP"]),
        ("type: EchoReply, family: IPv4", ["0/ICMP"]),
        ("type: 8, family: IPv6", ["8/ICMPv6"]),
        ("type: EchoRequest, family: IPv6", ["128/ICMPv6"]),
    ],
)
def test_icmps_select_types_of_a_family(field: str, allowed: list[str]) -> None:
    cluster = PolicyCluster(ingress(f"{{icmps: [{{fields: [{{{field}}}]}}]}}"))

    asked = ("0/ICMP", "8/ICMP", "8/ICMPv6", "128/ICMPv6", "8/TCP")
    assert [port for port in asked if cluster.ingress_allowed("shop/web", port=port)[0]] == allowed


def test_icmps_without_fields_open_nothing() -> None:
    assert PolicyCluster(ingress("{fromEndpoints: [{}], icmps: [{}]}")).ingress_allowed("shop/web", port="8/ICMP") == [
        False
    ]


# --- deny and isolation ---


@pytest.mark.parametrize(
    "deny", ["{fromEndpoints: [{}]}", "{fromEntities: [all]}", "{toPorts: [{ports: [{port: '80'}]}]}"]
)
def test_a_deny_beats_an_allow_narrower_or_not(deny: str) -> None:
    allow = (
        f"{{fromEndpoints: [{WEB}], toPorts: [{{ports: [{{port: '80', protocol: TCP}}]}}]}}, {{fromEntities: [all]}}"
    )
    cluster = PolicyCluster(ingress(allow, f", ingressDeny: [{deny}]"))

    result = cluster.lookup(cluster.ingress(), "shop/web")
    assert (result.denied, [str(rule) for rule in result.rules]) == (True, ["shop/p ingressDeny[0]"])


def test_a_policy_of_denies_alone_closes_all_the_same() -> None:
    cluster = PolicyCluster(f"{CILIUM}{{endpointSelector: {DB}, egressDeny: [{{toCIDR: [198.51.100.7/32]}}]}}")

    assert cluster.egress_allowed("198.51.100.7", "shop/web") == [False, False]
    assert (cluster.egress().enforced, cluster.ingress().enforced) == (True, False)


def test_an_empty_deny_denies_nothing() -> None:
    assert PolicyCluster(ingress("{fromEntities: [all]}", ", ingressDeny: [{}]")).ingress_allowed("shop/web") == [True]


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
def test_without_default_deny_only_what_is_denied_is_closed(mode: Enforcement) -> None:
    rest = ", ingressDeny: [{toPorts: [{ports: [{port: '22'}]}]}], enableDefaultDeny: {ingress: false}"
    cluster = PolicyCluster(ingress(f"{{fromEndpoints: [{WEB}]}}", rest), mode=mode)

    assert (
        cluster.ingress_allowed(*ALL_PEERS),
        cluster.ingress_allowed("shop/web", "198.51.100.7", port="22/TCP"),
    ) == (ALL, [False, False])
    assert not cluster.ingress().enforced


def test_one_policy_that_closes_is_enough() -> None:
    lenient = ingress("{toPorts: [{ports: [{port: '22'}]}]}", ", enableDefaultDeny: {ingress: false}")

    assert PolicyCluster(lenient, named(ingress("{}"), "q")).ingress_allowed("shop/web") == [False]
    assert PolicyCluster(lenient, named(ingress("{}"), "q")).ingress_allowed("shop/web", port="22/TCP") == [True]


def test_default_deny_without_any_entry_closes_nothing() -> None:
    cluster = PolicyCluster(ingress("{fromEndpoints: [{}]}", ", enableDefaultDeny: {ingress: true, egress: true}"))

    assert (cluster.ingress().enforced, cluster.egress().enforced) == (True, False)


def test_always_closes_whatever_default_deny_says_and_never_switches_denies_off() -> None:
    rest = ", ingressDeny: [{fromCIDR: [198.51.100.7/32]}], enableDefaultDeny: {ingress: false}"
    text = ingress(f"{{fromEndpoints: [{WEB}]}}", rest)

    always, never = PolicyCluster(text, mode=Enforcement.ALWAYS), PolicyCluster(text, mode=Enforcement.NEVER)
    assert always.ingress_allowed(*ALL_PEERS) == [True, False, False, False, False]
    assert always.egress_allowed("shop/web") == [False]
    assert never.ingress_allowed(*ALL_PEERS, "198.51.100.7") == [*ALL, True]


# --- layer 7 ---

REQUESTS = "{method: GET, path: /a|/b, headers: ['X: 1', 'Y']}"
HTTP = f"toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{REQUESTS}]}}}}]"


def passes(result: LookupResult, path: str, headers: tuple[tuple[str, str], ...] = (("x", "1"), ("y", ""))) -> bool:
    request = HttpRequest("GET", path, "", headers)
    return result.allowed and (not result.l7 or any(matches(rule.match, request) for rule in result.l7))


def test_http_rules_let_matching_requests_pass() -> None:
    cluster = PolicyCluster(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}"))

    result = cluster.lookup(cluster.ingress(), "shop/web")
    assert [passes(result, path) for path in ("/a", "/b", "/ab", "/a/b")] == [True, True, False, False]
    assert not passes(result, "/a", (("X", "2"), ("Y", "")))
    assert [str(rule.ref) for rule in result.l7] == ["shop/p ingress[0]"]
    assert cluster.ingress_allowed("shop/web", port="81/TCP") == [False]


@pytest.mark.parametrize("lift", [f"{{fromEndpoints: [{WEB}]}}", "{toPorts: [{ports: [{port: '80'}]}]}"])
def test_an_allow_of_the_port_or_the_peer_lifts_http_rules(lift: str) -> None:
    cluster = PolicyCluster(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}, {lift}"))

    assert passes(cluster.lookup(cluster.ingress(), "shop/web"), "/other")


@pytest.mark.parametrize(
    "other", ["{fromEntities: [host]}", f"{{fromEndpoints: [{WEB}], toPorts: [{{ports: [{{port: '81'}}]}}]}}"]
)
def test_an_allow_of_another_port_or_peer_lifts_nothing(other: str) -> None:
    cluster = PolicyCluster(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}, {other}"))

    assert not passes(cluster.lookup(cluster.ingress(), "shop/web"), "/other")


def test_without_default_deny_requests_that_no_rule_matches_pass() -> None:
    cluster = PolicyCluster(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}", ", enableDefaultDeny: {ingress: false}"))
    closed = PolicyCluster(
        ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}", ", enableDefaultDeny: {ingress: false}"),
        named(ingress("{}"), "q"),
    )

    assert passes(cluster.lookup(cluster.ingress(), "shop/web"), "/other")
    assert passes(closed.lookup(closed.ingress(), "shop/web"), "/other")
    assert not passes(closed.lookup(closed.ingress(), "far/web"), "/a")


def test_rules_of_an_empty_list_restrict_nothing() -> None:
    text = "{toPorts: [{ports: [{port: '80'}], rules: {http: []}}, {ports: [{port: '81'}], rules: null}]}"

    cluster = PolicyCluster(ingress(text))
    assert [cluster.lookup(cluster.ingress(), "shop/web", port).l7 for port in ("80/TCP", "81/TCP")] == [(), ()]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("X-Foo", "X-Foo", None),
        ("X-Foo: true", "X-Foo", "true"),
        ("X-Foo true", "X-Foo", "true"),
        ("X-Foo:: true", "X-Foo", "true"),
        ("X-Foo a: b  c", "X-Foo", "a: b  c"),
        ("X-Foo: :80", "X-Foo", ":80"),
    ],
)
def test_a_header_ends_at_its_first_blank(line: str, name: str, value: str | None) -> None:
    rule = HttpRule.model_validate({"headers": [line]})

    assert rule.match().headers == (HeaderMatch(name, value),)


def test_header_matches_and_posix_classes_are_read() -> None:
    rules = "{path: '/[[:digit:]]+', headerMatches: [{name: X, value: '1'}, {name: 'Y'}]}"
    cluster = PolicyCluster(
        ingress(f"{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{rules}]}}}}]}}")
    )

    result = cluster.lookup(cluster.ingress(), "shop/web")
    assert [passes(result, path) for path in ("/42", "/x")] == [True, False]
    assert not passes(result, "/42", (("X", "1"),))


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("matchName: api.example.com.", ["api.example.com", "API.example.com."]),
        ("matchPattern: '*.example.com'", ["api.example.com", "API.example.com."]),
        ("matchPattern: 'a*i.example.com'", ["api.example.com", "API.example.com."]),
        ("matchPattern: '**.example.com'", ["api.example.com", "API.example.com.", "a.b.example.com"]),
        (
            "matchPattern: '*'",
            ["api.example.com", "API.example.com.", "a.b.example.com", "example.com", "apiXexample.com"],
        ),
    ],
)
def test_dns_rules_name_or_describe_names(rule: str, names: list[str]) -> None:
    ports = "ports: [{port: '53', protocol: UDP}]"
    cluster = PolicyCluster(egress(f"{{toEntities: [world], toPorts: [{{{ports}, rules: {{dns: [{{{rule}}}]}}}}]}}"))

    (result,) = cluster.lookup(cluster.egress(), "198.51.100.7", "53/UDP").l7
    asked = ("api.example.com", "API.example.com.", "a.b.example.com", "example.com", "apiXexample.com")
    assert [name for name in asked if matches_name(result.match, name)] == names  # type: ignore[arg-type]


@pytest.mark.parametrize("ports", ["{port: '53', endPort: 53}", "{port: dns, endPort: 54}", "{port: '53', endPort: 0}"])
def test_dns_rules_may_have_an_end_that_is_no_range(ports: str) -> None:
    text = egress(f"{{toPorts: [{{ports: [{ports}, {{port: '54'}}], rules: {{dns: [{{matchName: a}}]}}}}]}}")
    cluster = PolicyCluster(text)

    (result,) = cluster.lookup(cluster.egress(), "198.51.100.7", "54/UDP").l7
    assert isinstance(result.match, DnsMatch)


# --- nodes as subjects ---


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT, Enforcement.ALWAYS])
def test_an_endpoint_selector_never_selects_the_host(mode: Enforcement) -> None:
    cluster = PolicyCluster(
        f"{CLUSTERWIDE}{{endpointSelector: {{}}, ingress: [{{fromEntities: [world]}}], egress: [{{}}]}}", mode=mode
    )

    assert [(one.enforced, dict(one.entries)) for one in cluster.host()] == [(False, {}), (False, {})]
    assert cluster.ingress_allowed("198.51.100.7", "shop/web") == [True, False]


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
def test_a_node_selector_selects_the_host_and_no_endpoint(mode: Enforcement) -> None:
    spec = "{nodeSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"
    cluster = PolicyCluster(f"{CLUSTERWIDE}{spec}", mode=mode)
    host, _ = cluster.host()

    assert [cluster.lookup(host, peer).allowed for peer in ("shop/web", "shop/db")] == [True, False]
    assert not cluster.ingress().enforced


def test_a_node_selector_of_labels_that_no_node_has_selects_nobody() -> None:
    cluster = PolicyCluster(f"{CLUSTERWIDE}{{nodeSelector: {{matchLabels: {{disk: ssd}}}}, ingress: [{{}}]}}")

    assert [one.enforced for one in cluster.host()] == [False, False]
