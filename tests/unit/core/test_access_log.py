"""Access log of the proxy: a record gives one flow event, and no text of a client does harm in the log."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.core.access_log import (
    MAX_HEADERS,
    MAX_TEXT,
    MAX_URL,
    AccessRecord,
    HelloRecord,
    access_event,
    hello_event,
)
from nfq_enforcer.core.events import FlowEvent, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from tests.support.packets import packed

OPENING = Opening(
    *(packed("10.1.0.10"), packed("10.2.0.10"), 6, 40_000, 80, -1, -1, False), Identity(300), Identity(400)
)
RULE = RuleRef("CiliumNetworkPolicy", "shop", "users", Direction.INGRESS, 0)


def record(**changed: Any) -> AccessRecord:
    """Return the record of a forwarded request; ``changed`` overrides fields."""
    plain = AccessRecord(7.0, OPENING, Direction.INGRESS, "GET", "/userdata/42?full", "shop.example.com", rules=(RULE,))
    return plain._replace(**changed)


def message(**changed: Any) -> HttpMessage:
    seen = access_event(record(**changed)).l7
    assert isinstance(seen, HttpMessage)
    return seen


def test_a_forwarded_request_is_logged_as_its_response_allowed_by_its_rules() -> None:
    seen = access_event(record(code=200, duration=0.0125, headers=(("x-token", "a"),), grpc_status=0))

    assert seen == FlowEvent(
        *(7.0, FlowVerdict.FORWARDED, None, Direction.INGRESS, OPENING, 0),
        is_reply=True,
        allowed_by=(RULE,),
        l7=HttpMessage(
            *(True, "GET", "http://shop.example.com/userdata/42?full", "HTTP/1.1", 200, 12_500_000),
            headers=(("x-token", "a"),),
            grpc_status=0,
        ),
    )


@pytest.mark.parametrize(("reason", "code"), [(DropReason.HTTP_REFUSED, 403), (DropReason.HTTP_MALFORMED, 400)])
def test_a_refused_request_is_a_drop_enforced_by_the_rules_that_list_others(reason: DropReason, code: int) -> None:
    seen = access_event(record(reason=reason, code=code))

    assert seen == FlowEvent(
        *(7.0, FlowVerdict.DROPPED, reason, Direction.INGRESS, OPENING, 0),
        is_reply=False,
        enforced_by=(RULE,),
        l7=HttpMessage(False, "GET", "http://shop.example.com/userdata/42?full", "HTTP/1.1", code),
    )


@pytest.mark.parametrize(
    ("host", "path", "url"),
    [
        ("a:8080", "/b", "http://a:8080/b"),
        ("", "/b", "http:///b"),
        ("a", "*", "http://a/*"),
        ("a:443", "", "http://a:443"),
        ("A", "/%2e/\x1b[31m/é/\ud800", "http://A/%2e/%1B[31m/%C3%A9/%ED%A0%80"),
    ],
)
def test_the_url_is_that_of_hubble_with_percents_for_what_is_not_printable(host: str, path: str, url: str) -> None:
    assert message(host=host, path=path).url == url


@given(st.text(), st.text(), st.text(), st.text())
def test_texts_of_a_client_are_one_printable_line_of_ascii(method: str, path: str, host: str, value: str) -> None:
    seen = message(method=method, path=path, host=host, protocol=value, headers=((value, value),))

    for text in (seen.method, seen.url, seen.protocol, *seen.headers[0]):
        assert text.isascii()
        assert text.isprintable()


def test_long_texts_and_many_headers_are_cut_and_a_clock_set_back_gives_no_negative_latency() -> None:
    seen = message(
        path="/" + "é" * 10_000, method="A" * 1000, headers=(("a" * 1000, "\x00" * 300),) * 50, duration=-1.0
    )

    assert (len(seen.url), len(seen.method), len(seen.headers)) == (MAX_URL, MAX_TEXT, MAX_HEADERS)
    assert {len(text) for header in seen.headers for text in header} == {MAX_TEXT}
    assert seen.latency_ns == 0


def test_a_hello_is_an_event_with_its_server_name() -> None:
    hello = HelloRecord(7.0, OPENING, Direction.EGRESS, "a.example", rules=(RULE,))

    passed = hello_event(hello)
    assert (passed.verdict, passed.reason, passed.l7) == (FlowVerdict.FORWARDED, None, TlsMessage("a.example"))
    assert (passed.direction, passed.allowed_by, passed.enforced_by) == (Direction.EGRESS, (RULE,), ())
    refused = hello_event(hello._replace(reason=DropReason.TLS_REFUSED, server_name="a\n" + "é" * 1000))
    assert (refused.verdict, refused.reason) == (FlowVerdict.DROPPED, DropReason.TLS_REFUSED)
    assert (refused.allowed_by, refused.enforced_by) == ((), (RULE,))
    assert isinstance(refused.l7, TlsMessage)
    assert refused.l7.server_name.startswith("a%0A%C3%A9")
    assert len(refused.l7.server_name) == MAX_TEXT
