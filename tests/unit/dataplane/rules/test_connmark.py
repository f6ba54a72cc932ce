"""Connmarks and packet marks: consecutive epochs share none, and bits that belong to others are preserved."""

import pytest

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.dataplane.rules.connmark import MASK, PACKET_MASK, REQUEST, RETIRED

ROUND = 2**23 - 2
EPOCHS = [0, 1, 2, 3, 1000, ROUND - 1, ROUND, ROUND + 1, 2 * ROUND]
OFFLOADS = [Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW]


@pytest.mark.parametrize("epoch", EPOCHS)
def test_a_flows_mark_says_how_much_and_when_and_nothing_in_the_bits_of_others(epoch: int) -> None:
    current = {connmark.opener_mark(epoch), connmark.flow_mark(epoch)}
    following = {connmark.opener_mark(epoch + 1), connmark.flow_mark(epoch + 1)}

    assert len(current | following | {0, RETIRED}) == 6
    assert all(0 < mark < 2**32 and not mark & ~MASK for mark in current | {RETIRED})


def test_marks_are_used_again_after_a_round_of_which_the_beginning_is_told() -> None:
    assert connmark.flow_mark(5) == connmark.flow_mark(5 + ROUND)
    assert [epoch for epoch in EPOCHS if connmark.reuses_marks(epoch)] == [0, ROUND, 2 * ROUND]


@pytest.mark.parametrize("verdict", OFFLOADS)
def test_the_sign_of_a_packet_is_no_other_of_this_epoch_or_the_one_before(verdict: Verdict) -> None:
    requests = {connmark.request(offload, epoch) for offload in OFFLOADS for epoch in (7, 8)}

    assert len(requests) == 4
    assert all(bits & REQUEST and not bits & ~PACKET_MASK for bits in requests)
    assert connmark.request(verdict, 7) == connmark.request(verdict, 9)


def test_a_packets_other_bits_stay() -> None:
    assert connmark.add_request(0x9ABCDEF1, Verdict.OFFLOAD_FLOW, 2) == 0x8ABCDEF1 | 0x60000000


@pytest.mark.parametrize(
    ("mark", "flags"),
    [
        *((0, 0), (0x8FFFFFFF, 0), (0x10000000, FLOW_OPENER), (0x20000000, FLOW_REPLIER), (0xAFFFFFFF, FLOW_REPLIER)),
        *((0x30000000, 0), (REQUEST, 0), (REQUEST | 0x10000000, 0), (0x70000000, 0)),
    ],
)
def test_a_packets_mark_tells_who_sends_it(mark: int, flags: int) -> None:
    assert connmark.sender_flag(mark) == flags
