"""CIDR groups: a rule that names them means their prefixes, as they are now."""

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.rules import AddressBlock
from nfq_enforcer.policy.rules_index import RulesIndex

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p}}
spec: {{endpointSelector: {{}}, {section}: [{{{field}: [{{{entry}}}]}}]}}
"""
GROUP = """
apiVersion: {version}
kind: CiliumCIDRGroup
metadata: {{name: {name}, labels: {{{labels}}}}}
spec: {{externalCIDRs: [{cidrs}]}}
"""
SECTIONS = [
    ("ingress", "fromCIDRSet"),
    ("egress", "toCIDRSet"),
    ("ingressDeny", "fromCIDRSet"),
    ("egressDeny", "toCIDRSet"),
]


def policy(entry: str, section: str = "ingress", field: str = "fromCIDRSet") -> str:
    return POLICY.format(section=section, field=field, entry=entry)


def group(name: str, cidrs: str, labels: str = "", version: str = "cilium.io/v2") -> str:
    return GROUP.format(name=name, cidrs=cidrs, labels=labels, version=version)


def documents(*texts: str) -> tuple[PolicyDocument, ...]:
    return group_documents(one.document for one in parse("---".join(texts), "f")).policies


def meant(*texts: str) -> list[str]:
    """Return the address blocks of the only rule of documents, each with its excluded prefixes."""
    (rule,) = RulesIndex(documents(*texts)).rules
    return blocks(rule.peers)


def blocks(peers: object) -> list[str]:
    assert isinstance(peers, tuple)
    assert all(isinstance(peer, AddressBlock) and not peer.includes_endpoints for peer in peers)
    return [" - ".join(map(str, (peer.prefix, *sorted(peer.excluded, key=str)))) for peer in peers]


def problem(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(text, "f")
    (line,) = str(caught.value).splitlines()
    return line


OFFICE = group("office", "10.0.0.0/8, 2001:db8::/32", "kind: site")
BRANCH = group("branch", "192.0.2.0/24, 10.0.0.0/8", "kind: site, small: 'yes'", version="cilium.io/v2alpha1")
EMPTY = group("empty", "")


@pytest.mark.parametrize(("section", "field"), SECTIONS)
def test_an_entry_means_the_prefixes_of_the_group_that_it_names(section: str, field: str) -> None:
    assert meant(policy("cidrGroupRef: office", section, field), OFFICE, BRANCH) == ["10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("matchLabels: {small: 'yes'}", ["192.0.2.0/24", "10.0.0.0/8"]),
        ("matchLabels: {kind: site}", ["10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24"]),
        ("matchExpressions: [{key: small, operator: DoesNotExist}]", ["10.0.0.0/8", "2001:db8::/32"]),
        ("", ["10.0.0.0/8", "2001:db8::/32", "192.0.2.0/24"]),
        ("matchLabels: {kind: house}", []),
    ],
)
def test_an_entry_means_the_prefixes_of_every_group_that_it_selects_each_once(
    selector: str, expected: list[str]
) -> None:
    assert meant(policy(f"cidrGroupSelector: {{{selector}}}"), OFFICE, BRANCH, EMPTY) == expected


@pytest.mark.parametrize(
    ("excluded", "expected"),
    [
        ("10.1.0.0/16, 10.2.0.0/16", ["10.0.0.0/8 - 10.1.0.0/16 - 10.2.0.0/16", "2001:db8::/32"]),
        ("2001:db8:1::/48", ["10.0.0.0/8", "2001:db8::/32 - 2001:db8:1::/48"]),
        ("10.0.0.0/8", ["2001:db8::/32"]),
        ("0.0.0.0/0, '::/0'", []),
        ("172.16.0.0/12", ["10.0.0.0/8", "2001:db8::/32"]),
    ],
)
def test_except_takes_its_addresses_out_of_each_prefix(excluded: str, expected: list[str]) -> None:
    assert meant(policy(f"cidrGroupRef: office, except: [{excluded}]"), OFFICE) == expected


@pytest.mark.parametrize("others", [(), (BRANCH,), (EMPTY,)])
def test_without_its_group_an_entry_is_about_nobody(others: tuple[str, ...]) -> None:
    assert meant(policy("cidrGroupRef: office"), *others) == []
    assert meant(policy("cidrGroupRef: empty"), EMPTY) == []


def test_a_changed_group_changes_the_rules_that_name_groups_and_no_others() -> None:
    before = RulesIndex(documents(policy("cidrGroupRef: office"), policy("cidr: 10.0.0.0/8"), OFFICE, EMPTY))
    first, second, *groups = before.documents
    (larger,) = documents(group("office", "192.0.2.0/24"))

    after = RulesIndex((first, second, larger), before)
    assert blocks(after.rules[0].peers) == ["192.0.2.0/24"]
    assert after.rules[1] is before.rules[1]
    same = RulesIndex((second, first, *groups), before)
    assert {id(rule) for rule in same.rules} == {id(rule) for rule in before.rules}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("except: [10.0.0.0/8]", "none of them given; allowed: one of cidr, cidrGroupRef and cidrGroupSelector"),
        ("cidr: 10.0.0.0/8, cidrGroupRef: a", "cidr and cidrGroupRef given; allowed: one of cidr, cidrGroupRef and"),
        ("cidrGroupRef: a, cidrGroupSelector: {}", "cidrGroupRef and cidrGroupSelector given; allowed: one of"),
        ("cidrGroupRef: A_b", "cidrGroupRef"),
        ("cidr: 10.0.0.0/8, except: [192.0.2.0/24]", "except 192.0.2.0/24 is not within 10.0.0.0/8"),
    ],
)
def test_an_entry_has_one_of_three_forms(entry: str, says: str) -> None:
    assert says in problem(policy(entry))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (group("g", "10.0.0.1"), "spec.externalCIDRs[0]"),
        (group("g", "10.0.0.0/33"), "spec.externalCIDRs[0]"),
        (OFFICE.replace("externalCIDRs", "cidrs"), "unknown field 'cidrs'"),
        (
            group("g", "", version="cilium.io/v1"),
            "apiVersion: the apiVersion of CiliumCIDRGroup is cilium.io/v2 or cilium.io/v2alpha1, not cilium.io/v1",
        ),
    ],
)
def test_a_wrong_group_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, "f")
    assert says in str(caught.value)


@pytest.mark.parametrize("version", ["cilium.io/v2", "cilium.io/v2alpha1"])
def test_a_list_of_groups_is_read(version: str) -> None:
    item = "{metadata: {name: a}, spec: {externalCIDRs: [10.0.0.0/8]}}"

    (found,) = documents(f"apiVersion: {version}\nkind: CiliumCIDRGroupList\nitems: [{item}]\n")
    assert (found.kind, found.api_version, found.has_rules) == ("CiliumCIDRGroup", version, False)
