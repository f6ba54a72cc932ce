"""Patterns of DNS names: the meaning of a star, and matches without exponential time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.tables.dns_names import NamePatterns, matches, normalised


@pytest.mark.parametrize(
    ("pattern", "name", "matching"),
    [
        ("a.example", "a.example", True),
        ("a.example", "b.a.example", False),
        ("a.example", "a.examples", False),
        ("a.example", "aXexample", False),
        ("*", "a.example", True),
        ("*", "", True),
        ("*", "a b/*.example", True),
        ("*.example", "a.example", True),
        ("*.example", "a.b.example", False),
        ("*.example", "example", False),
        ("*.example", "\\*.example", False),
        ("*.example", "*.example", False),
        ("a*.example", "a.example", True),
        ("a*.example", "a-1_x.example", True),
        ("*a*b*.example", "xaxbxab.example", True),
        ("*a*b*.example", "xbxa.example", False),
        ("*.*.example", "a.b.example", True),
        ("a*a.example", "a.example", False),
        ("**.example", "a.example", True),
        ("**.example", "a.b.c.example", True),
        ("**.example", "example", False),
        ("**.*.example", "a.b.example", True),
        ("**.*.example", "b.example", False),
        ("a**.example", "ab.example", True),
        ("a**.example", "a.b.example", False),
        ("***.example", "a.b.example", True),
        ("***.example", "example", False),
        ("****.*.example.", "a.b.c.example", True),
        ("a.**.example", "a.b.example", True),
        ("a.**.example", "a.b.c.example", False),
        ("*.**", "a.b", True),
        ("*.**", "a.b.c", False),
        *(
            (every, name, True)
            for every in ("**", "*.", "**.", "***", "***.")
            for name in ("com", "a.com", "a.b.c", "")
        ),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, name: str, matching: bool) -> None:
    assert matches(normalised(pattern), name) is matching


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("A.Example.", "a.example"),
        *((every, "*") for every in ("*", "**", "*.", "**.", "*****.")),
        ("***.Example.", "**.example"),
        ("**.**.example", "**.**.example"),
        ("a***.example", "a***.example"),
    ],
)
def test_a_pattern_of_a_document_is_normalised(text: str, pattern: str) -> None:
    assert normalised(text) == pattern


PATTERNS = st.from_regex(r"([AB*]{1,4}\.){0,3}[AB*]{1,4}\.?", fullmatch=True)
NAMES = st.lists(st.text("ab-", min_size=1, max_size=3), max_size=4).map(".".join)
IN_LABEL = "[-a-zA-Z0-9_]"


def upstream(pattern: str) -> str:
    """Return upstream's expression for a pattern, which names with the trailing dot match (``ToAnchoredRegexp``)."""
    if re.fullmatch(r"\*+\.?", pattern):
        return rf"({IN_LABEL}+[.])+|[.]"
    absolute = pattern.lower().removesuffix(".") + "."
    text = re.sub(r"^\*{2,}\[\.\]", f"({IN_LABEL}+([.]{IN_LABEL}+){{0,}})[.]", absolute.replace(".", "[.]"))
    return re.sub(r"\*+", f"{IN_LABEL}*", text)


@settings(derandomize=True, database=None, deadline=None)
@given(PATTERNS, NAMES)
def test_a_pattern_matches_as_the_expression_of_upstream_does(pattern: str, name: str) -> None:
    assert matches(normalised(pattern), name) is (re.fullmatch(upstream(pattern), f"{name}.") is not None)


def test_the_values_of_all_matching_patterns_are_found() -> None:
    patterns = NamePatterns([("*.example", 1), ("a.example", 2), ("**.example", 1), ("a.example", 3), ("*", 4)])

    assert patterns.find("a.example") == (2, 3, 1, 4)
    assert patterns.find("b.a.example") == (1, 4)
    assert patterns.find("a.example") == (2, 3, 1, 4)
    assert patterns.values == (2, 3, 1, 4)
    assert (bool(patterns), bool(NamePatterns[int]([]))) == (True, False)
    assert NamePatterns([("a", 1)]).find("b") == ()


def test_equal_patterns_are_equal() -> None:
    one, other = (NamePatterns([("a", 1), ("*.b", 2)]) for _ in range(2))
    one.find("a")

    assert (one, hash(one)) == (other, hash(other))
    assert one != NamePatterns([("a", 1)])
    assert one != "a"


def test_many_names_do_not_grow_the_table() -> None:
    patterns = NamePatterns([("*.example", 1)])

    for number in range(5000):
        patterns.find(f"a{number}.example")

    assert len(patterns._found) <= 4096


def test_no_pattern_takes_long() -> None:
    began = time.perf_counter()

    assert not matches("*a" * 60 + ".b", "a" * 60 + ".c")
    assert not matches("**." + "*a" * 60 + ".b", ".".join(["aaa"] * 60))

    assert time.perf_counter() - began < 1
