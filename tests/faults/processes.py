"""Faults of the node's own processes: killed, stopped, started anew, upgraded; and the kernel's flows flushed."""

import asyncio
import os
import signal

from nfq_enforcer.core.modes import FailMode
from nfq_enforcer.dataplane.queue.protocol import QUEUE_MAXLEN
from nfq_enforcer.lab.node import LabNode
from tests.faults.fault import Fault
from tests.faults.rows import Limits
from tests.faults.stage import LOOK, SERVER_FIRST, SLOW_BETWEEN_NODES, Stage
from tests.faults.traffic import DATAGRAMS
from tests.support.labs import kill, run_in, until
from tests.support.namespaces import socket_in
from tests.support.processes import stopped

_STOPPED = 3.0  # s for which an agent is stopped
_MANY = 2000
DOWN = Limits(refuses=True, why="fail mode closed: without an agent no packet is accepted until it runs again")
_STUCK = Limits(why="a worker without a heartbeat is replaced within 2 s; packets wait or are lost meanwhile")
_FULL = Limits(refuses=True, why="fail mode closed: packets that find their queue full are lost")
_FORGOTTEN = Limits(
    cuts=SERVER_FIRST,
    why="neither kernel nor worker knows any longer which end has opened a flow: a flow whose server sends first "
    "afterwards is one from backend to frontend, which is forbidden",
)
_FORGOTTEN_PER_FLOW = Limits(
    cuts=SERVER_FIRST,
    client_cuts=SLOW_BETWEEN_NODES,
    why=f"{_FORGOTTEN.why}; of the flows between nodes those that had no packet between the two: the other node still "
    "passes them without a stamp, which this one, knowing no such flow, has to see",
)


def _worker(node: LabNode) -> int:
    return int(node.status()["workers"][0]["pid"])


async def _replaced(node: LabNode, pid: int) -> None:
    await until(lambda: node.status()["workers"][0]["pid"] not in (pid, None), interval=LOOK)


async def _kill_worker(stage: Stage, number: int) -> None:
    node = stage.node(number)
    pid = _worker(node)
    kill(pid)
    await _replaced(node, pid)


async def _stop_worker(stage: Stage, number: int) -> None:
    node = stage.node(number)
    pid = _worker(node)
    os.kill(pid, signal.SIGSTOP)
    await _replaced(node, pid)


async def _fill_queue(stage: Stage, _: int) -> None:
    """Send more datagrams in an open flow than a queue holds, while neither worker nor agent of the sender's node runs.

    The flow has no answers and leaves for another node with stamps, so it is not offloaded. No fault moves its ends.
    """
    node = stage.lab.nodes["n3"]
    worker, lost = _worker(node), int(node.status()["worker"]["lost"])
    with socket_in(stage.lab, "front3") as sender:
        sender.connect((str(stage.lab.address("back1")), DATAGRAMS))
        sender.send(b"no question")
        await asyncio.sleep(LOOK)  # it passes, and the kernel knows the flow
        with stopped(node.pid), stopped(worker):
            for _ in range(3 * QUEUE_MAXLEN):
                sender.send(b"no question")
    await until(lambda: node.status()["worker"]["lost"] > lost, interval=LOOK)


async def _kill_agent(stage: Stage, number: int) -> None:
    node = stage.node(number)
    await asyncio.to_thread(node.stop, signal.SIGKILL)
    await stage.restart_agent(node)


async def _stop_agent(stage: Stage, number: int) -> None:
    node = stage.node(number)
    with stopped(node.pid):
        await asyncio.sleep(_STOPPED)
    await until(lambda: node.status()["rules"]["intact"], interval=LOOK)


async def _reload_agent(stage: Stage, number: int) -> None:
    await asyncio.to_thread(stage.node(number).start_anew)


async def _flush_kernel_flows(stage: Stage, number: int) -> None:
    await asyncio.to_thread(run_in, stage.lab, stage.node(number).name, "conntrack", "-F")


async def _flush_kernel_flows_and_kill(stage: Stage, number: int) -> None:
    await _flush_kernel_flows(stage, number)
    await _kill_worker(stage, number)


FAULTS = [
    Fault("worker killed", _kill_worker),
    Fault("worker stopped (SIGSTOP)", _stop_worker, _STUCK),
    Fault("queue overflows", _fill_queue, _FULL, short_per_flow=1),
    Fault("queue overflows, fail mode open", _fill_queue, fail=FailMode.OPEN),
    Fault("agent killed, started again", _kill_agent, DOWN),
    Fault(f"agent stopped (SIGSTOP) for {_STOPPED:.0f} s", _stop_agent),
    Fault(f"agent started anew (reload) under {_MANY:,} more open flows", _reload_agent, flows=_MANY, short=0),
    Fault("kernel's flows flushed (conntrack -F)", _flush_kernel_flows, spoils=True),
    Fault(
        "kernel's flows flushed, then the worker killed",
        _flush_kernel_flows_and_kill,
        _FORGOTTEN,
        _FORGOTTEN_PER_FLOW,
        short=0,
        spoils=True,
    ),
]
