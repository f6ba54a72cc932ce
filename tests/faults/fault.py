"""Fault: an injection into the stage, with its limits, and the measurement of a number of injections."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nfq_enforcer.core.modes import FailMode
from tests.faults.rows import Counts, Limits, Row
from tests.faults.stage import Stage
from tests.support.labs import PER_FLOW

BEFORE, AFTER = 0.3, 0.5  # s of traffic before a fault, and after the recovery from it
RATE, FORBIDDEN_RATE = 60.0, 120.0  # new connections and forbidden packets, in 1/s

Inject = Callable[[Stage, int], Awaitable[Counts | None]]


@dataclass(frozen=True)
class Fault:
    """Fault: a function that injects it and returns after the recovery, with its costs.

    The function takes the stage and the number of the injection, from 0. It may return counts of its own traffic.
    """

    name: str
    inject: Inject
    limits: Limits = field(default_factory=Limits)
    per_flow: Limits | None = None  # with datapath per-flow, if they differ
    flows: int = 0  # allowed flows besides those of the stage
    rate: float = RATE
    fail: FailMode = FailMode.CLOSED  # of the agents
    short: int = 1  # injections in the short form
    short_per_flow: int = 0  # further ones there, with datapath per-flow
    spoils: bool = False  # the kernel's record of the flows, which a later start of a worker would import
    times: int | None = None  # injections of a full run, if they are limited


async def measure(stage: Stage, fault: Fault, times: int, flows: int | None = None) -> Row:
    """Inject a fault a number of times under traffic; ``flows`` replaces the number of additional flows."""
    total, limits = Counts(), limits_of(stage, fault)
    for number in range(times):
        more = stage.many_flows(fault.flows if flows is None else min(flows, fault.flows))
        async with stage.counted(fault.rate, FORBIDDEN_RATE, more, may_cut=limits.cuts > 0) as counts:
            await asyncio.sleep(BEFORE)
            counts.since = time.monotonic()
            own = await fault.inject(stage, number)
            await asyncio.sleep(AFTER)
        total.merge(counts)
        if own is not None:
            total.merge(own)
        if fault.spoils:
            await stage.renew_flows()
    return Row(fault.name, times, total, limits)


def limits_of(stage: Stage, fault: Fault) -> Limits:
    """Return the limits of a fault in the stage's datapath mode."""
    return fault.per_flow or fault.limits if stage.settings["datapath"] == PER_FLOW else fault.limits
