"""Reports of a worker to the agent: a fixed binary format, validated field by field.

A worker parses packets of the network, so the agent does not trust it: a report is never unpickled, has a maximum
size, and a value outside of its range makes the whole report invalid. The agent then replaces the worker. A worker may
still lie about its own flows and revision; it decides about them anyway.

A report is a length, a kind and a body. Events are rows of fixed size. The rules and messages that they refer to
precede the rows, each tuple of rules once, as JSON.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from nfq_enforcer.core.access_log import MAX_HEADERS, MAX_TEXT, MAX_URL
from nfq_enforcer.core.events import DnsMessage, FlowEnd, FlowEvent, HttpMessage, L7Message, TlsMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.l7 import EVERY_PROTOCOL, ProxyProtocols
from nfq_enforcer.core.tables.policymap import Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.tables.slots import SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker import flow_list
from nfq_enforcer.dataplane.worker.flow_list import FlowList
from nfq_enforcer.dataplane.worker.packet_reports import Packets, unpack_rows

MAX_REPORT = 1 << 24  # bytes
MAX_EVENTS = 100  # in a report
_MAX_RULES = 500  # of one event in one of its three lists; further ones are left out
_MAX_TEXT = 4096  # characters of a failure
_MAX_NAME = 1024  # characters of each name of a rule
_MAX_NUMBER = 1 << 31  # of a rule in its document
_MAX_LEARNED = 500  # addresses of one DNS answer
_MAX_LATENCY = 1 << 63  # ns
_MAX_COUNT = 1 << 63  # packets or bytes
_MAX_PEERS = 1000  # identities of one peer of a slot
_MAX_LISTED = 64  # addresses or aliases of a DNS message
_MAX_CACHED = 2048  # texts of DNS messages
_LATEST = 1e10  # s, of a clock that begins with the machine

# time, verdict, reason, direction, length and bytes of both addresses, protocol, ports, ICMP type and code, to_host,
# identities, TCP flags, is_reply, places of the three tuples of rules, and of the message, counted from 1 (0: none)
_EVENT = struct.Struct("!dBBBB16sB16sBHHhh?IIQQH?HHHH")
_PACK = struct.Struct("!HI")  # number of events, bytes of rules and messages
_BOUND = struct.Struct("!BHHHHH")
_REVISION = struct.Struct("!q")
_PACKETS = struct.Struct("!QQ")  # number of the capture, lost packets
_FLOWS = struct.Struct("!II")  # number of the question, number of all flows
_KIND = struct.Struct("!B")
_DRIVERS = (Driver.NETLINK, Driver.NETFILTERQUEUE)
_VERDICTS, _DIRECTIONS = tuple(FlowVerdict), tuple(Direction)
_REASONS: tuple[DropReason | None, ...] = (None, *DropReason)
# by ``id``, because the hash of an enum's member is computed in Python
_CODES = {id(member): code for members in (_VERDICTS, _DIRECTIONS, _REASONS) for code, member in enumerate(members)}
_ADDRESS_LENGTHS = (0, 4, 16)  # bytes of both addresses of an event

Rules = tuple[RuleRef, ...]
Message = L7Message | FlowEnd

_json = json.JSONEncoder(separators=(",", ":")).encode


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


class NamesLearned(NamedTuple):
    """Report of the addresses of a DNS answer."""

    number: int  # of the answer that the worker holds until a Release of this number; 0: it holds none
    client: bytes  # the address that asked
    name: str
    addresses: tuple[tuple[bytes, int], ...]  # with their TTL in s


class SlotWanted(NamedTuple):
    """Report that a connection waits for a slot of the proxy."""

    key: SlotKey


class Applied(NamedTuple):
    """Report that the worker has applied the NameChanges and SlotChanges up to this number."""

    number: int


class Events(NamedTuple):
    """Report of new flows and drops, oldest first."""

    number: int
    packed: bytes  # see ``pack``


Report = Bound | Failed | Enforced | Events | FlowList | NamesLearned | Applied | SlotWanted | Packets


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
    if isinstance(report, NamesLearned):
        addresses = [(address.hex(), ttl) for address, ttl in report.addresses]
        return _KIND.pack(5) + _json((report.number, report.client.hex(), report.name, addresses)).encode()
    if isinstance(report, Applied):
        return _KIND.pack(6) + _REVISION.pack(report.number)
    if isinstance(report, SlotWanted):
        return _KIND.pack(7) + _json(report.key).encode()
    if isinstance(report, Packets):
        return _KIND.pack(8) + _PACKETS.pack(report.capture, report.lost) + report.packed
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


def _decode_learned(body: bytes) -> Report:
    try:
        number, client, name, addresses = json.loads(body)
        read = tuple((bytes.fromhex(address), ttl) for address, ttl in addresses)
        client = bytes.fromhex(client)
    except (ValueError, TypeError, RecursionError):
        raise InvalidReport("learned names") from None
    numbers = (number, *(ttl for _, ttl in read))
    if not all(type(value) is int and 0 <= value < _MAX_NUMBER for value in numbers) or not _is_name(name):
        raise InvalidReport("number or name of learned names")
    if len(read) > _MAX_LEARNED or not all(len(address) in {4, 16} for address in (client, *(a for a, _ in read))):
        raise InvalidReport("addresses of learned names")
    return NamesLearned(number, client, name, read)


def _decode_applied(body: bytes) -> Report:
    return Applied(*_REVISION.unpack(body))


def _decode_wanted(body: bytes) -> Report:
    try:
        client, server, source, destination, client_peers, server_peers, port, protocols = json.loads(body)
        peers = tuple(client_peers), tuple(server_peers)
    except (ValueError, TypeError, RecursionError):
        raise InvalidReport("slot") from None
    if not (_is_name(client) and _is_name(server)) or not all(0 < len(each) <= _MAX_PEERS for each in peers):
        raise InvalidReport("names or peers of a slot")
    identities = (source, destination, *peers[0], *peers[1])
    if not all(type(number) is int and 0 <= number < 1 << 32 for number in (*identities, port)) or port >= 1 << 16:
        raise InvalidReport("identity or port of a slot")
    if type(protocols) is not int or not 0 < protocols <= EVERY_PROTOCOL:
        raise InvalidReport("protocols of a slot")
    return SlotWanted(SlotKey(client, server, source, destination, *peers, port, ProxyProtocols(protocols)))


def _decode_packets(body: bytes) -> Report:
    capture, lost = _PACKETS.unpack_from(body)
    packets = Packets(capture, lost, body[_PACKETS.size :])
    try:
        events = [_decode_events(row.event) for row in unpack_rows(packets.packed)]
    except ValueError as error:
        raise InvalidReport(str(error)) from None
    if not all(isinstance(event, Events) and event.number == 1 for event in events):
        raise InvalidReport("event of a captured packet")
    return packets


_DECODERS: tuple[Callable[[bytes], Report], ...] = (
    *(_decode_bound, _decode_failed, _decode_enforced, _decode_events, _decode_flows),
    *(_decode_learned, _decode_applied, _decode_wanted, _decode_packets),
)


def pack(events: Sequence[FlowEvent]) -> bytes:
    """Return events as bytes, which the agent unpacks only when a client reads them."""
    places: dict[int, int] = {}  # by ``id``: the events hold the tuples and messages, and many of them share these
    tuples: list[Rules] = []
    messages: list[str] = []
    rows = [_pack_event(event, places, tuples, messages) for event in events]
    texts = f"[{_json(tuples)},[{','.join(messages)}]]".encode()
    return b"".join((_PACK.pack(len(rows), len(texts)), texts, *rows))


def _pack_event(event: FlowEvent, places: dict[int, int], tuples: list[Rules], messages: list[str]) -> bytes:
    time, verdict, reason, direction, opening, tcp_flags, is_reply, allowed, enforced, denied, l7, end = event
    content, message = end if l7 is None else l7, 0
    if content is not None:
        message = places.get(id(content), 0)
        if not message:
            messages.append(_write_message(content))
            message = places[id(content)] = len(messages)
    rules = []
    for refs in (allowed, enforced, denied):
        place = places.get(id(refs))
        if place is None:
            place = places[id(refs)] = len(tuples)
            tuples.append(refs[:_MAX_RULES])
        rules.append(place)
    src, dst, *numbers = opening
    codes = _CODES[id(verdict)], _CODES[id(reason)], _CODES[id(direction)]
    return _EVENT.pack(time, *codes, len(src), src, len(dst), dst, *numbers, tcp_flags, is_reply, *rules, message)


def _write_message(message: Message) -> str:
    if isinstance(message, DnsMessage):
        return _write_dns(message)
    if isinstance(message, FlowEnd):
        return _json(("end", message.cause, message.duration, *message.sent, *message.received))
    return _json(("http" if isinstance(message, HttpMessage) else "tls", *message))


@lru_cache(_MAX_CACHED)
def _write_dns(message: DnsMessage) -> str:
    """Write a DNS message, of which a client sends and receives the same ones again and again."""
    *facts, addresses, aliases = message
    return _json(("dns", *facts, [address.hex() for address in addresses], aliases))


def unpack(packed: bytes) -> Iterator[FlowEvent]:
    """Yield the packed events, without those that are invalid."""
    _, size = _PACK.unpack_from(packed)
    tuples, messages = _read_texts(packed[_PACK.size : _PACK.size + size])
    for row in _EVENT.iter_unpack(packed[_PACK.size + size :]):
        try:
            yield _read_event(row, tuples, messages)
        except InvalidReport:
            continue


def _read_event(row: tuple[Any, ...], tuples: Sequence[Rules], messages: Sequence[Message]) -> FlowEvent:
    time, verdict, reason, direction, src_size, src, dst_size, dst, *fields = row
    proto, sport, dport, icmp_type, icmp_code, to_host, source, destination, *fields = fields
    sender, receiver, tcp_flags, is_reply, *places, message = fields
    if not (math.isfinite(time) and 0 <= time < _LATEST):
        raise InvalidReport("time")
    if src_size not in _ADDRESS_LENGTHS or src_size != dst_size:
        raise InvalidReport("address")
    if not (-1 <= icmp_type <= 0xFF and -1 <= icmp_code <= 0xFF):
        raise InvalidReport("ICMP type")
    ends = Identity(source), Identity(destination), sender, receiver
    opening = Opening(src[:src_size], dst[:dst_size], proto, sport, dport, icmp_type, icmp_code, to_host, *ends)
    allowed_by, enforced_by, denied_by = (_choose(tuples, place, "rules") for place in places)
    content = _choose(messages, message - 1, "message") if message else None
    return FlowEvent(
        time,
        _choose(_VERDICTS, verdict, "verdict"),
        _choose(_REASONS, reason, "reason"),
        _choose(_DIRECTIONS, direction, "direction"),
        *(opening, tcp_flags, is_reply, allowed_by, enforced_by, denied_by),
        *((None, content) if isinstance(content, FlowEnd) else (content, None)),
    )


def _read_texts(text: bytes) -> tuple[Sequence[Rules], Sequence[Message]]:
    """Read the tuples of rules, and the messages.

    A text that is not valid has none, so that events that refer to any are invalid.
    """
    try:
        tuples, messages = json.loads(text)
        return [tuple(_read_rule(rule) for rule in rules) for rules in tuples], list(map(_read_message, messages))
    except (ValueError, TypeError, RecursionError):
        return (), ()


def _read_message(message: Any) -> Message:
    protocol, *fields = message
    if protocol == "tls":
        return _read_tls(*fields)
    if protocol == "end":
        return _read_end(*fields)
    return _read_http(*fields) if protocol == "http" else _read_dns(*fields)


def _read_end(cause: Any, duration: Any, *counts: Any) -> FlowEnd:
    if duration is not None and not (type(duration) is float and 0 <= duration < _LATEST):
        raise InvalidReport("duration of a flow")
    if len(counts) != 4 or not all(type(count) is int and 0 <= count < _MAX_COUNT for count in counts):
        raise InvalidReport("packets or bytes of a flow")
    return FlowEnd(EndCause(cause), duration, Traffic(*counts[:2]), Traffic(*counts[2:]))


def _read_tls(server_name: Any) -> TlsMessage:
    if not _is_text(server_name, MAX_TEXT):
        raise InvalidReport("text of a message")
    return TlsMessage(server_name)


def _read_http(
    is_response: Any, method: Any, url: Any, protocol: Any, code: Any, latency: Any, headers: Any, grpc_status: Any
) -> HttpMessage:
    if type(is_response) is not bool or not _is_text(url, MAX_URL):
        raise InvalidReport("URL of a message")
    pairs = tuple((name, value) for name, value in headers)
    if len(pairs) > MAX_HEADERS or not all(_is_text(text, MAX_TEXT) for text in (method, protocol, *sum(pairs, ()))):
        raise InvalidReport("text of a message")
    if not all(
        type(value) is int and 0 <= value < _MAX_NUMBER for value in (code, 0 if grpc_status is None else grpc_status)
    ):
        raise InvalidReport("number of a message")
    if type(latency) is not int or not 0 <= latency < _MAX_LATENCY:
        raise InvalidReport("latency of a message")
    return HttpMessage(is_response, method, url, protocol, code, latency, pairs, grpc_status)


def _read_dns(is_answer: Any, name: Any, kind: Any, rcode: Any, ttl: Any, addresses: Any, aliases: Any) -> DnsMessage:
    if type(is_answer) is not bool or not all(map(_is_name, (name, *aliases))):
        raise InvalidReport("name of a message")
    if not all(type(value) is int and 0 <= value < _MAX_NUMBER for value in (kind, rcode, ttl)):
        raise InvalidReport("number of a message")
    packed = tuple(map(bytes.fromhex, addresses))
    if max(len(packed), len(aliases)) > _MAX_LISTED or not all(len(address) in {4, 16} for address in packed):
        raise InvalidReport("addresses of a message")
    return DnsMessage(is_answer, name, kind, rcode, ttl, packed, tuple(aliases))


def _is_name(text: Any) -> bool:
    return _is_text(text, _MAX_NAME)


def _is_text(text: Any, at_most: int) -> bool:
    return isinstance(text, str) and len(text) <= at_most and text.isprintable()


def _read_rule(rule: Any) -> RuleRef:
    kind, namespace, name, direction, number, spec, deny, order = rule
    if not all(map(_is_name, rule[:3])):
        raise InvalidReport("name of a rule")
    if not all(map(_is_number, (number, spec))) or type(deny) is not bool:
        raise InvalidReport("number of a rule")
    order = None if order is None else _read_order(*order)
    return RuleRef(kind, namespace, name, Direction(direction), number, spec, deny, order)


def _read_order(tier: Any, priority: Any, action: Any, title: Any) -> RuleOrder:
    if not _is_number(priority) or not _is_name(title):
        raise InvalidReport("order of a rule")
    return RuleOrder(Tier(tier), priority, Action(action), title)


def _is_number(value: Any) -> bool:
    return type(value) is int and -1 <= value < _MAX_NUMBER


def _choose(values: Sequence[Any], place: int, field: str) -> Any:
    if place >= len(values):
        raise InvalidReport(field)
    return values[place]
