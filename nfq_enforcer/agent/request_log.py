"""Request log: requests and server names at the proxy, as flow events and counts, with their ends and rules.

An event costs about as much processor time as the proxy takes for the request. So the number of events in a second is
limited; further requests are counted without their rules.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address

from nfq_enforcer.agent.slot_keeper import SlotKeeper
from nfq_enforcer.core.access_log import AccessRecord, HelloRecord, access_event, hello_event
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.l7 import HttpRequest, L7Request, TlsHello
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.tables.slots import Side, SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.observe.http_counts import HttpCounts
from nfq_enforcer.observe.tls_counts import TlsCounts
from nfq_enforcer.policy.l7_match import matching
from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest

_INTERVAL = 0.05  # s between two batches of events
_BATCH = 100  # events
_MAX_EVENTS = 1000  # in a second; further ones are counted, but not logged
_MAX_REMEMBERED = 1024  # requests of which the deciding rules are known
_REFUSED = "rbac_access_denied"  # Envoy's response code details, at their start
_BY_SERVER = "via_upstream"
_CLIENT_ERRORS = range(400, 500)

Deciding = tuple[Direction, tuple[RuleRef, ...]]
"""The side that decided a request, and its rules: those that allow the request; refused: all of them."""


class DecidingRules:
    """Deciding rules of requests; those of the last different requests are kept, for a rule costs a microsecond."""

    def __init__(self) -> None:
        """Start without requests."""
        self._known: dict[tuple[L7Request, SlotKey, bool], tuple[tuple[Side, ...], Deciding]] = {}

    def find(self, request: L7Request, key: SlotKey, sides: tuple[Side, ...], *, refused: bool) -> Deciding:
        """Return the side and the rules that decided a request in a slot with these rules."""
        place = request, key, refused
        known, deciding = self._known.get(place, (None, None))
        if deciding is None or known is not sides:  # a change of policy makes new ones
            deciding = _decide(request, key, sides, refused=refused)
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[place] = sides, deciding
        return deciding


class RequestLog:
    """Request log of a node."""

    def __init__(self, slots: SlotKeeper, add: Callable[[Sequence[FlowEvent]], None]) -> None:
        """Set the slots, and the function that adds events to the flow log."""
        self.counts = HttpCounts()
        self.tls_counts = TlsCounts()
        self.lost = 0  # requests that were not logged
        self._second = 0  # on the clock of the event loop
        self._events = 0  # in this second
        self._slots = slots
        self._deciding = DecidingRules()
        self._add = add
        self._waiting: list[FlowEvent] = []
        self._flushing: asyncio.TimerHandle | None = None

    def record(self, logged: LoggedRequest | LoggedHello) -> None:
        """Count a request or ClientHello, and log it with the next batch; one of a removed slot has no ends."""
        key = self._slots.key(logged.slot)
        if key is None:
            return
        if not self._has_room():
            self.lost += 1
            if isinstance(logged, LoggedRequest):
                self.counts.add_other(logged.code, refused=_reason(logged) is not None)
            else:
                self.tls_counts.add_other(_hello_reason(logged))
            return
        rules = self._slots.rules(key)
        if isinstance(logged, LoggedRequest):
            event = access_event(self._resolve(logged, key, rules))
            self.counts.add(event)
        else:
            event = hello_event(self._resolve_hello(logged, key, rules))
            self.tls_counts.add(event)
        self._waiting.append(event)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(_INTERVAL, self._flush)

    def _resolve(self, logged: LoggedRequest, key: SlotKey, sides: tuple[Side, ...]) -> AccessRecord:
        """Return the record with the identities of both ends, and the rules that decided."""
        reason = _reason(logged)
        request = HttpRequest(logged.method, logged.path, logged.host, logged.headers)
        direction, rules = self._deciding.find(request, key, sides, refused=reason is DropReason.HTTP_REFUSED)
        return AccessRecord(
            time=logged.time - time.time() + time.monotonic() + logged.duration / 1000,
            opening=_opening(logged, key),
            direction=direction,
            method=logged.method,
            path=logged.path,
            host=logged.host,
            protocol=logged.protocol,
            reason=reason,
            code=logged.code,
            duration=logged.duration / 1000,
            rules=rules,
            headers=logged.headers,
            grpc_status=logged.grpc,
        )

    def _resolve_hello(self, logged: LoggedHello, key: SlotKey, sides: tuple[Side, ...]) -> HelloRecord:
        """Return the record with the identities of both ends, and the rules that decided."""
        reason = _hello_reason(logged)
        direction, rules = self._deciding.find(TlsHello(logged.name), key, sides, refused=reason is not None)
        time_ = logged.time - time.time() + time.monotonic()
        return HelloRecord(time_, _opening(logged, key), direction, logged.name, reason, rules)

    def _has_room(self) -> bool:
        """Return whether one more event is within the limit of this second."""
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second, self._events = second, 0
        self._events += 1
        return self._events <= _MAX_EVENTS

    def _flush(self) -> None:
        self._flushing = None
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _BATCH):
            self._add(waiting[start : start + _BATCH])


def _hello_reason(logged: LoggedHello) -> DropReason | None:
    if logged.details.startswith(_REFUSED):
        return DropReason.TLS_REFUSED
    return None if logged.has_hello else DropReason.TLS_MALFORMED


def _opening(logged: LoggedRequest | LoggedHello, key: SlotKey) -> Opening:
    (client, client_port), (server, server_port) = logged.client, logged.server
    ends = _packed(client), _packed(server), TCP, client_port, server_port
    return Opening(*ends, -1, -1, False, key.source, key.destination)


@lru_cache(maxsize=1024)
def _packed(address: str) -> bytes:
    return ip_address(address).packed


def _reason(logged: LoggedRequest) -> DropReason | None:
    """Return the reason for which the proxy has refused a request, None for one that it has forwarded."""
    if logged.details.startswith(_REFUSED):
        return DropReason.HTTP_REFUSED
    malformed = logged.code in _CLIENT_ERRORS and not logged.details.startswith(_BY_SERVER)
    return DropReason.HTTP_MALFORMED if malformed else None


def _decide(request: L7Request, key: SlotKey, sides: tuple[Side, ...], *, refused: bool) -> Deciding:
    allowing: tuple[RuleRef, ...] = ()
    direction = Direction.INGRESS if key.server else Direction.EGRESS
    for side_direction, side in zip(_directions(key), sides, strict=False):
        if side is None:
            continue
        found = matching(side, request)
        if refused and not found:
            return side_direction, tuple(dict.fromkeys(rule.ref for rule in side))
        allowing += found
    return direction, tuple(dict.fromkeys(allowing))


def _directions(key: SlotKey) -> Iterator[Direction]:
    if key.client:
        yield Direction.EGRESS
    if key.server:
        yield Direction.INGRESS
