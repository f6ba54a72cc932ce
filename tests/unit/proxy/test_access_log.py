"""Lines of the access log become records, and other lines do not."""

import json

import pytest

from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest, parse

LINE = {
    "time": "1795760591.022770",
    "slot": 3,
    "client": "10.0.0.1:34438",
    "server": "[fd00::2]:80",
    "method": "GET",
    "path": "/a?b",
    "host": "h:80",
    "protocol": "HTTP/2",
    "code": 200,
    "details": "via_upstream",
    "flags": "-",
    "duration": 5,
    "grpc": 7,
    "headers": {"x-role": "admin"},
}


def test_a_line_has_all_of_a_record() -> None:
    assert parse(json.dumps(LINE).encode()) == LoggedRequest(
        time=1795760591.02277,
        slot=3,
        client=("10.0.0.1", 34438),
        server=("fd00::2", 80),
        method="GET",
        path="/a?b",
        host="h:80",
        protocol="HTTP/2",
        code=200,
        details="via_upstream",
        flags="",
        duration=5,
        grpc=7,
        headers=(("x-role", "admin"),),
    )


def test_a_line_behind_a_part_of_a_lost_one_is_read() -> None:
    line = json.dumps(dict(sorted(LINE.items()))).encode()

    assert parse(line[:50] + line) == parse(line)
    assert parse(line[:-1] + line) == parse(line) is not None


def test_missing_values_are_empty() -> None:
    absent = dict.fromkeys(
        ("method", "path", "host", "protocol", "code", "details", "flags", "duration", "grpc", "headers")
    )
    record = parse(json.dumps({**LINE, **absent}).encode())

    assert record is not None
    assert record[4:] == ("", "", "", "", 0, "", "", 0, None, ())


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{}", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, json.dumps(LINE).encode()[:-5]),
        *(json.dumps({**LINE, name: "?"}).encode() for name in ("time", "slot", "client", "code", "headers", "grpc")),
    ],
    ids=lambda line: line[:12].decode("latin-1"),
)
def test_another_line_is_no_record(line: bytes) -> None:
    assert parse(line) is None


def test_a_line_about_a_connection_has_its_server_name() -> None:
    ends = {"client": "[fd00::1]:5", "server": "[fd00::2]:443"}
    line = {**ends, "details": None, "hello": "tls", "name": "a.b", "slot": 3, "time": "1.5"}

    assert parse(json.dumps(line).encode()) == LoggedHello(1.5, 3, ("fd00::1", 5), ("fd00::2", 443), "a.b", "", True)
    other = parse(json.dumps({**line, "hello": None, "name": "-", "details": "x"}).encode())
    assert other == LoggedHello(1.5, 3, ("fd00::1", 5), ("fd00::2", 443), "", "x", False)
