"""Log of repairs: one line each, fewer if another program undoes each of them."""

import logging

import pytest

from nfq_enforcer.agent.rules_guard import RepairLog
from nfq_enforcer.agent.timings import GuardTimings


def test_each_repair_is_one_line_that_says_what_was_missing(caplog: pytest.LogCaptureFixture) -> None:
    log = RepairLog(GuardTimings())

    log.repaired("set x: is missing", 0.0)
    log.repaired("set y: is missing", 0.1)

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages == [
        f"rules were changed by another program and have been repaired: set {name}: is missing" for name in "xy"
    ]


def test_many_repairs_are_counted_in_a_later_line(caplog: pytest.LogCaptureFixture) -> None:
    log = RepairLog(GuardTimings(log_lines=2, log_period=60))
    for now in range(5):
        log.repaired("set x: is missing", now)
    assert len(caplog.messages) == 2

    log.repaired("set y: is missing", 61.0)

    assert caplog.messages[2].endswith("set y: is missing (3 more repairs since the last of these lines)")
