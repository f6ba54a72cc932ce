"""The table of nftables, as text: creation, change, and comparison with the kernel's table."""

import json
from dataclasses import replace
from typing import Any

import pytest

from nfq_enforcer.dataplane.rules import filter_table
from nfq_enforcer.dataplane.rules.comparison import Fault
from nfq_enforcer.dataplane.rules.filter_table import PLACE, TABLE, Chain, Content, Member, QueueRule, member_change

HOOK = "type filter hook prerouting priority -450; policy accept;"
SETS = {
    "addresses": "type ipv4_addr;",
    "owned": "type ifname . ipv4_addr;",
    "ranges": "type ipv4_addr; flags interval;",
    "counted": "type ifname; size 65535; flags dynamic; counter;",
}


def content(addresses: set[Member], owned: set[Member], ranges: set[Member]) -> Content:
    chains = {"lost": Chain("", ["drop"]), "base": Chain(HOOK, ["ip saddr @addresses accept", "goto lost"])}
    members = {"addresses": addresses, "owned": owned, "ranges": ranges}
    return Content(SETS, chains, {name: frozenset(each) for name, each in members.items()})


TWO = content({"10.0.0.1", "10.0.0.2"}, {("veth-a", "10.0.0.1")}, {"10.0.0.0/8"})


def test_sets_come_before_chains_and_chains_before_rules() -> None:
    assert filter_table.render_structure(TWO).splitlines() == [
        f"add table {TABLE}",
        *(f"add set {TABLE} {name} {{ {declaration} }}" for name, declaration in SETS.items()),
        f"add chain {TABLE} lost {{  }}",
        f"add chain {TABLE} base {{ {HOOK} }}",
        f"flush chain {TABLE} lost",
        f"flush chain {TABLE} base",
        f'add rule {TABLE} lost drop comment "{filter_table.tag("drop")}"',
        f'add rule {TABLE} base ip saddr @addresses accept comment "{filter_table.tag("ip saddr @addresses accept")}"',
        f'add rule {TABLE} base goto lost comment "{filter_table.tag("goto lost")}"',
    ]


def test_a_replacement_removes_the_old_table_in_the_same_transaction() -> None:
    assert filter_table.render_replacement(TWO) == (
        f"add table {TABLE}\ndelete table {TABLE}\n{filter_table.render_structure(TWO)}"
    )


def test_a_base_chain_is_added_or_deleted() -> None:
    assert filter_table.render_base_chain(TWO, "base") == (
        f"add chain {TABLE} base {{ {HOOK} }}\n"
        f"flush chain {TABLE} base\n"
        f'add rule {TABLE} base ip saddr @addresses accept comment "{filter_table.tag("ip saddr @addresses accept")}"\n'
        f'add rule {TABLE} base goto lost comment "{filter_table.tag("goto lost")}"\n'
    )
    assert filter_table.render_base_chain(replace(TWO, chains={}), "base") == f"delete chain {TABLE} base\n"


def test_members_are_replaced_set_by_set() -> None:
    assert filter_table.render_members(TWO, ["addresses", "owned"]) == (
        f"flush set {TABLE} addresses\n"
        f"flush set {TABLE} owned\n"
        f"add element {TABLE} addresses {{ 10.0.0.1, 10.0.0.2 }}\n"
        f'add element {TABLE} owned {{ "veth-a" . 10.0.0.1 }}\n'
    )


def test_a_change_costs_as_much_as_its_members() -> None:
    new = TWO.changed({"addresses": frozenset({"10.0.0.2", "10.0.0.3"}), "owned": frozenset()})

    assert filter_table.render_change(new, member_change(TWO, new)) == (
        f"delete element {TABLE} addresses {{ 10.0.0.1 }}\n"
        f'delete element {TABLE} owned {{ "veth-a" . 10.0.0.1 }}\n'
        f"add element {TABLE} addresses {{ 10.0.0.3 }}\n"
    )
    assert not member_change(new, new)


def test_ranges_are_replaced_because_they_may_overlap() -> None:
    new = TWO.changed({"ranges": frozenset({"10.0.0.0/9", "10.128.0.0/9"})})

    assert filter_table.render_change(new, member_change(TWO, new)) == (
        f"flush set {TABLE} ranges\nadd element {TABLE} ranges {{ 10.0.0.0/9, 10.128.0.0/9 }}\n"
    )


def test_a_map_has_keys_and_values() -> None:
    ports = replace(TWO, sets={"ports": "type mark : inet_service;"}, members={"ports": frozenset({("1", "15001")})})

    assert f"add map {TABLE} ports {{ type mark : inet_service; }}\n" in filter_table.render_structure(ports)
    assert filter_table.render_members(ports, ["ports"]) == (
        f"flush map {TABLE} ports\nadd element {TABLE} ports {{ 1 : 15001 }}\n"
    )


QUEUED = replace(TWO, chains={**TWO.chains, "queued": Chain("", [])}, queue_rules=(QueueRule("queued", 5, 2, True),))


def test_a_chain_whose_rule_queues_keeps_it_until_it_is_replaced_alone() -> None:
    text = filter_table.render_structure(QUEUED)

    assert f"add chain {TABLE} queued {{  }}" in text
    assert "flush chain inet nfq_enforcer queued" not in text
    assert [rule.text for rule in (QueueRule("c", 5, 1, False), *QUEUED.queue_rules)] == [
        "NFQUEUE 5:5",
        "NFQUEUE 5:6 bypass",
    ]


# -- comparison --------------------------------------------------------------------------------------------------------


def listed(content: Content = TWO) -> str:
    """Return the output of ``nft -n -y -t list ruleset`` for an intact table between two of others."""
    others = "table inet others {\n\tset addresses {\n\t}\n\n\tchain base {\n\t\tdrop\n\t}\n}\n"
    sets = "".join(f"\tset {name} {{\n\t\ttype ipv4_addr\n\t}}\n\n" for name in SETS)
    chains = ""
    queued = {rule.chain: rule.text for rule in content.queue_rules}
    for name, chain in content.chains.items():
        texts = [*chain.rules, *([queued[name]] if name in queued else [])]
        rules = [f'{rule} comment "{filter_table.tag(rule)}"' for rule in texts]
        lines = "".join(f"\t\t{line}\n" for line in (*filter(None, [chain.hook]), *rules))
        chains += f"\tchain {name} {{\n{lines}\t}}\n"
    return f"{others}table {TABLE} {{\n{sets}{chains}}}\n{others}"


def found(text: str) -> list[str]:
    return [fault.text for fault in filter_table.structure_faults(text, TWO)]


def test_an_intact_structure_has_no_fault() -> None:
    assert found(listed()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("table inet nfq_enforcer", "table inet nfq_enforcer2", "is missing"),
        ("nfq_enforcer {\n", "nfq_enforcer {\n\tflags dormant\n\n", "is switched off"),
        ("\tchain lost", "\tchain found", "chain lost is missing"),
        ("priority -450", "priority 0", "chain base has another hook"),
        (HOOK, "drop", "chain base has another hook"),
        ("\t\tdrop comment", "\t\taccept\n\t\tdrop comment", "chain lost has other rules"),
        (f' comment "{filter_table.tag("drop")}"', "", "chain lost has other rules"),
        ("\tset counted {", "\tset others {", "set counted is missing"),
    ],
)
def test_each_difference_of_the_structure_is_named(old: str, new: str, fault: str) -> None:
    assert old in listed()
    assert found(listed().replace(old, new)) == [fault]


def test_a_rule_that_queues_is_one_of_its_chain() -> None:
    lost = listed(QUEUED).replace(filter_table.tag("NFQUEUE 5:6 bypass"), "00000000")

    assert list(filter_table.structure_faults(listed(QUEUED), QUEUED)) == []
    assert [fault.text for fault in filter_table.structure_faults(lost, QUEUED)] == ["chain queued has other rules"]


def test_a_base_chain_of_another_version_is_a_fault() -> None:
    """Its rules would still have an effect."""
    more = listed().replace("\tchain base", f"\tchain old {{\n\t\t{HOOK}\n\t\tdrop\n\t}}\n\n\tchain base")

    assert found(more) == ["chain old is none of this version"]


def test_a_table_of_another_family_is_another_place() -> None:
    bridge = replace(TWO, family="bridge")

    assert list(filter_table.structure_faults(listed(), bridge)) == [
        Fault("table bridge nfq_enforcer", "is missing"),
    ]
    assert "add table bridge nfq_enforcer\n" in filter_table.render_structure(bridge)
    assert TABLE not in filter_table.render_structure(bridge) + filter_table.render_members(bridge, bridge.members)


def test_rules_in_another_order_are_a_fault() -> None:
    moved = Content(SETS, {**TWO.chains, "base": Chain(HOOK, TWO.chains["base"].rules[::-1])}, TWO.members)

    assert [fault.text for fault in filter_table.structure_faults(listed(), moved)] == ["chain base has other rules"]


def member_fault(elements: list[Any], *wanted: Member) -> str | None:
    listed = json.dumps(
        {"nftables": [{"metainfo": {}}, {"set": {"name": "s", **({"elem": elements} if elements else {})}}]}
    )
    fault = filter_table.member_fault("s", listed, frozenset(wanted))
    assert fault is None or fault.place == PLACE
    return fault.text if fault else None


def test_equal_members_have_no_fault_in_any_notation() -> None:
    prefix = {"prefix": {"addr": "10.0.0.0", "len": 8}}

    assert member_fault(["10.0.0.1", "::ffff:10.0.0.1"], "10.0.0.1", "::ffff:a00:1") is None
    assert member_fault([{"concat": ["veth-a", "10.0.0.1"]}], ("veth-a", "10.0.0.1")) is None
    assert member_fault([{"concat": ["fd00::1", 6379]}], ("fd00:0::1", "6379")) is None
    assert member_fault([prefix, "10.1.1.1"], "10.0.0.0/8", "10.1.1.1/32") is None
    assert member_fault([{"concat": ["10.0.0.1", {"range": [80, 90]}]}], ("10.0.0.1", "80-90")) is None
    assert member_fault([[1, 15001]], ("1", "15001")) is None
    assert member_fault([]) is None


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ([], "set s lacks 2 of 2 members"),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "set s has 1 others"),
        (["10.0.0.1", {"range": ["10.0.0.2", "10.0.0.9"]}], "set s lacks 1 of 2 members and has 1 others"),
    ],
)
def test_each_difference_of_the_members_is_counted(elements: list[Any], text: str) -> None:
    assert member_fault(elements, "10.0.0.1", "10.0.0.2") == text


def test_a_set_that_is_missing() -> None:
    assert filter_table.member_fault("s", None, frozenset()) == Fault(PLACE, "set s is missing")


def test_counters_are_read_by_member() -> None:
    element = {"elem": {"val": "veth-web", "counter": {"packets": 7, "bytes": 420}}}

    assert filter_table.read_counters(json.dumps({"nftables": [{"set": {"elem": [element]}}]})) == {"veth-web": 7}
    assert filter_table.read_counters(json.dumps({"nftables": [{"set": {"name": "drops"}}]})) == {}
