"""Comparison of the kernel's rules with the wanted ones: each difference is found and named."""

from collections.abc import Callable

import pytest

from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.comparison import Fault, describe, learn, parse_chains, rule_faults
from nfq_enforcer.dataplane.rules.offload_rules import PerFlowRules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, Ruleset

RULES = Ruleset(allocate_queues(100, 2), fail_open=False, cluster_mtus={"eth0": 1500}, offload=PerFlowRules(2))
TEXT = ruleset.render(RULES, IPV4, {})
WANTED = parse_chains(TEXT)
SECURITY, MANGLE = "IPv4 security", "IPv4 mangle"

Chains = dict[tuple[str, str], list[str]]


def faults(change: Callable[[Chains], object]) -> list[Fault]:
    """Return the faults of the wanted chains after a change."""
    chains = parse_chains(TEXT)
    change(chains)
    return list(rule_faults("IPv4", chains, WANTED, {}))


def test_the_output_of_iptables_save_is_parsed() -> None:
    saved = "# Generated\n*security\n:INPUT ACCEPT [3:4]\n:A - [0:0]\n-A INPUT -j A\n-A A -p tcp -j DROP\nCOMMIT\n"

    assert parse_chains(saved) == {("security", "INPUT"): ["-j A"], ("security", "A"): ["-p tcp -j DROP"]}


def test_a_rule_without_match_and_target_is_empty() -> None:
    assert parse_chains("*security\n-A INPUT\n") == {("security", "INPUT"): [""]}


def test_equal_rules_have_no_fault() -> None:
    assert faults(lambda chains: None) == []


def test_rules_of_others_are_no_fault() -> None:
    def change(chains: Chains) -> None:
        chains["security", "FORWARD"] += ["-j ACCEPT"]
        chains["security", "INPUT"].insert(0, "-j LOG")
        chains["security", "OTHERS"] = ["-j ACCEPT"]

    assert faults(change) == []


def test_a_jump_that_is_missing() -> None:
    assert faults(lambda chains: chains["security", "FORWARD"].clear()) == [
        Fault(SECURITY, "jump from FORWARD to NFQE-FORWARD is missing")
    ]
    assert faults(lambda chains: chains.pop(("mangle", "POSTROUTING"))) == [
        Fault(MANGLE, "jump from POSTROUTING to NFQE-MSS-OUT is missing")
    ]


def test_a_jump_that_packets_can_skip() -> None:
    assert faults(lambda chains: chains["security", "FORWARD"].insert(0, "-p udp -j ACCEPT")) == [
        Fault(SECURITY, "jump from FORWARD to NFQE-FORWARD comes after '-p udp -j ACCEPT'")
    ]


def test_a_chain_that_is_missing() -> None:
    assert faults(lambda chains: chains.pop(("security", "NFQE-QUEUE"))) == [
        Fault(SECURITY, "chain NFQE-QUEUE is missing")
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rules: rules.clear(), "lacks 4 of 4 rules"),
        (lambda rules: rules.pop(), "lacks 1 of 4 rules"),
        (lambda rules: rules.insert(0, "-j ACCEPT"), "has 1 other rules"),
        (lambda rules: rules.__setitem__(0, "-j ACCEPT"), "lacks 1 of 4 rules and has 1 other rules"),
        (lambda rules: rules.reverse(), "has its rules in another order or twice"),
        (lambda rules: rules.append(rules[0]), "has its rules in another order or twice"),
    ],
)
def test_a_chain_with_other_rules(change: Callable[[list[str]], object], text: str) -> None:
    assert faults(lambda chains: change(chains["security", "NFQE-IGMP"])) == [
        Fault(SECURITY, f"chain NFQE-IGMP {text}")
    ]


def test_rules_in_the_form_of_another_iptables_are_learned() -> None:
    other = parse_chains(TEXT.replace("0x0/", "0/").replace("-p tcp -m tcp", "-p 6 -m tcp"))

    forms = learn(other, WANTED)

    assert list(rule_faults("IPv4", other, WANTED, {})) != []
    assert list(rule_faults("IPv4", other, WANTED, forms)) == []


@pytest.mark.parametrize("change", [lambda rules: rules.pop(), lambda rules: rules.__setitem__(0, "-j ACCEPT")])
def test_a_chain_that_others_have_changed_is_not_learned(change: Callable[[list[str]], object]) -> None:
    chains = parse_chains(TEXT)
    change(chains["security", "NFQE-IGMP"])

    assert learn(chains, WANTED) == {}


def test_the_description_has_one_line_and_the_first_faults_of_each_place() -> None:
    many = [Fault(SECURITY, f"chain {name} is missing") for name in "ABCDEF"]

    assert describe([*many, Fault("set x", "is missing")]) == (
        "IPv4 security: chain A is missing, chain B is missing, chain C is missing, chain D is missing, 2 more; "
        "set x: is missing"
    )
