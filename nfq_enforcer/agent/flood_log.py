"""Flood log: one line for each kind of loss in a flood, with its count, at an interval.

The kinds are: packets that a queue had no room for, by queue; openings that the rules dropped beyond the budgets; drops
that were left out of the flow log, with the reasons of all drops meanwhile. ``FloodLog`` is pure; ``run`` reads the
counts.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.dataplane.queue.protocol import backlog
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_CHECK = 1.0  # s between two looks at the counts
_BUSY = 10_000  # verdicts between two looks, without which no limit of the rules is exceeded
INTERVAL = 30.0  # s between two lines of a kind
_KINDS = {
    "known": "packets of known flows were lost, because their queue was full",
    "openings": "openings within their budgets were lost, because their queue was full",
    "excess": "openings beyond their budgets were lost, because their queue was full",
    "limited": "openings beyond their budgets were dropped by the rules, which limit the rate of all of them",
    "unlogged": "drops and new flows were left out of the flow log",
}


class Counts(NamedTuple):
    """Counts so far."""

    losses: Mapping[str, int]  # by kind
    drops: Mapping[DropReason, int]


class FloodLog:
    """Flood log: turns growing counts into lines."""

    def __init__(self, counts: Counts) -> None:
        """Begin with the present counts."""
        self._last = dict.fromkeys(_KINDS, counts)  # at the last line of each kind
        self._due = dict.fromkeys(_KINDS, 0.0)  # time of the next line of each kind
        self._logged: dict[str, float] = {}

    def lines(self, counts: Counts, now: float) -> Iterator[str]:
        """Yield a line for each kind that has grown, at most one in an interval."""
        for kind, text in _KINDS.items():
            before = self._last[kind]
            if counts.losses[kind] < before.losses[kind]:  # a worker was replaced, and its queues with it
                self._last[kind] = counts
            elif counts.losses[kind] > before.losses[kind] and now >= self._due[kind]:
                since = f" in {now - self._logged[kind]:.0f} s" if kind in self._logged else ""
                self._last[kind], self._due[kind], self._logged[kind] = counts, now + INTERVAL, now
                more = _reasons(before, counts) if kind == "unlogged" else ""
                yield f"{counts.losses[kind] - before.losses[kind]} {text}{since}{more}"


def _reasons(before: Counts, after: Counts) -> str:
    new = {reason: after.drops[reason] - before.drops[reason] for reason in after.drops}
    listed = ", ".join(f"{reason} {count}" for reason, count in new.items() if count > 0)
    return f"; packets dropped meanwhile: {listed}" if listed else ""


async def run(workers: Workers, rules: Rules) -> None:
    """Log floods; never return."""
    reader = _CountReader(workers, rules)
    flood_log = FloodLog(await reader.read())
    while True:
        await asyncio.sleep(_CHECK)
        for line in flood_log.lines(await reader.read(), time.monotonic()):
            _log.warning("%s", line)


class _CountReader:
    """Count reader: reads the counts of workers and queues, and under load those of the rules."""

    def __init__(self, workers: Workers, rules: Rules) -> None:
        self._workers = workers
        self._rules = rules
        self._verdicts = 0
        self._limited = 0

    async def read(self) -> Counts:
        """Return the present counts."""
        queues = self._workers.queues
        losses = {
            "known": _lost(number for one in queues for number in one.known),
            "openings": _lost(one.openings for one in queues),
            "excess": _lost(one.excess for one in queues),
        }
        verdicts, before = self._workers.verdicts, self._verdicts
        if verdicts - before > _BUSY:
            with suppress(NfqError):  # the rules guard reports unreadable rules
                self._limited = (await asyncio.to_thread(self._rules.counts)).rate_limited
        self._verdicts = verdicts
        counters = self._workers.state.counters
        losses |= {"limited": self._limited, "unlogged": counters["events_lost"]}
        return Counts(losses, {reason: counters[reason] for reason in DropReason})


def _lost(numbers: Iterable[int]) -> int:
    found = backlog(*numbers)
    return found.lost if found else 0
