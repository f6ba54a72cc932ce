"""Connmarks and packet marks: consecutive epochs share none, and bits that belong to others are preserved."""

import pytest

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import ASKS_SLOT, FLOW_OPENER, FLOW_REPLIER, PROXIED, PROXY_LEG, SLOT_SHIFT
from nfq_enforcer.dataplane.rules import connmark, packet_mark
from nfq_enforcer.dataplane.rules.connmark import MASK, RETIRED
from nfq_enforcer.dataplane.rules.packet_mark import (
    FROM_ENDPOINT,
    FROM_OPENER,
    FROM_REPLIER,
    KNOWN_SOURCE,
    REQUEST,
    TO_ENDPOINT,
)

ROUND = 2**20 - 2
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
    assert all(bits & REQUEST and not bits & ~packet_mark.MASK for bits in requests)
    assert connmark.request(verdict, 7) == connmark.request(verdict, 9)


def test_a_packets_other_bits_stay() -> None:
    assert connmark.add_request(0x9ABCDEF1, Verdict.OFFLOAD_FLOW, 2) == 0x0ABCDEF1 | 0x60000000


CLASSES = [0, FROM_ENDPOINT, TO_ENDPOINT, TO_ENDPOINT | KNOWN_SOURCE]


@pytest.mark.parametrize(
    ("mark", "flags"),
    [
        (FROM_OPENER, FLOW_OPENER),
        (FROM_REPLIER | 0xABCDEF, FLOW_REPLIER),
        *((bits | 0xABCDEF, 0) for bits in CLASSES),
        *((REQUEST | bits, 0) for bits in (0, *CLASSES, FROM_OPENER, FROM_REPLIER)),
    ],
)
def test_the_sender_is_in_the_mark_only_if_a_rule_has_set_it(mark: int, flags: int) -> None:
    assert packet_mark.skb_flags(mark) == flags


@pytest.mark.parametrize(
    ("way", "flags"),
    [
        (packet_mark.ASKING, ASKS_SLOT),  # the low bits are of others
        (packet_mark.REDIRECTED, PROXIED | 999 << SLOT_SHIFT),
        (packet_mark.TO_PROXY, PROXIED | 999 << SLOT_SHIFT),
        (packet_mark.FROM_PROXY, PROXY_LEG | 999 << SLOT_SHIFT),
        (packet_mark.ASKING | packet_mark.TO_PROXY, 0),  # no rule sets two
    ],
)
@pytest.mark.parametrize("bits", [*CLASSES, FROM_OPENER, REQUEST])
def test_the_way_of_a_packet_is_in_its_mark_beside_its_class(bits: int, way: int, flags: int) -> None:
    sender = FLOW_OPENER if bits == FROM_OPENER else 0

    assert packet_mark.skb_flags(bits | way | 0x00AB0000 | 999) == flags | sender


def test_a_redirect_leaves_the_bits_of_others() -> None:
    assert packet_mark.redirected(0xF1ABCDEF, 7) == 0xF2AB0007
    assert packet_mark.undecided(0xF1ABCDEF) == 0xF0ABCDEF


def test_bits_of_the_way_are_no_others() -> None:
    assert not packet_mark.WAY & packet_mark.MASK
    assert not (connmark.REDIRECTED | connmark.FROM_PROXY) & MASK


def test_no_class_can_be_taken_for_a_request() -> None:
    assert not any(bits & REQUEST or bits & ~packet_mark.MASK for bits in (*CLASSES, FROM_OPENER, FROM_REPLIER))
