"""Name learning of a worker: answers with new addresses are held until the agent releases them, for a limited time."""

from ipaddress import IPv4Address
from typing import Any

import pytest

from nfq_enforcer.core.events import Decision, FlowEvent, Learned
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.dns_names import NamePatterns
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.names import NameChange
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, QueueNumbers
from nfq_enforcer.dataplane.worker.channel import NameChanges, Setup
from nfq_enforcer.dataplane.worker.map_transfer import SnapshotReference
from nfq_enforcer.dataplane.worker.name_learning import NameLearning
from nfq_enforcer.dataplane.worker.reports import Applied, NamesLearned, Report
from tests.support.packets import packed

FIRST = IPv4Address("198.18.0.1")
WEB, ONE, TWO = packed("10.1.0.10"), packed("192.0.2.1"), packed("192.0.2.2")
SNAPSHOT = Snapshot(1, {}, Ipcache({}))
PATTERNS = NamePatterns([("*.example", Identity(1))])
OPENING = Opening(ONE, WEB, 17, 53, 40_000, -1, -1, False, Identity(2), Identity(300))
EVENT = FlowEvent(1.0, FlowVerdict.FORWARDED, None, Direction.EGRESS, OPENING, 0, is_reply=True)


class Channel:
    """Channel to an agent: keeps the reports, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[Report] = []
        self.full = False

    def send(self, report: Report) -> bool:
        if not self.full:
            self.sent.append(report)
        return not self.full


class Learning:
    def __init__(self, *, alone: bool, **changed: Any) -> None:
        self.channel = Channel()
        reference = SnapshotReference(SNAPSHOT)
        setup = Setup(Driver.AUTO, QueueNumbers(0, 0, 0, 3, 4), None, False, 10, reference, {}, set(), alone=alone)
        self.names = NameLearning(setup._replace(**changed), self.channel)  # type: ignore[arg-type]

    def learn(self, now: float, *addresses: tuple[bytes, int], name: str = "a.example") -> Decision | HeldPacket:
        return self.names.learn(decision(name, *addresses), SNAPSHOT, PATTERNS, now)


def decision(name: str, *addresses: tuple[bytes, int]) -> Decision:
    return Decision(Verdict.ACCEPT, event=EVENT, learned=(Learned(WEB, name, addresses or ((ONE, 30),)),))


def test_a_worker_alone_learns_at_once_and_reports() -> None:
    alone = Learning(alone=True)

    assert alone.learn(100.0) == decision("a.example")
    assert list(alone.names.table) == [NameChange("a.example", ONE, 135.0)]
    assert alone.channel.sent == [NamesLearned(0, WEB, "a.example", ((ONE, 30),))]


def test_a_longer_time_may_be_configured() -> None:
    alone = Learning(alone=True, min_ttl=600.0)
    alone.learn(100.0)

    assert list(alone.names.table) == [NameChange("a.example", ONE, 705.0)]


def test_the_same_answer_is_reported_again_with_the_next_step_of_its_time() -> None:
    alone = Learning(alone=True)
    reports = []
    for now in (100.1, 104.9, 105.1):
        alone.learn(now)
        reports.append(len(alone.channel.sent))

    assert reports == [1, 1, 2]


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_name_may_not_have_is_neither_held_nor_learned(alone: bool) -> None:
    learning = Learning(alone=alone)
    forbidden = (packed("127.0.0.1"), 30)

    assert learning.learn(100.0, forbidden) == decision("a.example", forbidden)
    assert learning.channel.sent == []
    learning.learn(100.0, forbidden, (ONE, 30))
    assert [report.addresses for report in learning.channel.sent if isinstance(report, NamesLearned)] == [((ONE, 30),)]


def test_with_siblings_an_answer_waits_for_all_workers() -> None:
    several = Learning(alone=False)

    held = several.learn(100.0)
    assert isinstance(held, HeldPacket)
    assert several.names.holds
    again = several.learn(100.0)  # before all workers have the address
    assert isinstance(again, HeldPacket)
    assert several.channel.sent == [NamesLearned(number, WEB, "a.example", ((ONE, 30),)) for number in (1, 2)]

    several.names.apply(NameChanges(7, (NameChange("a.example", ONE, 135.0),)))
    assert several.channel.sent[2:] == [Applied(7)]
    assert isinstance(several.learn(100.0), HeldPacket)
    assert list(several.names.released(1)) == [(held, decision("a.example"))]
    assert list(several.names.released(2)) == [(again, decision("a.example"))]
    assert len(list(several.names.released(3))) == 1
    assert several.learn(100.5) == decision("a.example")


def test_only_new_addresses_of_names_in_policies_wait() -> None:
    several = Learning(alone=False, names=(NameChange("a.example", ONE, 135.0),))

    assert several.learn(110.0) == decision("a.example")  # prolongs the time
    assert several.learn(110.0, (ONE, 30), (TWO, 30), name="other.org") == decision("other.org", (ONE, 30), (TWO, 30))
    assert [report.number for report in several.channel.sent if isinstance(report, NamesLearned)] == [0, 0]
    assert isinstance(several.learn(110.0, (ONE, 30), (TWO, 30)), HeldPacket)
    assert isinstance(several.learn(140.0), HeldPacket)  # the name has expired


def test_several_answers_of_one_packet_wait_for_each_other() -> None:
    several = Learning(alone=False)
    both = decision("a.example")._replace(
        learned=(Learned(WEB, "a.example", ((ONE, 30),)), Learned(WEB, "b", ((TWO, 30),)))
    )

    assert isinstance(several.names.learn(both, SNAPSHOT, PATTERNS, 100.0), HeldPacket)
    assert several.channel.sent == [
        NamesLearned(0, WEB, "a.example", ((ONE, 30),)),
        NamesLearned(1, WEB, "b", ((TWO, 30),)),
    ]
    assert len(list(several.names.released(1))) == 1


def test_an_answer_that_waits_for_too_long_is_dropped() -> None:
    several = Learning(alone=False)
    held, later = several.learn(100.0), several.learn(100.5)

    assert list(several.names.overdue(100.9)) == []
    ((packet, dropped),) = several.names.overdue(101.0)
    assert packet is held
    assert (dropped.verdict, dropped.learned) == (Verdict.DROP, ())
    assert dropped.event == EVENT._replace(verdict=FlowVerdict.DROPPED, reason=DropReason.DNS_NOT_LEARNED)
    assert list(several.names.released(1)) == []
    assert [packet for packet, _ in several.names.released(2)] == [later]
    assert not several.names.holds


@pytest.mark.parametrize("full", [False, True])
def test_an_answer_without_room_is_dropped(full: bool) -> None:
    several = Learning(alone=False)
    for number in range(1 if full else 256):
        several.learn(100.0, ((FIRST + number).packed, 30))
    several.channel.full = full

    refused = several.learn(100.0, (TWO, 30))

    assert isinstance(refused, Decision)
    assert (refused.verdict, refused.event and refused.event.reason) == (Verdict.DROP, DropReason.DNS_NOT_LEARNED)


def test_a_held_packet_that_no_driver_parks_is_settled_without_effect() -> None:
    HeldPacket(Verdict.ACCEPT).settle(Verdict.DROP)


def test_a_rewritten_answer_is_delivered_rewritten() -> None:
    several = Learning(alone=False)

    held = several.names.learn(decision("a.example")._replace(payload=b"other"), SNAPSHOT, PATTERNS, 1.0)

    assert isinstance(held, HeldPacket)
    assert held.result == b"other"
