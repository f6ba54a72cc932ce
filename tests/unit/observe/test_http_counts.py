"""Counts of HTTP requests: one for each verdict, class of codes and set of documents, in bounded number."""

import pytest

from nfq_enforcer.core.access_log import AccessRecord, access_event
from nfq_enforcer.core.events import DnsMessage, FlowEvent, HttpMessage
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.observe.http_counts import OTHER, HttpCounts
from nfq_enforcer.observe.status import HttpRequestCount

OPENING = Opening(bytes(4), bytes(4), 6, 40_000, 80, -1, -1, False, WORLD, WORLD)


def rule(name: str, number: int = 0) -> RuleRef:
    return RuleRef("CiliumNetworkPolicy", "shop", name, Direction.INGRESS, number)


def answered(code: int, *rules: RuleRef, reason: DropReason | None = None) -> FlowEvent:
    record = AccessRecord(1.0, OPENING, Direction.INGRESS, "GET", "/", "a", code=code, rules=rules, reason=reason)
    return access_event(record)


def counted(*events: FlowEvent, at_most: int = 500) -> list[HttpRequestCount]:
    counts = HttpCounts(at_most)
    for event in events:
        counts.add(event)
    return counts.read()


def test_requests_count_by_documents_class_and_verdict() -> None:
    refused = answered(403, rule("users"), reason=DropReason.HTTP_REFUSED)

    assert counted(
        *(answered(code, rule("users"), rule("users", 1), rule("all")) for code in (200, 204, 503)),
        *(answered(200, rule("users")), refused, refused),
    ) == [
        HttpRequestCount("shop/users,shop/all", "2xx", "FORWARDED", 2),
        HttpRequestCount("shop/users,shop/all", "5xx", "FORWARDED", 1),
        HttpRequestCount("shop/users", "2xx", "FORWARDED", 1),
        HttpRequestCount("shop/users", "4xx", "DROPPED", 2),
    ]


@pytest.mark.parametrize("code", [0, 99, 600, 1 << 30])
def test_a_request_without_a_valid_code_has_no_class(code: int) -> None:
    assert counted(answered(code)) == [HttpRequestCount("", "none", "FORWARDED", 1)]


def test_a_request_counts_once_and_other_events_do_not_count() -> None:
    response = answered(200, rule("users"))
    message = HttpMessage(False, "GET", "http://a/", "HTTP/1.1")

    assert counted(response._replace(l7=None), response._replace(l7=DnsMessage(True, "a", 1))) == []
    assert counted(response._replace(l7=message)) == []
    assert len(counted(response)) == 1


def test_documents_beyond_the_bound_are_counted_together() -> None:
    events = [answered(200, rule(f"r{number}")) for number in range(10)]

    assert counted(*events, *events, at_most=2) == [
        HttpRequestCount("shop/r0", "2xx", "FORWARDED", 2),
        HttpRequestCount("shop/r1", "2xx", "FORWARDED", 2),
        HttpRequestCount(OTHER, "2xx", "FORWARDED", 16),
    ]
