"""Redirect rules, as text: targets, slots, and the ways that packets take; ``test_redirect`` shows them on a kernel."""

import re

import pytest

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef, port_blocks
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import address_marks, redirect_rules, ruleset, source_filter
from nfq_enforcer.dataplane.rules.filter_table import QueueRule
from nfq_enforcer.dataplane.rules.opening_rules import Budgets
from nfq_enforcer.dataplane.rules.redirect_rules import ProxyRules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset

PROXY = ProxyRules(first_port=15000, uid=990)
CHAINS = redirect_rules.chains(PROXY, None)
BRIDGED = {redirect_rules.BRIDGED: redirect_rules.bridged_chain()}


def http(first: int, last: int) -> PolicyMap:
    rule = L7Rule(RuleRef("CiliumNetworkPolicy", "default", "http", Direction.INGRESS, 0), HttpMatch("GET"))
    keys = {PolicyKey(ANY, TCP, port, bits): PolicyEntry(l7=(rule,)) for port, bits in port_blocks(first, last)}
    return PolicyMap(keys, enforced=True)


def test_the_targets_are_addresses_with_the_ports_that_have_http_rules() -> None:
    none = PolicyMap({}, enforced=False)
    web = LocalEndpoint("default/web", Identity(1), "veth-web", http(80, 80), http(8000, 8010))
    other = LocalEndpoint("default/other", Identity(2), "veth-other", none, none)
    addresses = {bytes((10, 0, 0, 1)): web, bytes(15) + b"\1": web, bytes((10, 0, 0, 2)): other}

    assert redirect_rules.targets(Snapshot(1, addresses, Ipcache({}))) == {
        "l7_in4": {("10.0.0.1", "80")},
        "l7_in6": {("::1", "80")},
        "l7_out4": {("10.0.0.1", "8000-8010")},
        "l7_out6": {("::1", "8000-8010")},
    }
    assert redirect_rules.targets(Snapshot(1, {}, Ipcache({}))) == redirect_rules.NO_TARGETS


def test_each_slot_has_a_port() -> None:
    slots = redirect_rules.slots(PROXY)["slots"]

    assert {("1", "15001"), ("1000", "16000")} <= slots
    assert len(slots) == 1000


def test_the_queues_are_those_of_openings_of_all_workers() -> None:
    assert redirect_rules.queue_rules(allocate_queues(100, 2), bypass=True) == (
        QueueRule("slot_openings", 196, 2, bypass=True),
        QueueRule("slot_excess", 198, 2, bypass=True),
    )


def test_every_chain_and_set_that_a_rule_names_exists() -> None:
    every = {**CHAINS, **redirect_rules.chains(PROXY, Budgets()), **BRIDGED}
    rules = [rule for chain in every.values() for rule in chain.rules]

    assert {target for rule in rules for target in re.findall(r"goto (\w+)", rule)} <= every.keys()
    named = {name for rule in rules for name in re.findall(r"@(\w+)", rule)}
    assert named <= redirect_rules.SETS.keys() | address_marks.SETS.keys()
    assert redirect_rules.SETS.keys() <= named


def test_every_chain_and_set_of_the_table_for_ports_exists() -> None:
    ports = redirect_rules.bridge_chains()
    rules = [rule for chain in ports.values() for rule in chain.rules]

    assert {target for rule in rules for target in re.findall(r"goto (\w+)", rule)} < ports.keys()
    assert {name for rule in rules for name in re.findall(r"@(\w+)", rule)} == redirect_rules.BRIDGE_SETS.keys()
    assert not ports.keys() & source_filter.bridge_chains().keys()


def test_chains_come_after_dnat_and_their_neighbours_in_order() -> None:
    every = {**CHAINS, **BRIDGED}
    hooks = {name: re.search(r"hook (\w+) priority (-\d+)", chain.hook) for name, chain in every.items()}
    order = {name: (found[1], int(found[2])) for name, found in hooks.items() if found}

    assert order == {
        "bridged_prerouting": ("prerouting", -(2**31)),
        "redirect_prerouting": ("prerouting", -90),
        "redirect_input": ("input", -90),
        "redirect_output": ("output", -90),
        "ask_output": ("output", -89),
        "unrouted": ("postrouting", -90),
    }
    assert CHAINS["redirect_output"].hook.startswith("type route ")  # a packet with another mark is routed anew


def test_a_mark_counts_only_if_it_is_of_the_proxys_user() -> None:
    syn = "tcp flags & (syn | ack) == syn"

    assert CHAINS["marked_output"].rules == [
        f"{syn} meta mark & 0xf000000 == 0x8000000 meta skuid 990 goto opened",
        f"{syn} meta mark & 0xf000000 == 0x2000000 accept",
        "meta mark set meta mark & 0xf0ffffff",
    ]
    assert CHAINS["redirect_prerouting"].rules[0] == (
        'meta mark & 0xd000000 != 0 iifname != "lo" meta mark set meta mark & 0xf0ffffff'
    )


@pytest.mark.parametrize("budgets", [None, Budgets(guaranteed=50, excess=200)])
def test_openings_beyond_the_budgets_have_the_queue_of_excess_or_are_dropped(budgets: Budgets | None) -> None:
    every = redirect_rules.chains(PROXY, budgets)
    limits = [rule for chain in every.values() for rule in chain.rules if rule.startswith("limit ")]

    assert limits == (
        []
        if budgets is None
        else [
            "limit rate over 200/second burst 200 packets drop",
            "limit rate over 50/second burst 50 packets goto slot_unknown",
        ]
    )
    assert every["slot_known"].rules[-1] == "goto slot_openings"
    assert every["slot_unknown"].rules[-1] == "goto slot_excess"


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_table_filter_accepts_packets_between_the_proxy_and_other_hosts(family: AddressFamily) -> None:
    rules = Ruleset(allocate_queues(100, 1), fail_open=False, cluster_mtus={})
    proxied = ruleset.render(Ruleset(rules.queues, fail_open=False, cluster_mtus={}, proxied=True), family, {})

    assert "*filter" not in ruleset.render(rules, family, {})
    assert proxied.endswith(
        "*filter\n"
        ":NFQE-TO-PROXY - [0:0]\n"
        ":NFQE-FROM-PROXY - [0:0]\n"
        "-A NFQE-TO-PROXY -m mark --mark 0x4000000/0xf000000 -m addrtype ! --dst-type LOCAL -j ACCEPT\n"
        "-A NFQE-FROM-PROXY -m mark --mark 0x8000000/0xf000000 -m addrtype ! --src-type LOCAL -j ACCEPT\n"
        "-I INPUT 1 -j NFQE-TO-PROXY\n"
        "-I OUTPUT 1 -j NFQE-FROM-PROXY\n"
        "COMMIT\n"
    )
