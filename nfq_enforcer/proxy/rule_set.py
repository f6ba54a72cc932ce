"""Rule set: the rules of one slot, and the requests that Envoy lets pass, as permissions of its RBAC filter.

Rules of a side that differ in their paths only become one permission with one regular expression: a request costs one
match for all of them. The permission of a rule set is one, however many sides and rules it has.
"""

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import re2

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch, SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule
from nfq_enforcer.core.tables.slots import Side

Json = dict[str, Any]

ANY: Json = {"any": True}
NOTHING: Json = {"not_rule": ANY}
ANY_BYTES = r"\C*"  # of RE2: any bytes, even if they are not UTF-8

_META = frozenset(r"\.+*?()|[]{}^$")
_CONTROL = frozenset(map(chr, (*range(9), *range(10, 32), 127)))
_MAX_MERGED = 1 << 16  # characters of a regular expression of several paths
_UNMERGED = ("(?P<", "(?<", r"\Q")  # a group name, which an expression has once; quoted text, which may have no end


class RuleSet(NamedTuple):
    """Rule set: sides that all have to allow a request."""

    sides: tuple[Side, ...]


NO_REQUEST = RuleSet(((),))


def permission(rule_set: RuleSet) -> Json:
    """Return the permission of the requests that each side allows."""
    sides = [_side(side) for side in dict.fromkeys(rule_set.sides) if side is not None]
    return all_of([side for side in sides if side != ANY])


def rules(rule_set: RuleSet) -> tuple[L7Rule, ...]:
    """Return the rules of all sides, each once."""
    return tuple(dict.fromkeys(rule for side in rule_set.sides if side is not None for rule in side))


def without(rule_set: RuleSet, left_out: Collection[L7Rule]) -> RuleSet:
    """Return the rule set without some rules."""
    return RuleSet(tuple(side and tuple(rule for rule in side if rule not in left_out) for side in rule_set.sides))


def http_matches(side: Iterable[L7Rule]) -> list[HttpMatch]:
    """Return the matches of the HTTP rules."""
    return [rule.match for rule in side if isinstance(rule.match, HttpMatch)]


def is_usable(rule: L7Rule) -> bool:
    """Return whether Envoy can evaluate a rule; one that it cannot would make it refuse all rules of the slot."""
    match rule.match:
        case HttpMatch(headers=headers) as http:
            values_are_valid = not any(_CONTROL & set(header.value or "") for header in headers)
            return values_are_valid and all(_compiles(expression) for _, expression in fields(http))
    return isinstance(rule.match, SniMatch)


def required(match: HttpMatch) -> tuple[HeaderMatch, ...]:
    """Return the headers without which the match allows no request."""
    return tuple(header for header in match.headers if not header.mismatch)


def header_name(name: str) -> str:
    """Return the name of a header as Envoy has it, where ``Host`` is ``:authority``."""
    return ":authority" if name.lower() == "host" else name.lower()


def fields(match: HttpMatch) -> Iterator[tuple[str, str]]:
    """Yield name and regular expression of each pseudo-header that the match limits."""
    for name, expression in ((":method", match.method), (":path", match.path), (":authority", match.host)):
        if expression:
            yield name, expression


def string_match(expression: str) -> Json:
    """Return the match of a complete string, as a literal one where the regular expression has no operators."""
    return {"safe_regex": {"regex": expression}} if _META & set(expression) else {"exact": expression}


def _side(side: tuple[L7Rule, ...]) -> Json:
    """Return the permission of a side, whose rules are alternatives."""
    groups: dict[HttpMatch, dict[str, None]] = {}
    for match in http_matches(side):
        common = HttpMatch(match.method, "", match.host, required(match))
        groups.setdefault(common, {})[match.path] = None
    permissions = [
        all_of([*_matches(common), *([] if "" in paths else [any_of(_paths(paths))])])
        for common, paths in groups.items()
    ]
    return ANY if ANY in permissions else any_of(permissions)


def _matches(match: HttpMatch) -> Iterator[Json]:
    for name, expression in fields(match):
        yield {"header": {"name": name, "string_match": string_match(expression)}}
    for header in match.headers:
        yield {"header": {"name": header_name(header.name), **_value(header.value)}}


def _value(value: str | None) -> Json:
    return {"present_match": True} if value is None else {"string_match": {"exact": value}}


def _paths(expressions: Iterable[str]) -> list[Json]:
    """Return the permissions of alternative paths, of which one at least has to match."""
    return [{"header": {"name": ":path", "string_match": string_match(each)}} for each in merged(tuple(expressions))]


def merged(expressions: tuple[str, ...]) -> tuple[str, ...]:
    """Merge regular expressions into one, as far as that does not change their meaning."""
    merge = [each for each in expressions if not any(construct in each for construct in _UNMERGED)]
    merged = "|".join(f"(?:{each})" for each in merge)
    if len(merge) < 2 or len(merged) > _MAX_MERGED or not _compiles(merged):
        return expressions
    return (merged, *(each for each in expressions if each not in merge))


def all_of(permissions: list[Json]) -> Json:
    """Return the conjunction of permissions."""
    match permissions:
        case []:
            return ANY
        case [only]:
            return only
    return {"and_rules": {"rules": permissions}}


def any_of(permissions: list[Json]) -> Json:
    """Return the disjunction of permissions."""
    match permissions:
        case []:
            return NOTHING
        case [only]:
            return only
    return {"or_rules": {"rules": permissions}}


@lru_cache(maxsize=4096)
def _compiles(expression: str) -> bool:
    """Return whether Envoy compiles a regular expression: it limits the memory of one to RE2's default, 8 MiB."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(expression.encode(), options)
    except re2.error:
        return False
    return True
