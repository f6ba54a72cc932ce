"""The flood log: a line for each kind of loss, with its count, at an interval."""

from nfq_enforcer.agent.flood_log import INTERVAL, Counts, FloodLog
from nfq_enforcer.core.verdict import DropReason

NONE = {"known": 0, "openings": 0, "excess": 0, "limited": 0, "unlogged": 0}


def counts(denied: int = 0, **losses: int) -> Counts:
    return Counts(NONE | losses, dict.fromkeys(DropReason, 0) | {DropReason.POLICY_DENIED: denied})


def test_without_losses_the_log_is_silent() -> None:
    log = FloodLog(counts(limited=7))

    assert list(log.lines(counts(denied=9, limited=7), 0.0)) == []


def test_the_first_loss_is_logged_at_once_and_then_the_sum_of_an_interval() -> None:
    log = FloodLog(counts())
    line = "openings beyond their budgets were lost, because their queue was full"

    assert list(log.lines(counts(excess=5), 100.0)) == [f"5 {line}"]
    assert list(log.lines(counts(excess=500), 100.0 + INTERVAL / 2)) == []
    assert list(log.lines(counts(excess=1005), 100.0 + INTERVAL)) == [f"1000 {line} in 30 s"]
    assert list(log.lines(counts(excess=1005), 100.0 + 2 * INTERVAL)) == []


def test_each_kind_has_a_line_and_drops_that_are_left_out_have_their_reasons() -> None:
    log = FloodLog(counts(denied=10))

    assert list(log.lines(counts(denied=30, known=1, openings=2, limited=3, unlogged=15), 0.0)) == [
        "1 packets of known flows were lost, because their queue was full",
        "2 openings within their budgets were lost, because their queue was full",
        "3 openings beyond their budgets were dropped by the rules, which limit the rate of all of them",
        "15 drops and new flows were left out of the flow log; packets dropped meanwhile: POLICY_DENIED 20",
    ]


def test_the_counts_of_a_replaced_worker_begin_anew() -> None:
    log = FloodLog(counts(excess=50))

    assert list(log.lines(counts(excess=10), 0.0)) == []
    assert [line.split()[0] for line in log.lines(counts(excess=12), 1.0)] == ["2"]
    assert list(log.lines(counts(excess=12, unlogged=1), 2.0)) == [
        "1 drops and new flows were left out of the flow log"
    ]
