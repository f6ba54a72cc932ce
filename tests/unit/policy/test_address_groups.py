"""Address groups and CIDR identities: prefixes of the same rules share an identity, and no meaning is lost by that."""

from ipaddress import IPv4Network, ip_network
from random import Random

import pytest

from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import PolicyKey, RuleRef
from nfq_enforcer.core.tables.prefixes import Network, Prefixes
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.address_groups import group_addresses
from nfq_enforcer.policy.cilium import CiliumNetworkPolicy
from nfq_enforcer.policy.compiler import Enforcement, Policy, compile_policy
from nfq_enforcer.policy.local_identities import LocalIdentities, cidr_label
from nfq_enforcer.policy.rules import ALL_TRAFFIC, AddressBlock, Rule
from nfq_enforcer.policy.selectors import WILDCARD

WEB = Labels.parse({"app": "web", "io.kubernetes.pod.namespace": "default"})


def rule(number: int, *blocks: AddressBlock) -> Rule:
    ref = RuleRef("CiliumNetworkPolicy", "default", "x", Direction.EGRESS, number)
    return Rule(ref, WILDCARD, blocks, ALL_TRAFFIC, True)


def block(prefix: str, *excluded: str, pods: bool = False) -> AddressBlock:
    return AddressBlock(ip_network(prefix), frozenset(map(ip_network, excluded)), includes_endpoints=pods)


def policy(name: str, **egress: list[object]) -> CiliumNetworkPolicy:
    spec = {"endpointSelector": {}, "egress": [{field: peers} for field, peers in egress.items()]}
    metadata = {"name": name}
    data = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
    return CiliumNetworkPolicy.model_validate(data)


def compiled(*documents: CiliumNetworkPolicy) -> Policy:
    return compile_policy(documents, {WEB: Identity(300)}, Enforcement.AUTO)


def random_network(random: Random) -> Network:
    return IPv4Network((random.getrandbits(4) << 28 | random.getrandbits(3), random.randrange(33)), strict=False)


@pytest.mark.parametrize("seed", range(40))
def test_each_prefix_has_the_rules_with_a_block_that_contains_it(seed: int) -> None:
    random = Random(seed)
    rules = []
    for number in range(4):
        prefixes = [random_network(random) for _ in range(4)]
        holes = [frozenset(n for n in (random_network(random),) if n.subnet_of(p)) for p in prefixes]  # type: ignore[arg-type]
        pairs = zip(prefixes, holes, strict=True)
        rules.append(rule(number, *(AddressBlock(p, hole, includes_endpoints=False) for p, hole in pairs)))

    groups = group_addresses(rules, includes_endpoints=False)

    named = {n for one in rules for b in one.address_blocks for n in (b.prefix, *b.excluded)}
    assert sorted(n for group in groups for n in group.prefixes) == sorted(named)
    for group in groups:
        for network in group.prefixes:
            meant_by = {id(one) for one in rules if any(network in b for b in one.address_blocks)}
            assert group.rules == meant_by, network
    assert len({group.rules for group in groups}) == len(groups)


def test_blocks_of_either_kind_are_grouped_apart() -> None:
    both = rule(0, block("10.0.0.0/8"), block("fd00::/8"), block("10.1.0.0/16", pods=True))

    (cilium,) = group_addresses([both], includes_endpoints=False)
    (kubernetes,) = group_addresses([both], includes_endpoints=True)
    assert list(map(str, cilium.prefixes)) == ["10.0.0.0/8", "fd00::/8"]
    assert list(map(str, kubernetes.prefixes)) == ["10.1.0.0/16"]


def test_a_rule_for_many_prefixes_has_one_identity_and_one_entry() -> None:
    document = policy("many", toCIDR=[f"10.{number >> 8}.{number & 255}.0/24" for number in range(2000)])
    maps = compiled(document).maps_for(WEB)

    (key,) = maps.egress.entries
    local = compiled(document).local_identities
    assert set(local.by_cidr.values()) == {key.identity}
    assert Prefixes(local.by_cidr).lookup(bytes((10, 1, 2, 3))) == key.identity
    assert local.cidr_names == {key.identity: Labels.union(cidr_label(ip_network("10.0.0.0/24")), more(1999))}
    assert local.labels_of(ip_network("10.1.2.3/32")) == cidr_label(ip_network("10.1.2.0/24"))
    assert local.labels_of(ip_network("192.0.2.1/32")) is None
    assert local.labels_of(ip_network("10.0.0.0/8")) is None


def more(number: int) -> Labels:
    return Labels.parse({f"cidr:and-{number}-more": ""})


def test_a_prefix_of_another_rule_is_told_apart_and_joins_the_others_again() -> None:
    many = policy("many", toCIDR=["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"])
    before = compiled(many)
    both = before.with_documents([many, policy("one", toCIDR=["10.0.1.0/24"])])
    after = both.with_documents([many])

    identities = [both.local_identities.by_cidr[ip_network(f"10.0.{third}.0/24")] for third in range(3)]
    assert identities[0] == identities[2] != identities[1]
    assert {key.identity: len(entry.allowed_by) for key, entry in both.maps_for(WEB).egress.entries.items()} == {
        identities[0]: 1,
        identities[1]: 2,
    }
    assert after.maps_for(WEB).egress.entries == before.maps_for(WEB).egress.entries


def test_a_change_of_ports_keeps_the_prefixes_and_changes_the_entries() -> None:
    cidrs: list[object] = ["10.0.0.0/24", "10.0.1.0/24"]
    document = policy("p", toCIDR=cidrs)
    data = document.model_dump(by_alias=True, exclude_none=True, mode="json")
    data["spec"]["egress"][0]["toPorts"] = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    changed = CiliumNetworkPolicy.model_validate(data)

    after = compiled(document).with_documents([changed])

    assert [key[1:3] for key in after.maps_for(WEB).egress.entries] == [(TCP, 80)]
    assert after.maps_for(WEB).egress.entries == compiled(changed).maps_for(WEB).egress.entries


def test_a_prefix_that_a_selector_names_has_an_identity_of_its_own() -> None:
    many = policy("many", toCIDR=["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"])
    named = policy("named", toEndpoints=[{"matchLabels": {"cidr:10.0.1.0/24": "", "reserved:world": ""}}])
    policies = compiled(many).with_documents([many, named])

    identity = policies.local_identities.by_cidr[ip_network("10.0.1.0/24")]
    entry = policies.maps_for(WEB).egress.entries[PolicyKey(identity, 0, 0, 0)]
    assert [ref.name for ref in entry.allowed_by] == ["many", "named"]
    assert len(set(policies.local_identities.by_cidr.values())) == 2


@pytest.mark.parametrize("key", ["app", "example.com/app"])
def test_other_keys_of_selectors_name_no_prefix(key: str) -> None:
    other = policy("other", toEndpoints=[{"matchLabels": {key: "x"}}])

    assert set(compiled(policy("many", toCIDR=["10.0.0.0/24", "10.0.1.0/24"]), other).local_identities.cidr_labels) == {
        cidr_label(ip_network("10.0.0.0/24"))
    }


def test_the_world_includes_every_group() -> None:
    policies = compiled(policy("all", toEntities=["world"]), policy("many", toCIDR=["10.0.0.0/24", "10.0.1.0/24"]))

    (identity,) = set(policies.local_identities.by_cidr.values())
    entries = policies.maps_for(WEB).egress.entries
    assert {key.identity: len(entry.allowed_by) for key, entry in entries.items()} == {WORLD: 1, identity: 2}


def test_rules_without_address_blocks_have_no_local_identities() -> None:
    none = LocalIdentities([rule(0)], {})

    assert (none.by_cidr, none.of_rule(rule(0)), none.fit([])) == ({}, frozenset(), True)
