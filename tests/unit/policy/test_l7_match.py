"""What a layer-7 rule matches: the whole of every field, all fields at once, header names in any case."""

import time

import pytest

from nfq_enforcer.core.tables.l7 import DnsMatch, DnsQuestion, HeaderMatch, HttpMatch, HttpRequest, SniMatch, TlsHello
from nfq_enforcer.policy import regex
from nfq_enforcer.policy.l7_match import matches, matches_name, refusal, render

GET_USER = HttpRequest("GET", "/userdata/7", "shop.example.com", (("X-Token", "a"), ("accept", "text/html")))


@pytest.mark.parametrize(
    ("rule", "matched"),
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
def test_a_request_matches_a_rule_in_every_field(rule: HttpMatch, matched: bool) -> None:
    assert matches(rule, GET_USER) is matched


@pytest.mark.parametrize(("asked", "matched"), [("a.example", True), ("A.Example.", True), ("b.a.example", False)])
def test_a_dns_rule_matches_whole_names(asked: str, matched: bool) -> None:
    assert matches_name(DnsMatch("a.example"), asked) is matched


@pytest.mark.parametrize(
    ("match", "headers", "matched"),
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
    match: HeaderMatch, headers: tuple[tuple[str, str], ...], matched: bool
) -> None:
    assert matches(HttpMatch(headers=(match,)), HttpRequest(headers=headers)) is matched


@pytest.mark.parametrize(
    ("path", "asked", "matched"),
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
def test_an_expression_means_what_it_means_to_re2(path: str, asked: str, matched: bool) -> None:
    assert regex.matches_whole(path, asked) is matched


def test_rules_see_the_request_in_its_normal_form() -> None:
    public = HttpMatch("GET", "/public(/.*)?", "a")

    assert matches(public, HttpRequest("GET", "/public/x", "a"))
    assert matches(public, HttpRequest("GET", "/secret/../public/%78", "", (("HOST", " a"),)))
    assert matches(public, HttpRequest("GET", "http://a/public/", "b"))
    for path in (
        "/public/../secret",
        "/public/%2e%2e/secret",
        "/public/..;/secret",
        "/public/a%2fb",
        "/public/%2e%2e;/s",
    ):
        assert not matches(public, HttpRequest("GET", path, "a"))
    assert matches(HttpMatch(path="/%C3%A9"), HttpRequest(path="/é"))


@pytest.mark.parametrize(
    ("host", "headers", "matched"),
    [
        ("a:80", (), True),
        ("", (("host", "a:80"),), True),
        ("A:80", (), False),  # Envoy compares the host as the client sends it: with the port, in its case
        ("a", (), False),
        ("", (), False),
        ("a:80", (("Host", "a:80"),), False),  # two Host headers are one: a:80,a:80
    ],
)
def test_a_match_of_the_header_host_is_one_of_the_host(
    host: str, headers: tuple[tuple[str, str], ...], matched: bool
) -> None:
    request = HttpRequest(host=host, headers=headers)

    assert matches(HttpMatch(headers=(HeaderMatch("Host", "a:80"),)), request) is matched
    assert matches(HttpMatch(host="a:80"), request) is matched


def test_the_proxys_refusal_and_its_path_are_shown() -> None:
    assert refusal(HttpRequest("GET", "/a")) is refusal(DnsQuestion("a")) is None
    assert str(refusal(HttpRequest("GET", "/a%00"))) == "the proxy answers 400: its path has an escaped NUL (%00)"
    assert render(HttpRequest("GET", "/a/../b")) == "GET /a/../b (at the proxy: GET /b)"
    assert render(HttpRequest("GET", "/a%00")) == "GET /a%00"
    assert render(HttpRequest("GET", "/a")) == "GET /a"
    assert render(DnsQuestion("a")) == "a query for a"
    assert render(TlsHello("a")) == "TLS to a"
    assert render(TlsHello("")) == "TLS without a server name"


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a.example", ["a.example", "A.Example"], ["b.a.example", "a-example", "", "a.example."]),
        ("A.example", ["a.example"], []),
        ("*", ["a", "a.b.example"], ["", "a.", ".a", "a b"]),
        ("**", ["a", "a.b.example"], ["", "a."]),
        ("*.example", ["a.example", "a-1_b.example"], ["example", "a.b.example", "aexample"]),
        ("**.example", ["a.example", "a.b.example"], ["example", "a..example"]),
        ("a.**.example", ["a.b.example", "a.b.c.example"], ["a.example", "b.a.c.example"]),
        ("*example", ["example", "an-example"], ["an.example"]),
        ("a*c.*d*.example", ["ac.d.example", "abc.xdx.example"], ["ab.d.example", "abc.x.example"]),
    ],
)
def test_server_names_match_as_upstream(pattern: str, matching: list[str], others: list[str]) -> None:
    match = SniMatch(pattern)

    assert [name for name in (*matching, *others) if matches(match, TlsHello(name))] == matching
    assert not matches(match, HttpRequest(host="a.example"))
    assert not matches(match, DnsQuestion("a.example"))
    assert not matches(DnsMatch("*"), TlsHello("a.example"))
    assert not matches(HttpMatch(), TlsHello("a.example"))


def test_matching_takes_linear_time() -> None:
    started = time.monotonic()

    assert not matches(HttpMatch(path="/(a+)+$"), HttpRequest(path=f"/{'a' * 100_000}b"))
    assert not matches(HttpMatch(path="(/?.*)*(x|xx)*y"), HttpRequest(path="/" + "x" * 100_000))
    assert time.monotonic() - started < 30
