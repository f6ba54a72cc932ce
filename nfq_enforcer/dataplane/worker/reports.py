"""Reports of a worker to the agent: a fixed binary format, validated field by field.

A worker parses packets of the network, so the agent does not trust it: a report is never unpickled, has a maximum
size, and a value outside of its range makes the whole report invalid. The agent then replaces the worker. A worker may
still lie about its own flows and revision; it decides about them anyway.

A report is a length, a kind and a body. Events are rows of fixed size. The rules that they refer to precede the rows,
each tuple of rules once, as JSON.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker import flow_list
from nfq_enforcer.dataplane.worker.flow_list import FlowList

MAX_REPORT = 1 << 24  # bytes
MAX_EVENTS = 100  # in a report
_MAX_RULES = 500  # of one event in one of its three lists; further ones are left out
_MAX_TEXT = 4096  # characters of a failure
_MAX_NAME = 1024  # characters of each name of a rule
_LATEST = 1e10  # s, of a clock that begins with the machine

# time, verdict, reason, direction, length and bytes of both addresses, protocol, ports, ICMP type and code, to_host,
# identities, TCP flags, is_reply, places of the three tuples of rules
_EVENT = struct.Struct("!dBBBB16sB16sBHHhh?IIH?HHH")
_PACK = struct.Struct("!HI")  # number of events, bytes of the rules
_BOUND = struct.Struct("!BHHH")
_REVISION = struct.Struct("!q")
_FLOWS = struct.Struct("!II")  # number of the question, number of all flows
_KIND = struct.Struct("!B")
_DRIVERS = (Driver.NETLINK, Driver.NETFILTERQUEUE)
_VERDICTS, _DIRECTIONS = tuple(FlowVerdict), tuple(Direction)
_REASONS: tuple[DropReason | None, ...] = (None, *DropReason)
# by ``id``, because the hash of an enum's member is computed in Python
_CODES = {id(member): code for members in (_VERDICTS, _DIRECTIONS, _REASONS) for code, member in enumerate(members)}
_ADDRESS_LENGTHS = (0, 4, 16)

Rules = tuple[RuleRef, ...]


class InvalidReport(ValueError):
    """Bytes that are no report; the message names the field."""


class Bound(NamedTuple):
    """Report that the queues are bound, and that the worker returns verdicts."""

    driver: Driver  # the one in use, never AUTO
    queues: QueueNumbers


class Failed(NamedTuple):
    """Report that the queues cannot be bound, for this reason; the worker ends."""

    reason: str


class Enforced(NamedTuple):
    """Report that from now on this revision decides every packet."""

    revision: int


class Events(NamedTuple):
    """Report of new flows and drops, oldest first."""

    number: int
    packed: bytes  # see ``pack``


Report = Bound | Failed | Enforced | Events | FlowList


def encode_report(report: Report) -> bytes:
    """Return kind and body of a report."""
    if isinstance(report, Bound):
        return _KIND.pack(0) + _BOUND.pack(_DRIVERS.index(report.driver), *report.queues)
    if isinstance(report, Failed):
        return _KIND.pack(1) + report.reason[:_MAX_TEXT].encode(errors="replace")
    if isinstance(report, Enforced):
        return _KIND.pack(2) + _REVISION.pack(report.revision)
    if isinstance(report, FlowList):
        return _KIND.pack(4) + _FLOWS.pack(report.request, report.total) + report.packed
    return _KIND.pack(3) + report.packed


def decode_report(data: bytes) -> Report:
    """Read kind and body of a report; raise InvalidReport."""
    if not data or data[0] >= len(_DECODERS):
        raise InvalidReport("unknown kind of report")
    try:
        return _DECODERS[data[0]](data[1:])
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidReport(str(error)) from None


def _decode_bound(body: bytes) -> Report:
    driver, *queues = _BOUND.unpack(body)
    return Bound(_choose(_DRIVERS, driver, "driver"), QueueNumbers(*queues))


def _decode_failed(body: bytes) -> Report:
    text = body[: 4 * _MAX_TEXT].decode()
    return Failed("".join(character if character.isprintable() else " " for character in text)[:_MAX_TEXT])


def _decode_enforced(body: bytes) -> Report:
    return Enforced(*_REVISION.unpack(body))


def _decode_events(body: bytes) -> Report:
    number, rules = _PACK.unpack_from(body)
    if number > MAX_EVENTS or len(body) != _PACK.size + rules + number * _EVENT.size:
        raise InvalidReport("length of the events")
    return Events(number, body)


def _decode_flows(body: bytes) -> Report:
    request, total = _FLOWS.unpack_from(body)
    packed = body[_FLOWS.size :]
    try:
        number = sum(1 for _ in flow_list.unpack(packed))
    except ValueError as error:
        raise InvalidReport(str(error)) from None
    if number > flow_list.SEARCHED:
        raise InvalidReport("number of flows")
    return FlowList(request, total, packed)


_DECODERS: tuple[Callable[[bytes], Report], ...] = (
    *(_decode_bound, _decode_failed, _decode_enforced, _decode_events, _decode_flows),
)


def pack(events: Sequence[FlowEvent]) -> bytes:
    """Return events as bytes, which the agent unpacks only when a client reads them."""
    places: dict[int, int] = {}  # by ``id``: the events hold the tuples, and most of them share these
    tuples: list[Rules] = []
    rows = [_pack_event(event, places, tuples) for event in events]
    rules = json.dumps(tuples, separators=(",", ":")).encode()
    return b"".join((_PACK.pack(len(rows), len(rules)), rules, *rows))


def _pack_event(event: FlowEvent, places: dict[int, int], tuples: list[Rules]) -> bytes:
    time, verdict, reason, direction, opening, tcp_flags, is_reply, *by = event
    src, dst, proto, sport, dport, icmp_type, icmp_code, to_host, source, destination = opening
    rules = []
    for refs in by:
        place = places.get(id(refs))
        if place is None:
            place = places[id(refs)] = len(tuples)
            tuples.append(refs[:_MAX_RULES])
        rules.append(place)
    return _EVENT.pack(
        *(time, _CODES[id(verdict)], _CODES[id(reason)], _CODES[id(direction)]),
        *(len(src), src, len(dst), dst, proto, sport, dport, icmp_type, icmp_code, to_host, source, destination),
        *(tcp_flags, is_reply, *rules),
    )


def unpack(packed: bytes) -> Iterator[FlowEvent]:
    """Yield the packed events, without those that are invalid."""
    _, size = _PACK.unpack_from(packed)
    tuples = _read_rules(packed[_PACK.size : _PACK.size + size])
    for row in _EVENT.iter_unpack(packed[_PACK.size + size :]):
        try:
            yield _read_event(row, tuples)
        except InvalidReport:
            continue


def _read_event(row: tuple[Any, ...], tuples: Sequence[Rules]) -> FlowEvent:
    time, verdict, reason, direction, src_size, src, dst_size, dst, *fields = row
    proto, sport, dport, icmp_type, icmp_code, to_host, source, destination, tcp_flags, is_reply, *places = fields
    if not (math.isfinite(time) and 0 <= time < _LATEST):
        raise InvalidReport("time")
    if src_size not in _ADDRESS_LENGTHS or dst_size not in _ADDRESS_LENGTHS:
        raise InvalidReport("address")
    if not (-1 <= icmp_type <= 0xFF and -1 <= icmp_code <= 0xFF):
        raise InvalidReport("ICMP type")
    ends = Identity(source), Identity(destination)
    opening = Opening(src[:src_size], dst[:dst_size], proto, sport, dport, icmp_type, icmp_code, to_host, *ends)
    return FlowEvent(
        time,
        _choose(_VERDICTS, verdict, "verdict"),
        _choose(_REASONS, reason, "reason"),
        _choose(_DIRECTIONS, direction, "direction"),
        *(opening, tcp_flags, is_reply),
        *(_choose(tuples, place, "rules") for place in places),
    )


def _read_rules(text: bytes) -> Sequence[Rules]:
    """Read the tuples of rules; a text that is not valid has none, so that events that refer to any are invalid."""
    try:
        return [tuple(_read_rule(rule) for rule in rules) for rules in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return ()


def _read_rule(rule: Any) -> RuleRef:
    kind, namespace, name, direction, number, spec, deny = rule
    if not all(isinstance(text, str) and len(text) <= _MAX_NAME and text.isprintable() for text in rule[:3]):
        raise InvalidReport("name of a rule")
    if type(number) is not int or type(spec) is not int or type(deny) is not bool:
        raise InvalidReport("number of a rule")
    return RuleRef(kind, namespace, name, Direction(direction), number, spec, deny)


def _choose(values: Sequence[Any], place: int, field: str) -> Any:
    if place >= len(values):
        raise InvalidReport(field)
    return values[place]
