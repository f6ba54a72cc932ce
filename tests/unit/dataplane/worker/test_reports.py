"""Reports: what a worker sends arrives as it was, and bytes that are no report have no effect on the agent."""

import json
import struct
from typing import Any

import pytest

from nfq_enforcer.core.events import DnsMessage, FlowEnd, FlowEvent, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import ANY, WORLD, Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.tables.slots import SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.packet_reports import PacketRow, Packets, pack_rows, unpack_rows
from nfq_enforcer.dataplane.worker.reports import (
    MAX_EVENTS,
    Applied,
    Bound,
    Enforced,
    Events,
    Failed,
    InvalidReport,
    NamesLearned,
    Report,
    SlotWanted,
    decode_report,
    encode_report,
    pack,
    unpack,
)
from tests.support.packets import packed

RULE = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
DENY = RuleRef("CiliumClusterwideNetworkPolicy", "", "ünï", Direction.EGRESS, 7, 2, deny=True)
ORDER = RuleOrder(Tier.ADMIN, 1000, Action.DENY, "no telnet")
ORDERED = RuleRef("ClusterNetworkPolicy", "", "admin", Direction.EGRESS, 24, order=ORDER)
OPENING = Opening(packed("10.2.0.10"), packed("10.1.0.10"), 6, 40_000, 80, -1, -1, False, WORLD, Identity(300))
EVENT = FlowEvent(
    *(5.0, FlowVerdict.DROPPED, DropReason.POLICY_DENIED, Direction.INGRESS, OPENING, 2),
    is_reply=False,
    enforced_by=(RULE,),
)
UNREADABLE = EVENT._replace(opening=Opening(b"", b"", 0, 0, 0, -1, -1, True, Identity(0), Identity(0)))
EVENTS = [
    EVENT,
    EVENT._replace(reason=None, allowed_by=(RULE, DENY), enforced_by=(), verdict=FlowVerdict.FORWARDED),
    EVENT._replace(opening=OPENING._replace(src=packed("fd00::1"), dst=packed("fd00::2"), proto=58, icmp_type=255)),
    EVENT._replace(direction=Direction.EGRESS, is_reply=True, denied_by=(DENY, ORDERED), tcp_flags=0x1FF),
    UNREADABLE,
    EVENT._replace(end=FlowEnd(EndCause.CLOSED, 1.5, Traffic(3, 180), Traffic(2, 1 << 47))),
    EVENT._replace(end=FlowEnd(EndCause.EXPIRED, None, Traffic(1, 60), Traffic(0, 0))),
    EVENT._replace(l7=DnsMessage(False, "www.example.com", 1)),
    EVENT._replace(l7=DnsMessage(True, "a\\046b", 28, 3, 60, (packed("fd00::1"), packed("192.0.2.1")), ("b", "c"))),
    EVENT._replace(l7=HttpMessage(False, "GET", "http://a.example/b?c", "HTTP/1.1", 403, 1, (("x", "1"), ("x", "2")))),
    EVENT._replace(l7=TlsMessage("a.example")),
    EVENT._replace(l7=HttpMessage(True, "POST", "http://a/b.C/D", "HTTP/2", 200, 1 << 40, (), 0)),
]
PACKED = pack(EVENTS)
ROWS = [PacketRow(pack([event]), 3, 0, 1500, bytes(range(40))) for event in EVENTS]
REPORTS: list[Report] = [
    Bound(Driver.NETLINK, QueueNumbers(100, 101, 102, 103, 65535)),
    Bound(Driver.NETFILTERQUEUE, QueueNumbers(0, 0, 0, 3, 4)),
    Failed("queue 100 is taken by another program"),
    Enforced(1 << 40),
    Events(len(EVENTS), PACKED),
    Events(0, pack([])),
    NamesLearned(1, packed("10.1.0.10"), "a.example", ((packed("192.0.2.1"), 60), (packed("fd00::1"), 0))),
    NamesLearned(0, packed("fd00::1"), "a\\046b.example", ()),
    Applied(1 << 40),
    Packets(1 << 63, 1 << 40, pack_rows(ROWS)),
    Packets(1, 0, b""),
    SlotWanted(SlotKey("", "default/web", Identity(500), Identity(300), (Identity(500), ANY), (Identity(300),), 80)),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_captured_packets_are_unpacked_as_they_were() -> None:
    assert list(unpack_rows(pack_rows(ROWS))) == ROWS


def test_events_are_unpacked_as_they_were() -> None:
    assert list(unpack(PACKED)) == EVENTS
    assert [type(event.opening) for event in unpack(PACKED)] == [Opening] * len(EVENTS)
    assert {type(rule) for event in unpack(PACKED) for rule in event.allowed_by} == {RuleRef}


def test_rules_of_many_events_travel_once() -> None:
    assert pack([EVENT] * 100).count(b'"web"') == 1


def test_of_very_many_rules_the_first_ones_travel() -> None:
    (event,) = unpack(pack([EVENT._replace(allowed_by=(RULE,) * 10_000)]))

    assert event.allowed_by == (RULE,) * 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\xff" + PACKED,
        b"\x00",
        encode_report(REPORTS[0]) + b"x",
        b"\x00\x02" + bytes(6),  # a driver that does not exist
        b"\x01\xff\xfe",  # not UTF-8
        b"\x02" + bytes(7),
        b"\x03",
        b"\x03" + PACKED[:-1],
        b"\x03" + PACKED + b"x",
        b"\x03" + struct.pack("!HI", 0, 1 << 31),
        b"\x03" + pack([UNREADABLE] * (MAX_EVENTS + 1)),
        b"\x05",
        b"\x05[1]",
        b'\x05[1,"0a01000a","a",[["c0000201",-1]]]',
        b'\x05[1,"0a01000a","a",[["c0000201",true]]]',
        b'\x05[1,"0a01000a","a",[["c00002",1]]]',
        b'\x05[1,"0a01","a",[]]',
        b'\x05[1,"0a01000a","a\\u001b",[]]',
        b'\x05[1,"0a01000a",7,[]]',
        b'\x05[1,"0a01000a","a",[' + b",".join([b'["c0000201",1]'] * 501) + b"]]",
        b"\x05" + b"[" * 100_000,
        b"\x08" + bytes(15),
        b"\x08" + bytes(16) + pack_rows(ROWS)[:-1],
        b"\x08" + bytes(16) + bytes(19),
        b"\x08" + bytes(16) + pack_rows([ROWS[0]._replace(length=39)]),  # shorter than its bytes
        b"\x08" + bytes(16) + pack_rows([PacketRow(pack([EVENT]), 0, 0, 1 << 17, bytes(1 << 16))]),
        b"\x08" + bytes(16) + pack_rows([ROWS[0]._replace(event=b"")]),
        b"\x08" + bytes(16) + pack_rows([ROWS[0]._replace(event=pack([]))]),
        b"\x08" + bytes(16) + pack_rows([ROWS[0]._replace(event=pack([EVENT, EVENT]))]),
        b"\x07",
        b"\x07[]",
        b'\x07["", "a", 1, 2, [1], [2], 80]',
        b'\x07["", "a", 1, 2, [1], [2], 80, 0]',
        b'\x07["", "a", 1, 2, [1], [2], 80, 4]',
        b"\x07" + b"[" * 100_000,
        b'\x07["a","b",1,2,[1],7,80]',
        b'\x07["a",null,1,2,[1],[2],80]',
        b'\x07["a","b\\u001b",1,2,[1],[2],80]',
        b'\x07["a","b",1,2,[],[2],80]',
        b'\x07["a","b",1,2,[1],[' + b",".join([b"2"] * 1001) + b"],80]",
        b'\x07["a","b",1,2,[1],[true],80]',
        b'\x07["a","b",-1,2,[1],[2],80]',
        b'\x07["a","b",1,4294967296,[1],[2],80]',
        b'\x07["a","b",1,2,[1],[2],65536]',
        b"\x06",
        b"cos\nsystem\n(S'true'\ntR.",  # a pickle that would execute a command
        b"\x80\x05" + PACKED,
    ],
)
def test_bytes_that_are_no_report_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidReport):
        decode_report(data)


def test_a_failure_carries_no_control_characters_and_has_a_limit() -> None:
    assert decode_report(b"\x01a\x1b[31m\nb") == Failed("a [31m b")
    report = decode_report(encode_report(Failed("é" * 10_000)))
    assert report == Failed("é" * 4096)


def replaced(offset: int, data: bytes) -> bytes:
    """Return a pack of one event with other bytes in its row."""
    wire = bytearray(pack([EVENT]))
    at = len(wire) - ROW + offset
    wire[at : at + len(data)] = data
    return bytes(wire)


ROW = len(pack([EVENT] * 2)) - len(pack([EVENT]))


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, struct.pack("!d", float("nan"))),
        (0, struct.pack("!d", float("inf"))),
        (0, struct.pack("!d", -1.0)),
        (0, struct.pack("!d", 1e300)),
        (8, b"\xff"),  # verdict
        (9, b"\xff"),  # reason
        (10, b"\x02"),  # direction
        (11, b"\x05"),  # length of an address
        (11, b"\x00"),  # one address alone
        (11, b"\x10"),  # addresses of two families
        (28, b"\x11"),
        (28, b"\x00"),
        (50, struct.pack("!h", 256)),  # ICMP type
        (52, struct.pack("!h", -2)),
        (ROW - 4, b"\xff\xff"),  # rules
        (ROW - 2, b"\x00\x01"),  # a message
    ],
)
def test_an_event_with_a_value_out_of_its_range_is_left_out(offset: int, data: bytes) -> None:
    assert list(unpack(replaced(0, b""))) == [EVENT]
    assert list(unpack(replaced(offset, data))) == []


def with_message(*message: Any) -> bytes:
    """Return a pack of one event with this message."""
    row = pack([EVENT._replace(l7=DnsMessage(False, "a", 1))])[-ROW:]
    texts = json.dumps(([[], [RULE]], [message])).encode()
    return struct.pack("!HI", 1, len(texts)) + texts + row


HTTP = ("http", True, "GET", "http://a/", "HTTP/1.1", 200, 5, [["x", "y"]], 7)
DNS = ("dns", True, "a", 1, 0, 60, ["c0000201"], ["b"])


@pytest.mark.parametrize(
    ("message", "place", "value"),
    [
        *((HTTP, 0, value) for value in ("ftp", None, [1])),
        *((HTTP, 1, value) for value in (1, None)),
        *((HTTP, place, value) for place in (2, 3, 4) for value in ("a\x1b", "\ud800", None, "a" * 2049)),
        *((HTTP, place, value) for place in (5, 6, 8) for value in (-1, True, "5", 0.5, 1 << 63)),
        *((HTTP, 7, value) for value in ([["x", "y"]] * 17, [["x"]], [["x", 1]], [["x", "\n"]], [["x", "a" * 257]], 7)),
        *((DNS, 1, value) for value in (1, None)),
        *((DNS, 2, value) for value in ("a\x1b", None, "a" * 1025)),
        *((DNS, place, value) for place in (3, 4, 5) for value in (-1, False, 1 << 31)),
        *((DNS, 6, value) for value in (["c00002"], ["x"], ["c0000201"] * 65)),
        *((DNS, 7, value) for value in ([7], ["a"] * 65)),
    ],
)
def test_an_event_whose_message_has_a_value_out_of_its_range_is_left_out(
    message: tuple[Any, ...], place: int, value: Any
) -> None:
    (event,) = unpack(with_message(*message))

    assert next(iter(event.l7 or ())) is True
    assert list(unpack(with_message(*message[:place], value, *message[place + 1 :]))) == []


END = ("end", "closed", 1.5, 3, 180, 2, 120)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((1, value) for value in ("over", None, 1)),
        *((2, value) for value in (-1.0, 1, True, "1", 1e11)),
        *((place, value) for place in (3, 4, 5, 6) for value in (-1, 0.5, True, "1", None, 1 << 63)),
    ],
)
def test_an_end_of_a_flow_with_a_value_out_of_its_range_is_left_out(place: int, value: Any) -> None:
    (event,) = unpack(with_message(*END))

    assert event.end == FlowEnd(EndCause.CLOSED, 1.5, Traffic(3, 180), Traffic(2, 120))
    assert event.l7 is None
    assert list(unpack(with_message(*END[:place], value, *END[place + 1 :]))) == []
    assert list(unpack(with_message(*END, 1))) == []


@pytest.mark.parametrize(
    "rules",
    [
        b"",
        b"[",
        b"\xff",
        b"7",
        b"[7]",
        b"[" * 100_000,
        json.dumps([[["kind", "ns", "name", "sideways", 0, 0, False, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", "0", 0, False, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", 0, True, False, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", 0, 0, 1, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", 1 << 31, 0, False, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", 0, -2, False, None]]]).encode(),
        b'[[["kind", "ns", "name", "ingress", ' + b"9" * 4000 + b", 0, false, null]]]",
        json.dumps([[["kind", "ns", "na\x1bme", "ingress", 0, 0, False, None]]]).encode(),
        json.dumps([[["kind", "n" * 2000, "name", "ingress", 0, 0, False, None]]]).encode(),
        json.dumps([[["kind", None, "name", "ingress", 0, 0, False, None]]]).encode(),
        json.dumps([[["kind", "ns", "name", "ingress", 0]]]).encode(),
        *(
            json.dumps([[["kind", "", "name", "ingress", 0, 0, False, order]]]).encode()
            for order in (
                7,
                "Admin",
                [],
                ["Admin", 1, "Deny"],
                ["Platform", 1, "Deny", ""],
                ["Admin", "1", "Deny", ""],
                ["Admin", 1 << 31, "Deny", ""],
                ["Admin", 1, "Drop", ""],
                ["Admin", 1, "Deny", "a\x1b"],
                ["Admin", 1, "Deny", None],
            )
        ),
    ],
)
def test_rules_that_are_not_valid_take_their_events_with_them(rules: bytes) -> None:
    row = pack([EVENT])[-ROW:]

    assert list(unpack(struct.pack("!HI", 1, len(rules)) + rules + row)) == []
