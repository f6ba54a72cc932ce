"""Normal form of HTTP requests: as Envoy 1.40 was seen to give it, and with no dot segment or double slash left."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy.http_normalise import normalise
from nfq_enforcer.policy.http_path import HttpRefusal


def path_of(target: str) -> str | int:
    """Return the path in its normal form, or the code with which it is refused."""
    normal = normalise(HttpRequest("GET", target, "h"))
    return normal.code if isinstance(normal, HttpRefusal) else normal.path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/userdata/42?x=1", "/userdata/42?x=1"),
        ("/a/../b", "/b"),
        ("/a/../../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/b/%2E", "/a/b/"),
        ("/a/b/..", "/a/"),
        ("/..", "/"),
        ("/a/...", "/a/..."),
        ("/a/..x/b", "/a/..x/b"),
        ("/a//../b", "/a/b"),
        ("//a///b//", "/a/b/"),
        ("/a//", "/a/"),
        ("///", "//"),
        ("/a\\..\\b", "/b"),
        ("/a/..;x=y/b", "/b"),
        ("/a/.;/b", "/a/b"),
        ("/a/..;", "/"),
        ("/a/..;%00/b", "/b"),
        ("/a;x/b", "/a;x/b"),
        ("/a/...;/b", "/a/...;/b"),
        ("/%75serdata/%34%32", "/userdata/42"),
        ("/%7E%5f%2d%2e", "/~_-."),
        ("/a%20%3a%C3%a9%0a", "/a%20%3a%C3%a9%0a"),
        ('/"<>^`{|}', "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/é", "/%C3%A9"),
        ("/!$&'()*+,-.:;=@[]_~", "/!$&'()*+,-.:;=@[]_~"),
        ("/%252e%252e/", "/%252e%252e/"),
        ("/%", "/%"),
        ("/%zz%2", "/%zz%2"),
        ("/%%300", "/%2500"),
        ("/%%30%30", "/%2500"),
        ("/%2%30", "/%2520"),
        ("/a?/../%2f//%00é{}\\", "/a?/../%2f//%00é{}\\"),
        ("http://other/a/../b?c", "/b?c"),
        ("HTTP://u:p@other:65535", "/"),
        ("http://[::1]:80/a", "/a"),
    ],
)
def test_a_path_is_normalised_as_envoy_does_it(target: str, path: str) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("", 400),
        ("a", 400),
        ("?a", 400),
        ("\\a", 400),
        ("/a#b", 400),
        ("/a?b#c", 400),
        ("/a b", 400),
        ("/a?b c", 400),
        ("/a\t", 400),
        ("/a\x7f", 400),
        ("/a%2fb", 400),
        ("/..%5C", 400),
        ("/a%00", 400),
        ("/%%00", 400),
        ("/a/%2e%2e;/b", 403),
        ("/a/..%3bx/b", 403),
        ("/a/%2e.%3B", 403),
        ("/a/%2e;", 403),
        ("*", 403),
        ("https://a/b", 403),
        ("ftp://a/b", 400),
        ("http://a:65536/", 400),
        ("http://a:/", 400),
        ("http:///a", 400),
        ("http://a?b", 400),
        ("http://a_b/", 400),
        ("http://[::1/", 400),
    ],
)
def test_a_target_that_could_be_read_in_two_ways_is_refused(target: str, code: int) -> None:
    assert path_of(target) == code


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (HttpRequest("CONNECT", "a:80"), 403),
        (HttpRequest("OPTIONS", "*"), 403),
        (HttpRequest("G T"), 400),
        (HttpRequest(""), 400),
        (HttpRequest(host="a b"), 400),
        (HttpRequest(host="a/b"), 400),
        (HttpRequest(host="é"), 400),
        (HttpRequest(host="a", headers=(("host", "a b"),)), 400),
        (HttpRequest(headers=(("Connection", "close, Host"),)), 400),
        (HttpRequest(headers=(("Connection", "a"), ("connection", "x-forwarded-for"))), 400),
        (HttpRequest(headers=(("Connection", ",".join("abcdefghijk")),)), 400),
        (HttpRequest(headers=(("Connection", "upgrade"), ("Upgrade", "tls"))), 403),
        (HttpRequest(headers=(("Connection", "upgrade"), ("Upgrade", "websocket"), ("Upgrade", "websocket"))), 403),
        (HttpRequest(headers=(("a b", "c"),)), 400),
        (HttpRequest(headers=(("a", "b\r\nc: d"),)), 400),
        (HttpRequest(headers=(("a", "b\0"),)), 400),
    ],
)
def test_a_request_that_is_malformed_or_asks_for_a_tunnel_is_refused(request_: HttpRequest, code: int) -> None:
    refused = normalise(request_)

    assert isinstance(refused, HttpRefusal)
    assert refused.code == code
    assert str(refused).startswith(f"the proxy answers {code}: ")


def headers_of(*headers: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the headers that rules see of a request with these, without the scheme that Envoy adds."""
    normal = normalise(HttpRequest(headers=headers))
    assert isinstance(normal, HttpRequest)
    assert normal.headers[-1:] == SCHEME
    return normal.headers[:-1]


SCHEME = (("x-forwarded-proto", "http"),)


def test_method_host_and_headers_stay_but_for_blanks_around_values() -> None:
    request = HttpRequest("PUT", "/a", "A.b:80", (("X-A", "\t1 2 "), ("x-a", "é")))

    assert normalise(request) == HttpRequest("PUT", "/a", "A.b:80", (("X-A", "1 2"), ("x-a", "é"), *SCHEME))


@pytest.mark.parametrize(
    ("request_", "host"),
    [
        (HttpRequest(), ""),
        (HttpRequest(host="a"), "a"),
        (HttpRequest(headers=(("HOST", " a "),)), "a"),
        (HttpRequest(host="a", headers=(("host", "b"),)), "a,b"),
        (HttpRequest(headers=(("host", "b"), ("Host", "b"))), "b,b"),
        (HttpRequest("GET", "http://u@A:80/b", "c d"), "A:80"),
        (HttpRequest("GET", "http://A", "b", (("Connection", "host"), ("Host", "c"))), "A"),
    ],
)
def test_the_host_is_that_of_a_url_or_all_that_the_client_sends(request_: HttpRequest, host: str) -> None:
    normal = normalise(request_)

    assert isinstance(normal, HttpRequest)
    assert (normal.host, normal.headers) == (host, SCHEME)


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ((("Keep-Alive", "5"), ("Proxy-Connection", "close"), ("Upgrade", "tls"), ("X-Forwarded-Proto", "https")), ()),
        ((("Connection", "close, X-A ,x-b"), ("x-a", "1"), ("X-B", "2"), ("x-c", "3")), (("x-c", "3"),)),
        ((("TE", "trailers"), ("Connection", "te")), (("TE", "trailers"),)),
        ((("TE", "gzip"),), ()),
        ((("Connection", "upgrade"), ("Upgrade", "h2c")), ()),
        (
            (("Connection", "Upgrade"), ("Upgrade", "websocket")),
            (("Connection", "Upgrade"), ("Upgrade", "websocket")),
        ),
    ],
)
def test_rules_see_no_header_of_the_connection(
    headers: tuple[tuple[str, str], ...], seen: tuple[tuple[str, str], ...]
) -> None:
    assert headers_of(*headers) == seen


PIECES = (
    "/",
    "/",
    ".",
    "..",
    "%2e",
    "%2E",
    ";",
    "%3b",
    "%",
    "%2",
    "%30",
    "0",
    "a",
    "%41",
    "\\",
    "%25",
    "?",
    "{",
    "é",
    "%0a",
)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20))
@example("%%30%30")
@example("a/..;%2e%2e;/")
def test_the_normal_form_is_final_and_has_no_dot_segment_or_double_slash(text: str) -> None:
    path = path_of(f"/{text}")

    if isinstance(path, str):
        assert path_of(path) == path
        assert path.startswith("//?") or path == "//" or "//" not in path.partition("?")[0]
        assert not re.search(r"/(\.|%2[eE]){1,2}(/|;|%3[bB]|\?|$)", path.partition("?")[0])
        assert "\\" not in path.partition("?")[0]
        assert path.partition("?")[0].isascii()
