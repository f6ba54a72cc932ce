"""Hand-over to a successor: the agent executes itself anew (execve(2)), and its workers return verdicts meanwhile.

The process keeps its id, so the service manager sees no restart, and the successor is the parent of the old workers.
It inherits their channels: a worker ends when its channel closes. The order is:

1. The agent leaves the store and closes its API, but removes no rule and stops no worker. Then it executes itself.
2. The successor starts workers on other queue numbers; these import the kernel's flows as every worker does.
3. It replaces the rules. From then on the kernel queues packets to the new workers, which import the flows that the
   old ones have accepted since step 2.
4. It closes the channels. The old workers return verdicts for packets that still wait, and end. The new workers then
   import the flows of those packets, too.

If the successor fails, its end closes the channels, and the rules stay; ``fail`` applies then, as after a crash.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from nfq_enforcer.dataplane.queue.protocol import QUEUE_COUNT, QUEUES_OF_WORKER
from nfq_enforcer.dataplane.worker.process import DetachedWorker

VARIABLE = "NFQE_HANDOVER"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_END = 5.0  # s, for old workers to end
_POLL = 0.05  # s


class Predecessor(NamedTuple):
    """Predecessor: the workers and the epoch of an agent that has executed itself anew."""

    workers: tuple[DetachedWorker, ...] = ()
    epoch: int = 0  # of offloaded flows, the last one

    def first_queue(self, configured: int, workers: int) -> int:
        """Return the first queue number for this many workers: the configured one, or one behind the old workers'."""
        taken = {number for worker in self.workers for number in worker.queues}
        wanted = workers * QUEUES_OF_WORKER
        if not taken.intersection(range(configured, configured + wanted)):
            return configured
        behind = max(taken) + 1
        return behind if behind + wanted <= QUEUE_COUNT else configured

    async def release(self) -> None:
        """Let the old workers end; kill those that do not."""
        for worker in self.workers:
            with suppress(OSError):
                os.close(worker.channel)
        await asyncio.gather(*(_reap(worker.pid) for worker in self.workers))


async def _reap(pid: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _END
    with suppress(ChildProcessError, ProcessLookupError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if loop.time() > deadline:
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL)


def take(environment: MutableMapping[str, str]) -> Predecessor:
    """Return the predecessor that the environment describes, and remove it from there; an empty one if it has none."""
    text = environment.pop(VARIABLE, None)
    if text is None:
        return Predecessor()
    data = json.loads(text)
    workers = tuple(DetachedWorker(pid, channel, tuple(queues)) for pid, channel, queues in data["workers"])
    for worker in workers:
        os.set_inheritable(worker.channel, False)  # otherwise the new workers and iptables would hold it open
    return Predecessor(workers, data["epoch"])


def execute(workers: Sequence[DetachedWorker], epoch: int) -> NoReturn:
    """Execute this program anew, with its arguments and the channels of these workers."""
    for worker in workers:
        os.set_inheritable(worker.channel, True)
    environment = {**os.environ, VARIABLE: json.dumps({"workers": workers, "epoch": epoch})}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def hold_signals() -> None:
    """Keep signals pending, also through ``execute``, until ``receive_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def receive_signals() -> None:
    """Receive signals, including those that came since ``hold_signals``."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
