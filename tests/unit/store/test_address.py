"""Address of a store: every form and option, the error of an invalid one, and no password in any text."""

from pathlib import Path

import pytest

from nfq_enforcer.store.address import MEMORY, HostPort, StoreAddress, parse

SECRET = "geheim-s3cret"

FORMS = [
    ("memory:", StoreAddress()),
    ("redis://h", StoreAddress((HostPort("h", 6379),))),
    ("redis://h/", StoreAddress((HostPort("h", 6379),))),
    ("redis://h/3", StoreAddress((HostPort("h", 6379),), db=3)),
    ("redis://192.0.2.1:7000", StoreAddress((HostPort("192.0.2.1", 7000),))),
    ("redis://[fd00:0::1]:7000", StoreAddress((HostPort("fd00::1", 7000),))),
    ("redis://[fd00::1]", StoreAddress((HostPort("fd00::1", 6379),))),
    ("redis://eve@h", StoreAddress((HostPort("h", 6379),), user="eve")),
    ("rediss://store.example.com:1", StoreAddress((HostPort("store.example.com", 1),), tls=True)),
    ("redis://h?prefix=a.b_c-9", StoreAddress((HostPort("h", 6379),), prefix="a.b_c-9")),
    ("redis://h?password_file=/a%20b+c", StoreAddress((HostPort("h", 6379),), password_file=Path("/a b+c"))),
    (
        "rediss://h?ca_file=/ca&cert_file=/cert&key_file=/key",
        StoreAddress(
            (HostPort("h", 6379),), tls=True, ca_file=Path("/ca"), cert_file=Path("/cert"), key_file=Path("/key")
        ),
    ),
    (
        "redis+sentinel://eve@h1,[fd00::1]:2,h2:26380/main/4?sentinel_user=sam&sentinel_password_file=/s",
        StoreAddress(
            (HostPort("h1", 26379), HostPort("fd00::1", 2), HostPort("h2", 26380)),
            service="main",
            db=4,
            user="eve",
            sentinel_user="sam",
            sentinel_password_file=Path("/s"),
        ),
    ),
    ("rediss+sentinel://h/main", StoreAddress((HostPort("h", 26379),), service="main", tls=True)),
]

LOGINS = [
    (f"redis://:{SECRET}@h", None, SECRET),
    (f"redis://eve:{SECRET}@h", "eve", SECRET),
    ("redis://eve:@h", "eve", None),
    ("redis://e%40ve:a%2Fb%3Fc%40d%25e@h", "e@ve", "a/b?c@d%e"),
    ("redis://eve:a@b:c#d@h", "eve", "a@b:c#d"),
    ("redis://eve:pa%C3%9F@h", "eve", "paß"),
]

HOST = "the host of the store is missing or wrong; allowed: a name, an IPv4 address, an IPv6 address in brackets"
PORT = "the port of the store is wrong; allowed: 1 to 65535, or none for 6379"
DATABASE = "the database of the store is wrong; allowed: 0 to 65535, as in redis://host/0"
SERVICE = (
    "behind the Sentinels belongs the name of what they watch, as in /mymaster; "
    "allowed: 1 to 64 letters, digits, '.', '_' and '-'"
)
PREFIX = "the store's prefix is wrong; allowed: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
ENCODED = "a '/', '?' or '@' in a user, a password or an option must be written %2F, %3F or %40"

REFUSED = [
    *((text, "this is not the address of a store; allowed: memory:, redis://[user") for text in ("", "memory", "h:1")),
    ("memory:?prefix=a", "this is not the address of a store; allowed: memory:, "),
    ("REDIS://h", "this is not the address of a store; allowed: memory:, "),
    *(
        (f"redis://{host}", HOST)
        for host in ("", "/0", ":1", "[h]", "[fd00::1", "fd00::1", "h:1:2", "a b", "-h", "h\n", "é")
    ),
    *((f"redis://h:{port}", PORT) for port in ("", "0", "65536", "007", "+1", "1000000", "x")),
    ("redis+sentinel://h:x/main", "the port of the store is wrong; allowed: 1 to 65535, or none for 26379"),
    *((f"redis://h/{db}", DATABASE) for db in ("x", "-1", "65536", "0/1", "01")),
    ("redis+sentinel://h/main/x", DATABASE),
    *((f"redis+sentinel://h{path}", SERVICE) for path in ("", "/", "//0", "/a b")),
    ("redis://h1,h2", "redis:// and rediss:// take one host; several are Sentinels: redis+sentinel://"),
    ("redis+sentinel://h,h:26379/main", "a host of the store is named twice; each is allowed once"),
    *((f"redis://h?prefix={prefix}", PREFIX) for prefix in ("", "a:b", "*", "-a", "a" * 65)),
    ("redis://h?database=1", "the store has an unknown option 'database'; allowed: prefix, password_file, "),
    ("redis://h?A=1", "the store has an unknown option; allowed: prefix, password_file, "),
    ("redis://h?prefix=a&prefix=a", "the store's option prefix is given twice; once is allowed"),
    ("redis://h?password_file=p", "the store's password_file is wrong; allowed: the absolute path of a file"),
    ("redis://h?ca_file=/ca", "the store's option ca_file is for TLS: rediss:// or rediss+sentinel://"),
    ("redis://h?sentinel_user=s", "the store's option sentinel_user is for Sentinels: redis+sentinel:// or "),
    ("rediss://h?key_file=/k", "the store has a key_file and no cert_file; the certificate belongs to it"),
    (f"redis://:{SECRET}@h?password_file=/p", "the store has a password and a password_file; one of them is allowed"),
    (f"redis://:{SECRET}/x@h", ENCODED),
    (f"redis://:{SECRET}?x@h", ENCODED),
    (f"redis://:%{SECRET}@h", "the password of the store is not percent-encoded UTF-8; a '%' itself is written %25"),
    ("redis://%ff@h", "the user of the store is not percent-encoded UTF-8; a '%' itself is written %25"),
    ("redis://h?prefix=%", "the option prefix of the store is not percent-encoded UTF-8; a '%' itself is "),
    (f"redis://eve:{SECRET}", PORT),
    (f"redis://h?password={SECRET}", "the store has an unknown option 'password'; allowed: prefix, password_file, "),
    (f"redis://h?{SECRET}", "the store has an unknown option; allowed: prefix, password_file, "),
    (f"redis:{SECRET}@h", "this is not the address of a store; allowed: memory:, redis://[user"),
]


@pytest.mark.parametrize(("text", "address"), FORMS)
def test_each_form_is_read(text: str, address: StoreAddress) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(("text", "user", "password"), LOGINS)
def test_user_and_password_are_percent_decoded(text: str, user: str | None, password: str | None) -> None:
    address = parse(text)

    assert address.user == user
    assert (address.password.get_secret_value() if address.password else None) == password


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_a_wrong_address_is_refused_with_what_is_allowed_and_without_a_password(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)

    assert str(caught.value).startswith(reason)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("memory:", "memory:"),
        ("redis://h", "redis://h:6379/0"),
        (f"redis://:{SECRET}@h", "redis://h:6379/0"),
        (f"redis://e%40ve:{SECRET}@[fd00::1]:1/2?prefix=p", "redis://e%40ve@[fd00::1]:1/2?prefix=p"),
        (f"rediss://eve:{SECRET}@h?ca_file=/ca", "rediss://eve@h:6379/0"),
        (f"redis+sentinel://eve:{SECRET}@a,b:1/main", "redis+sentinel://eve@a:26379,b:1/main/0"),
        ("rediss+sentinel://a/main/7?sentinel_user=sam", "rediss+sentinel://a:26379/main/7"),
    ],
)
def test_its_text_is_canonical_and_has_no_password(text: str, redacted: str) -> None:
    address = parse(text)

    assert address.redacted == str(address) == redacted
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    "other",
    [
        f"redis://eve:{SECRET}@h/1",
        "rediss://H:6379/1?ca_file=/ca",
        "redis://h/1?password_file=/p",
    ],
)
def test_a_cluster_has_one_name_whoever_asks_for_it(other: str) -> None:
    assert parse(other).cluster == parse("redis://h/1").cluster


def test_sentinels_name_a_cluster_in_any_order() -> None:
    assert parse("redis+sentinel://a,b/main").cluster == parse("redis+sentinel://b,a/main/0").cluster


def test_different_clusters_have_different_names_that_fit_a_file() -> None:
    texts = ["redis://h", "redis://h/1", "redis://h:1", "redis://g", "redis://h?prefix=p", "redis+sentinel://h/0"]
    texts += ["redis+sentinel://h/main", "redis+sentinel://h/main/1", "memory:", f"redis://h?prefix={'p' * 64}"]
    names = [parse(text).cluster for text in texts]

    assert len(set(names)) == len(texts)
    assert all("/" not in name and len(name) < 100 for name in names)


def test_only_memory_has_no_server() -> None:
    assert MEMORY.is_memory
    assert not parse("redis://h").is_memory
