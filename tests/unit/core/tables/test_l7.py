"""What a layer-7 rule matches: the whole of every field, all fields at once, header names in any case."""

import pytest

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch, HttpRequest

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
    assert rule.matches(GET_USER) is matches


@pytest.mark.parametrize(("asked", "matches"), [("a.example", True), ("A.Example.", True), ("b.a.example", False)])
def test_a_dns_rule_matches_whole_names(asked: str, matches: bool) -> None:
    assert DnsMatch("a[.]example").matches(asked) is matches
