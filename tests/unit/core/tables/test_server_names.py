"""Patterns of TLS server names: those that upstream accepts, as expressions without any other operator of RE2."""

import pytest

from nfq_enforcer.core.tables.server_names import expression, is_pattern


@pytest.mark.parametrize(
    "text", ["a", "A-1_.b", "*", "**", "*.a", "**.a", "a.**.b", "*a", "a*", "a*b*c.*", "*.*", "a.*.**"]
)
def test_a_pattern_of_upstream_is_accepted(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "***",
        "a.***.b",
        "a.c**",
        "**a",
        "a.",
        ".a",
        "a..b",
        "^a$",
        ".+a",
        "[a]*.b",
        "(a|b).c",
        "a b",
        "a" * 256,
        "é",
        "a\n",
    ],
)
def test_what_upstream_refuses_is_refused(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("A.b", "a[.]b"),
        ("*", "[-a-z0-9_]+([.][-a-z0-9_]+)*"),
        ("**.a", "[-a-z0-9_]+([.][-a-z0-9_]+)*[.]a"),
        ("a*.**", "a[-a-z0-9_]*[.][-a-z0-9_]+([.][-a-z0-9_]+)*"),
    ],
)
def test_a_pattern_is_an_expression_of_names_in_lower_case(pattern: str, expected: str) -> None:
    assert expression(pattern) == expected
