"""Mismatch actions use the listener's filters, one for each different action."""

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.proxy import header_actions
from nfq_enforcer.proxy.header_actions import MAX_ACTIONS
from nfq_enforcer.proxy.rule_set import Json, RuleSet

REF = RuleRef("CiliumNetworkPolicy", "default", "test", Direction.INGRESS, 0)


def rule_set(*matches: HttpMatch) -> RuleSet:
    return RuleSet((tuple(L7Rule(REF, match) for match in matches),))


def matchers(setting: Json) -> list[Json]:
    found: list[Json] = setting["matcher"]["matcher_list"]["matchers"]
    return found


def mutation(setting: Json) -> Json:
    action = matchers(setting)[0]["on_match"]["action"]["typed_config"]["typed_config"]
    found: Json = action["typed_config"]["mutations"]["request_mutations"][0]
    return found


def test_rules_without_headers_have_no_settings() -> None:
    assert header_actions.settings(rule_set(HttpMatch("GET", "/a"))) == {}
    assert header_actions.settings(RuleSet((None, ()))) == {}


def test_headers_that_rules_name_are_kept_for_the_access_log() -> None:
    settings = header_actions.settings(
        rule_set(HttpMatch(headers=(HeaderMatch("X-A"), HeaderMatch("x-a", "1", "LOG"))))
    )

    assert list(settings) == ["log"]
    assert [rule["header"] for rule in settings["log"]["request_rules"]] == ["x-a"]


def test_each_action_has_its_mutation() -> None:
    headers = (HeaderMatch("X-A", "1%", "ADD"), HeaderMatch("X-B", "2", "REPLACE"), HeaderMatch("X-C", "3", "DELETE"))
    _, add, replace, delete = header_actions.settings(rule_set(HttpMatch(headers=headers))).values()

    assert mutation(add)["append"] == {
        "header": {"key": "x-a", "value": "1%%"},
        "append_action": "APPEND_IF_EXISTS_OR_ADD",
        "keep_empty_value": True,
    }
    assert mutation(replace)["append"]["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"
    assert mutation(delete) == {"remove": "x-c"}


def test_a_header_that_only_has_to_be_present_is_not_deleted() -> None:
    assert list(header_actions.settings(rule_set(HttpMatch(headers=(HeaderMatch("X-C", None, "DELETE"),))))) == ["log"]


def test_one_action_of_several_rules_has_one_filter() -> None:
    header = HeaderMatch("X-A", "1", "REPLACE")
    settings = header_actions.settings(
        rule_set(HttpMatch("GET", headers=(header,)), HttpMatch("PUT", headers=(header._replace(name="x-a"),)))
    )

    assert list(settings) == ["log", "action-0"]
    assert len(matchers(settings["action-0"])) == 2


def test_rules_with_more_actions_than_a_listener_has_filters_are_in_excess() -> None:
    many = [HttpMatch(path=f"/{n}", headers=(HeaderMatch(f"X-{n}", "1", "ADD"),)) for n in range(MAX_ACTIONS + 2)]
    rules = rule_set(*many, HttpMatch("GET"))

    assert [rule.match for rule in header_actions.excess(rules)] == many[MAX_ACTIONS:]
    assert len(header_actions.filters()) == MAX_ACTIONS
    assert all(each["disabled"] for each in [*header_actions.filters(), header_actions.log_filter()])
