"""Faults of the store: killed, stopped, silent, slow, emptied, full, read-only, restored from an old dump."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nfq_enforcer.lab.store import PORT
from nfq_enforcer.lab.topology import STORE
from tests.faults.fault import Fault
from tests.faults.stage import LOOK, Stage
from tests.support.labs import run_in, until
from tests.support.processes import stopped

_AWAY = 4.0  # s for which the store is away; commands time out after 2 s
_BACK = 30.0  # s for all nodes to be connected again
# Accepts connections; sends nothing, or a byte each second.
_IMPOSTOR = """
import asyncio, sys

address, port, slow = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "slow"

async def serve(reader, writer):
    while True:
        if slow:
            writer.write(b"+")
        await asyncio.sleep(1)

async def main():
    server = await asyncio.start_server(serve, address, port)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def _connected(stage: Stage) -> bool:
    return all(node.status()["store"]["connected"] for node in stage.lab.nodes.values())


async def _recovered(stage: Stage) -> None:
    await until(lambda: _connected(stage), _BACK, LOOK)


async def _lost(stage: Stage) -> None:
    """Wait until every node reports that it has no store."""
    await until(lambda: not any(node.status()["store"]["connected"] for node in stage.lab.nodes.values()), _BACK, LOOK)


def _call(stage: Stage, *command: str) -> str:
    """Return the store's answer to a command."""
    address = str(stage.lab.address(STORE))
    return run_in(stage.lab, STORE, "redis-cli", "-h", address, "-p", str(PORT), *command)


async def _kill(stage: Stage, _: int) -> None:
    store = stage.lab.store
    await asyncio.to_thread(store.save)
    await asyncio.to_thread(store.kill)
    await _lost(stage)
    await asyncio.to_thread(store.start)
    await _recovered(stage)


async def _stop(stage: Stage, _: int) -> None:
    with stopped(stage.lab.store.pid):
        await _lost(stage)
        await asyncio.sleep(_AWAY)
    await _recovered(stage)


@asynccontextmanager
async def _impostor(stage: Stage, kind: str) -> AsyncIterator[None]:
    """Run a server that is no Redis in place of the store."""
    await asyncio.to_thread(stage.lab.store.save)
    await asyncio.to_thread(stage.lab.store.kill)
    program = [sys.executable, "-I", "-S", "-c", _IMPOSTOR, str(stage.lab.address(STORE)), str(PORT), kind]
    command = stage.lab.network.command(STORE, program)
    impostor = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert impostor.stdout is not None
        assert await impostor.stdout.readline() == b"ready\n"
        yield
    finally:
        impostor.kill()
        await impostor.wait()
        await asyncio.to_thread(stage.lab.store.start)


async def _silent(stage: Stage, _: int) -> None:
    async with _impostor(stage, "silent"):
        await _lost(stage)
        await asyncio.sleep(_AWAY)
    await _recovered(stage)


async def _slow(stage: Stage, _: int) -> None:
    async with _impostor(stage, "slow"):
        await _lost(stage)
        await asyncio.sleep(_AWAY)
    await _recovered(stage)


async def _start_without(stage: Stage, number: int) -> None:
    """Start an agent anew, under its open flows, while the store accepts connections and never answers."""
    async with _impostor(stage, "silent"):
        await _lost(stage)
        await asyncio.to_thread(stage.node(number).start_anew)
    await _recovered(stage)


async def _empty(stage: Stage, _: int) -> None:
    await asyncio.to_thread(_call, stage, "FLUSHALL")
    await until(lambda: int(_call(stage, "DBSIZE") or 0) > 0, _BACK, LOOK)
    await _recovered(stage)


async def _full(stage: Stage, _: int) -> None:
    await asyncio.to_thread(_call, stage, "CONFIG", "SET", "maxmemory", "1")
    try:
        await asyncio.sleep(_AWAY)
    finally:
        await asyncio.to_thread(_call, stage, "CONFIG", "SET", "maxmemory", "0")
    await _recovered(stage)


async def _read_only(stage: Stage, _: int) -> None:
    await asyncio.to_thread(_call, stage, "REPLICAOF", "192.0.2.1", "6379")
    try:
        await asyncio.sleep(_AWAY)
    finally:
        await asyncio.to_thread(_call, stage, "REPLICAOF", "NO", "ONE")
    await _recovered(stage)


async def _old_dump(stage: Stage, number: int) -> None:
    """Restart the store from a dump without the policy's last change, which the nodes have."""
    await asyncio.to_thread(stage.lab.store.save)
    await stage.change_policy(f"old-{number}")
    await asyncio.to_thread(stage.lab.store.restart)
    await _recovered(stage)
    await stage.lab.withdraw(f"old-{number}")


FAULTS = [
    Fault("store killed, started again with its data", _kill, short=0),
    Fault("store stopped (SIGSTOP)", _stop, short=0),
    Fault("store accepts connections and never answers", _silent, short=0),
    Fault("store answers one byte a second", _slow, short=0),
    Fault("agent started anew while the store never answers", _start_without),
    Fault("store emptied (FLUSHALL)", _empty),
    Fault("store's memory full", _full, short=0),
    Fault("store read-only", _read_only),
    Fault("store restored from an old dump", _old_dump),
]
