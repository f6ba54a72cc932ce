"""Queries of flows: words as on the command line, and the parameters of a request."""

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.query import parameters, parse_words, read_filters

Filters = dict[str, list[str]]


@pytest.mark.parametrize(
    ("words", "allow", "deny"),
    [
        ("", {}, {}),
        ("--verdict DROPPED", {"verdict": ["DROPPED"]}, {}),
        ("verdict DROPPED verdict AUDIT", {"verdict": ["DROPPED", "AUDIT"]}, {}),
        (
            "--from-label=role=frontend -l 'tier in (a, b)'",
            {"from-label": ["role=frontend"], "label": ["tier in (a, b)"]},
            {},
        ),
        ("--not --to-port 53 --protocol udp", {"protocol": ["udp"]}, {"to-port": ["53"]}),
        ("not to-port 53 not to-port 80", {}, {"to-port": ["53", "80"]}),
        ("-4 --not -6 -t drop", {"ipv4": ["v4"], "type": ["drop"]}, {"ipv6": ["v6"]}),
        ("--not --verdict=not", {}, {"verdict": ["not"]}),
    ],
)
def test_words_are_those_of_the_command_line(words: str, allow: Filters, deny: Filters) -> None:
    assert parse_words(words) == (allow, deny)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--verdict", "verdict has no value; allowed: verdict NAME"),
        ("--planet mars", "unknown filter 'planet'; allowed: not, label"),
        ("role=frontend", "unknown filter 'role'; allowed: not, label"),
        ("--not", "not is the last word; allowed: a filter after it"),
        ("--not --not --verdict DROPPED", "not is followed by another not"),
        ("--label 'role", "a quotation mark is not closed"),
    ],
)
def test_wrong_words_are_refused_with_the_allowed_ones(words: str, reason: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_words(words)

    assert str(refused.value).startswith(reason)


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], "verdict", {"verdict": "DROPPED"}, {"verdict": []}, {"verdict": [1]}, {"verdict": ["a" * 4097]}),
        {"to-port": ["1"] * 1001},
    ],
)
def test_filters_of_a_request_are_lists_of_strings(value: object) -> None:
    with pytest.raises(BadInput, match=r"^allow must "):
        read_filters(value, "allow")


def test_parameters_leave_out_what_has_no_value() -> None:
    assert parameters({"verdict": ["DROPPED"]}, {}, last=0, since=None) == {
        "allow": {"verdict": ["DROPPED"]},
        "last": 0,
    }
