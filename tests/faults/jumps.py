"""Faults of the clock: the wall clock of a node, of the store, or of all jumps by an hour, in either direction."""

import asyncio

from nfq_enforcer.lab.topology import NODES, STORE
from tests.faults.fault import Fault
from tests.faults.stage import LOOK, Stage
from tests.support.labs import until

_HOUR = 3600  # s
_SHORT = ((_HOUR, (STORE,)), (-_HOUR, (*NODES, STORE)))  # in the short form
_BEATS = 7.0  # s in which every node has sent a heartbeat, which may start a garbage collection


def _jump(seconds: int, *machines: str) -> Fault:
    async def inject(stage: Stage, number: int) -> None:
        for machine in machines or (stage.node(number).name,):
            stage.clocks.jump(machine, seconds)
        await asyncio.sleep(_BEATS)
        await stage.change_policy("clock")
        await stage.lab.withdraw("clock")
        await until(
            lambda: all(node.status()["store"]["connected"] for node in stage.lab.nodes.values()), interval=LOOK
        )

    of = "store's clock" if machines == (STORE,) else "all clocks" if machines else "node's clock"
    back = "back" if seconds < 0 else "forward"
    verb = "jump" if len(machines) > 1 else "jumps"
    return Fault(f"{of} {verb} an hour {back}", inject, short=int((seconds, machines) in _SHORT))


FAULTS = [
    *(_jump(seconds) for seconds in (_HOUR, -_HOUR)),
    *(_jump(seconds, STORE) for seconds in (_HOUR, -_HOUR)),
    *(_jump(seconds, *NODES, STORE) for seconds in (_HOUR, -_HOUR)),
]
