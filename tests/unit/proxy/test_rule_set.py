"""Rule sets become one permission, with as few regular expressions as their rules allow."""

import pytest

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.proxy.rule_set import ANY, NO_REQUEST, NOTHING, Json, RuleSet, is_usable, permission, rules, without

REF = RuleRef("CiliumNetworkPolicy", "default", "test", Direction.INGRESS, 0)


def side(*matches: HttpMatch) -> tuple[L7Rule, ...]:
    return tuple(L7Rule(REF, match) for match in matches)


def header(name: str, **expected: object) -> Json:
    return {"header": {"name": name, **expected}}


def exact(name: str, value: str) -> Json:
    return header(name, string_match={"exact": value})


def regex(name: str, expression: str) -> Json:
    return header(name, string_match={"safe_regex": {"regex": expression}})


def both(*permissions: Json) -> Json:
    return {"and_rules": {"rules": list(permissions)}}


def either(*permissions: Json) -> Json:
    return {"or_rules": {"rules": list(permissions)}}


def test_the_fields_of_a_rule_have_to_match_together() -> None:
    match = HttpMatch(
        "GET|HEAD", "/a", r"b\.example", (HeaderMatch("X-C", "d"), HeaderMatch("E"), HeaderMatch("Host", "f"))
    )

    assert permission(RuleSet((side(match),))) == both(
        regex(":method", "GET|HEAD"),
        regex(":authority", r"b\.example"),
        exact("x-c", "d"),
        header("e", present_match=True),
        exact(":authority", "f"),
        exact(":path", "/a"),
    )


def test_rules_that_differ_in_their_paths_only_share_a_regular_expression() -> None:
    rule_set = RuleSet((side(HttpMatch("GET", "/a"), HttpMatch("GET", "/b/.*"), HttpMatch("PUT", "/c")),))

    assert permission(rule_set) == either(
        both(exact(":method", "GET"), regex(":path", "(?:/a)|(?:/b/.*)")),
        both(exact(":method", "PUT"), exact(":path", "/c")),
    )


@pytest.mark.parametrize("expression", ["/(?P<n>a+)", "/(?<n>a+)", r"/\Qa"])
def test_expressions_that_cannot_be_merged_stay_alone(expression: str) -> None:
    rule_set = RuleSet((side(HttpMatch(path="/a+"), HttpMatch(path="/b+"), HttpMatch(path=expression)),))

    assert permission(rule_set) == either(regex(":path", "(?:/a+)|(?:/b+)"), regex(":path", expression))
    two = RuleSet((side(HttpMatch(path="/a+"), HttpMatch(path=expression)),))
    assert permission(two) == either(regex(":path", "/a+"), regex(":path", expression))


def test_more_than_a_regular_expression_may_have_is_not_merged() -> None:
    paths = [f"/{'a' * 20_000}{number}+" for number in range(4)]

    assert permission(RuleSet((side(*(HttpMatch(path=path) for path in paths)),))) == either(
        *(regex(":path", path) for path in paths)
    )


def test_each_side_has_to_allow_and_one_without_a_limit_does() -> None:
    one, other = side(HttpMatch(path="/a")), side(HttpMatch("GET"))

    assert permission(RuleSet((one, other))) == both(exact(":path", "/a"), exact(":method", "GET"))
    assert permission(RuleSet((one, None, one))) == exact(":path", "/a")
    assert permission(RuleSet((one, side(HttpMatch(), HttpMatch("GET"))))) == exact(":path", "/a")
    assert permission(RuleSet((None,))) == permission(RuleSet(())) == permission(RuleSet((side(HttpMatch()),))) == ANY
    assert permission(NO_REQUEST) == NOTHING
    assert permission(RuleSet((one, ()))) == both(exact(":path", "/a"), NOTHING)


def test_a_header_with_a_mismatch_action_is_no_condition() -> None:
    match = HttpMatch(path="/a", headers=(HeaderMatch("X-T", "1", "ADD"),))

    assert permission(RuleSet((side(match, HttpMatch(path="/b")),))) == regex(":path", "(?:/a)|(?:/b)")


def test_a_rule_of_dns_allows_no_request() -> None:
    dns = L7Rule(REF, DnsMatch("*"))

    assert not is_usable(dns)
    assert permission(RuleSet(((dns,),))) == NOTHING


def test_an_expression_that_is_too_large_for_envoy_is_not_usable() -> None:
    large, small = side(HttpMatch(path=r"/(\pL{500}){2}"), HttpMatch(path=r"/\pL{10}"))

    assert not is_usable(large)
    assert is_usable(small)


def test_rules_of_all_sides_stand_once_and_can_be_left_out() -> None:
    one, other = side(HttpMatch("GET"), HttpMatch("PUT"))
    rule_set = RuleSet(((one, other), None, (other,)))

    assert rules(rule_set) == (one, other)
    assert without(rule_set, [other]) == RuleSet(((one,), None, ()))
