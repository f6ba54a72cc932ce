"""Captures of a worker: packets that the filter admits, within limits of rate, bytes and time; others are counted."""

from itertools import count
from typing import Any

import pytest

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.worker import packet_capture
from nfq_enforcer.dataplane.worker.channel import StartCapture
from nfq_enforcer.dataplane.worker.packet_capture import PacketCaptures
from nfq_enforcer.dataplane.worker.packet_reports import PacketFilter, PacketRow, Packets, unpack_rows, wire_length
from nfq_enforcer.dataplane.worker.reports import MAX_REPORT, Report, encode_report, unpack
from nfq_enforcer.dataplane.worker.sampling import INTERVAL, OF_A_KIND
from tests.support.packets import packed, syn, udp

IPV4, IPV6 = syn("10.2.0.10", "10.1.0.10"), syn("fd02::10", "fd01::10")
OPENING = Opening(packed("10.2.0.10"), packed("10.1.0.10"), 6, 40_000, 80, -1, -1, False, Identity(500), Identity(300))
DROP = FlowEvent(1.0, FlowVerdict.DROPPED, DropReason.POLICY_DENIED, Direction.INGRESS, OPENING, 2, is_reply=False)
AUDITED = DROP._replace(verdict=FlowVerdict.AUDIT)
STAMP = DROP._replace(reason=DropReason.STAMP_MALFORMED)
START = StartCapture(7, PacketFilter(), 30, 1000, 5.0)
_ports = count()


class Channel:
    """Channel to an agent: keeps the reports, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[Report] = []
        self.full = False

    def send(self, report: Report) -> bool:
        assert len(encode_report(report)) <= MAX_REPORT
        if not self.full:
            self.sent.append(report)
        return not self.full


class Capturing:
    """Captures of a worker, with what the agent receives of them."""

    def __init__(self, *requests: StartCapture) -> None:
        self.channel = Channel()
        self.captures = PacketCaptures(self.channel)  # type: ignore[arg-type]
        for request in requests:
            self.captures.start(request, 0.0)
        self.channel.sent.clear()

    def received(self, now: float = 1.0, number: int = START.number) -> tuple[list[PacketRow], int]:
        """Send what waits; return the packets that have arrived since the last call, and the number of lost ones."""
        self.captures.send(now)
        sent = [report for report in self.channel.sent if isinstance(report, Packets) and report.capture == number]
        self.channel.sent.clear()
        return [row for report in sent for row in unpack_rows(report.packed)], sum(report.lost for report in sent)

    def drop(self, event: FlowEvent = DROP, payload: bytes = IPV4, number: int = 1) -> None:
        """Drop a number of packets of different kinds."""
        for _ in range(number):
            self.captures.add(event._replace(opening=OPENING._replace(dport=next(_ports) % 65536)), payload, 3, 4)


def test_a_captured_packet_has_its_event_its_interfaces_and_its_first_bytes() -> None:
    capturing = Capturing(START)

    capturing.captures.add(DROP, IPV4, 3, 0)

    assert capturing.captures.wait
    ((row,), lost) = capturing.received()
    assert (row.indev, row.outdev, row.length, row.data, lost) == (3, 0, len(IPV4), IPV4[:30], 0)
    assert list(unpack(row.event)) == [DROP]
    assert not capturing.captures.wait


def test_the_start_is_confirmed_once() -> None:
    capturing = Capturing()

    for now in (0.0, 1.0):
        capturing.captures.start(START, now)

    assert capturing.channel.sent == [Packets(START.number, 0, b"")]


@pytest.mark.parametrize(
    ("verdicts", "reasons", "admitted"),
    [
        ({FlowVerdict.DROPPED}, None, [DROP, STAMP]),
        ({FlowVerdict.AUDIT}, None, [AUDITED]),
        ({FlowVerdict.DROPPED, FlowVerdict.AUDIT}, {DropReason.POLICY_DENIED}, [DROP, AUDITED]),
        ({FlowVerdict.DROPPED}, {DropReason.CT_NO_MATCH}, []),
    ],
)
def test_the_filter_admits_verdicts_and_reasons(verdicts: Any, reasons: Any, admitted: list[FlowEvent]) -> None:
    capturing = Capturing(START._replace(filter=PacketFilter(verdicts, reasons)))
    forwarded = DROP._replace(verdict=FlowVerdict.FORWARDED, reason=None)

    for event in (DROP, AUDITED, STAMP, forwarded, None):
        capturing.captures.add(event, IPV4, 3, 4)

    rows, lost = capturing.received()
    assert ([event for row in rows for event in unpack(row.event)], lost) == (admitted, 0)


def test_each_capture_has_its_own_filter_and_length() -> None:
    other = StartCapture(8, PacketFilter(reasons=frozenset({DropReason.STAMP_MALFORMED})), 20, 1000, 5.0)
    capturing = Capturing(START, other)

    for event in (DROP, STAMP):
        capturing.captures.add(event, IPV6, 3, 4)
    capturing.captures.send(1.0)

    sent = [report for report in capturing.channel.sent if isinstance(report, Packets)]
    lengths = {report.capture: [len(row.data) for row in unpack_rows(report.packed)] for report in sent}
    assert lengths == {7: [30, 30], 8: [20]}


def test_a_packet_that_failed_has_the_reason_internal_error() -> None:
    capturing = Capturing(START)

    for indev, outdev in ((3, 0), (0, 4)):
        capturing.captures.add_failed(5.0, IPV4, indev, outdev)

    events = [event for row in capturing.received()[0] for event in unpack(row.event)]
    assert [(event.reason, event.direction) for event in events] == [
        (DropReason.INTERNAL_ERROR, Direction.INGRESS),
        (DropReason.INTERNAL_ERROR, Direction.EGRESS),
    ]


def test_of_alike_packets_the_first_ones_are_captured_in_each_interval() -> None:
    capturing = Capturing(START)

    for start in (0.0, INTERVAL):
        for _ in range(OF_A_KIND + 50):
            capturing.captures.add(DROP._replace(time=start), IPV4, 3, 4)

    rows, lost = capturing.received()
    assert (len(rows), lost) == (2 * OF_A_KIND, 100)


def test_all_packets_together_have_a_rate() -> None:
    capturing = Capturing(START._replace(rate=200))

    capturing.drop(number=300)

    rows, lost = capturing.received()
    assert (len(rows), lost) == (200, 100)


def test_the_bytes_in_an_interval_have_a_limit() -> None:
    capturing = Capturing(START._replace(snaplen=65535))
    long = udp("10.2.0.10", "10.1.0.10", data=bytes(60_000))
    fit = packet_capture._MAX_BYTES // len(long)

    capturing.drop(payload=long, number=fit + 5)
    capturing.drop(DROP._replace(time=1.0 + INTERVAL), payload=long)

    rows, lost = capturing.received()
    assert (len(rows), lost) == (fit + 1, 5)


def test_packets_between_two_runs_of_housekeeping_have_a_limit() -> None:
    capturing = Capturing(START)

    capturing.drop(number=packet_capture._MAX_WAITING + 5)

    rows, lost = capturing.received()
    assert (len(rows), lost) == (packet_capture._MAX_WAITING, 5)


def test_packets_with_very_many_rules_take_several_reports() -> None:
    rules = tuple(RuleRef("CiliumNetworkPolicy", "ns", "n" * 200, Direction.INGRESS, number) for number in range(500))
    capturing = Capturing(START)

    capturing.drop(DROP._replace(enforced_by=rules), number=200)

    rows, lost = capturing.received()
    assert (len(rows), lost) == (200, 0)


def test_packets_that_the_channel_refuses_are_counted_and_the_count_is_sent_later() -> None:
    capturing = Capturing(START)
    capturing.drop(number=3)

    capturing.channel.full = True
    assert capturing.received() == ([], 0)
    capturing.channel.full = False

    assert capturing.received() == ([], 3)


def test_a_capture_ends_when_its_lease_is_over_unless_it_is_renewed() -> None:
    capturing = Capturing(START)

    capturing.captures.send(4.9)
    capturing.captures.start(START, 4.9)
    capturing.captures.send(9.8)
    assert capturing.captures.running
    capturing.drop()

    assert len(capturing.received(9.9)[0]) == 1  # what waits is sent
    assert not capturing.captures.running


def test_a_capture_that_is_stopped_ends_at_once() -> None:
    capturing = Capturing(START, START._replace(number=8))
    capturing.captures.stop(7)
    capturing.captures.stop(99)
    capturing.drop()

    assert capturing.captures.running
    assert (len(capturing.received(number=8)[0]), capturing.received()[0]) == (1, [])
    capturing.captures.stop(8)
    assert not capturing.captures.running


@pytest.mark.parametrize("payload", [IPV4, IPV6])
def test_the_length_on_the_wire_is_that_of_the_header(payload: bytes) -> None:
    assert [wire_length(payload[:size]) for size in (40, len(payload))] == [len(payload)] * 2
    assert wire_length(payload + b"padding") == len(payload) + 7


@pytest.mark.parametrize("payload", [b"", b"\x45\x00\x00", bytes((0x60,)) * 39, b"\x70" + bytes(60)])
def test_an_unreadable_packet_has_the_length_of_its_bytes(payload: bytes) -> None:
    assert wire_length(payload) == len(payload)
