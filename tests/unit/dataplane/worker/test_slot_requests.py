"""Slot requests of a worker: first packets wait for a slot of the proxy, for a limited time."""

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.slots import SlotChange, SlotKey
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, QueueNumbers, Redirect, Result
from nfq_enforcer.dataplane.worker.channel import Setup, SlotChanges
from nfq_enforcer.dataplane.worker.map_transfer import SnapshotReference
from nfq_enforcer.dataplane.worker.reports import Applied, Report, SlotWanted
from nfq_enforcer.dataplane.worker.slot_requests import SlotRequests

KEY = SlotKey("", "default/web", Identity(500), Identity(300), (Identity(500),), (Identity(300),), 80)
OTHER = KEY._replace(port=81)


class Requests:
    """Requests of a worker whose agent is the test."""

    def __init__(self, *slots: SlotChange) -> None:
        self.sent: list[Report] = []
        self.full = False
        reference = SnapshotReference(Snapshot(1, {}, Ipcache({})))
        setup = Setup(Driver.AUTO, QueueNumbers(0, 0, 0, 3, 4), None, False, 10, reference, {}, set(), slots=slots)
        self.requests = SlotRequests(setup, self)  # type: ignore[arg-type]
        self.settled: list[tuple[SlotKey, Result]] = []

    def send(self, report: Report) -> bool:
        if not self.full:
            self.sent.append(report)
        return not self.full

    def hold(self, key: SlotKey, now: float = 100.0) -> HeldPacket:
        packet = self.requests.request(key, now)
        assert packet is not None
        packet.settle = lambda result: self.settled.append((key, result))
        return packet


def test_a_worker_starts_with_the_slots_of_its_setup() -> None:
    assert Requests(SlotChange(KEY, 7, True)).requests.table.is_open(KEY)


def test_packets_wait_until_their_slot_is_open() -> None:
    requests = Requests()
    for key in (KEY, OTHER, KEY):
        requests.hold(key)
    assert requests.sent == [SlotWanted(KEY), SlotWanted(OTHER), SlotWanted(KEY)]
    assert requests.requests.holds

    requests.requests.apply(SlotChanges(1, (SlotChange(KEY, 7, False), SlotChange(OTHER, 8, False))))
    assert requests.settled == []
    requests.requests.apply(SlotChanges(2, (SlotChange(KEY, 7, True),)))
    assert requests.settled == [(KEY, Redirect(7))] * 2
    assert requests.sent[3:] == [Applied(1), Applied(2)]
    requests.requests.apply(SlotChanges(3, (SlotChange(OTHER, 8, True),)))
    assert not requests.requests.holds


def test_a_packet_that_waits_for_too_long_goes_on_without_a_slot() -> None:
    requests = Requests()
    first, second = requests.hold(KEY, 100.0), requests.hold(OTHER, 101.0)

    assert list(requests.requests.overdue(102.9)) == []
    assert list(requests.requests.overdue(103.0)) == [first]
    assert first.result is Verdict.UNDECIDED
    assert list(requests.requests.overdue(110.0)) == [second]


def test_a_packet_does_not_wait_without_room_or_without_an_agent() -> None:
    requests = Requests()
    for _ in range(1024):
        requests.hold(KEY)
    assert requests.requests.request(OTHER, 100.0) is None
    assert requests.sent[-1] == SlotWanted(OTHER)  # for the repeated packet

    requests = Requests()
    requests.full = True
    assert requests.requests.request(KEY, 100.0) is None
