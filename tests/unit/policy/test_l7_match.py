"""What a layer-7 rule matches: the whole of every field, all fields at once, header names in any case."""

import time

import pytest

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch, HttpRequest
from nfq_enforcer.policy.l7_match import matches_name, matches_request

GET_USER = HttpRequest("GET", "/userdata/7", "shop.example.com", (("X-Token", "a"), ("accept", "text/html")))


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (HttpMatch(), True),
        (HttpMatch("GET", "/userdata/[0-9]+", "shop[.]example[.]com"), True),
        (HttpMatch("GET", "/userdata"), False),  # the whole path
        (HttpMatch("GET", "userdata/7"), False),
        (HttpMatch("GET|PUT", "/a|/userdata/.*"), True),
        (HttpMatch("PUT"), False),
        (HttpMatch("get"), False),
        (HttpMatch("G"), False),
        (HttpMatch(path="/userdata/|7"), False),  # alternatives are anchored as a whole
        (HttpMatch(host="shop"), False),
        (HttpMatch(host="SHOP[.]example[.]com"), False),
        (HttpMatch(headers=(HeaderMatch("x-token"),)), True),
        (HttpMatch(headers=(HeaderMatch("x-token", "a"), HeaderMatch("ACCEPT", "text/html"))), True),
        (HttpMatch(headers=(HeaderMatch("X-Token", "A"),)), False),
        (HttpMatch(headers=(HeaderMatch("X-Token", "a"), HeaderMatch("X-Other"))), False),
    ],
)
def test_a_request_matches_a_rule_in_every_field(rule: HttpMatch, matches: bool) -> None:
    assert matches_request(rule, GET_USER) is matches


@pytest.mark.parametrize(("asked", "matches"), [("a.example", True), ("A.Example.", True), ("b.a.example", False)])
def test_a_dns_rule_matches_whole_names(asked: str, matches: bool) -> None:
    assert matches_name(DnsMatch("a[.]example"), asked) is matches


@pytest.mark.parametrize(
    ("match", "headers", "matches"),
    [
        (HeaderMatch("x", "a"), (("x", "a"), ("X", "b")), False),  # Envoy compares "a,b"
        (HeaderMatch("x", "a,b"), (("x", "a"), ("X", "b")), True),
        (HeaderMatch("x", "a,b"), (("x", "a,b"),), True),
        (HeaderMatch("x", "b,a"), (("x", "a"), ("x", "b")), False),
        (HeaderMatch("x", "a, b"), (("x", "a"), ("x", "b")), False),
        (HeaderMatch("x"), (("x", "a"), ("x", "b")), True),
        (HeaderMatch("x", "a", "LOG"), (("x", "b"),), True),
        (HeaderMatch("x", "a", "ADD"), (), True),
        (HeaderMatch("x", "a", "DELETE"), (("x", "a"), ("x", "b")), True),
        (HeaderMatch("x", None, "REPLACE"), (), True),
    ],
)
def test_the_values_of_a_header_are_one_and_a_mismatch_action_denies_nothing(
    match: HeaderMatch, headers: tuple[tuple[str, str], ...], matches: bool
) -> None:
    assert matches_request(HttpMatch(headers=(match,)), HttpRequest(headers=headers)) is matches


@pytest.mark.parametrize(
    ("path", "asked", "matches"),
    [
        (r"/u/\d+", "/u/12", True),
        (r"/u/\d+", "/u/\u0663\u0664", False),
        (r"/\w+", "/é", False),
        (r"/\pL+", "/abc", True),
        (r"/\pL+", "/é", True),
        (r"/\pL+", "/1", False),
        (r"/a{,2}", "/aa", False),
        (r"/a{,2}", "/a{,2}", True),
        (r"/\Qa.b\E", "/a.b", True),
        (r"/\Qa.b\E", "/axb", False),
        (r"/a\z", "/a", True),
        (r"(?U)/a+", "/aaa", True),
        (r"(?i)/a|/b", "/B", True),
        (r"/[a&&b]", "/&", True),
        (r"/[a||b]", "/|", True),
        (r"/\x{61}", "/a", True),
        (r"/(?<x>a)", "/a", True),
        (r"/a$", "/a\n", False),
        (r"/.*", "/\ud800", True),
    ],
)
def test_an_expression_means_what_it_means_to_re2(path: str, asked: str, matches: bool) -> None:
    assert matches_request(HttpMatch(path=path), HttpRequest(path=asked)) is matches


def test_matching_takes_linear_time() -> None:
    started = time.monotonic()

    assert not matches_request(HttpMatch(path="/(a+)+$"), HttpRequest(path=f"/{'a' * 100_000}b"))
    assert not matches_request(HttpMatch(path="(/?.*)*(x|xx)*y"), HttpRequest(path="/" + "x" * 100_000))
    assert time.monotonic() - started < 30
