"""Faults of the host's resources: disk full or read-only, descriptors used up, locks and tables of iptables held."""

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nfq_enforcer.lab.node import LabNode
from tests.faults.disks import full, read_only, state_of
from tests.faults.fault import Fault, Inject
from tests.faults.processes import DOWN
from tests.faults.rows import Counts, Limits
from tests.faults.rules import UNTIL_REPAIRED
from tests.faults.stage import LOOK, Stage
from tests.support.labs import kill, run_in, until
from tests.support.mounts import enter_mounts, xtables_locked
from tests.support.processes import Effort

_STAY = 3.0  # s for which a resource is missing
# Without descriptors an agent may use half of a processor, wake up 200 times a second, and log so many lines. On a busy
# machine it uses less of a processor, and does not wake up more often.
_SHARE, _WAKE_UPS, _LINES = 0.5, 200.0, 20
_CLIENTS = 200
_LOCKED = 30.0  # s
_NO_WORKER = Limits(refuses=True, why="another worker needs descriptors, and starts when the agent has some again")
_RULES = 30_000


# -- disks ------------------------------------------------------------------------------------------------------------


def _unsaved(node: LabNode) -> bool:
    return node.status()["store"]["unsaved"] is not None


async def _fill_disk(stage: Stage, number: int) -> None:
    """Change policy, and start the agent anew, while its state cannot be saved."""
    node = stage.node(number)
    with full(state_of(stage.lab, node.name)):
        await _change_until_unsaved(stage, node)
        await asyncio.to_thread(node.start_anew)
    await stage.change_policy("disk")
    await stage.lab.withdraw("disk")
    await until(lambda: not _unsaved(node), interval=LOOK)


async def _change_until_unsaved(stage: Stage, node: LabNode) -> None:
    """Change policy until a save fails: the log of the state has some room of its own."""
    for number in range(20):
        await stage.change_policy(f"disk-{number % 2}")
        if _unsaved(node):
            break
    assert _unsaved(node)
    for name in ("disk-0", "disk-1"):
        with contextlib.suppress(FileNotFoundError):
            await stage.lab.withdraw(name)


async def _start_on_full_disk(stage: Stage, number: int) -> None:
    node = stage.node(number)
    await asyncio.to_thread(node.stop, signal.SIGKILL)
    with full(state_of(stage.lab, node.name)):
        await stage.restart_agent(node)


async def _start_on_read_only_disk(stage: Stage, number: int) -> None:
    node = stage.node(number)
    await asyncio.to_thread(node.stop, signal.SIGKILL)
    with read_only(state_of(stage.lab, node.name)):
        await stage.restart_agent(node)
        await stage.change_policy("disk")
        await until(lambda: _unsaved(node), interval=LOOK)
    enter_mounts(node.pid, "mount", "-o", "remount,rw,bind", str(state_of(stage.lab, node.name)))
    await stage.lab.withdraw("disk")
    await until(lambda: not _unsaved(node), interval=LOOK)


# -- descriptors ------------------------------------------------------------------------------------------------------


def _use_up_descriptors(*, kills: bool) -> Inject:
    async def inject(stage: Stage, number: int) -> Counts:
        node = stage.node(number)
        pid, lines = int(node.status()["workers"][0]["pid"]), _log_lines(node)
        before = Effort.of(node.pid)
        async with _without_descriptors(node):
            if kills:
                kill(pid)
            await asyncio.sleep(_STAY)
            effort, lines = Effort.of(node.pid).since(before), _log_lines(node) - lines
        assert lines <= _LINES, node.log.read_text()
        assert effort.cpu <= _SHARE * effort.elapsed, effort
        assert effort.wake_ups <= _WAKE_UPS * effort.elapsed, effort
        await until(lambda: _works(node, pid if kills else None), interval=LOOK)
        return Counts(figures=[f"the agent {effort.text}, and logged {lines} lines"])

    return inject


def _log_lines(node: LabNode) -> int:
    return len(node.log.read_text().splitlines())


@asynccontextmanager
async def _without_descriptors(node: LabNode) -> AsyncIterator[None]:
    """Leave the agent two free descriptors, and connect clients to its API."""
    used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    before = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 2, before[1]))
    writers = []
    try:
        for _ in range(_CLIENTS):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(node.socket)
                writers.append(writer)
        yield
    finally:
        for writer in writers:
            writer.close()
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, before)


def _works(node: LabNode, old: int | None) -> bool:
    status = node.status()
    return bool(status["rules"]["intact"]) and status["workers"][0]["pid"] not in (old, None)


# -- locks ------------------------------------------------------------------------------------------------------------


async def _load_rules(stage: Stage, number: int) -> None:
    """Load many rules of others in one transaction, and change policy meanwhile."""
    node = stage.node(number)
    rules = "".join(f"-A OTHERS -s 192.0.2.{n % 256} -p tcp --dport {1 + n % 60000} -j DROP\n" for n in range(_RULES))
    text = f"*filter\n:OTHERS - [0:0]\n{rules}COMMIT\n"
    load = asyncio.to_thread(run_in, stage.lab, node.name, "iptables-restore", "--noflush", text=text)
    loading = asyncio.ensure_future(load)
    while not loading.done():
        await stage.change_policy("locked")
    await loading
    await asyncio.to_thread(run_in, stage.lab, node.name, "sh", "-c", "iptables -F OTHERS; iptables -X OTHERS")
    await stage.lab.withdraw("locked")


async def _hold_lock(stage: Stage, number: int) -> None:
    """Hold the lock of iptables in the agent's mount namespace; flush rules with nft, which does not take it."""
    node = stage.node(number)
    with xtables_locked(stage.lab, node):
        released = asyncio.create_task(asyncio.sleep(_LOCKED))
        before = node.status()["rules"]["repairs"]
        flush = "; ".join(f"nft flush chain {family} security NFQE-QUEUE" for family in ("ip", "ip6"))
        await asyncio.to_thread(run_in, stage.lab, node.name, "sh", "-c", flush)
        await until(lambda: node.status()["rules"]["repairs"] > before, interval=LOOK)
        await stage.change_policy("locked")
        await stage.lab.withdraw("locked")
        await released


FAULTS = [
    Fault("disk full: policy changed, agent started anew", _fill_disk),
    Fault("disk full: agent killed, started again", _start_on_full_disk, DOWN, short=0),
    Fault("state read-only: agent killed, started again", _start_on_read_only_disk, DOWN),
    Fault("descriptors used up", _use_up_descriptors(kills=False)),
    Fault("descriptors used up, then the worker killed", _use_up_descriptors(kills=True), _NO_WORKER, short=0),
    Fault(f"{_RULES:,} rules of others loaded at once", _load_rules, short=0),
    Fault(f"xtables lock held for {_LOCKED:.0f} s", _hold_lock, UNTIL_REPAIRED, short=0, times=1),
]
