"""Sample of drops for the flow log: limits of a kind and of all, per interval."""

from itertools import count

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.worker.sampling import IN_ALL, INTERVAL, OF_A_KIND, DropSample

_sources = count(0x0A000001)


def drop(time: float, dport: int = 80, reason: DropReason = DropReason.POLICY_DENIED, source: int = 300) -> FlowEvent:
    """Return a drop from an address and a port of its own."""
    src = next(_sources).to_bytes(4, "big")
    opening = Opening(src, b"dest", TCP, next(_sources) % 65536, dport, -1, -1, False, Identity(source), Identity(301))
    return FlowEvent(time, FlowVerdict.DROPPED, reason, Direction.INGRESS, opening, 0, False)


def test_the_first_drops_of_a_kind_are_logged_in_each_interval() -> None:
    sample = DropSample()

    for start in (0.0, INTERVAL, 10 * INTERVAL):
        admitted = [sample.admits(drop(start)) for _ in range(2 * OF_A_KIND)]
        assert admitted == [True] * OF_A_KIND + [False] * OF_A_KIND


def test_a_flood_of_one_kind_hides_no_other_kind() -> None:
    sample = DropSample()
    for _ in range(IN_ALL * 2):
        sample.admits(drop(0.0))

    assert sample.admits(drop(0.0, dport=443))
    assert sample.admits(drop(0.0, reason=DropReason.CT_NO_MATCH))
    assert sample.admits(drop(0.0, source=2))


def test_all_kinds_together_have_a_limit() -> None:
    sample = DropSample()

    assert sum(sample.admits(drop(0.0, dport=port)) for port in range(2 * IN_ALL)) == IN_ALL
    assert sample.admits(drop(INTERVAL))
