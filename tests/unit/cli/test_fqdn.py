"""``nfq-enforcer fqdn``: learned names for people and for programs."""

import json

from tests.unit.cli.conftest import Answering, RunProgram

NAMES = [
    {
        "name": "api.example.com",
        "endpoint": "default/web",
        "addresses": [{"address": "192.0.2.1", "expires_in": 25}, {"address": "2001:db8::1", "expires_in": -3}],
        "selectors": ["*.example.com"],
    },
    {"name": "b.example", "endpoint": "default/db", "addresses": [], "selectors": []},
]


def test_names_are_listed_with_their_addresses(answering: Answering, run: RunProgram) -> None:
    done = run("fqdn", "list", "--socket", answering(fqdn=NAMES).socket)

    assert (done.status, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines()] == [
        ["NAME", "ADDRESS", "EXPIRES", "ENDPOINT", "SELECTORS"],
        ["api.example.com.", "192.0.2.1", "in", "25", "s", "default/web", "*.example.com"],
        ["api.example.com.", "2001:db8::1", "expired", "default/web", "*.example.com"],
    ]


def test_names_are_data_for_other_tools(answering: Answering, run: RunProgram) -> None:
    done = run("fqdn", "list", "-o", "json", "--socket", answering(fqdn=NAMES).socket)

    assert json.loads(done.out) == NAMES
