"""Regular expressions: what both RE2 and Go's regexp accept, no more and no less."""

import pytest
import re2

from nfq_enforcer.policy import regex

ACCEPTED = (
    r"\pL",
    r"\p{Greek}",
    r"\p{^Lu}",
    r"\Q..\E",
    r"\Q\C",
    r"\\C",
    r"\z",
    r"\A",
    "(?U)a",
    "(?<x>a)",
    "(?P<x1_>a)",
    r"\x{61}",
    "[a&&b]",
    "[a||b]",
    "[(?P<ñ>]",
    "[]a]",
    "[a-b-c]",
    "[[:word:]]",
    "a{,2}",
    "a{1000}",
    r"\pN{1000}",
    ".{900}.{900}.{900}",
    r"\_",
    r"\<",
    r"\12",
    "^*",
    "(|a)*",
    "",
    "(a)" * 1500,
    "(" * 900 + ")" * 900,
)
REFUSED = (
    "/a++",
    "a**",
    "a{2}{3}",
    r"/a\Z",
    r"\C",
    r"[[:alpha:]]\C",
    "(?P=n)",
    "(?P<ñ>a)",
    "(?<ñ>a)",
    "(?P<a-b>c)",
    "(?=a)",
    "(?!a)",
    "(?<=a)",
    "(?#a)",
    "(?>a)",
    "(?x)a",
    "(?'n'a)",
    r"(a)\1",
    r"\8",
    r"\q",
    r"\h",
    "[a",
    "(a",
    "a)",
    r"[a-\d]",
    "[b-a]",
    "[[:foo:]]",
    r"\pX",
    "a{1001}",
    "(a{100}){100}",
    "a{2,1}",
    "*",
    "\\",
    "(" * 1500 + ")" * 1500,
    "\ud800",
)


@pytest.mark.parametrize("expression", ACCEPTED)
def test_what_both_accept_is_accepted(expression: str) -> None:
    assert regex.check(expression) == expression


@pytest.mark.parametrize("expression", REFUSED)
def test_what_either_refuses_is_refused_with_a_short_reason(expression: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression: ") as refused:
        regex.check(expression)

    assert str(refused.value).endswith("; allowed: the syntax of RE2 and Go")
    assert len(str(refused.value)) < 400


def test_an_expression_too_large_for_the_proxy_is_refused_for_requests_only() -> None:
    too_large = r"/\pL{1,1000}"

    assert regex.check(too_large) == too_large
    assert regex.check_for_proxy("/a{1,1000}|(?i)/b") == "/a{1,1000}|(?i)/b"
    with pytest.raises(ValueError, match=r"'/\\pL\{1,1000\}' is too large for the proxy; allowed: fewer repetitions"):
        regex.check_for_proxy(too_large)
    with pytest.raises(ValueError, match="is not a regular expression"):
        regex.check_for_proxy("/a(")


def test_a_text_is_compared_by_re2_alone_where_it_knows_no_range_of_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbounded:
        def possiblematchrange(self, size: int) -> None:
            raise re2.error("failed to compute match range")

        def fullmatch(self, octets: bytes) -> bytes | None:
            return octets if octets == "\U0010ffff".encode() else None

    monkeypatch.setattr(regex, "_compile", lambda expression: Unbounded())

    assert [regex.matches_whole("unbounded", text) for text in ("\U0010ffff", "a", "")] == [True, False, False]
