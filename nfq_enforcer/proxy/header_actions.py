"""Header actions of ``headerMatches`` with a mismatch action, as filters of Envoy that change an allowed request.

As upstream, the actions of every rule that matches a request apply, in the order of the rules: a header that does not
have its value is added to (ADD), removed (DELETE), or set (REPLACE). LOG changes nothing. The values of a repeated
header are one, joined by commas.

A listener has a fixed number of filters, each for one action, which are off unless a route configuration has settings
for them. So a rule set has at most ``MAX_ACTIONS`` different actions.
"""

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule
from nfq_enforcer.proxy.extension import FILTERS, TYPE, extension
from nfq_enforcer.proxy.rule_set import ANY_BYTES, Json, RuleSet, fields, header_name, http_matches, required, rules

MAX_ACTIONS = 16

_COMPOSITE = f"{FILTERS}.http.composite.v3"
_HEADER_TO_METADATA = f"{FILTERS}.http.header_to_metadata.v3.Config"
_LOG = "log"
_METADATA = "nfqe"  # namespace of the headers for the access log


def log_filter() -> Json:
    """Return the filter that keeps the headers, as the client sent them, for the access log; it is off."""
    return {**extension(_LOG, _HEADER_TO_METADATA), "disabled": True}


def filters() -> list[Json]:
    """Return the filters of actions; they are off."""
    return [{**extension(_name(number), f"{_COMPOSITE}.Composite"), "disabled": True} for number in range(MAX_ACTIONS)]


def settings(rule_set: RuleSet) -> Json:
    """Return the settings of these filters for a rule set, by the filter's name."""
    matches = http_matches(rules(rule_set))
    found: Json = {}
    if names := dict.fromkeys(header_name(header.name) for match in matches for header in match.headers):
        found[_LOG] = {"@type": _HEADER_TO_METADATA, "request_rules": [_kept(name) for name in names]}
    for number, (header, subjects) in enumerate(_actions(matches).items()):
        found[_name(number)] = _setting(header, subjects)
    return found


def excess(rule_set: RuleSet) -> tuple[L7Rule, ...]:
    """Return the rules with an action for which the listener has no filter left."""
    served = set(list(_actions(http_matches(rules(rule_set))))[:MAX_ACTIONS])
    return tuple(rule for rule in rules(rule_set) if not served.issuperset(_actions(http_matches((rule,)))))


def _name(number: int) -> str:
    return f"action-{number}"


def _kept(name: str) -> Json:
    return {"header": name, "on_header_present": {"metadata_namespace": _METADATA, "key": name}}


def _actions(matches: list[HttpMatch]) -> dict[HeaderMatch, list[HttpMatch]]:
    """Return the matches of each different action."""
    actions: dict[HeaderMatch, list[HttpMatch]] = {}
    for match in matches:
        for header in match.headers:
            if _mutation(header):
                actions.setdefault(header._replace(name=header_name(header.name)), []).append(match)
    return actions


def _setting(header: HeaderMatch, subjects: list[HttpMatch]) -> Json:
    """Return the setting of a filter that executes an action if one of the matches, and not the header, matches."""
    missing = {"not_matcher": _has(header)}
    requests = [_all([*_subject(match), missing]) for match in subjects]
    on_match = {"action": extension("action", f"{_COMPOSITE}.ExecuteFilterAction", typed_config=_filter(header))}
    matchers = [{"predicate": request, "on_match": on_match} for request in requests]
    return {"@type": f"{_COMPOSITE}.CompositePerRoute", "matcher": {"matcher_list": {"matchers": matchers}}}


def _subject(match: HttpMatch) -> list[Json]:
    fixed = [_matches(name, _expression(expression)) for name, expression in fields(match)]
    return [*fixed, *map(_has, required(match))]


def _filter(header: HeaderMatch) -> Json:
    mutations = {"request_mutations": [_mutation(header)]}
    return extension("mutation", f"{FILTERS}.http.header_mutation.v3.HeaderMutation", mutations=mutations)


def _mutation(header: HeaderMatch) -> Json | None:
    """Return the change of a request without the header; None if nothing changes."""
    name = header_name(header.name)
    match header.mismatch:
        case "ADD":
            append_action = "APPEND_IF_EXISTS_OR_ADD"
        case "REPLACE":
            append_action = "OVERWRITE_IF_EXISTS_OR_ADD"
        case "DELETE" if header.value is not None:
            return {"remove": name}
        case _:
            return None
    added = {"key": name, "value": (header.value or "").replace("%", "%%")}
    return {"append": {"header": added, "append_action": append_action, "keep_empty_value": True}}


def _has(header: HeaderMatch) -> Json:
    expected = _expression(ANY_BYTES) if header.value is None else {"exact": header.value}
    return _matches(header_name(header.name), expected)


def _expression(expression: str) -> Json:
    return {"safe_regex": {"google_re2": {}, "regex": expression}}


def _matches(name: str, expected: Json) -> Json:
    input_type = f"{TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"single_predicate": {"input": extension("header", input_type, header_name=name), "value_match": expected}}


def _all(predicates: list[Json]) -> Json:
    return predicates[0] if len(predicates) == 1 else {"and_matcher": {"predicate": predicates}}
