"""Ports and ICMP types as text."""

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy.ports import PortSpan, TrafficSpec, merge_spans


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (PortSpan(6, 80, 80), "80/TCP"),
        (PortSpan(17, 53, 60), "53-60/UDP"),
        (PortSpan(132, 1, 65535), "every SCTP port"),
        (PortSpan(6, 0, 65535), "every TCP port"),
        (PortSpan(1, 8, 8), "ICMP type 8"),
        (PortSpan(58, 128, 255), "ICMPv6 type 128-255"),
        (PortSpan(1, 0, 255), "every ICMP type"),
    ],
)
def test_a_span_in_words(span: PortSpan, words: str) -> None:
    assert str(span) == words


def test_a_span_holds_both_its_ends() -> None:
    assert [port in PortSpan(6, 80, 82) for port in (79, 80, 82, 83, "80")] == [False, True, True, False, False]


def test_spans_that_touch_are_one() -> None:
    spans = [PortSpan(6, 1, 2), PortSpan(6, 3, 9), PortSpan(6, 11, 12), PortSpan(17, 13, 13)]

    assert merge_spans(spans) == [PortSpan(6, 1, 9), PortSpan(6, 11, 12), PortSpan(17, 13, 13)]


def test_a_question_in_words() -> None:
    assert str(TrafficSpec(6, 80)) == "80/TCP"
    assert str(TrafficSpec(6, 80, HttpRequest("PUT", "/x"))) == "PUT /x on 80/TCP"
    assert [(one.icmp, one.protocol) for one in (TrafficSpec(58, 128), TrafficSpec(17, 53))] == [
        (True, "ICMP"),
        (False, "UDP"),
    ]
