"""Probe files: any text yields probes, or errors with the place and the allowed values."""

import json

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy.probes import Probe, ProbeFile

ENDS = '"from": "default/web", "to": "default/db"'


def probe(rest: str) -> Probe:
    return ProbeFile(f"[{{{ENDS}, {rest}}}]", "p.json").probes[0]


def problems(text: str) -> list[str]:
    with pytest.raises((DocumentError, DocumentErrors)) as caught:
        ProbeFile(text, "p.json")
    return str(caught.value).splitlines()


def test_probes_keep_their_order_and_what_they_ask() -> None:
    first = '{"from": "a/b", "to": "ip:10.0.0.1", "protocol": "UDP", "port": 53, "family": "IPv4", "expect": "deny"}'
    second = '{"from": "reserved:world", "to": "a/b", "port": 80, "description": "TCP if it says nothing"}'

    probes = ProbeFile(f"[{first},\n{second}]", "p.json").probes

    assert [(p.source, p.target, p.protocol, p.port, p.family, p.expect) for p in probes] == [
        ("a/b", "ip:10.0.0.1", "UDP", 53, "IPv4", "deny"),
        ("reserved:world", "a/b", "TCP", 80, None, None),
    ]


def test_an_empty_file_of_probes_asks_nothing() -> None:
    assert ProbeFile("[]", "p.json").probes == ()


@pytest.mark.parametrize("headers", ['{"X-Role": "admin"}', '["X-Role: admin"]'])
def test_a_request_has_headers_by_name_or_as_policies_write_them(headers: str) -> None:
    http = probe(f'"port": 80, "http": {{"path": "/x", "host": "h", "headers": {headers}}}').http

    assert http is not None
    assert http.as_request() == HttpRequest("GET", "/x", "h", (("X-Role", "admin"),))


@pytest.mark.parametrize(
    ("rest", "asked"),
    [
        ('"port": 80', "80/TCP"),
        ('"port": 80, "http": {"method": "PUT", "path": "/x"}', "PUT /x on 80/TCP"),
        ('"port": 53, "protocol": "UDP", "dns": "a.example"', "a query for a.example on 53/UDP"),
        ('"protocol": "ICMP"', "ICMP"),
        ('"protocol": "ICMP", "icmp": {"type": 13, "family": "IPv4"}, "family": "IPv4"', "ICMP type 13"),
    ],
)
def test_a_probe_says_what_it_asks(rest: str, asked: str) -> None:
    assert str(probe(rest)) == asked


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ('"prt": 80', ".prt: unknown field 'prt'; did you mean 'port'? allowed: from, to, protocol, port, family, "),
        ('"port": "80"', ".port: must be a number, not a string"),
        ('"port": 0', ".port: port 0 is out of range; allowed: 1 to 65535"),
        ('"protocol": "tcp"', ".protocol: 'tcp' is not allowed; allowed: 'TCP', 'UDP', 'SCTP' or 'ICMP'"),
        ('"protocol": "UDP"', ": a UDP probe needs a port; allowed: 1 to 65535"),
        ('"protocol": "ICMP", "port": 80', ": port is not allowed with protocol ICMP; what it has is icmp.type"),
        ('"port": 80, "icmp": {"type": 8}', ": icmp is not allowed with protocol TCP; allowed: with ICMP"),
        ('"protocol": "ICMP", "icmp": {"type": 256}', ".icmp.type: ICMP type 256 is out of range; allowed: 0 to 255"),
        ('"protocol": "ICMP", "icmp": {}', ".icmp.type: required field is missing"),
        ('"port": 1, "protocol": "UDP", "http": {}', ": http is not allowed with protocol UDP; allowed: with TCP"),
        (
            '"port": 1, "protocol": "SCTP", "dns": "a"',
            ": dns is not allowed with protocol SCTP or http; allowed: with UDP or TCP alone",
        ),
        (
            '"port": 1, "http": {}, "dns": "a"',
            ": dns is not allowed with protocol TCP or http; allowed: with UDP or TCP",
        ),
        (
            '"port": 1, "protocol": "UDP", "sni": "a"',
            ": sni is not allowed with protocol UDP, http or dns; allowed: with TCP alone",
        ),
        (
            '"port": 1, "http": {}, "sni": "a"',
            ": sni is not allowed with protocol TCP, http or dns; allowed: with TCP alone",
        ),
        (
            '"port": 1, "dns": "a", "sni": "a"',
            ": sni is not allowed with protocol TCP, http or dns; allowed: with TCP alone",
        ),
        ('"port": 1, "http": {"headers": [1]}', ".http.headers: must be a mapping, not a list"),
        ('"port": 1, "expect": "drop"', ".expect: 'drop' is not allowed; allowed: 'allow' or 'deny'"),
        ('"port": 1, "family": "ipv4"', ".family: 'ipv4' is not allowed; allowed: 'IPv4' or 'IPv6'"),
        (
            '"protocol": "ICMP", "family": "IPv4", "icmp": {"type": 8, "family": "IPv6"}',
            ": family IPv4 contradicts icmp.family IPv6; one of them is enough",
        ),
    ],
)
def test_a_bad_probe_is_refused_with_its_place_and_what_is_allowed(rest: str, expected: str) -> None:
    good = f'{{{ENDS}, "port": 80}}'

    (problem,) = problems(f"[{good},\n {{{ENDS}, {rest}}}]")

    place, _, message = problem.partition(": ")
    assert place.startswith("p.json:2:")
    assert message.startswith(f"[1]{expected}")


def test_every_bad_probe_is_named() -> None:
    assert problems(f'[{{{ENDS}, "port": 0}},\n"x",\n{{"to": "a/b", "port": 1}}]') == [
        "p.json:1:54: [0].port: port 0 is out of range; allowed: 1 to 65535",
        "p.json:2:1: [1]: must be a mapping, not a string",
        "p.json:3:1: [2].from: required field is missing",
    ]


def test_where_json_is_no_yaml_the_field_is_named_without_its_line() -> None:
    assert problems(f'[{{{ENDS}, "port": 0, "description": "\\ud83d"}}]') == [
        "p.json:1:1: [0].port: port 0 is out of range; allowed: 1 to 65535"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{,}]", "p.json:1:3: not valid JSON: "),
        ("{}", "p.json:1:1: a probe file is a JSON list of probes"),
        ("[" * 100_000, "p.json: not a probe file: nested too deep, or a number too long"),
        (f"[{'9' * 5000}]", "p.json: not a probe file: nested too deep, or a number too long"),
    ],
)
def test_what_is_no_list_of_probes_is_refused(text: str, expected: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(expected)
    assert "not valid JSON" not in problem or problem.endswith("; a probe file is a JSON list of probes")


def test_an_error_may_name_a_field_or_the_whole_probe() -> None:
    file = ProbeFile(json.dumps([{"from": "a/b", "to": "a/c", "port": 1}]), "p.json")

    assert [str(file.error(0, field, "no")) for field in ("to", "")] == [
        "p.json:1:24: [0].to: no",
        "p.json:1:2: [0]: no",
    ]
