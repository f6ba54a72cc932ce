"""Address marks, as text: the members of the sets, and the classes that the chains give."""

import re
from ipaddress import ip_address, ip_network

import pytest

from nfq_enforcer.dataplane.rules import address_marks, packet_mark
from nfq_enforcer.dataplane.rules.filter_table import Chain
from nfq_enforcer.dataplane.rules.packet_mark import LEGACY, NFT


def test_the_ends_are_the_addresses_and_interfaces_of_endpoints() -> None:
    permitted = {"local4": frozenset({"10.0.0.1"}), "local6": frozenset({"fd00::1"}), "bound4": frozenset({"10.0.0.2"})}

    assert address_marks.ends(permitted, ["veth-a", "veth-a"]) == {
        "ends4": {"10.0.0.1"},
        "ends6": {"fd00::1"},
        "end_interfaces": {"veth-a"},
    }


def test_networks_that_overlap_are_merged() -> None:
    """A set of ranges refuses ranges that overlap."""
    networks = frozenset(map(ip_network, ("10.0.0.0/8", "10.1.2.0/24", "192.168.0.0/24", "192.168.1.0/24", "::/0")))

    assert address_marks.remote(networks) == {"remote4": {"10.0.0.0/8", "192.168.0.0/23"}, "remote6": {"::/0"}}


def test_each_service_of_the_store_is_in_the_set_of_its_family() -> None:
    services = [(ip_address("10.0.0.9"), 6379), (ip_address("fd00::9"), 6379), (ip_address("10.0.0.9"), 26379)]

    assert address_marks.store(services) == {
        "store4": {("10.0.0.9", "6379"), ("10.0.0.9", "26379")},
        "store6": {("fd00::9", "6379")},
    }
    assert tuple(address_marks.store([])) == address_marks.STORE


def chains(interfaces: list[str], security: list[int], *, uses_marks: bool = True) -> dict[str, Chain]:
    return address_marks.chains(interfaces, security, uses_marks=uses_marks)


@pytest.mark.parametrize("hook", ["input", "forward", "output"])
def test_every_packet_leaves_the_first_chain_with_bits_of_ours_only(hook: str) -> None:
    """Each way through the chains ends in a rule that sets or clears all four bits."""
    every = chains(["eth0"], [NFT])
    ways = {target for rule in every[f"mark_{hook}"].rules for target in re.findall(r"goto (\w+)", rule)}

    assert every[f"mark_{hook}"].rules[-1] == "goto others"
    assert ways - {"decided"} == {"others", "from_endpoint", "to_endpoint"}
    assert every["others"].rules == ["meta mark & 0xf0000000 != 0 meta mark set meta mark & 0xfffffff"]
    assert every["from_endpoint"].rules == ["meta mark set meta mark & 0xeffffff | 0x10000000"]
    marks = [rule for rule in every["to_endpoint"].rules if "meta mark set" in rule]
    assert not [rule for rule in marks if not re.search(r"meta mark & 0xeffffff \| 0x[2a]0000000( accept)?$", rule)]
    assert marks[-1] == "meta mark set meta mark & 0xeffffff | 0x20000000"


@pytest.mark.parametrize(
    ("security", "before", "after"), [([50, 50], 49, 51), ([150, 150], 149, 151), ([50, 150], 49, 151)]
)
def test_the_chains_are_right_before_and_right_after_those_of_table_security(
    security: list[int], before: int, after: int
) -> None:
    """iptables-legacy has the priority 50 for table security, iptables-nft 150."""
    hooks = {
        name: chain.hook
        for name, chain in chains([], security).items()
        if chain.hook and not name.endswith("translated")
    }

    assert hooks == {
        f"{name}_{hook}": f"type filter hook {hook} priority {priority}; policy accept;"
        for name, priority in (("mark", before), ("clear", after))
        for hook in ("input", "forward", "output")
    }


def test_only_routed_packets_are_in_transit() -> None:
    transit = {
        name for name, chain in chains(["eth0"], [NFT]).items() if any("@remote" in rule for rule in chain.rules)
    }

    assert transit == {"mark_forward"}
    assert not any("@remote" in rule for rule in chains([], [NFT])["mark_forward"].rules)


def test_the_store_is_exempt_only_for_the_host_itself_and_only_in_its_own_connections() -> None:
    exempt = {
        name: [rule for rule in chain.rules if "@store" in rule] for name, chain in chains(["eth0"], [NFT]).items()
    }

    assert {name for name, rules in exempt.items() if rules} == {"mark_input", "mark_output", "translated"}
    for name in ("mark_input", "translated"):
        assert all("ct direction reply" in rule and "ct state established" in rule for rule in exempt[name])
    assert all("ct direction original" in rule for rule in exempt["mark_output"])


def test_the_mask_is_that_of_packet_marks() -> None:
    assert packet_mark.MASK == 0xF0000000


@pytest.mark.parametrize(("security", "early"), [([NFT, NFT], True), ([LEGACY, LEGACY], False), ([LEGACY, NFT], False)])
def test_only_with_the_nft_backend_replies_of_a_translated_address_are_decided_early(
    security: list[int], early: bool
) -> None:
    every = chains(["eth0"], security)

    assert ({"mark_translated", "queue_translated", "decided"} <= every.keys()) is early
    assert any("goto decided" in rule for rule in every["mark_input"].rules) is early


def test_a_worker_learns_the_sender_of_such_a_reply_only_where_flows_have_connmarks() -> None:
    marked = f"| {packet_mark.FROM_REPLIER:#x}"
    rules = {uses: "\n".join(chains([], [NFT], uses_marks=uses)["undecided"].rules) for uses in (True, False)}

    assert (marked in rules[True], marked in rules[False]) == (True, False)
