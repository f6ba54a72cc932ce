"""Faults of the rules: other programs remove, replace or precede them."""

import asyncio

from tests.faults.fault import Fault
from tests.faults.rows import Limits
from tests.faults.stage import LOOK, Stage
from tests.support.labs import run_in, until
from tests.support.removals import FLUSHED_RULESET, REMOVALS, Removal, remove_foreign

_REPAIRED_WITHIN = 2.0  # s, from the removal to the last forbidden packet: a second is promised, to a machine with time
_WHY = (
    "until the rules are restored, which takes up to a second, the kernel queues no packets or not all; a connection "
    "that was opened meanwhile is known by its client's next packet only"
)
UNTIL_REPAIRED = Limits(open_for=_REPAIRED_WITHIN, refuses=True, why=_WHY)


def _removed(removal: Removal) -> Fault:
    async def inject(stage: Stage, number: int) -> None:
        node = stage.node(number)
        before = node.status()["rules"]["repairs"]
        await asyncio.to_thread(run_in, stage.lab, node.name, "sh", "-c", removal.command)
        await until(lambda: (rules := node.status()["rules"])["repairs"] > before and rules["intact"], interval=LOOK)
        await asyncio.to_thread(remove_foreign, stage.lab, node.name)

    return Fault(f"rules: {removal.name}", inject, UNTIL_REPAIRED, short=int(removal is FLUSHED_RULESET))


FAULTS = [_removed(removal) for removal in (FLUSHED_RULESET, *REMOVALS)]
