"""Request log: records of the proxy become flow events with the ends and the rules of their connection."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from nfq_enforcer.agent import request_log
from nfq_enforcer.agent.request_log import DecidingRules, RequestLog
from nfq_enforcer.agent.slot_keeper import SlotKeeper
from nfq_enforcer.core.events import FlowEvent, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.l7 import HttpMatch, HttpRequest, L7Match, L7Request, SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.tables.slots import Side, SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.policy import l7_match
from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest
from tests.support.packets import packed

WEB, CLIENT = Identity(300), Identity(500)
TO_WEB = SlotKey("", "default/web", CLIENT, WEB, (CLIENT,), (WEB,), 80)
BETWEEN = TO_WEB._replace(client="default/client")
RECORD = LoggedRequest(
    time=1_700_000_000.0,
    slot=1,
    client=("10.2.0.10", 40_000),
    server=("10.1.0.10", 80),
    method="GET",
    path="/userdata/42",
    host="web",
    protocol="HTTP/1.1",
    code=200,
    details="via_upstream",
    flags="",
    duration=12,
    grpc=None,
    headers=(),
)
REFUSED = RECORD._replace(code=403, details="rbac_access_denied_matched_policy[none]")


def rule(number: int, match: L7Match, direction: Direction = Direction.INGRESS) -> L7Rule:
    return L7Rule(RuleRef("CiliumNetworkPolicy", "default", "web", direction, number), match)


GET, POST = (rule(number, HttpMatch(method)) for number, method in enumerate(("GET", "POST")))
OUT = rule(0, HttpMatch(path="/userdata/.*"), Direction.EGRESS)


class Slots:
    """Slots of a keeper: one, with these ends and rules."""

    def __init__(self, key: SlotKey, sides: tuple[Side, ...]) -> None:
        self._key, self._sides = key, sides

    def key(self, slot: int) -> SlotKey | None:
        return self._key if slot == 1 else None

    def rules(self, key: SlotKey) -> tuple[Side, ...]:
        return self._sides


def events(
    *records: LoggedRequest | LoggedHello, key: SlotKey = TO_WEB, sides: tuple[Side, ...] = ((GET, POST),)
) -> list[FlowEvent]:
    """Return the events that the log adds for these records."""
    added: list[list[FlowEvent]] = []

    async def main() -> None:
        log = RequestLog(cast(SlotKeeper, Slots(key, sides)), lambda batch: added.append(list(batch)))
        for record in records:
            log.record(record)
        await asyncio.sleep(0.06)

    asyncio.run(main())
    return [event for batch in added for event in batch]


def test_a_forwarded_request_has_the_rules_that_allow_it() -> None:
    (event,) = events(RECORD)

    assert (event.verdict, event.direction, event.reason) == (FlowVerdict.FORWARDED, Direction.INGRESS, None)
    assert (event.allowed_by, event.enforced_by) == ((GET.ref,), ())
    opening = event.opening
    assert (opening.src, opening.sport, opening.dst, opening.dport) == (
        *(packed("10.2.0.10"), 40_000),
        *(packed("10.1.0.10"), 80),
    )
    assert (opening.source, opening.destination) == (CLIENT, WEB)
    assert isinstance(event.l7, HttpMessage)
    assert (event.l7.url, event.l7.code, event.l7.latency_ns) == ("http://web/userdata/42", 200, 12_000_000)


def test_the_time_is_that_of_the_answer_on_the_clock_of_events() -> None:
    begun = time.monotonic()
    (event,) = events(RECORD._replace(time=time.time()))

    assert begun - 1 < event.time < time.monotonic() + 1


@pytest.mark.parametrize(
    ("record", "reason", "enforced_by"),
    [
        (REFUSED._replace(method="PUT"), DropReason.HTTP_REFUSED, (GET.ref, POST.ref)),
        (RECORD._replace(code=400, details="path_normalization_failed"), DropReason.HTTP_MALFORMED, (GET.ref,)),
        (RECORD._replace(code=503, details="upstream_reset_before_response_started"), None, ()),
        (RECORD._replace(code=404), None, ()),
    ],
)
def test_a_refused_request_has_the_reason(
    record: LoggedRequest, reason: DropReason | None, enforced_by: tuple[RuleRef, ...]
) -> None:
    (event,) = events(record)

    assert (event.reason, event.enforced_by) == (reason, enforced_by)


@pytest.mark.parametrize(
    ("record", "sides", "direction", "refs"),
    [
        (RECORD, ((OUT,), (GET,)), Direction.INGRESS, (OUT.ref, GET.ref)),
        (RECORD, (None, (GET,)), Direction.INGRESS, (GET.ref,)),
        (REFUSED._replace(path="/x"), ((OUT,), (GET,)), Direction.EGRESS, (OUT.ref,)),
        (REFUSED._replace(method="PUT"), ((OUT,), (GET,)), Direction.INGRESS, (GET.ref,)),
        (REFUSED._replace(method="PUT"), (None, (GET,)), Direction.INGRESS, (GET.ref,)),
        (REFUSED, ((), None), Direction.EGRESS, ()),
    ],
)
def test_of_two_sides_the_one_that_decides_is_named(
    record: LoggedRequest, sides: tuple[Side, ...], direction: Direction, refs: Any
) -> None:
    (event,) = events(record, key=BETWEEN, sides=sides)

    assert (event.direction, event.allowed_by or event.enforced_by) == (direction, refs)


def test_an_egress_side_alone_decides() -> None:
    (event,) = events(RECORD, key=BETWEEN._replace(server=""), sides=((OUT,),))

    assert (event.direction, event.allowed_by) == (Direction.EGRESS, (OUT.ref,))


def test_the_rules_of_a_repeated_request_are_found_once_until_policy_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "_MAX_REMEMBERED", 2)
    asked: list[L7Request] = []

    def matching(rules: Sequence[L7Rule], request: L7Request) -> tuple[RuleRef, ...]:
        asked.append(request)
        return l7_match.matching(rules, request)

    monkeypatch.setattr(request_log, "matching", matching)
    deciding, sides = DecidingRules(), ((GET, POST),)
    get, post, put = (HttpRequest(method) for method in ("GET", "POST", "PUT"))

    def find(request: L7Request, rules: tuple[Side, ...], *, refused: bool = False) -> tuple[RuleRef, ...]:
        return deciding.find(request, TO_WEB, rules, refused=refused)[1]

    assert [find(request, sides) for request in (get, post, get, post)] == [(GET.ref,), (POST.ref,)] * 2
    assert asked == [get, post]
    assert find(get, ((POST,),)) == ()  # the policy in force has other rules
    assert find(get, ((POST,),), refused=True) == (POST.ref,)  # which is one more than there is room for
    assert (find(put, sides), asked[2:]) == ((), [get, get, put])


def test_requests_of_removed_slots_are_ignored() -> None:
    assert events(RECORD._replace(slot=2)) == []


def test_beyond_the_limit_of_a_second_requests_are_counted_without_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "_MAX_EVENTS", 150)
    times = iter([*[10.2] * 200, 11.0])

    async def main() -> RequestLog:
        loop = asyncio.get_running_loop()
        log = RequestLog(cast(SlotKeeper, Slots(TO_WEB, ((GET, POST),))), lambda batch: None)
        log._flushing = loop.call_later(60, lambda: None)
        monkeypatch.setattr(loop, "time", lambda: next(times))
        for record in (*[RECORD] * 190, *[REFUSED] * 11):
            log.record(record)
        monkeypatch.undo()
        log._flushing.cancel()
        return log

    log = asyncio.run(main())
    counts = {(count.rule, count.code_class, count.verdict): count.requests for count in log.counts.read()}
    assert counts == {
        ("default/web", "2xx", "FORWARDED"): 150,
        ("(other)", "2xx", "FORWARDED"): 40,
        ("(other)", "4xx", "DROPPED"): 10,
        ("default/web", "4xx", "DROPPED"): 1,
    }
    assert log.lost == 50


HELLO = LoggedHello(1_700_000_000.0, 1, ("10.2.0.10", 40_000), ("10.1.0.10", 443), "a.example", "", True)
NAMES, OTHER = rule(2, SniMatch("*.example")), rule(3, SniMatch("b.test"))


@pytest.mark.parametrize(
    ("logged", "reason", "rules"),
    [
        (HELLO, None, (NAMES.ref,)),
        (HELLO._replace(name="c.test", details="rbac_access_denied"), DropReason.TLS_REFUSED, (NAMES.ref, OTHER.ref)),
        (HELLO._replace(name="", has_hello=False), DropReason.TLS_MALFORMED, (NAMES.ref, OTHER.ref)),
    ],
)
def test_a_hello_has_the_rules_that_decide(
    logged: LoggedHello, reason: DropReason | None, rules: tuple[RuleRef, ...]
) -> None:
    (event,) = events(logged, sides=((NAMES, OTHER),))

    assert (event.reason, event.direction) == (reason, Direction.INGRESS)
    assert (event.enforced_by if reason else event.allowed_by) == rules
    assert event.l7 == TlsMessage(logged.name)
    assert (event.opening.sport, event.opening.dport, event.opening.source) == (40_000, 443, CLIENT)


def test_hellos_beyond_the_limit_of_a_second_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "_MAX_EVENTS", 0)

    assert events(HELLO, sides=((NAMES,),)) == []
