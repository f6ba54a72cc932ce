"""Ports and ICMP types, as people read them."""

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy.ports import Question, Span, joined


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (Span(6, 80, 80), "80/TCP"),
        (Span(17, 53, 60), "53-60/UDP"),
        (Span(132, 1, 65535), "every SCTP port"),
        (Span(6, 0, 65535), "every TCP port"),
        (Span(1, 8, 8), "ICMP type 8"),
        (Span(58, 128, 255), "ICMPv6 type 128-255"),
        (Span(1, 0, 255), "every ICMP type"),
    ],
)
def test_a_span_in_words(span: Span, words: str) -> None:
    assert str(span) == words


def test_a_span_holds_both_its_ends() -> None:
    assert [port in Span(6, 80, 82) for port in (79, 80, 82, 83, "80")] == [False, True, True, False, False]


def test_spans_that_touch_are_one() -> None:
    spans = [Span(6, 1, 2), Span(6, 3, 9), Span(6, 11, 12), Span(17, 13, 13)]

    assert joined(spans) == [Span(6, 1, 9), Span(6, 11, 12), Span(17, 13, 13)]


def test_a_question_in_words() -> None:
    assert str(Question(6, 80)) == "80/TCP"
    assert str(Question(6, 80, HttpRequest("PUT", "/x"))) == "PUT /x on 80/TCP"
    assert [(one.icmp, one.protocol) for one in (Question(58, 128), Question(17, 53))] == [
        (True, "ICMP"),
        (False, "UDP"),
    ]
