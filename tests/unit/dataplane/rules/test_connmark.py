"""Marks of flows and packets: no two epochs that follow each other share any, and bits of others are left alone."""

import pytest

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.dataplane.rules.connmark import EARLIER, FIELD, MASK, SIGNED

ROUND = 2**23 - 2
EPOCHS = [0, 1, 2, 3, 1000, ROUND - 1, ROUND, ROUND + 1, 2 * ROUND]
BYPASSES = [Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW]


@pytest.mark.parametrize("epoch", EPOCHS)
def test_a_flows_mark_says_how_much_and_when_and_nothing_in_the_bits_of_others(epoch: int) -> None:
    here = {connmark.of_opener(epoch), connmark.of_flow(epoch)}
    next_one = {connmark.of_opener(epoch + 1), connmark.of_flow(epoch + 1)}

    assert len(here | next_one | {0, EARLIER}) == 6
    assert all(0 < mark < 2**32 and not mark & ~MASK for mark in here | {EARLIER})


def test_marks_are_used_again_after_a_round_of_which_the_beginning_is_told() -> None:
    assert connmark.of_flow(5) == connmark.of_flow(5 + ROUND)
    assert [epoch for epoch in EPOCHS if connmark.begins_anew(epoch)] == [0, ROUND, 2 * ROUND]


@pytest.mark.parametrize("verdict", BYPASSES)
def test_the_sign_of_a_packet_is_no_other_of_this_epoch_or_the_one_before(verdict: Verdict) -> None:
    signs = {connmark.sign(one, epoch) for one in BYPASSES for epoch in (7, 8)}

    assert len(signs) == 4
    assert all(sign & SIGNED and not sign & ~FIELD for sign in signs)
    assert connmark.sign(verdict, 7) == connmark.sign(verdict, 9)


def test_a_packets_other_bits_stay() -> None:
    assert connmark.signed(0x9ABCDEF1, Verdict.OFFLOAD_FLOW, 2) == 0x8ABCDEF1 | 0x60000000


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        *((0, 0), (0x8FFFFFFF, 0), (0x10000000, FLOW_OPENER), (0x20000000, FLOW_REPLIER), (0xAFFFFFFF, FLOW_REPLIER)),
        *((0x30000000, 0), (SIGNED, 0), (SIGNED | 0x10000000, 0), (0x70000000, 0)),
    ],
)
def test_a_packets_mark_tells_who_sends_it(mark: int, told: int) -> None:
    assert connmark.told(mark) == told
