"""Any bytes from a worker are a valid report or InvalidReport; no event of a report has a value outside its range."""

import json

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import DnsMessage, FlowEnd, FlowEvent, HttpMessage
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker import flow_list
from nfq_enforcer.dataplane.worker.flow_list import FlowList
from nfq_enforcer.dataplane.worker.packet_reports import MAX_SNAPLEN, PacketRow, Packets, pack_rows, unpack_rows
from nfq_enforcer.dataplane.worker.reports import (
    MAX_EVENTS,
    Bound,
    Enforced,
    Events,
    Failed,
    InvalidReport,
    decode_report,
    encode_report,
    pack,
    unpack,
)
from nfq_enforcer.observe.flow import Logged, render
from nfq_enforcer.observe.text import compact
from tests.support.packets import packed

_RULE = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
_ORDER = RuleOrder(Tier.ADMIN, 10, Action.DENY, "no telnet")
_ORDERED = RuleRef("ClusterNetworkPolicy", "", "admin", Direction.INGRESS, 0, order=_ORDER)
_OPENING = Opening(packed("10.2.0.10"), packed("10.1.0.10"), 6, 40_000, 80, -1, -1, False, Identity(500), Identity(300))
_EVENT = FlowEvent(
    *(5.0, FlowVerdict.DROPPED, DropReason.POLICY_DENIED, Direction.INGRESS, _OPENING, 2),
    is_reply=False,
    enforced_by=(_RULE,),
    denied_by=(_ORDERED,),
)
_NAMES = Ends(End(None), End(None))
_EVENTS = [_EVENT, _EVENT._replace(opening=_OPENING._replace(src=packed("fd00::1"), dst=packed("fd00::2"), proto=58))]
_MESSAGES = [
    _EVENT._replace(l7=DnsMessage(True, "a.example", 1, 0, 60, (packed("192.0.2.1"),), ("b",))),
    _EVENT._replace(l7=HttpMessage(True, "GET", "http://a/b", "HTTP/1.1", 200, 5, (("x", "y"),), 7)),
    _EVENT._replace(end=FlowEnd(EndCause.CLOSED, 1.5, Traffic(1, 40), Traffic(0, 0))),
]
SEEDS = [
    encode_report(Bound(Driver.NETLINK, QueueNumbers(100, 101, 102, 103, 104))),
    encode_report(Failed("queue 100 is taken")),
    encode_report(Enforced(1 << 40)),
    encode_report(Events(1, pack(_EVENTS[:1]))),
    encode_report(Events(2, pack(_EVENTS))),
    encode_report(Events(2, pack(_MESSAGES))),
    encode_report(Packets(1, 2, pack_rows([PacketRow(pack(_EVENTS[:1]), 3, 0, 1500, bytes(20))]))),
    encode_report(FlowList(1, 7, bytes((13,)) + bytes(59))),
]


def check(data: bytes) -> None:
    try:
        report = decode_report(data)
    except InvalidReport as refusal:
        assert str(refusal).isprintable()
        return
    if isinstance(report, Failed):
        assert report.reason.isprintable()
    else:
        assert encode_report(report) == data
    if isinstance(report, Events):
        events = list(unpack(report.packed))
        assert len(events) <= report.number <= MAX_EVENTS
        for event in events:
            _check_event(event)
    elif isinstance(report, Packets):
        for row in unpack_rows(report.packed):
            assert len(row.data) <= min(row.length, MAX_SNAPLEN)
            for event in unpack(row.event):
                _check_event(event)
    elif isinstance(report, FlowList):
        assert sum(1 for _ in flow_list.unpack(report.packed)) <= flow_list.SEARCHED


def _check_event(event: FlowEvent) -> None:
    flow = render(Logged(event, _NAMES, event.time, "n1", ""))
    assert json.dumps(flow, ensure_ascii=False).isprintable()
    assert compact(flow).isprintable()
