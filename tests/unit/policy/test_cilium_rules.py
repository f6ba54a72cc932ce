"""What Cilium policies mean, point by point: who may open what to whom."""

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.core.tables.policymap import LookupResult
from nfq_enforcer.policy.compiler import Enforcement
from tests.support.clusters import CILIUM, CLUSTERWIDE, DB, EVERYBODY, WEB, World

NOBODY, ALL = [False] * 5, [True] * 5


def ingress(entries: str, rest: str = "") -> str:
    return f"{CILIUM}{{endpointSelector: {DB}, ingress: [{entries}]{rest}}}"


def egress(entries: str, rest: str = "") -> str:
    return f"{CILIUM}{{endpointSelector: {DB}, egress: [{entries}]{rest}}}"


def named(text: str, name: str) -> str:
    return text.replace("name: p,", f"name: {name},")


# --- peers ---


def test_an_empty_entry_closes_and_opens_nothing() -> None:
    assert World(ingress("{}")).into(*EVERYBODY) == NOBODY


def test_an_empty_section_has_no_effect() -> None:
    world = World(egress("{toEndpoints: [{}]}", ", ingress: []"))

    assert not world.ingress().enforced


@pytest.mark.parametrize("field", ["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities"])
def test_an_empty_list_of_peers_is_nobody_with_ports_or_without(field: str) -> None:
    assert World(ingress(f"{{{field}: []}}")).into(*EVERYBODY) == NOBODY
    assert World(ingress(f"{{{field}: [], toPorts: [{{ports: [{{port: '80'}}]}}]}}")).into(*EVERYBODY) == NOBODY


def test_ports_without_peers_are_open_to_anyone() -> None:
    assert World(ingress("{toPorts: [{ports: [{port: '80'}]}]}")).into(*EVERYBODY) == ALL


@pytest.mark.parametrize(
    ("entities", "allowed"),
    [
        ("all", ALL),
        ("world", [False, False, True, False, False]),
        ("cluster", [True, True, False, True, True]),
        ("host", [False, False, False, True, False]),
        ("remote-node", [False, False, False, False, True]),
        ("host, remote-node", [False, False, False, True, True]),
        ("none", NOBODY),
    ],
)
def test_an_entity_is_who_upstream_says(entities: str, allowed: list[bool]) -> None:
    assert World(ingress(f"{{fromEntities: [{entities}]}}")).into(*EVERYBODY) == allowed
    assert World(egress(f"{{toEntities: [{entities}]}}")).out(*EVERYBODY) == allowed


@pytest.mark.parametrize("name", ["init", "health", "unmanaged", "kube-apiserver", "ingress"])
def test_every_reserved_identity_is_an_entity_and_of_the_cluster(name: str) -> None:
    assert World(ingress(f"{{fromEntities: [{name}]}}")).into(f"reserved:{name}", "shop/web") == [True, False]
    assert World(ingress("{fromEntities: [cluster]}")).into(f"reserved:{name}") == [True]


def test_the_world_has_a_half_for_each_family() -> None:
    world = World(ingress("{fromEntities: [world-ipv6]}"))

    assert world.into("2001:db8::1", "198.51.100.7", "fd00::1", "reserved:host") == [True, False, False, False]


def test_a_cidr_is_part_of_the_world() -> None:
    other = named(egress("{toCIDR: [198.51.100.0/24]}"), "q")

    assert World(ingress("{fromEntities: [world]}"), other).into("198.51.100.7", "192.0.2.1") == [True, True]


# --- CIDRs ---


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1"])
def test_a_cidr_never_matches_endpoints_host_or_nodes(cidr: str) -> None:
    world = World(ingress(f"{{fromCIDR: [{cidr}]}}"))

    assert world.into("shop/web", "far/web", "reserved:host", "reserved:remote-node") == [False] * 4


def test_a_cidr_is_of_its_own_family() -> None:
    world = World(ingress("{fromCIDR: [0.0.0.0/0]}"))

    assert world.into("198.51.100.7", "2001:db8::1") == [True, False]


def test_an_address_alone_is_a_cidr_and_bits_behind_a_prefix_do_not_count() -> None:
    assert World(ingress("{fromCIDR: [198.51.100.7]}")).into("198.51.100.7", "198.51.100.8") == [True, False]
    assert World(egress("{toCIDR: ['2001:db8::7/64']}")).out("2001:db8::8", "2001:db8:1::7") == [True, False]


def test_except_is_a_hole_in_its_own_block_that_another_may_fill() -> None:
    block = "{fromCIDRSet: [{cidr: 198.51.0.0/16, except: [198.51.100.0/24]}]}"
    fill = "{fromCIDR: [198.51.100.128/25]}"

    assert World(ingress(block)).into("198.51.1.1", "198.51.100.7", "198.51.100.200") == [True, False, False]
    assert World(ingress(f"{block}, {fill}")).into("198.51.1.1", "198.51.100.7", "198.51.100.200") == [
        True,
        False,
        True,
    ]


def test_a_longer_prefix_elsewhere_changes_nothing_for_a_shorter_one() -> None:
    other = named(egress("{toCIDR: [198.51.100.7/32]}"), "q")

    assert World(ingress("{fromCIDR: [198.51.0.0/16]}"), other).into("198.51.100.7", "198.51.1.1") == [True, True]


# --- ports ---


@pytest.mark.parametrize(
    ("protocol", "allowed"),
    [("", [True, True, True, False]), (", protocol: TCP", [True, False, False, False])],
)
def test_a_port_without_protocol_is_that_of_three_and_never_icmp(protocol: str, allowed: list[bool]) -> None:
    world = World(ingress(f"{{toPorts: [{{ports: [{{port: '8'{protocol}}}]}}]}}"))

    assert [world.into("shop/web", port=f"8/{name}")[0] for name in ("TCP", "UDP", "SCTP", "ICMP")] == allowed


def test_a_range_has_both_its_ends() -> None:
    world = World(ingress("{toPorts: [{ports: [{port: '1000', endPort: 2000, protocol: TCP}]}]}"))

    ports = (999, 1000, 1234, 2000, 2001)
    assert [world.into("shop/web", port=f"{port}/TCP")[0] for port in ports] == [False, True, True, True, False]


def test_a_named_port_of_ingress_is_the_subjects_own() -> None:
    spec = "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: HTTP, endPort: 3, protocol: TCP}]}]}]}"
    world = World(f"{CILIUM}{spec}")

    assert [world.into("shop/db", port=f"{port}/TCP", of="shop/web")[0] for port in (80, 81)] == [True, False]
    assert [world.into("shop/db", port=f"{port}/TCP", of="shop/twin1")[0] for port in (80, 81, 82)] == [
        False,
        True,
        False,
    ]
    assert world.into("shop/web", port="80/TCP", of="shop/db") == [False]  # has no port of the name
    assert world.into("198.51.100.7", port="80/TCP", of="shop/web") == [True]


def test_a_named_port_of_another_protocol_is_not_meant() -> None:
    assert World(ingress("{toPorts: [{ports: [{port: stat, protocol: TCP}]}]}")).into("shop/web", port="53/TCP") == [
        False
    ]
    assert World(ingress("{toPorts: [{ports: [{port: stat}]}]}")).into("shop/web", port="53/UDP") == [True]


def test_a_named_port_of_egress_is_each_destinations_own_and_nothing_outside() -> None:
    world = World(egress("{toPorts: [{ports: [{port: http, protocol: TCP}]}]}"))

    assert world.out("shop/web", "far/web", "198.51.100.7", port="80/TCP") == [True, False, False]
    assert world.out("shop/web", "far/web", "198.51.100.7", port="8080/TCP") == [False, True, False]


def test_endpoints_of_one_identity_may_have_different_ports_of_a_name() -> None:
    world = World(egress("{toEndpoints: [{matchLabels: {app: twin}}], toPorts: [{ports: [{port: http}]}]}"))

    assert world.out("shop/twin1", "shop/twin2", "shop/web", port="81/TCP") == [True, False, False]
    assert world.out("shop/twin1", "shop/twin2", "shop/web", port="82/TCP") == [False, True, False]


# --- ICMP ---


def test_an_entry_without_ports_allows_icmp_and_one_with_ports_blocks_it() -> None:
    echo = ("8/ICMP", "128/ICMPv6")

    assert [World(ingress("{fromEndpoints: [{}]}")).into("shop/web", port=port)[0] for port in echo] == [True, True]
    closed = World(ingress("{fromEndpoints: [{}], toPorts: [{ports: [{port: '0'}]}]}"))
    assert [closed.into("shop/web", port=port)[0] for port in echo] == [False, False]


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
    world = World(ingress(f"{{icmps: [{{fields: [{{{field}}}]}}]}}"))

    asked = ("0/ICMP", "8/ICMP", "8/ICMPv6", "128/ICMPv6", "8/TCP")
    assert [port for port in asked if world.into("shop/web", port=port)[0]] == allowed


def test_icmps_without_fields_open_nothing() -> None:
    assert World(ingress("{fromEndpoints: [{}], icmps: [{}]}")).into("shop/web", port="8/ICMP") == [False]


# --- deny and isolation ---


@pytest.mark.parametrize(
    "deny", ["{fromEndpoints: [{}]}", "{fromEntities: [all]}", "{toPorts: [{ports: [{port: '80'}]}]}"]
)
def test_a_deny_beats_an_allow_narrower_or_not(deny: str) -> None:
    allow = (
        f"{{fromEndpoints: [{WEB}], toPorts: [{{ports: [{{port: '80', protocol: TCP}}]}}]}}, {{fromEntities: [all]}}"
    )
    world = World(ingress(allow, f", ingressDeny: [{deny}]"))

    found = world.ask(world.ingress(), "shop/web")
    assert (found.denied, [str(rule) for rule in found.rules]) == (True, ["shop/p ingressDeny[0]"])


def test_a_policy_of_denies_alone_closes_all_the_same() -> None:
    world = World(f"{CILIUM}{{endpointSelector: {DB}, egressDeny: [{{toCIDR: [198.51.100.7/32]}}]}}")

    assert world.out("198.51.100.7", "shop/web") == [False, False]
    assert (world.egress().enforced, world.ingress().enforced) == (True, False)


def test_an_empty_deny_denies_nothing() -> None:
    assert World(ingress("{fromEntities: [all]}", ", ingressDeny: [{}]")).into("shop/web") == [True]


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
def test_without_default_deny_only_what_is_denied_is_closed(mode: Enforcement) -> None:
    rest = ", ingressDeny: [{toPorts: [{ports: [{port: '22'}]}]}], enableDefaultDeny: {ingress: false}"
    world = World(ingress(f"{{fromEndpoints: [{WEB}]}}", rest), mode=mode)

    assert (world.into(*EVERYBODY), world.into("shop/web", "198.51.100.7", port="22/TCP")) == (ALL, [False, False])
    assert not world.ingress().enforced


def test_one_policy_that_closes_is_enough() -> None:
    lenient = ingress("{toPorts: [{ports: [{port: '22'}]}]}", ", enableDefaultDeny: {ingress: false}")

    assert World(lenient, named(ingress("{}"), "q")).into("shop/web") == [False]
    assert World(lenient, named(ingress("{}"), "q")).into("shop/web", port="22/TCP") == [True]


def test_default_deny_without_any_entry_closes_nothing() -> None:
    world = World(ingress("{fromEndpoints: [{}]}", ", enableDefaultDeny: {ingress: true, egress: true}"))

    assert (world.ingress().enforced, world.egress().enforced) == (True, False)


def test_always_closes_whatever_default_deny_says_and_never_switches_denies_off() -> None:
    rest = ", ingressDeny: [{fromCIDR: [198.51.100.7/32]}], enableDefaultDeny: {ingress: false}"
    text = ingress(f"{{fromEndpoints: [{WEB}]}}", rest)

    always, never = World(text, mode=Enforcement.ALWAYS), World(text, mode=Enforcement.NEVER)
    assert always.into(*EVERYBODY) == [True, False, False, False, False]
    assert always.out("shop/web") == [False]
    assert never.into(*EVERYBODY, "198.51.100.7") == [*ALL, True]


# --- layer 7 ---

REQUESTS = "{method: GET, path: /a|/b, headers: ['X: 1', Y]}"
HTTP = f"toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{REQUESTS}]}}}}]"


def passes(found: LookupResult, path: str, headers: tuple[tuple[str, str], ...] = (("x", "1"), ("y", ""))) -> bool:
    request = HttpRequest("GET", path, "", headers)
    return found.allowed and (not found.l7 or any(rule.match.matches(request) for rule in found.l7))  # type: ignore[arg-type]


def test_http_rules_let_matching_requests_pass() -> None:
    world = World(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}"))

    found = world.ask(world.ingress(), "shop/web")
    assert [passes(found, path) for path in ("/a", "/b", "/ab", "/a/b")] == [True, True, False, False]
    assert not passes(found, "/a", (("X", "2"), ("Y", "")))
    assert [str(rule.ref) for rule in found.l7] == ["shop/p ingress[0]"]
    assert world.into("shop/web", port="81/TCP") == [False]


@pytest.mark.parametrize("lift", [f"{{fromEndpoints: [{WEB}]}}", "{toPorts: [{ports: [{port: '80'}]}]}"])
def test_an_allow_of_the_port_or_the_peer_lifts_http_rules(lift: str) -> None:
    world = World(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}, {lift}"))

    assert passes(world.ask(world.ingress(), "shop/web"), "/other")


@pytest.mark.parametrize(
    "other", ["{fromEntities: [host]}", f"{{fromEndpoints: [{WEB}], toPorts: [{{ports: [{{port: '81'}}]}}]}}"]
)
def test_an_allow_of_another_port_or_peer_lifts_nothing(other: str) -> None:
    world = World(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}, {other}"))

    assert not passes(world.ask(world.ingress(), "shop/web"), "/other")


def test_without_default_deny_requests_that_no_rule_matches_pass() -> None:
    world = World(ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}", ", enableDefaultDeny: {ingress: false}"))
    closed = World(
        ingress(f"{{fromEndpoints: [{WEB}], {HTTP}}}", ", enableDefaultDeny: {ingress: false}"),
        named(ingress("{}"), "q"),
    )

    assert passes(world.ask(world.ingress(), "shop/web"), "/other")
    assert passes(closed.ask(closed.ingress(), "shop/web"), "/other")
    assert not passes(closed.ask(closed.ingress(), "far/web"), "/a")


def test_rules_of_an_empty_list_restrict_nothing() -> None:
    text = "{toPorts: [{ports: [{port: '80'}], rules: {http: []}}, {ports: [{port: '81'}], rules: {}}]}"

    world = World(ingress(text))
    assert [world.ask(world.ingress(), "shop/web", port).l7 for port in ("80/TCP", "81/TCP")] == [(), ()]


def test_header_matches_and_posix_classes_are_read() -> None:
    rules = "{path: '/[[:digit:]]+', headerMatches: [{name: X, value: '1'}, {name: Y}]}"
    world = World(ingress(f"{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{rules}]}}}}]}}"))

    found = world.ask(world.ingress(), "shop/web")
    assert [passes(found, path) for path in ("/42", "/x")] == [True, False]
    assert not passes(found, "/42", (("X", "1"),))


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
    world = World(egress(f"{{toEntities: [world], toPorts: [{{{ports}, rules: {{dns: [{{{rule}}}]}}}}]}}"))

    (found,) = world.ask(world.egress(), "198.51.100.7", "53/UDP").l7
    asked = ("api.example.com", "API.example.com.", "a.b.example.com", "example.com", "apiXexample.com")
    assert [name for name in asked if found.match.matches(name)] == names  # type: ignore[arg-type]


# --- nodes as subjects ---


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT, Enforcement.ALWAYS])
def test_an_endpoint_selector_never_selects_the_host(mode: Enforcement) -> None:
    world = World(
        f"{CLUSTERWIDE}{{endpointSelector: {{}}, ingress: [{{fromEntities: [world]}}], egress: [{{}}]}}", mode=mode
    )

    assert [(one.enforced, dict(one.entries)) for one in world.host()] == [(False, {}), (False, {})]
    assert world.into("198.51.100.7", "shop/web") == [True, False]


@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT])
def test_a_node_selector_selects_the_host_and_no_endpoint(mode: Enforcement) -> None:
    spec = "{nodeSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"
    world = World(f"{CLUSTERWIDE}{spec}", mode=mode)
    host, _ = world.host()

    assert [world.ask(host, peer).allowed for peer in ("shop/web", "shop/db")] == [True, False]
    assert not world.ingress().enforced


def test_a_node_selector_of_labels_that_no_node_has_selects_nobody() -> None:
    world = World(f"{CLUSTERWIDE}{{nodeSelector: {{matchLabels: {{disk: ssd}}}}, ingress: [{{}}]}}")

    assert [one.enforced for one in world.host()] == [False, False]
