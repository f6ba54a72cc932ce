"""Access to the service map: addresses, tokens, and which requests are the page's own."""

import re

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.ui.access import (
    DEFAULT_LISTEN,
    MIN_TOKEN,
    SECURITY_HEADERS,
    Token,
    host_is_allowed,
    is_same_origin,
    new_token,
    parse_listen,
    read_token,
)


@pytest.mark.parametrize(
    ("text", "needs_token", "url"),
    [
        (DEFAULT_LISTEN, False, "http://127.0.0.1:9963/"),
        ("localhost:80", False, "http://127.0.0.1:80/"),
        ("127.8.8.8:0", False, "http://127.8.8.8:0/"),
        ("[::1]:9963", False, "http://[::1]:9963/"),
        ("0.0.0.0:9963", True, "http://0.0.0.0:9963/"),
        ("[::]:9963", True, "http://[::]:9963/"),
        ("192.0.2.7:9963", True, "http://192.0.2.7:9963/"),
    ],
)
def test_every_address_but_loopback_needs_a_token(text: str, needs_token: bool, url: str) -> None:
    listen = parse_listen(text)

    assert listen.needs_token is needs_token
    assert listen.url() == url
    assert listen.url("secret") == f"{url}#token=secret"


@pytest.mark.parametrize(
    "text", ["", "9963", "example.com:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1", "1.2.3.4:²"]
)
def test_any_other_text_is_no_address(text: str) -> None:
    with pytest.raises(BadInput, match="--listen: "):
        parse_listen(text)


def test_a_new_token_is_one_that_a_file_may_have() -> None:
    token = new_token()

    assert read_token(f"{token}\n", "file") == token
    assert token != new_token()


@pytest.mark.parametrize(
    "text", ["", "a" * (MIN_TOKEN - 1), "two words of a long token", "a" * 1001, "ü" * 30, "a\x00" * 30]
)
def test_a_token_that_can_be_guessed_or_sent_by_no_browser_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^file: a token is one word of 20 to 1000"):
        read_token(text, "file")


@pytest.mark.parametrize(
    ("listen", "host", "allowed"),
    [
        ("127.0.0.1:9963", "127.0.0.1:9963", True),
        ("127.0.0.1:9963", "localhost:8080", True),  # through a tunnel
        ("127.0.0.1:9963", "LOCALHOST", True),
        ("127.0.0.1:9963", "[::1]:9963", True),
        ("[::1]:9963", "[::1]", True),
        ("127.0.0.1:9963", "attacker.example:9963", False),
        ("127.0.0.1:9963", "127.0.0.1.attacker.example", False),
        ("127.0.0.1:9963", "192.0.2.7:9963", False),
        ("127.0.0.1:9963", "", False),
        ("192.0.2.7:9963", "192.0.2.7:9963", True),
        ("192.0.2.7:9963", "localhost:9963", False),
        ("192.0.2.7:9963", "192.0.2.8:9963", False),
        ("0.0.0.0:9963", "192.0.2.7:9963", True),
        ("0.0.0.0:9963", "localhost:9963", True),
        ("0.0.0.0:9963", "attacker.example:9963", False),
    ],
)
def test_only_names_of_its_own_address_reach_the_server(listen: str, host: str, allowed: bool) -> None:
    assert host_is_allowed(host, parse_listen(listen)) is allowed


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),  # a program
        ({"Sec-Fetch-Site": "none"}, True),  # an address that the user has typed
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://localhost:9963"}, True),
        ({"Origin": "http://attacker.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://localhost:9963"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_requests_of_other_pages_are_refused(headers: dict[str, str], own: bool) -> None:
    assert is_same_origin({"Host": "localhost:9963", **headers}) is own


def test_a_token_is_proved_by_a_header_field_or_by_its_cookie() -> None:
    token = Token("s" * 32)

    assert token.is_bearer(f"Bearer {'s' * 32}")
    assert token.is_bearer(f"bearer  {'s' * 32} ")
    assert not token.is_bearer("s" * 32)
    assert not token.is_bearer(f"Basic {'s' * 32}")
    assert not token.is_bearer("Bearer ü")
    assert token.is_cookie(token.cookie)
    assert not token.is_cookie("s" * 32)
    assert not Token("t" * 32).is_cookie(token.cookie)
    assert "s" * 8 not in token.cookie


def test_the_policy_of_the_page_allows_its_own_files_and_nothing_inline() -> None:
    policy = SECURITY_HEADERS["Content-Security-Policy"]

    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|\*|http", policy)
