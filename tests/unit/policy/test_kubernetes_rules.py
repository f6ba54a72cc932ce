"""Semantics of NetworkPolicies, rule by rule, above all their differences from Cilium policies."""

import pytest

from tests.support.clusters import ALL_PEERS, CILIUM, DB, PLAIN, WEB, PolicyCluster

NOBODY, ALL = [False] * 5, [True] * 5


def policy(rest: str, selector: str = DB) -> str:
    return f"{PLAIN}{{podSelector: {selector}, {rest}}}"


@pytest.mark.parametrize(
    "entry", ["{}", "{from: []}", "{from: null}", "{ports: []}", "{ports: [{port: 80}]}", "{ports: [{}]}"]
)
def test_an_entry_without_peers_is_for_anyone(entry: str) -> None:
    assert PolicyCluster(policy(f"ingress: [{entry}]")).ingress_allowed(*ALL_PEERS) == ALL


def test_an_entry_without_ports_opens_all_of_them_and_icmp() -> None:
    cluster = PolicyCluster(policy("ingress: [{}]"))

    assert [cluster.ingress_allowed("shop/web", port=port)[0] for port in ("1/UDP", "9/SCTP", "8/ICMP")] == [
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("rest", "closed"),
    [
        ("ingress: []", (True, False)),
        ("policyTypes: [Ingress]", (True, False)),
        ("policyTypes: [Egress]", (False, True)),
        ("policyTypes: []", (True, False)),
        ("egress: [{}]", (True, True)),
        ("egress: []", (True, False)),
        ("ingress: [{}], policyTypes: [Egress]", (False, True)),
        ("egress: [{}], policyTypes: [Ingress]", (True, False)),
    ],
)
def test_a_policy_closes_the_directions_of_its_types(rest: str, closed: tuple[bool, bool]) -> None:
    cluster = PolicyCluster(policy(rest))

    assert (cluster.ingress().enforced, cluster.egress().enforced) == closed
    assert not cluster.ingress("shop/web").enforced


def test_a_policy_without_entries_is_named_as_what_closes() -> None:
    cluster = PolicyCluster(policy("policyTypes: [Ingress]"))

    assert (cluster.ingress_allowed(*ALL_PEERS), [str(rule) for rule in cluster.ingress().enforced_by]) == (
        NOBODY,
        ["shop/n ingress"],
    )


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("{podSelector: {}}", [True, False, False, False, False]),
        ("{namespaceSelector: {}}", [True, True, False, False, False]),
        ("{namespaceSelector: {matchLabels: {team: red}}}", [False, True, False, False, False]),
        ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}", [True, False, False, False, False]),
        ("{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}}", [True, *NOBODY[1:]]),
        ("{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}", [True, *NOBODY[1:]]),
        (f"{{namespaceSelector: {{}}, podSelector: {WEB}}}", [True, True, False, False, False]),
        (f"{{namespaceSelector: {{}}, podSelector: {DB}}}", NOBODY),
        ("{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}", [True, *NOBODY[1:]]),
        (
            "{podSelector: {matchExpressions: [{key: kind, operator: Exists}]}}",
            NOBODY,
        ),  # container:kind has another label source
    ],
)
def test_a_peer_is_pods_of_namespaces_and_never_world_or_host(peer: str, allowed: list[bool]) -> None:
    assert PolicyCluster(policy(f"ingress: [{{from: [{peer}]}}]")).ingress_allowed(*ALL_PEERS) == allowed
    assert PolicyCluster(policy(f"egress: [{{to: [{peer}]}}]")).egress_allowed(*ALL_PEERS) == allowed


def test_peers_of_a_list_add_up() -> None:
    cluster = PolicyCluster(
        policy(f"ingress: [{{from: [{{podSelector: {WEB}}}, {{ipBlock: {{cidr: 198.51.100.0/24}}}}]}}]")
    )

    assert cluster.ingress_allowed(*ALL_PEERS) == [True, False, True, False, False]


def test_an_ip_block_is_addresses_whoever_has_them() -> None:
    cluster = PolicyCluster(policy("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24]}}]}]"))

    assert cluster.ingress_allowed("10.9.9.9", "far/web", "shop/web", "198.51.100.7") == [True, True, False, False]
    assert cluster.ingress_allowed("fd01::1") == [False]  # the other address of far/web


def test_an_ip_block_of_one_address_tells_endpoints_of_one_identity_apart() -> None:
    cluster = PolicyCluster(policy("egress: [{to: [{ipBlock: {cidr: 10.0.0.3/32}}]}]"))

    assert cluster.egress_allowed("shop/twin1", "shop/twin2") == [True, False]


def test_a_hole_is_no_deny() -> None:
    block = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.1/32]}}"

    assert PolicyCluster(policy(f"egress: [{{to: [{block}]}}]")).egress_allowed("shop/web") == [False]
    assert PolicyCluster(policy(f"egress: [{{to: [{block}, {{podSelector: {WEB}}}]}}]")).egress_allowed("shop/web") == [
        True
    ]
    assert PolicyCluster(policy(f"egress: [{{to: [{block}, {{ipBlock: {{cidr: 10.0.0.0/31}}}}]}}]")).egress_allowed(
        "shop/web"
    ) == [True]


def test_an_ip_block_and_a_cidr_of_cilium_keep_their_meanings_side_by_side() -> None:
    cilium = f"{CILIUM}{{endpointSelector: {DB}, egress: [{{toCIDR: [10.1.0.0/16]}}]}}"
    cluster = PolicyCluster(policy("egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16}}]}]"), cilium)

    assert cluster.egress_allowed("shop/web", "far/web", "10.0.9.9", "10.1.9.9") == [True, False, True, True]


def test_a_port_is_of_tcp_unless_it_says_otherwise() -> None:
    cluster = PolicyCluster(policy("ingress: [{ports: [{port: 80}, {protocol: UDP}]}]"))

    asked = ("80/TCP", "80/UDP", "1/UDP", "80/SCTP", "81/TCP", "8/ICMP")
    assert [cluster.ingress_allowed("shop/web", port=port)[0] for port in asked] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_range_has_both_its_ends() -> None:
    cluster = PolicyCluster(policy("ingress: [{ports: [{port: 80, endPort: 90}]}]"))

    assert [cluster.ingress_allowed("shop/web", port=f"{port}/TCP")[0] for port in (79, 80, 90, 91)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_named_port_is_the_destinations() -> None:
    inward = PolicyCluster(policy("ingress: [{ports: [{port: http}]}]", "{}"))
    outward = PolicyCluster(policy("egress: [{ports: [{port: http}]}]", "{}"))

    assert inward.ingress_allowed("shop/web", port="81/TCP", of="shop/twin1") == [True]
    assert inward.ingress_allowed("shop/web", port="80/TCP", of="shop/twin1") == [
        False
    ]  # the client's port of this name does not count
    assert outward.egress_allowed("shop/twin1", "shop/twin2", "198.51.100.7", port="82/TCP") == [False, True, False]


def test_from_an_address_a_named_port_is_the_destinations_too_and_toward_a_mere_address_there_is_none() -> None:
    block = "{ipBlock: {cidr: 0.0.0.0/0}}"
    inward = PolicyCluster(policy(f"ingress: [{{from: [{block}], ports: [{{port: http}}]}}]", "{}"))
    outward = PolicyCluster(policy(f"egress: [{{to: [{block}], ports: [{{port: http}}]}}]", "{}"))

    assert inward.ingress_allowed("198.51.100.7", "shop/web", port="81/TCP", of="shop/twin1") == [True, True]
    assert inward.ingress_allowed("198.51.100.7", port="80/TCP", of="shop/twin1") == [False]
    assert outward.egress_allowed("198.51.100.7", port="81/TCP") == [False]


def test_policies_add_up() -> None:
    other = policy("ingress: [{ports: [{port: 81}]}]").replace("name: 'n',", "name: m,")
    cluster = PolicyCluster(policy("ingress: [{ports: [{port: 80}]}]"), other)

    assert [cluster.ingress_allowed("shop/web", port=f"{port}/TCP")[0] for port in (80, 81, 82)] == [True, True, False]
